"""What the laws of objectives share: every objective on every model, compiled once per process."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel.types import Extras
from bljust_jax.common import trees
from tests.helpers.systems import CONFIGS, build, config_for


def cases():
    """(system, objective), each objective once on each model."""
    found = {}
    for name in CONFIGS:
        model = config_for(name).model.to_json()
        for objective in build(name).objectives:
            kind = objective.name.partition("/")[0].replace("asr", "ctc")
            found.setdefault((model, kind, type(objective)), (name, objective.name))
    return list(found.values())


CASES = cases()
# each objective once, and each encoder that has one of its own
DAILY = pytest.mark.daily(
    "bljust-ctc",
    "bljust-cpc",
    "wav2vec2_just-wav2vec2",
    "birq-*",
    "best_rq-best_rq",
    "m2asr-st*",
    "mpl-pseudo_label",
    "masked_cpc-masked_cpc",
    "hybrid-ctc+attention",
    "hubert-hubert",
    "data2vec-data2vec",
)


class Lowered(NamedTuple):
    """One step down the gradient of a mean loss, in one program."""

    loss: Any
    gradient: Any
    finite: Any
    of_encoder: Any  # the norm of its gradient
    params: Any  # after the step


class Bound(NamedTuple):
    """An objective of a system, its first parameters, and the two programs that the laws share."""

    recipe: Any
    params: Any
    lower: Any  # params, data -> Lowered
    sums: Any  # data -> {loss name: (sum, weight)} at the first parameters


@functools.cache
def initial(recipe_name):
    """(params, frozen, statistics) of the system in float32, in which it is drawn whatever the
    dtype of its encoder."""
    return jax.jit(build(recipe_name).init)(jax.random.key(1))


@functools.cache
def bind_objective(recipe_name, objective, **model):
    recipe = build(recipe_name, **model)
    chosen = next(o for o in recipe.objectives if o.name == objective)
    params, frozen, stats = initial(recipe_name)
    scale = dict.fromkeys(recipe.losses, 1.0)
    extras = Extras(jnp.int32(0), frozen, stats, params, scale)

    def sums(params, extras, data):
        batch = dict.fromkeys(chosen.streams, data)
        return chosen.apply(params, extras, batch, jax.random.key(0))[0]

    def loss(*given):
        return mean_loss(sums(*given))

    def lower(params, extras, data):
        value, grads = jax.value_and_grad(loss)(params, extras, data)
        rate = 0.05 / (trees.norm(grads) + 1e-6)
        lowered = jax.tree.map(lambda p, g: p - rate * g, params, grads)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(grads)]))
        return Lowered(value, grads, finite, trees.norm(grads["encoder"]), lowered)

    lower, sums = jax.jit(lower), jax.jit(sums)
    return Bound(
        recipe,
        params,
        lambda params, data: lower(params, extras, data),
        lambda data: sums(params, extras, data),
    )


def mean_loss(sums):
    return sum(s / jnp.maximum(w, 1) for s, w in sums.values())


def lengthen(batch, samples=8000):
    """The batch in a longer bucket, with garbage behind each utterance."""
    rows, short = batch["audio"].shape
    rng = np.random.default_rng(7)
    audio = rng.integers(-(2**15), 2**15, (rows, short + samples)).astype(np.int16)
    for row, length in enumerate(np.asarray(batch["audio_lengths"])):
        audio[row, :length] = batch["audio"][row, :length]
    return {**batch, "audio": jnp.asarray(audio)}
