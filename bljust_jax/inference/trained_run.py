"""Load a trained run from its workdir: config, tokenizers, recipe and best checkpoint weights."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from bljust_jax import recipes
from bljust_jax.bilevel.types import Recipe, Task, Weights
from bljust_jax.checkpoint.manager import Checkpoints, has_checkpoint
from bljust_jax.checkpoint.saved_config import read_config
from bljust_jax.common.errors import UserError, one_line
from bljust_jax.data import streams, tokenizer_files
from bljust_jax.data.splits import Splits, load_splits
from bljust_jax.data.tokenizer import Tokenizer
from bljust_jax.parallel.mesh import make_mesh, replicated, with_shardings

CTC_HEAD = "ctc_head"  # head of a run of one task, and of a selected recognition task


class TrainedRun(NamedTuple):
    """A trained system: `weights` are the best ones of checkpoint `step`, replicated over `mesh`;
    `tokenizers` is {labelled stream: Tokenizer}."""

    workdir: pathlib.Path
    config: ConfigDict
    tokenizers: dict[str, Tokenizer]
    recipe: Recipe
    weights: Weights
    step: int
    mesh: jax.sharding.Mesh

    @property
    def task(self) -> Task:
        """The only task; see `select_task` for a run of several."""
        (task,) = self.recipe.tasks
        return task

    @property
    def tokenizer(self) -> Tokenizer:
        return self.tokenizers[self.task.stream]

    def select_task(self, name: str) -> "TrainedRun":
        """The run reduced to one task; `name` may be "" where there is one only.

        config.data takes the sources and texts of the task's stream, and the head of a recognition
        task becomes params["ctc_head"], the name that exports use. Splits and scores keep the name
        of the task (dev/asr/en). Raises UserError for an unknown task, or without a name where
        there are several.
        """
        tasks = {task.name: task for task in self.recipe.tasks}
        task = tasks[tokenizer_files.choose(self.workdir, name, tasks)]
        if not task.name:
            return self
        config = self.config.copy_and_resolve_references()
        own = config.data.streams[task.stream]
        config.data.update({field: own[field] for field in ("train", "dev", "test", "text")})
        others = {other.head for other in tasks.values()} - {task.head}
        params = {k: v for k, v in self.weights.params.items() if k not in others}
        if task.predict:
            task, params = _with_ctc_head(task, params)
        return self._replace(
            config=config,
            tokenizers={task.stream: self.tokenizers[task.stream]},
            recipe=dataclasses.replace(self.recipe, tasks=(task,)),
            weights=self.weights._replace(params=params),
        )

    def load_split(self, split: str, uri: str) -> Splits:
        """A split of the only task, from `uri` if given, else from the source in the config; its
        name is `task.split(split)`. Raises UserError if the config names no such source."""
        known = {name: self.config.data[name] for name in ("dev", "test", "train")}
        if not uri and split not in known:
            raise UserError(f"no split {split!r}: there are {', '.join(known)}, or give --data URI")
        if not uri and not known[split]:
            where = streams.labelled_streams(self.config.data)[self.task.stream].where
            raise UserError(f"{where}.{split} of {self.workdir} is empty: give --data URI")
        uris = {self.task.split(split): uri or known[split]}
        return load_splits(self.config.data, uris, self.tokenizers, multiple=self.mesh.size)


def load_trained_run(
    workdir: pathlib.Path,
    change: Callable[[ConfigDict], None] = lambda config: None,
    step: int | None = None,
) -> TrainedRun:
    """The run in `workdir` with all its tasks and the best weights of its newest checkpoint, or the
    EMA parameters of checkpoint `step`; reads no training data.

    `change` modifies the config before the recipe is built. Raises UserError if there is no run, no
    such checkpoint, or one of another version.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no config.json: give the --workdir of a training run")
    if not has_checkpoint(workdir):
        raise UserError(f"{workdir} holds no checkpoint yet: train on, up to the first save")
    try:
        config = ConfigDict(read_config(path))
        change(config)
        if "attention" in config.model:
            config.model.attention = "auto"  # the form that trained may need another device
        tokenizers = tokenizer_files.load(workdir, streams.labelled_streams(config.data))
        sizes = {stream: tokenizer.vocab_size for stream, tokenizer in tokenizers.items()}
        # phases are not used: any number of steps per epoch will do
        facts = recipes.Facts(sizes, dict.fromkeys((*sizes, streams.UNLABELLED), 1))
        recipe = recipes.load(config.recipe)(config, facts)
    except (AttributeError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    mesh = make_mesh()
    weights, step = _restore_weights(workdir, recipe, mesh, step)
    return TrainedRun(workdir, config, tokenizers, recipe, weights, step, mesh)


def load_frozen(run: TrainedRun) -> Any:
    """The frozen arrays of the run's checkpoint, such as codebooks, without those borrowed from
    another run and those of its position in the data; {} if its recipe has none."""
    _, frozen, _ = _abstract(run.recipe, run.mesh)
    others = {*run.recipe.borrow, run.recipe.cache}
    frozen = {name: tree for name, tree in frozen.items() if name not in others}
    if not frozen:
        return {}
    opened = contextlib.closing(Checkpoints(run.workdir, read_only=True))
    with opened as checkpoints, _of_this_version(run.workdir, run.step):
        return checkpoints.restore_fields(run.step, {"frozen": frozen})["frozen"]


def _restore_weights(
    workdir: pathlib.Path, recipe: Recipe, mesh: jax.sharding.Mesh, step: int | None
) -> tuple[Weights, int]:
    """(best weights of the newest checkpoint, or EMA parameters and statistics of `step`,
    replicated over `mesh`; the step of the checkpoint)."""
    params, _, stats = _abstract(recipe, mesh)
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        if step is None:
            step = checkpoints.latest()
            with _of_this_version(workdir, step):
                return checkpoints.restore_best(step, Weights(params, stats)), step
        with _of_this_version(workdir, step):
            found = checkpoints.restore_fields(step, {"ema": params, "stats": stats})
            shardings = jax.tree.map(lambda x: x.sharding, (params, stats))
            return Weights(*jax.device_put((found["ema"], found["stats"]), shardings)), step


def _abstract(recipe: Recipe, mesh: jax.sharding.Mesh) -> Any:
    """(params, frozen, stats) of a recipe: shapes and types, replicated over `mesh`."""
    shapes = jax.eval_shape(lambda: recipe.init(jax.random.key(0)))
    return with_shardings(shapes, jax.tree.map(lambda _: replicated(mesh), shapes))


@contextlib.contextmanager
def _of_this_version(workdir: pathlib.Path, step: int) -> Iterator[None]:
    """UserError for a checkpoint whose arrays are not those of the recipe."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(workdir / "checkpoints" / str(step), error) from error


def _with_ctc_head(task: Task, params: dict[str, Any]) -> tuple[Task, dict[str, Any]]:
    """A recognition task and its parameters, its head renamed to params["ctc_head"]."""

    def predict(params, stats, batch):
        return task.predict({**params, task.head: params[CTC_HEAD]}, stats, batch)

    renamed = {CTC_HEAD if k == task.head else k: v for k, v in params.items()}
    return dataclasses.replace(task, head=CTC_HEAD, predict=predict), renamed


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged, or of another version: {one_line(error)[:200]}")
