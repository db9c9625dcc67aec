"""python -m bljust_jax.main --config=configs/X.py[:variant,...] [--workdir=DIR] [--config.a.b=value
...]

Trains, evaluates and writes DIR. The last line on stdout is one JSON object with the final metrics;
logs go to stderr. Exit 0: done; 75: preempted, run the same command again; 2: a mistake in config
or data, in one line.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags
from ml_collections import config_flags

from bljust_jax.errors import UserError

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", "", "default: runs/<config>-<variant>")

DONE, MISTAKE, PREEMPTED = 0, 2, 75


def main() -> int:
    try:
        config, workdir = parse(sys.argv)
        import jax

        from bljust_jax import train

        print_devices(jax)
        result = train.run(config, workdir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    if result is None:
        return PREEMPTED
    print(json.dumps(result), flush=True)
    return DONE


def parse(argv: list[str]):
    """Flags -> (config, workdir); whatever is wrong with them becomes a `UserError`."""
    try:
        rest = FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags start with --")
    if CONFIG.value is None:
        raise UserError("--config is required, for example --config=configs/quickstart.py")
    name = pathlib.Path(FLAGS["config"].config_filename.split(":")[0]).stem
    variant = CONFIG.value.variant.replace(",", "-")
    default = f"runs/{name}-{variant}" if variant else f"runs/{name}"
    return CONFIG.value, pathlib.Path(WORKDIR.value or default)


def print_devices(jax) -> None:
    devices = jax.devices()
    kinds = ", ".join(sorted({d.device_kind for d in devices}))
    print(f"devices: {len(devices)} x {kinds} ({jax.default_backend()})", file=sys.stderr)
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        if listed.returncode == 0 and "GPU" in listed.stdout:
            print(
                "warning: an NVIDIA GPU is present and unused: "
                "install with `make ACCEL=cuda setup`",
                file=sys.stderr,
            )


if __name__ == "__main__":
    sys.exit(main())
