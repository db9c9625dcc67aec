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
from bljust_jax.benchmarks.interleave import MIB, interleave, ratios, table
from bljust_jax.benchmarks.step import (
    SHAPES,
    VOCAB_SIZE,
    Program,
    Shape,
    chosen,
    compile_phase,
    make_batch,
    report,
    row_of,
    set_size,
    size_of,
)
from bljust_jax.bilevel.types import Recipe
from configs import m2asr

TASKS = ("asr/en", "asr/fr", "st/fr-en")
RATE = 1e-4  # learning rate


def make_recipe(shape: Shape, dtype: str, method: str) -> tuple[Any, Recipe]:
    """(config, recipe): VC-MSP on three streams of CoVoST at this size."""
    config = m2asr.get_config("covost,vc")
    for name in set(config.data.streams) - set(TASKS):
        del config.data.streams[name]
    set_size(config, shape, dtype)
    config.model.remat = "none"
    config.decoder.update(dim=shape.dim, heads=config.model.heads, dropout=0.0)
    config.specaugment.update(freq_masks=0, time_masks=0)
    config.moo.method = method
    epochs = dict.fromkeys((*TASKS, "unlabelled"), 1000)
    facts = recipes.Facts(dict.fromkeys(TASKS, VOCAB_SIZE), epochs)
    return config, recipes.load(config.recipe)(config, facts)


def make_program(config: Any, recipe: Recipe, batch: dict, *losses: str) -> Program:
    """The step that trains these losses on one level; a single loss needs no weights."""
    phase = next(p for p in recipe.phases if p.name == "joint")
    how = phase.combine[0] if len(losses) > 1 else "sum"
    phase = dataclasses.replace(phase, levels=(losses,), weights=lambda k: (1.0,), combine=(how,))
    descend = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, **_: (
            jax.tree.map(lambda u: -RATE * u, updates),
            state,
        ),
    )
    return compile_phase(config, recipe, phase, batch, optax.chain(recipe.combiner, descend))


def make_streams(shape: Shape) -> dict[str, dict[str, np.ndarray]]:
    """A labelled batch per task, and one without labels."""
    both = make_batch(shape)
    return dict.fromkeys(TASKS, both["labelled"]) | {"unlabelled": both["unlabelled"]}


def run(
    *, shapes: list[tuple[int, ...]] | None, dtype: str, rounds: int, log: Callable[[str], None]
) -> dict[str, Any]:
    """{"shapes": times, memory and ratios at each}; UserError for a shape that the encoder does not
    support."""
    results = []
    for shape in chosen(shapes, SHAPES):
        log(f"moo {shape}")
        batch, programs = make_streams(shape), {}
        for method in ("modo", "mgda"):
            log(f"compiling {method}")
            programs[method] = make_program(*make_recipe(shape, dtype, method), batch, *TASKS)
        for name in TASKS:
            log(f"compiling {name}")
            programs[name] = make_program(*make_recipe(shape, dtype, "modo"), batch, name)
        times = interleave({name: p.run for name, p in programs.items()}, rounds, log)
        over = {name: ratios(times, [name], list(TASKS)) for name in ("modo", "mgda")}
        tree = encoder_bytes(make_recipe(shape, dtype, "modo")[1]) / MIB
        rows = report(programs, times, dtype)
        results.append({"shape": shape._asdict(), "dtype": dtype, "rows": rows, "over": over})
        results[-1]["tree_mib"] = tree
    return {"shapes": results}


def encoder_bytes(recipe: Recipe) -> int:
    """Bytes of one gradient tree of the shared parameters."""
    params, _, _ = jax.eval_shape(recipe.init, jax.random.key(0))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params["encoder"]))


def describe(result: dict[str, Any]) -> list[str]:
    """The tables, in lines of at most 100 columns."""
    lines = []
    for at in result["shapes"]:
        lines += [f"weighted step of {', '.join(TASKS)} against a step of each", size_of(at)]
        lines.append(table([row_of(*row) for row in at["rows"].items()]))
        lines += [
            f"time of {name} / the three steps: {r['min']:.3f} by minima, {r['median']:.3f} by "
            "medians"
            for name, r in at["over"].items()
        ]
        n, tree = len(TASKS), at["tree_mib"]
        lines.append(
            f"gradients kept: {2 * n * tree:.0f} MiB with modo, {n * tree:.0f} MiB with mgda "
            f"({tree:.1f} MiB per tree of the encoder)"
        )
        lines.append("")
    return lines
