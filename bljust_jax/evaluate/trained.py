"""A trained run as its workdir holds it: what evaluation, transcription and export start from."""

from __future__ import annotations

import contextlib
import json
import pathlib
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from bljust_jax import checkpoint, recipes, sharding
from bljust_jax.data import text
from bljust_jax.data.splits import Splits, load_splits
from bljust_jax.errors import UserError
from bljust_jax.system import Recipe, Weights


class Run(NamedTuple):
    """What a workdir holds of a trained system: `weights` are the best ones of checkpoint `step`,
    replicated over `mesh`."""

    workdir: pathlib.Path
    config: ConfigDict
    tokenizer: text.Tokenizer
    recipe: Recipe
    weights: Weights
    step: int
    mesh: jax.sharding.Mesh


def open_run(workdir: pathlib.Path) -> Run:
    """The run that was trained in `workdir`; reads no training data.

    Raises UserError where there is no run, no checkpoint, or one of another version.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no config.json: give the --workdir of a training run")
    if not checkpoint.any_saved(workdir):
        raise UserError(f"{workdir} holds no checkpoint yet: train on, up to the first save")
    try:
        config = ConfigDict(json.loads(path.read_text(encoding="utf-8")))
        tokenizer = text.load(workdir)
        # phases are of no use here: any lengths of the streams will do
        facts = recipes.Facts({"labelled": tokenizer.vocab_size}, {"labelled": 1, "unlabelled": 1})
        recipe = recipes.load(config.recipe)(config, facts)
    except (AttributeError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged, or of another version: {_line(error)}") from error
    mesh = sharding.make_mesh(-1, 1)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params, _, stats = jax.eval_shape(lambda: recipe.init(jax.random.key(0)))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        Weights(params, stats),
    )
    with contextlib.closing(checkpoint.Checkpoints(workdir, read_only=True)) as checkpoints:
        step = checkpoints.latest()
        try:
            weights = checkpoints.restore_best(step, abstract)
        except (KeyError, TypeError, ValueError) as error:
            where = workdir / "checkpoints" / str(step)
            raise UserError(f"{where} is damaged, or of another version: {_line(error)}") from error
    return Run(workdir, config, tokenizer, recipe, weights, step, mesh)


def open_split(opened: Run, split: str, uri: str) -> Splits:
    """The split alone, of `uri` where one is given, else as the run's config names it."""
    known = {name: opened.config.data[name] for name in ("dev", "test", "train")}
    if not uri and split not in known:
        raise UserError(f"no split {split!r}: there are {', '.join(known)}, or give --data URI")
    if not uri and not known[split]:
        raise UserError(f"config.data.{split} of {opened.workdir} is empty: give --data URI")
    uris = {split: uri or known[split]}
    return load_splits(opened.config.data, uris, opened.tokenizer, multiple=opened.mesh.size)


def _line(error: Exception) -> str:
    """The beginning of a message, on one line."""
    return " ".join(str(error).split())[:200]
