#!/usr/bin/env bash
# Train on a Cloud TPU VM: one host or a pod slice.
#
#   launch/tpu_pod.sh create             request the TPU and wait for it
#   launch/tpu_pod.sh queue              request a queued resource, which may wait for days
#   launch/tpu_pod.sh install            copy this checkout to all hosts and make the environment
#   launch/tpu_pod.sh run --config=...   train on all hosts and return their exit code
#   launch/tpu_pod.sh status | logs      print the state of the TPU; follow the log of host 0
#   launch/tpu_pod.sh stop | delete      send TERM to the training, which saves; delete the TPU
#
#   TPU_NAME, TPU_ZONE, TPU_PROJECT      the TPU
#   TPU_TYPE, TPU_VERSION                for create and queue: v5litepod-16, v2-alpha-tpuv5-lite
#   SPOT=1                               request a preemptible TPU
#   BUCKET=name                          mounted by `run` at /mnt/name of every host
#   REMOTE_PYTHON=python3                interpreter of the hosts, 3.11 or newer
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ "$#" -ge 1 ] || die "usage: $0 create|queue|install|run|status|logs|stop|delete [FLAGS]"
action="$1"
shift
need TPU_NAME TPU_ZONE TPU_PROJECT
where=(--zone="$TPU_ZONE" --project="$TPU_PROJECT")
bundle=bljust_jax.tgz

tpus() { run gcloud compute tpus "$@" "${where[@]}"; }

# on_hosts WORKERS LINE: run a line of shell on these hosts.
on_hosts() { tpus tpu-vm ssh "$TPU_NAME" --worker="$1" --command="$2"; }

spot=()
[ -z "${SPOT:-}" ] || spot=(--spot)

case "$action" in
  create)
    need TPU_TYPE TPU_VERSION
    tpus tpu-vm create "$TPU_NAME" --accelerator-type="$TPU_TYPE" --version="$TPU_VERSION" \
      ${spot[@]+"${spot[@]}"}
    ;;
  queue)
    need TPU_TYPE TPU_VERSION
    tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" \
      --accelerator-type="$TPU_TYPE" --runtime-version="$TPU_VERSION" ${spot[@]+"${spot[@]}"}
    ;;
  install)
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    folder="$(mktemp -d)"
    trap 'rm -rf "$folder"' EXIT
    run tar -czf "$folder/$bundle" bljust_jax configs launch Makefile pyproject.toml setup.py \
      README.md requirements.txt requirements.lock
    tpus tpu-vm scp "$folder/$bundle" "$TPU_NAME:$bundle" --worker=all
    on_hosts all "mkdir -p bljust_jax && tar -xzf $bundle -C bljust_jax && \
make -C bljust_jax setup ACCEL=tpu PYTHON=$(quoted "${REMOTE_PYTHON:-python3}")"
    ;;
  run)
    mount="${BUCKET:+launch/mount_bucket.sh $(quoted "${BUCKET:-}") && }"
    on_hosts all "cd bljust_jax && ${mount}launch/on_host.sh run run .venv/bin/python -u \
-m bljust_jax.main --distributed=on $(quoted "$@")"
    ;;
  status) tpus tpu-vm describe "$TPU_NAME" --format="value(state)" ;;
  logs) on_hosts 0 "tail -n 100 -F bljust_jax/run/log" ;;
  stop) on_hosts all "bljust_jax/launch/on_host.sh stop bljust_jax/run" ;;
  delete) tpus tpu-vm delete "$TPU_NAME" --quiet ;;
  *) die "$action is none of create, queue, install, run, status, logs, stop, delete" ;;
esac
