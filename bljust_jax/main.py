"""python -m bljust_jax.main --config=configs/X.py[:variant,...] [--workdir=DIR] [--config.a.b=value
...]

X.py is a file, or the name of a shipped config (--config=quickstart:smoke, from any folder). Train
and evaluate the system of a config; all output goes to DIR (default: runs/<config>-<variant>).
--help_config prints every field of the config: value, type, range or choices, meaning. The last
line on stdout is one JSON object with the final metrics; logs go to stderr. Exit 0: done; 75:
preempted, run the same command again; 2: a mistake in config or data, in one line; 69: other hosts,
or a disk, did not answer.

A run resumes from the newest valid checkpoint of DIR. If DIR holds a run of another config, the
command is refused with the difference; --allow_config_change resumes nevertheless.

On several hosts, run the same command on each, with a workdir that all of them share. Slurm, TPU
pods, Open MPI and indexed Kubernetes Jobs are detected; elsewhere add
    --coordinator_address=HOST[:PORT] --num_processes=N --process_id=0|1|...|N-1
where HOST is that of process 0. --distributed=off: this process alone; on: fail if no other hosts
are found. --coordinator_port=PORT, --init_timeout=SECONDS until all hosts are up,
--heartbeat_timeout=SECONDS without an answer after which a host is considered dead.

--dry_run prints the plan of the run instead, without data and without compiling: phases with steps,
hours and FLOPs of each loss, level weights, learning rates, averaged parameters, memory and time on
--device=h200|h100|a100|v4|v5e|v5p|v6e.

--profile_steps=A:B records steps A to B - 1 in DIR/profile, for TensorBoard and Perfetto.

--compile_only, or `bljust compile`, compiles the programs of the run into the folder
config.compile_cache and exits; a run of the same config, code, data and devices reads them. Seconds
and memory of each are logged, and are a JSON object on stdout. For a pod, name a folder that all
hosts share and start the command on each: the first host writes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

BEGAN = time.monotonic()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags
from ml_collections import ConfigDict, config_flags

from bljust_jax.common import config_schema, shipped_configs
from bljust_jax.common.cli import DONE, PREEMPTED, run_to_exit_code
from bljust_jax.common.config_schema.training import PSEUDO
from bljust_jax.common.errors import UserError, nearest
from bljust_jax.common.files import expand_user
from bljust_jax.data import bucket_lengths, config_checks
from bljust_jax.monitoring import profiler
from bljust_jax.parallel import cluster, preemption

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", "", "default: runs/<config>-<variant>")
flags.DEFINE_string("profile_steps", "", "A:B, the steps to record in WORKDIR/profile")
flags.DEFINE_bool("compile_only", False, "fill the compile cache and exit")
flags.DEFINE_bool("help_config", False, "print all fields of --config and exit")
flags.DEFINE_bool("dry_run", False, "print the plan of the run and exit")
flags.DEFINE_string("device", "h200", "whose memory and time --dry_run estimates")
flags.DEFINE_bool("allow_config_change", False, "resume a run of another config")
flags.DEFINE_enum("distributed", "auto", ["auto", "on", "off"], "whether to join other hosts")
flags.DEFINE_string("coordinator_address", "", "HOST[:PORT] of process 0")
flags.DEFINE_integer("coordinator_port", 0, "port of process 0")
flags.DEFINE_integer("num_processes", None, "number of processes on all hosts")
flags.DEFINE_integer("process_id", None, "index of this process, from 0")
DEFAULTS = cluster.ClusterOptions()
flags.DEFINE_integer("init_timeout", DEFAULTS.init_timeout, "seconds until all hosts are up")
flags.DEFINE_integer(
    "heartbeat_timeout", DEFAULTS.heartbeat_timeout, "seconds until a silent host is dead"
)


def with_chosen_loss(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """`load` of a config, which also adds the fields of the loss that the config or the command
    line names as config.ssl (`config_schema.with_loss_fields`), for `--config.LOSS.field=value`;
    of pseudo-labels for a config.method that has them."""

    def load_with_loss(given: str) -> Any:
        config = load(given)
        if config is None:
            return config
        if _last_named("method", config) in PSEUDO:
            config = config_schema.with_loss_fields(config, "pseudo_label")
        return config_schema.with_loss_fields(config, _last_named("ssl", config))

    return load_with_loss


def _last_named(field: str, config: Any) -> str:
    """The last `--config.FIELD=value` of the command line, else the field of the config."""
    named = [a.partition("=")[2] for a in sys.argv if a.startswith(f"--config.{field}=")]
    return [config.get(field, ""), *named][-1]


PARSER = FLAGS["config"].parser
PARSER.parse = with_chosen_loss(PARSER.parse)


def main() -> int:
    if {"--help", "-help", "-h"} & set(sys.argv[1:]):
        return run_to_exit_code(lambda: print(__doc__.strip()))
    try:
        with preemption.exit_at_once():
            code = run_to_exit_code(run, "interrupted; run the same command again to resume")
    except Exception:
        traceback.print_exc()
        code = CRASHED
    if code not in (DONE, PREEMPTED):
        cluster.exit_without_waiting(code)
    exit_while_compiling(code)
    return code


def exit_while_compiling(code: int) -> None:
    """Exit now if a thread is still compiling, else return: an orderly exit would wait for it."""
    pool = sys.modules.get("bljust_jax.train.compile_pool")
    if pool is None or not pool.is_compiling():
        return
    import jax

    if jax.distributed.is_initialized():
        jax.distributed.shutdown()  # the other processes end at the same step
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def run() -> int:
    config, workdir = parse(sys.argv)
    if FLAGS["help_config"].value:
        print(config_schema.describe(config))
        return DONE
    if FLAGS["dry_run"].value:
        config_schema.check(config)
        from bljust_jax.train import dry_run

        print("\n".join(dry_run.describe(config, FLAGS["device"].value)))
        return DONE
    config_checks.check(config)
    profile_steps = profiler.parse(FLAGS["profile_steps"].value)
    options = cluster.ClusterOptions(*(FLAGS[name].value for name in DEFAULTS._fields))
    found = cluster.find_cluster(options)
    if found:
        cluster.join(found, options)
    print_devices(options)
    if FLAGS["compile_only"].value:
        from bljust_jax.train import compile_only

        print(json.dumps(compile_only.compile_config(config)), flush=True)
        return DONE
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
    """(config, workdir) from the command line; UserError for wrong flags."""
    argv = shipped_configs.resolve_flag(argv)
    given = config_flag(argv)
    if not given and any(arg.startswith("--config.") for arg in argv):
        raise UserError(NO_CONFIG)
    name = pathlib.Path(given.partition(":")[0])
    shipped_configs.bind(name)
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
    split_at_commas(CONFIG.value)
    leave_out_synthetic_test(CONFIG.value)
    bucket_lengths.resolve_auto(CONFIG.value)
    if "://" in WORKDIR.value:
        raise UserError(
            f"--workdir={WORKDIR.value} is no folder; mount the bucket "
            "(launch/mount_bucket.sh NAME) and name its path, /mnt/NAME/..."
        )
    variant = CONFIG.value.variant.replace(",", "-")
    default = f"runs/{name.stem}-{variant}" if variant else f"runs/{name.stem}"
    return CONFIG.value, pathlib.Path(expand_user(WORKDIR.value or default))


NO_CONFIG = "--config is required, for example --config=configs/quickstart.py"


def split_at_commas(node: ConfigDict) -> None:
    """Split tuples of strings at commas, in place: the flag parser reads `--config.a=x,y` as
    ("x,y",), and only numbers as a tuple of two."""
    for field, value in node.items():
        if isinstance(value, ConfigDict):
            split_at_commas(value)
        elif isinstance(value, tuple) and value and all(isinstance(x, str) for x in value):
            names = [name.strip() for text in value for name in text.split(",")]
            node[field] = tuple(name for name in names if name)


MADE = "synthetic:"


def leave_out_synthetic_test(config: ConfigDict) -> None:
    """No test split, in place, where variant `smoke` names synthetic English and the command line
    other data to train on: scores on it would mean nothing."""
    data = config.get("data", {})
    if data and data.train and not data.train.startswith(MADE) and data.test.startswith(MADE):
        data.test = ""


def config_flag(argv: list[str]) -> str:
    """The value of --config, "" without it; UserError, with the nearest file, if none has that
    name."""
    given = None
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        if arg == "--config" or arg.startswith("--config="):
            given = arg.partition("=")[2] if "=" in arg else following
    if given is None:
        return ""
    path = given.partition(":")[0]
    if not os.path.isfile(path):
        there = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
        there = [p for p in there if not p.endswith(("defaults.py", "variants.py", "__init__.py"))]
        there = there or shipped_configs.names()
        raise UserError(f"--config={given}: no such config file{nearest(path, there)}")
    return given


def explain(error: Exception, given: str, argv: list[str]) -> str:
    """The error message for flags that cannot be parsed."""
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
        elif isinstance(error, flags.UnrecognizedFlagError) and arg.startswith("--"):
            name = arg[2:].partition("=")[0]
            flag, config = f"--config.{arg[2:]}", FLAGS["config"].parser.parse(given)
            if name == error.flagname and wrong_field(flag, config, error) is None:
                return f"{arg}: write a field of the config as {flag}"
    return text


# A field of `--config.a['b/c'].d`; a name that is no identifier is in brackets.
FIELD = re.compile(r"""\[['"]([^'"]*)['"]\]|\.([^.\[]+)""")


def wrong_field(arg: str, node: Any, error: Exception) -> str | None:
    """The error message for `--config.a.b=value` if it names no field or has a value of the wrong
    type; None if it is correct."""
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


def print_devices(options: cluster.ClusterOptions) -> None:
    """Check and log the devices; warn if a GPU is present that jax does not use."""
    import jax

    from bljust_jax.parallel import device_check

    device_check.check_devices(options.init_timeout)
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
