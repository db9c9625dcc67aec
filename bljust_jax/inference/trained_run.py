"""A trained run as its workdir holds it: what evaluation, transcription and export start from."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from bljust_jax import recipes
from bljust_jax.bilevel.types import Recipe, Task, Weights
from bljust_jax.checkpoint.manager import Checkpoints, any_saved
from bljust_jax.common.errors import UserError
from bljust_jax.data import streams, tokenizer_files
from bljust_jax.data.splits import Splits, load_splits
from bljust_jax.data.tokenizer import Tokenizer
from bljust_jax.parallel.mesh import make_mesh

CTC_HEAD = "ctc_head"  # of a run of one task, and of every recognition task that is opened


class Run(NamedTuple):
    """What a workdir holds of a trained system: `weights` are the best ones of checkpoint `step`,
    replicated over `mesh`; `tokenizers` {labelled stream: Tokenizer}."""

    workdir: pathlib.Path
    config: ConfigDict
    tokenizers: dict[str, Tokenizer]
    recipe: Recipe
    weights: Weights
    step: int
    mesh: jax.sharding.Mesh

    @property
    def task(self) -> Task:
        """What the run does, where that is one thing."""
        (task,) = self.recipe.tasks
        return task

    @property
    def tokenizer(self) -> Tokenizer:
        return self.tokenizers[self.task.stream]


def unchanged(config: ConfigDict) -> None:
    """A run's config as it is."""


def open_run(
    workdir: pathlib.Path, task: str = "", change: Callable[[ConfigDict], None] = unchanged
) -> Run:
    """One task of the run that was trained in `workdir`, as `open_all` finds it.

    What is opened looks like a run of that task alone: config.data names the sources and texts of
    its stream, and the head of a recognition task is params["ctc_head"]. Splits and scores keep the
    task's name (dev/asr/en). Raises UserError for a task that the run has not, or none named where
    it has several.
    """
    return narrow(open_all(workdir, change), task)


def open_all(workdir: pathlib.Path, change: Callable[[ConfigDict], None] = unchanged) -> Run:
    """The run that was trained in `workdir`, with all its tasks; reads no training data.

    `change` alters its config before the recipe is built. Raises UserError where there is no run,
    no checkpoint, or one of another version.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no config.json: give the --workdir of a training run")
    if not any_saved(workdir):
        raise UserError(f"{workdir} holds no checkpoint yet: train on, up to the first save")
    try:
        config = ConfigDict(json.loads(path.read_text(encoding="utf-8")))
        change(config)
        units = tokenizer_files.load(workdir, streams.described(config.data))
        sizes = {stream: tokenizer.vocab_size for stream, tokenizer in units.items()}
        # phases are of no use here: any lengths of the streams will do
        facts = recipes.Facts(sizes, dict.fromkeys((*sizes, streams.UNLABELLED), 1))
        recipe = recipes.load(config.recipe)(config, facts)
    except (AttributeError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged, or of another version: {_line(error)}") from error
    mesh = make_mesh()
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params, _, stats = jax.eval_shape(lambda: recipe.init(jax.random.key(0)))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        Weights(params, stats),
    )
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        step = checkpoints.latest()
        try:
            weights = checkpoints.restore_best(step, abstract)
        except (KeyError, TypeError, ValueError) as error:
            where = workdir / "checkpoints" / str(step)
            raise UserError(f"{where} is damaged, or of another version: {_line(error)}") from error
    return Run(workdir, config, units, recipe, weights, step, mesh)


def narrow(run: Run, name: str) -> Run:
    """The run as one of its task alone; UserError for a task that it has not."""
    tasks = {task.name: task for task in run.recipe.tasks}
    task = tasks[tokenizer_files.choose(run.workdir, name, tasks)]
    if not task.name:
        return run
    config = run.config.copy_and_resolve_references()
    own = config.data.streams[task.stream]
    config.data.update({field: own[field] for field in ("train", "dev", "test", "text")})
    others = {other.head for other in tasks.values()} - {task.head}
    params = {k: v for k, v in run.weights.params.items() if k not in others}
    if task.predict:
        task, params = as_ctc(task, params)
    return run._replace(
        config=config,
        tokenizers={task.stream: run.tokenizers[task.stream]},
        recipe=dataclasses.replace(run.recipe, tasks=(task,)),
        weights=run.weights._replace(params=params),
    )


def as_ctc(task: Task, params: dict[str, Any]) -> tuple[Task, dict[str, Any]]:
    """A recognition task and its parameters, with its head called params["ctc_head"]."""

    def predict(params, stats, batch):
        return task.predict({**params, task.head: params[CTC_HEAD]}, stats, batch)

    renamed = {CTC_HEAD if k == task.head else k: v for k, v in params.items()}
    return dataclasses.replace(task, head=CTC_HEAD, predict=predict), renamed


def open_split(opened: Run, split: str, uri: str) -> Splits:
    """The split of the run's task alone, of `uri` where one is given, else as its config names it;
    its name is `task.split(split)`."""
    known = {name: opened.config.data[name] for name in ("dev", "test", "train")}
    if not uri and split not in known:
        raise UserError(f"no split {split!r}: there are {', '.join(known)}, or give --data URI")
    if not uri and not known[split]:
        described = streams.described(opened.config.data)[opened.task.stream]
        raise UserError(f"{described.where}.{split} of {opened.workdir} is empty: give --data URI")
    uris = {opened.task.split(split): uri or known[split]}
    return load_splits(opened.config.data, uris, opened.tokenizers, multiple=opened.mesh.size)


def _line(error: Exception) -> str:
    """The beginning of a message, on one line."""
    return " ".join(str(error).split())[:200]
