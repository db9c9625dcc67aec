"""python -m bljust_jax.main --config=configs/X.py[:variant,...] [--workdir=DIR] [--config.a.b=value
...]

Trains, evaluates and writes DIR (by default runs/<config>-<variant>). --help_config prints every
field of the config: value, type, range or choices, meaning. The last line on stdout is one JSON
object with the final metrics; logs go to stderr. Exit 0: done; 75: preempted, run the same command
again; 2: a mistake in config or data, in one line; 69: other hosts, or a disk, did not answer.

A run goes on from the newest whole checkpoint of DIR. Where DIR holds a run of another config, that
is refused with the difference; --allow_config_change goes on nevertheless.

On several hosts, the same command on each, with a workdir that all of them see. Slurm, TPU pods,
Open MPI and indexed Kubernetes Jobs are found by themselves; elsewhere
    --coordinator_address=HOST[:PORT] --num_processes=N --process_id=0|1|...|N-1
HOST being that of process 0. --distributed=off: this process alone; on: never alone.
--coordinator_port=PORT, --init_timeout=SECONDS until all hosts are up, --heartbeat_timeout=SECONDS
after which a silent host is taken for dead.

--profile_steps=A:B records steps A to B - 1 in DIR/profile, for TensorBoard and Perfetto.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import traceback
from typing import Any

BEGAN = time.monotonic()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags
from ml_collections import ConfigDict, config_flags

from bljust_jax.common import config_schema
from bljust_jax.common.cli import DONE, PREEMPTED, guard
from bljust_jax.common.errors import UserError, nearest
from bljust_jax.data import settings
from bljust_jax.monitoring import profiler
from bljust_jax.parallel import cluster

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", "", "default: runs/<config>-<variant>")
flags.DEFINE_string("profile_steps", "", "A:B, the steps to record in WORKDIR/profile")
flags.DEFINE_bool("help_config", False, "print all fields of --config and exit")
flags.DEFINE_bool("allow_config_change", False, "go on with a run of another config")
flags.DEFINE_enum("distributed", "auto", ["auto", "on", "off"], "whether to join other hosts")
flags.DEFINE_string("coordinator_address", "", "HOST[:PORT] of process 0")
flags.DEFINE_integer("coordinator_port", 0, "where process 0 listens")
flags.DEFINE_integer("num_processes", None, "of all hosts together")
flags.DEFINE_integer("process_id", None, "of this process, from 0")
flags.DEFINE_integer("init_timeout", cluster.Asked().init_timeout, "seconds until all are up")
flags.DEFINE_integer("heartbeat_timeout", cluster.Asked().heartbeat_timeout, "seconds of silence")


def main() -> int:
    if {"--help", "-help", "-h"} & set(sys.argv[1:]):
        print(__doc__.strip())
        return DONE
    try:
        code = guard(run, "interrupted; run the same command again to go on")
    except Exception:
        traceback.print_exc()
        code = CRASHED
    if code not in (DONE, PREEMPTED):
        cluster.leave(code)
    return code


def run() -> int:
    config, workdir = parse(sys.argv)
    if FLAGS["help_config"].value:
        print(config_schema.describe(config))
        return DONE
    settings.check(config.data)
    config_schema.check(config)
    profile_steps = profiler.parse(FLAGS["profile_steps"].value)
    asked = cluster.Asked(*(FLAGS[name].value for name in cluster.Asked._fields))
    found = cluster.choose(asked)
    if found:
        cluster.join(found, asked)
    print_devices(asked)
    import jax

    from bljust_jax.train import loop

    allow_config_change = FLAGS["allow_config_change"].value
    result = loop.run(config, workdir, loop.RunOptions(BEGAN, profile_steps, allow_config_change))
    if result is None:
        return PREEMPTED
    if jax.process_index() == 0:
        print(json.dumps(result), flush=True)
    return DONE


CRASHED = 1


def parse(argv: list[str]) -> tuple[ConfigDict, pathlib.Path]:
    """Flags -> (config, workdir); whatever is wrong with them becomes a `UserError`."""
    given = config_given(argv)
    if not given and any(arg.startswith("--config.") for arg in argv):
        raise UserError(NO_CONFIG)
    name = pathlib.Path(given.partition(":")[0])
    try:
        rest = FLAGS(argv)
    except (SyntaxError, ImportError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"{name}{line}: is no working config: {error}") from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(explain(error, given, argv)) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags start with --")
    if CONFIG.value is None:
        raise UserError(NO_CONFIG)
    part_names(CONFIG.value)
    if "://" in WORKDIR.value:
        raise UserError(
            f"--workdir={WORKDIR.value} is no folder; mount the bucket "
            "(launch/mount_bucket.sh NAME) and name its path, /mnt/NAME/..."
        )
    variant = CONFIG.value.variant.replace(",", "-")
    default = f"runs/{name.stem}-{variant}" if variant else f"runs/{name.stem}"
    return CONFIG.value, pathlib.Path(WORKDIR.value or default)


NO_CONFIG = "--config is required, for example --config=configs/quickstart.py"


def part_names(node: ConfigDict) -> None:
    """Part tuples of texts at their commas: `--config.a=x,y` is read as ("x,y",), numbers alone as
    a tuple of two."""
    for field, value in node.items():
        if isinstance(value, ConfigDict):
            part_names(value)
        elif isinstance(value, tuple) and value and all(isinstance(x, str) for x in value):
            names = [name.strip() for text in value for name in text.split(",")]
            node[field] = tuple(name for name in names if name)


def config_given(argv: list[str]) -> str:
    """The value of --config, "" without; UserError, with the nearest, where it names no file."""
    given = None
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        if arg == "--config" or arg.startswith("--config="):
            given = arg.partition("=")[2] if "=" in arg else following
    if given is None:
        return ""
    path = given.partition(":")[0]
    if not os.path.isfile(path):
        there = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
        there = [p for p in there if not p.endswith(("common.py", "defaults.py", "__init__.py"))]
        raise UserError(f"--config={given}: no such config file{nearest(path, there)}")
    return given


def explain(error: Exception, given: str, argv: list[str]) -> str:
    """What is wrong with the flags, in the user's words."""
    text = str(error)
    if "Traceback" in text:  # get_config raised
        return f"--config={given}: " + text.splitlines()[-1].removeprefix("ValueError: ")
    if isinstance(error, AttributeError) and "get_config" in text:
        return f"{given}: is no working config: {text}"
    for arg in argv:
        if arg.startswith("--config."):
            wrong = wrong_field(arg, FLAGS["config"].parser.parse(given), error)
            if wrong:
                return wrong
    return text


