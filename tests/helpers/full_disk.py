"""Run `main` in a process whose files may not grow, as on a full disk."""

import pathlib
import resource
import subprocess
import sys

from bljust_jax import main
from bljust_jax.checkpoint.manager import Checkpoints
from configs import quickstart
from tests.helpers.processes import ROOT
from tests.helpers.systems import SMALL


def make_config(folder, max_bad_fraction=0.2, changes=()):
    config = quickstart.get_config("smoke")
    config.model.update(SMALL[config.encoder])
    config.data.update(train=str(folder / "train.jsonl"), dev=str(folder / "dev.jsonl"))
    config.data.update(test="", max_bad_fraction=max_bad_fraction)
    config.phases.update(explore=0, joint=16, finetune=0)  # one program hears both streams
    config.penalty.slope = 0.05
    config.update(eval_every=8, save_every=4, log_every=2, compile_cache="")
    config.mesh.data = 1
    config.update_from_flattened_dict(dict(changes))
    return config


def run_until_the_disk_is_full(folder, workdir, step, until=None, changes=()):
    """`main` in this process: from the save at `step` to that at `until`, no file may grow beyond
    64 KiB."""
    save = Checkpoints.save

    def save_on_full_disk(self, now, *args):
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        if now in (step, until):
            limit = 1 << 16 if now == step else most
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        save(self, now, *args)

    Checkpoints.save = save_on_full_disk
    config = make_config(pathlib.Path(folder), changes=changes)
    main.parse = lambda argv: (config, pathlib.Path(workdir))
    return main.main()


def run_on_full_disk(folder, workdir, step, until=None, changes=()):
    """`run_until_the_disk_is_full` in a process of its own, as Orbax's threads leave coroutines
    behind that nobody waits for: (exit code, stdout, stderr)."""
    given = (str(folder), str(workdir), step, until, changes)
    call = f"run_until_the_disk_is_full(*{given!r})"
    code = f"import sys; from tests.helpers import full_disk; sys.exit(full_disk.{call})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr
