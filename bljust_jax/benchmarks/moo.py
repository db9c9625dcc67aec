"""Benchmark of a multi-objective step (MoDo, MGDA) against one step per objective, equal examples.

Two recognition losses and a translation loss share an encoder. The step that finds their weights by
MoDo (two half batches per loss) or MGDA is compared with the sum of three single-loss steps on the
same rows. The optimizer is plain gradient descent, so that only gradients and their combination are
measured. The gradients of all losses are kept until their weights are known: one tree of the shared
parameters per objective with MGDA, two with MoDo.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from bljust_jax import recipes
from bljust_jax.benchmarks import step
from bljust_jax.benchmarks.interleave import MIB, ratios
from bljust_jax.benchmarks.step import Shape
from bljust_jax.bilevel.optimizer import Optimizer
from bljust_jax.bilevel.types import Recipe
from configs import m2asr

TASKS = ("asr/en", "asr/fr", "st/fr-en")
RATE = 1e-4  # learning rate


def make_recipe(shape: Shape, dtype: str, method: str) -> tuple[Any, Recipe]:
    """(config, recipe): VC-MSP on three streams of CoVoST at this size."""
    config = m2asr.get_config("covost,vc")
    for name in set(config.data.streams) - set(TASKS):
        del config.data.streams[name]
    step.set_size(config, shape, dtype)
    config.model.remat = "none"
    config.decoder.update(dim=shape.dim, heads=config.model.heads, dropout=0.0)
    config.specaugment.update(freq_masks=0, time_masks=0)
    config.moo.method = method
    epochs = dict.fromkeys((*TASKS, "unlabelled"), 1000)
    facts = recipes.Facts(dict.fromkeys(TASKS, step.VOCAB_SIZE), epochs)
    return config, recipes.load(config.recipe)(config, facts)


def make_program(config: Any, recipe: Recipe, batch: dict, *losses: str) -> step.Program:
    """The step that trains these losses on one level; a single loss needs no weights."""
    phase = next(p for p in recipe.phases if p.name == "joint")
    how = phase.combine[0] if len(losses) > 1 else "sum"
    phase = dataclasses.replace(phase, levels=(losses,), weights=lambda k: (1.0,), combine=(how,))
    descent = Optimizer(recipe.combiner, optax.with_extra_args_support(optax.scale(-RATE)))
    return step.compile_phase(config, recipe, phase, batch, descent)


def make_streams(shape: Shape) -> dict[str, dict[str, np.ndarray]]:
    """A labelled batch per task, and one without labels."""
    both = step.make_batch(shape)
    return dict.fromkeys(TASKS, both["labelled"]) | {"unlabelled": both["unlabelled"]}


def measure(shape: Shape, *, dtype: str, rounds: int, log: Callable[[str], None]) -> dict[str, Any]:
    """Times, memory and ratios; UserError for a shape that the encoder does not support."""
    batch, programs = make_streams(shape), {}
    trained = {"modo": TASKS, "mgda": TASKS} | {name: (name,) for name in TASKS}
    for name, losses in trained.items():
        log(f"compiling {name}")
        method = "mgda" if name == "mgda" else "modo"
        config, recipe = make_recipe(shape, dtype, method)
        programs[name] = make_program(config, recipe, batch, *losses)
    rows = step.time_programs(programs, dtype, rounds, log)
    over = {name: ratios(rows, [name], list(TASKS)) for name in ("modo", "mgda")}
    found = {"shape": shape._asdict(), "dtype": dtype, "rows": rows, "over": over}
    return found | {"tree_mib": encoder_bytes(recipe) / MIB}


def encoder_bytes(recipe: Recipe) -> int:
    """Bytes of one gradient tree of the shared parameters."""
    params, _, _ = jax.eval_shape(recipe.init, jax.random.key(0))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params["encoder"]))


def describe(result: dict[str, Any]) -> list[str]:
    """The table, in lines of at most 100 columns."""
    title = f"weighted step of {', '.join(TASKS)} against a step of each"
    over = {f"time of {name} / the three steps": ratio for name, ratio in result["over"].items()}
    n, tree = len(TASKS), result["tree_mib"]
    return [
        *step.describe_rows(title, result, result["rows"], over),
        f"gradients kept: {2 * n * tree:.0f} MiB with modo, {n * tree:.0f} MiB with mgda "
        f"({tree:.1f} MiB per tree of the encoder)",
    ]