# A field of `--config.a['b/c'].d`: one that is no identifier stands in brackets.
FIELD = re.compile(r"""\[['"]([^'"]*)['"]\]|\.([^.\[]+)""")


def wrong_field(arg: str, node: Any, error: Exception) -> str | None:
    """What is wrong with `--config.a.b=value`: it names no field, or `error` is of its type."""
    path, given = "config", arg.partition("=")[0]
    for field in ("".join(parts) for parts in FIELD.findall(given)):
        if not isinstance(node, ConfigDict):
            return f"{arg}: {path} is no group of fields but the value {node!r}"
        if field not in node:
            return f"{arg}: {path} has no field {field!r}{nearest(field, sorted(node))}"
        node, path = node[field], path + (f".{field}" if field.isidentifier() else f"[{field!r}]")
    if given.replace('"', "'") != f"--{path}":
        return f"{arg}: write the field as --{path}"
    if f"--{path}=" in str(error):
        if isinstance(node, ConfigDict):
            return f"{arg}: {path} is a group of fields; set one as in --{path}.{min(node)}=..."
        return (
            f"{arg}: {path} must be {config_schema.KINDS[type(node)]}; set it as in --{path}={node}"
        )
    return None


def print_devices(asked: cluster.Asked) -> None:
    import jax

    cluster.prove(asked)
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
