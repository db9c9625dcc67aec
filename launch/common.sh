# Functions of the launchers: dry run, restarts, forwarded signals. To be sourced.
#
#   DRY_RUN=1         print every command, run none
#   MAX_RESTARTS=20   maximum number of restarts
#   PAUSE=10          seconds before the first restart, doubled each time up to ten minutes
# shellcheck shell=bash

: "${DRY_RUN:=}" "${MAX_RESTARTS:=20}" "${PAUSE:=10}"
LONGEST_PAUSE=600
child=""   # process group that `supervise` waits for
stopped="" # TERM or INT once it was received

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 2
}

# need NAME...: end with one line that names the environment variables that are not set.
need() {
  local name missing=()
  for name in "$@"; do
    [ -n "${!name:-}" ] || missing+=("$name")
  done
  [ "${#missing[@]}" -eq 0 ] || die "set ${missing[*]}, as in: ${missing[0]}=... $0 ..."
}

# quoted WORD...: print the words on one line, quoted for a shell.
quoted() {
  local line
  printf -v line ' %q' "$@"
  printf '%s\n' "${line# }"
}

# run COMMAND...: run it, or print it in a dry run.
run() {
  if [ -n "$DRY_RUN" ]; then quoted "$@"; else "$@"; fi
}

# may_restart CODE: whether to restart a command that ended with CODE: not when it is done (0), found
# a mistake in config or data (2) or was interrupted (130); after a preemption (75), with missing
# hosts (69) and after the death of a host.
may_restart() {
  case "$1" in 0 | 2 | 130) return 1 ;; esac
}

# supervise COMMAND...: run it and restart it, after a pause, as `may_restart` decides. TERM and INT
# are forwarded to the command, which is then not restarted.
supervise() {
  local code restarts=0 pause="$PAUSE"
  trap 'forward TERM' TERM
  trap 'forward INT' INT
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

# in_own_group COMMAND...: run it in its own process group, so that a signal also reaches its
# children. The subshell (COMMAND may be a function) ignores signals until the command has ended.
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
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal ends `wait`
  wait "$child" || again=$?
  [ "$again" -eq 127 ] || code="$again" # 127: the shell no longer has the exit code
  child=""
  return "$code"
}

forward() {
  stopped="$1"
  [ -z "$child" ] || kill "-$1" -- "-$child" 2>/dev/null || true
}
