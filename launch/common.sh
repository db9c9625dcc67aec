# Shared by the launchers, which source it.
#
#   DRY_RUN=1         print every command, run none
#   MAX_RESTARTS=20   restarts at most
#   PAUSE=10          seconds before the first restart; doubled each time, up to ten minutes
# shellcheck shell=bash

: "${DRY_RUN:=}" "${MAX_RESTARTS:=20}" "${PAUSE:=10}"
LONGEST_PAUSE=600
child=""   # the process that `supervise` waits for
stopped="" # the signal that has told us to stop

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 2
}

# need NAME...: one line for the environment variables that are not set.
need() {
  local name missing=()
  for name in "$@"; do
    [ -n "${!name:-}" ] || missing+=("$name")
  done
  [ "${#missing[@]}" -eq 0 ] || die "set ${missing[*]}, as in: ${missing[0]}=... $0 ..."
}

# quoted WORD...: one line that a shell reads as the same words.
quoted() {
  local line
  printf -v line ' %q' "$@"
  printf '%s\n' "${line# }"
}

# run COMMAND...: runs it, or prints it in a dry run.
run() {
  if [ -n "$DRY_RUN" ]; then quoted "$@"; else "$@"; fi
}

# may_restart CODE: whether the same command may go on after it ended with CODE. Not when it is done
# (0), met a mistake in config or data (2) or was interrupted (130). After a preemption (75), with
# missing hosts (69) or a host that died it may.
may_restart() {
  case "$1" in 0 | 2 | 130) return 1 ;; esac
}

# supervise COMMAND...: runs it again, after a pause, as long as it may go on. TERM and INT are
# handed on to the command; it ends as it likes, and is not run again.
supervise() {
  local code restarts=0 pause="$PAUSE"
  trap 'hand_on TERM' TERM
  trap 'hand_on INT' INT
  while true; do
    code=0
    in_own_group "$@" || code=$?
    if ! may_restart "$code" || [ -n "$stopped" ]; then return "$code"; fi
    if [ "$restarts" -ge "$MAX_RESTARTS" ]; then
      say "exit code $code after $restarts restarts: giving up"
      return "$code"
    fi
    restarts=$((restarts + 1))
    [ "$code" -ne 75 ] || pause="$PAUSE"
    say "exit code $code: restart $restarts of $MAX_RESTARTS in $pause s"
    in_own_group sleep "$pause" || true
    [ -z "$stopped" ] || return "$code"
    pause=$((pause * 2 < LONGEST_PAUSE ? pause * 2 : LONGEST_PAUSE))
  done
}

# A process group of its own, so that a signal reaches what the command has started, too. The shell
# between (where COMMAND is a function) waits for the command's end instead of dying first.
in_own_group() {
  local code=0 again=0
  set -m
  (
    trap : TERM INT
    "$@"
  ) </dev/null &
  child=$!
  set +m
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal has ended `wait`
  wait "$child" || again=$?
  [ "$again" -eq 127 ] || code="$again" # what the shell remembers of the command
  child=""
  return "$code"
}

hand_on() {
  stopped="$1"
  [ -z "$child" ] || kill "-$1" -- "-$child" 2>/dev/null || true
}
