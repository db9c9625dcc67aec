"""Self-supervised losses of dev, for phases in which no head that is scored has trained yet."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bljust_jax.bilevel.types import Extras, Objective, Recipe, TrainState
from bljust_jax.data.corpus import Corpus
from bljust_jax.parallel.mesh import put_full_batch, replicated
from bljust_jax.train.compile_pool import EVALUATION_CURE, CompilePool, Job
from bljust_jax.train.timeline import Timeline

SHARES = ("accuracy", "majority")  # metrics that are shares of what the loss counts


def head_has_trained(recipe: Recipe, timeline: Timeline, step: int) -> bool:
    """Whether a step before `step` had a loss that owns the head of a task."""
    heads = {task.head for task in recipe.tasks}
    owners = frozenset().union(*(g.owners for g in recipe.groups if g.name in heads))
    rows = zip(timeline.segments, recipe.phases, strict=True)
    return any(segment.start < step and phase.losses & owners for segment, phase in rows)


class DevLosses:
    """Means of losses over the audio of dev, by averaged parameters.

    They are computed as in training, SpecAugment, masks and dropout included, from random keys that
    are the same in every evaluation.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus, mesh: Mesh, pool: CompilePool):
        self._recipe, self._corpus, self._mesh, self._pool = recipe, corpus, mesh, pool
        self._programs: dict[tuple, Any] = {}

    def __call__(self, state: TrainState, losses: frozenset[str]) -> dict[str, float]:
        """{dev/LOSS/loss: mean} of those `losses` that read one stream without labels, and
        {dev/LOSS/METRIC: mean} of their `SHARES`; without those that no audio of dev counts for,
        such as a loss of frame labels that dev lacks."""
        own = [o for o in self._recipe.objectives if losses & set(o.losses) and _is_alone(o)]
        totals: dict[str, list[float]] = {}
        splits = dict.fromkeys(task.split("dev") for task in self._recipe.tasks)
        for split in splits:
            for n, (batch, members) in enumerate(self._corpus.eval_batches(split)):
                batch = self._corpus.with_frame_labels(batch, members)
                rows = put_full_batch(batch, self._mesh)
                for objective in own:
                    self._pool.check()
                    arguments = state, rows, jax.random.key(n)
                    found = self._program(objective, arguments)(*arguments)
                    for name, pair in jax.device_get(found).items():
                        total = totals.setdefault(f"dev/{name}", [0.0, 0.0])
                        total[0], total[1] = total[0] + float(pair[0]), total[1] + float(pair[1])
        return {name: value / weight for name, (value, weight) in totals.items() if weight}

    def _program(self, objective: Objective, arguments: tuple) -> Any:
        key = objective.name, arguments[1]["audio"].shape
        if key not in self._programs:
            jitted = jax.jit(
                functools.partial(sums, objective), out_shardings=replicated(self._mesh)
            )
            rows, samples = key[1]
            name = f"dev loss {objective.name}: {rows} x {samples} samples"
            job = Job(name, EVALUATION_CURE, lambda: jitted.lower(*arguments))
            self._pool.submit(job)
            self._programs[key] = self._pool.wait(job)
        return self._programs[key]


def _is_alone(objective: Objective) -> bool:
    return objective.streams == ("unlabelled",)


def sums(objective: Objective, state: TrainState, rows: Any, key: Any) -> dict[str, Any]:
    """{LOSS/loss and LOSS/METRIC of `SHARES`: (sum, weight)} of one objective on one batch."""
    scale = {name: jnp.float32(1) for name in objective.losses}
    extras = Extras(state.step, state.frozen, state.stats, state.ema, scale)
    pairs, aux = objective.apply(state.ema, extras, {objective.streams[0]: rows}, key)
    shares = {name: pair for name, pair in aux.metrics.items() if name.split("/")[-1] in SHARES}
    return {f"{name}/loss": pair for name, pair in pairs.items()} | shares
