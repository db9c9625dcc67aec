#!/usr/bin/env bash
# Train on TPUs in GKE by a JobSet (gke_jobset.yaml), in the cluster of the current kubectl context.
#
#   launch/gke.sh submit --config=... --workdir=/runs/...
#   launch/gke.sh status | logs | stop
#
#   JOB_NAME     name of the JobSet
#   for submit: IMAGE (of the Dockerfile, ACCEL=tpu), HOSTS, CHIPS (per host), TPU_ACCELERATOR,
#   TPU_TOPOLOGY, CLAIM (volume claim writable by all hosts, mounted at /runs), MAX_RESTARTS=20
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ "$#" -ge 1 ] || die "usage: $0 submit|status|logs|stop [FLAGS]"
action="$1"
shift
need JOB_NAME

# Print the template with each {NAME} replaced by a JSON string, list or number, which is valid YAML.
manifest() {
  MAX_RESTARTS="$MAX_RESTARTS" python3 -c '
import json, os, pathlib, re, sys
template, *args = sys.argv[1:]
def value(match):
    name = match[1]
    if name == "ARGS":
        return json.dumps(args)
    found = os.environ[name]
    return found if name in ("HOSTS", "CHIPS", "MAX_RESTARTS") else json.dumps(found)
print(re.sub(r"\{([A-Z_]+)\}", value, pathlib.Path(template).read_text()), end="")
' "$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml" "$@"
}

case "$action" in
  submit)
    need IMAGE HOSTS CHIPS TPU_ACCELERATOR TPU_TOPOLOGY CLAIM
    for name in HOSTS CHIPS MAX_RESTARTS; do
      [[ "${!name}" =~ ^[0-9]+$ ]] || die "$name=${!name} must be a whole number"
    done
    filled="$(manifest "$@")"
    [ -z "$DRY_RUN" ] || printf '%s\n' "$filled"
    run kubectl apply --filename=- <<<"$filled"
    ;;
  status) run kubectl get jobset "$JOB_NAME" ;;
  logs)
    run kubectl logs --follow --prefix --tail=100 --max-log-requests=100 \
      --selector="jobset.sigs.k8s.io/jobset-name=$JOB_NAME"
    ;;
  stop) run kubectl delete jobset "$JOB_NAME" ;;
  *) die "$action is none of submit, status, logs, stop" ;;
esac
