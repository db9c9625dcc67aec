#!/usr/bin/env bash
# One machine, or one of several that were told of each other: trains, and goes on after a crash.
#
#   launch/local.sh --config=configs/quickstart.py [flags of bljust_jax.main]
#
#   PYTHON=.venv/bin/python
#   FAKE_DEVICES=8   so many CPU devices, to try a mesh without the hardware
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
