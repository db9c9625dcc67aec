"""A step of several objectives against the steps of each, at equal examples.

Two recognition losses and a translation share an encoder. The step that finds their weights by MoDo
(two half batches each) or MGDA is compared with the sum of three steps of one loss, on the same
rows. The update is a plain step down: what is measured is gradients and their combination. The
gradients of all losses are kept until their weights are known: one tree of the shared parameters an
objective with MGDA, two with MoDo.
"""

from __future__ import annotations

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
    compile_phase,
    make_batch,
    report,
    row_of,
)
from bljust_jax.bilevel.types import Recipe
from configs import m2asr

TASKS = ("asr/en", "asr/fr", "st/fr-en")
RATE = 1e-4  # of the plain step down


def make_recipe(shape: Shape, dtype: str, method: str) -> Recipe:
    """VC-MSP on three streams of CoVoST at this size."""
    config = m2asr.get_config("covost,vc")
    for name in set(config.data.streams) - set(TASKS):
        del config.data.streams[name]
    heads = max(4, shape.dim // 64)
    config.model.update(dim=shape.dim, layers=shape.layers, heads=heads, channels=shape.dim)
    config.model.update(dropout=0.0, dtype=dtype, remat="none")
    config.decoder.update(dim=shape.dim, heads=heads, dropout=0.0)
    config.specaugment.update(freq_masks=0, time_masks=0)
    config.moo.method = method
    epochs = dict.fromkeys((*TASKS, "unlabelled"), 1000)
    facts = recipes.Facts(dict.fromkeys(TASKS, VOCAB_SIZE), epochs)
    return recipes.load(config.recipe)(config, facts)


def make_program(recipe: Recipe, batch: dict, *losses: str) -> Program:
    """The step that trains these losses, on one level; a plain sum where there is one."""
    phase = next(p for p in recipe.phases if p.name == "joint")
    how = phase.combine[0] if len(losses) > 1 else "sum"
    phase = dataclasses.replace(phase, levels=(losses,), weights=lambda k: (1.0,), combine=(how,))
    down = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, **_: (
            jax.tree.map(lambda u: -RATE * u, updates),
            state,
        ),
    )
    return compile_phase(recipe, phase, optax.chain(recipe.combiner, down), batch)


def make_streams(shape: Shape) -> dict[str, dict[str, np.ndarray]]:
    """A batch of its own for each task, and one without labels."""
    both = make_batch(shape)
    return dict.fromkeys(TASKS, both["labelled"]) | {"unlabelled": both["unlabelled"]}


def run(
    *, shapes: list[tuple[int, ...]] | None, dtype: str, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """{"shapes": times, memory and ratios at each}; UserError for one that no encoder has."""
    results = []
    for shape in [Shape(*s) for s in shapes] if shapes else [SHAPES[jax.default_backend()]]:
        say(f"moo {shape}")
        batch, programs = make_streams(shape), {}
        for method in ("modo", "mgda"):
            say(f"compiling {method}")
            programs[method] = make_program(make_recipe(shape, dtype, method), batch, *TASKS)
        for name in TASKS:
            say(f"compiling {name}")
            programs[name] = make_program(make_recipe(shape, dtype, "modo"), batch, name)
        times = interleave({name: p.run for name, p in programs.items()}, rounds, say)
        over = {name: ratios(times, [name], list(TASKS)) for name in ("modo", "mgda")}
        tree = encoder_bytes(make_recipe(shape, dtype, "modo")) / MIB
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
        shape = Shape(**at["shape"])
        size = f"{shape.dim} x {shape.layers}, {shape.rows} x {shape.seconds} s, {at['dtype']}"
        lines += [f"step of {', '.join(TASKS)}, weighed, against a step of each", size]
        lines.append(table([row_of(*row) for row in at["rows"].items()]))
        lines += [
            f"time of {name} / the three steps: {r['min']:.3f} by minima, {r['median']:.3f} by "
            "medians"
            for name, r in at["over"].items()
        ]
        n, tree = len(TASKS), at["tree_mib"]
        lines.append(
            f"gradients kept: {2 * n * tree:.0f} MiB with modo, {n * tree:.0f} MiB with mgda "
            f"({tree:.1f} MiB a tree of the encoder)"
        )
        lines.append("")
    return lines
