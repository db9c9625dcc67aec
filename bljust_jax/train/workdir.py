"""Workdir of a run: write config.json, tokenizers and run.json; check that it can be resumed.

Evaluation and export need config.json, the tokenizers and a checkpoint; reports need run.json.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from bljust_jax.bilevel.types import Recipe
from bljust_jax.checkpoint.manager import has_checkpoint
from bljust_jax.checkpoint.saved_config import added_fields, read_config
from bljust_jax.common.errors import UserError
from bljust_jax.common.files import write_text
from bljust_jax.data import streams, tokenizer_files
from bljust_jax.data.corpus import Corpus
from bljust_jax.data.tokenizer import Tokenizer
from bljust_jax.inference import scoring
from bljust_jax.train import budget, budget_trial, phase_table
from bljust_jax.train.run_meta import RunMeta
from bljust_jax.train.timeline import Timeline


def check_config(config: Any, workdir: pathlib.Path, allow_change: bool = False) -> None:
    """UserError for steps to keep that are not saved, and for a workdir that holds a run of another
    config: a warning if that is allowed.

    A field that config.json lacks because it was added since takes its default
    (`checkpoint/saved_config.py`), with a warning.
    """
    if config.keep_every % config.save_every:
        raise UserError(
            f"config.keep_every={config.keep_every} must be a multiple of config.save_every="
            f"{config.save_every}: other steps are not saved"
        )
    path = workdir / "config.json"
    if not path.exists() or not has_checkpoint(workdir):
        return
    try:
        old = flatten(read_config(path))
    except UserError as error:  # the checkpoint is whole
        logging.warning("%s; it is not compared with the command's, and is written anew", error)
        return
    new = flatten(json.loads(config.to_json()))
    if added := added_fields(old, new):
        listed = ", ".join(f"{name}={value!r}" for name, value in added.items())
        logging.warning("%s lacks fields that were added since; defaults: %s", path, listed)
        old |= added
    for field in new:  # what the run has found in its data: `check_data` compares that
        learned = field.endswith("text.sha256") and not new[field]
        chosen = new["data.num_buckets"] and re.fullmatch(r"data\.(streams\..*\.)?buckets", field)
        if learned or chosen:
            new[field] = old.get(field)
    changed = [k for k in sorted(old | new) if old.get(k) != new.get(k) and k not in MAY_CHANGE]
    if changed:
        shown = ", ".join(f"{k} {old.get(k)!r} -> {new.get(k)!r}" for k in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        problem = f"{workdir} holds a run of another config ({shown}{more})"
        if not allow_change:
            raise UserError(
                f"{problem}; name a new --workdir, or add --allow_config_change: from its last "
                "checkpoint the numbers are then those of neither config"
            )
        logging.warning("%s; training resumes with the new one", problem)


def check_data(meta: RunMeta, corpus: Corpus, workdir: pathlib.Path, allow_change: bool) -> None:
    """Restore the quarantine of the run. UserError if the checkpoint was made with other data; a
    warning if a change is allowed, and `meta` then has the digest of the new data."""
    if meta.data == corpus.digest():
        corpus.quarantined.restore(meta.quarantined)
        return
    problem = f"{workdir} was trained on other data or devices"
    if not allow_change:
        raise UserError(f"{problem}; name a new --workdir, or add --allow_config_change")
    logging.warning("%s; training resumes with the new ones", problem)
    meta.data = corpus.digest()


def config_hash(config: Any) -> str:
    """12 hexadecimal digits of the SHA-256 of all fields that change results."""
    fields = flatten(json.loads(config.to_json()))
    kept = {k: v for k, v in fields.items() if k not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


# Fields that may change on resume: results do not depend on them.
MAY_CHANGE = (
    *("data.num_threads", "data.prefetch", "data.timeout", "data.max_bad_fraction"),
    *("mesh.dcn", "mesh.data", "mesh.fsdp", "mesh.tensor"),
    *("keep", "keep_every", "save_minutes", "on_full_disk"),
    *("samples", "compile_cache", "compile_threads", "max_skipped"),
    *("collapse.share", "collapse.rows", "collapse.stop"),
    *("moo.starved_weight", "moo.starved_rows", "moo.starved_stop"),
)


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        inner = flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        flat |= {f"{prefix}{key}": value} if inner is None else inner
    return flat


def saved_tokenizers(config: Any, workdir: pathlib.Path) -> dict[str, Tokenizer] | None:
    """{labelled stream: its tokenizer} of the run to resume; None if there is no checkpoint."""
    if not has_checkpoint(workdir):
        return None
    return tokenizer_files.load(workdir, streams.labelled_streams(config.data))


def write_config(
    config: Any,
    workdir: pathlib.Path,
    units: Mapping[str, Tokenizer],
    lengths: Mapping[str, Sequence[float]],
) -> None:
    """Write config.json and the tokenizers; `lengths` {stream: data.buckets} are those chosen from
    durations, for evaluation."""
    workdir.mkdir(parents=True, exist_ok=True)
    tokenizer_files.save(workdir, units)
    written = json.loads(config.to_json())
    data = written["data"]
    for stream, tokenizer in units.items():
        data["streams"].get(stream, data)["text"]["sha256"] = tokenizer.sha256
    for stream, seconds in lengths.items():
        data["streams"].get(stream, data)["buckets"] = list(seconds)
    write_text(workdir / "config.json", json.dumps(written, indent=2) + "\n")


def write_facts(
    config: Any,
    workdir: pathlib.Path,
    recipe: Recipe,
    timeline: Timeline,
    table: Sequence[phase_table.Row],
    mesh: Any,
    sizes: Mapping[str, str],
    measured: budget.Measured | None = None,
) -> None:
    """Write run.json, for reports: command, code version, devices, phases with their compute,
    measures of the tasks, the sacreBLEU signatures of translation tasks, `sizes`: {what: number and
    unit} of parameters, data and vocabulary, and what a budget in minutes or hours was made
    from."""
    phases = [
        {"name": p.name, "start": s.start, "steps": p.steps, "levels": p.describe_levels()}
        for s, p in zip(timeline.segments, recipe.phases, strict=True)
    ]
    kinds = sorted({d.device_kind for d in mesh.devices.flat})
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in ("jax", "flax", "optax")}
    facts = {
        "command": shlex.join(["python", "-m", "bljust_jax.main", *sys.argv[1:]]),
        "git": git_id(),
        "config": config_hash(config),
        "devices": f"{mesh.size} x {', '.join(kinds)}",
        "versions": versions,
        "phases": phases,
        "phase_table": [phase_table.to_json(row) for row in table],
        "measures": {task.name: task.measure for task in recipe.tasks},
        "sizes": dict(sizes),
        "signatures": scoring.signatures(recipe.tasks),
    }
    if measured is not None:
        facts[budget_trial.FIELD] = measured._asdict()
    write_text(workdir / "run.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def git_id(package: pathlib.Path = pathlib.Path(__file__).parents[1]) -> str:
    """The git commit of the code; "" without git, and where `package` is not the folder of a
    checkout of this repository."""
    tracked = _git(package, "ls-files", "--error-unmatch", "--full-name", "__init__.py")
    if tracked != f"{package.name}/__init__.py":  # an installation, in whichever repository
        return ""
    return _git(package, "describe", "--always", "--dirty", "--abbrev=12")


def _git(folder: pathlib.Path, *command: str) -> str:
    """The output of a git command in a folder; "" if it fails."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *command], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
    except OSError:  # git is not installed
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
