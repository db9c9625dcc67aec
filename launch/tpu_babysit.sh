#!/usr/bin/env bash
# Train on a preemptible TPU to the end: create the TPU, create it again after each preemption, and
# run the same command in the same workdir each time.
#
#   launch/tpu_babysit.sh --config=... --workdir=...
#
# Variables as for tpu_pod.sh. MAX_RESTARTS=100 by default: a failed request for a TPU counts.
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
