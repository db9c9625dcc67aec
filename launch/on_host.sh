#!/usr/bin/env bash
# Run a command that continues when the connection to the host is lost.
#
#   on_host.sh run FOLDER COMMAND...  start it unless it runs, follow its log, return its exit code
#   on_host.sh stop FOLDER            send TERM and wait for its end
#
# After a lost connection call `run` again: it attaches to the running command. FOLDER contains
# `log`, `pid`, `code`, and `lock`, which is held while the command runs.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ "$#" -ge 2 ] || die "usage: on_host.sh run FOLDER COMMAND... | stop FOLDER"
action="$1" folder="$2"
shift 2

runs() { [ -e "$folder/lock" ] && ! flock --nonblock "$folder/lock" true; }

start() {
  rm -f "$folder/code" "$folder/pid"
  # shellcheck disable=SC2016 # expanded by the inner shell
  setsid flock --nonblock "$folder/lock" bash -c '
    folder=$1; shift
    "$@" & echo $! >"$folder/pid"
    code=0; wait $! || code=$?
    echo "$code" >"$folder/code"
  ' _ "$folder" "$@" >>"$folder/log" 2>&1 </dev/null &
  for _ in {1..100}; do
    [ ! -s "$folder/pid" ] || return 0
    sleep 0.1
  done
  die "$folder: the command did not start"
}

case "$action" in
  run)
    mkdir -p "$folder"
    touch "$folder/log"
    size="$(stat --format=%s "$folder/log")"
    if ! runs; then start "$@"; fi
    tail --bytes=+"$((size + 1))" --follow --pid="$(cat "$folder/pid")" "$folder/log"
    flock "$folder/lock" true
    if [ -s "$folder/code" ]; then exit "$(cat "$folder/code")"; fi
    exit 137 # the command and the shell around it were killed
    ;;
  stop)
    if runs; then
      kill -TERM "$(cat "$folder/pid")"
      flock "$folder/lock" true
    fi
    ;;
  *) die "$action: neither run nor stop" ;;
esac
