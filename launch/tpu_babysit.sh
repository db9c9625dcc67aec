#!/usr/bin/env bash
# Trains on a preemptible TPU to the end: makes the TPU, makes it again when it is taken away, and
# runs the same command in the same workdir each time.
#
#   launch/tpu_babysit.sh --config=... --workdir=...
#
# The variables are those of tpu_pod.sh. MAX_RESTARTS=100 here: a TPU that cannot be had counts.
set -euo pipefail
: "${MAX_RESTARTS:=100}"
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need TPU_NAME TPU_ZONE TPU_PROJECT TPU_TYPE TPU_VERSION
pod() { "$(dirname "${BASH_SOURCE[0]}")/tpu_pod.sh" "$@"; }

once() {
  local state=""
  [ -n "$DRY_RUN" ] || state="$(pod status 2>/dev/null)" || state=""
  case "$state" in
    READY) ;;
    "") pod create && pod install || return 1 ;;
    CREATING | STARTING | REPAIRING | RESTARTING | DELETING)
      say "$TPU_NAME is $state"
      return 1
      ;;
    *) # PREEMPTED, TERMINATED, STOPPED, ...
      say "$TPU_NAME is $state: making it again"
      pod delete && pod create && pod install || return 1
      ;;
  esac
  pod run "$@"
}

supervise once "$@"
