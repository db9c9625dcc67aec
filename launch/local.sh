#!/usr/bin/env bash
# Train on one machine, or on one of several, with restarts after a crash.
#
#   launch/local.sh --config=configs/quickstart.py [flags of bljust_jax.main]
#
#   PYTHON=.venv/bin/python
#   FAKE_DEVICES=8   number of CPU devices, to test a mesh without accelerators
#   and DRY_RUN, MAX_RESTARTS, PAUSE of common.sh
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${PYTHON:=.venv/bin/python}"
command=("$PYTHON" -m bljust_jax.main "$@")
if [ -n "${FAKE_DEVICES:-}" ]; then
  command=(env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$FAKE_DEVICES" "${command[@]}")
fi
supervise run "${command[@]}"
