"""Penalty and learning-rate schedules as functions of the number of steps spent in a phase."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bljust_jax.bilevel.types import Phase
from bljust_jax.common.errors import UserError


def position(phases: tuple[Phase, ...], name: str, step: Any) -> Int[Array, ""]:
    """Number of steps before `step` in phases called `name`: the argument of every schedule."""
    return _steps_in(phases, [p.name == name for p in phases], step)


def active_steps(phases: tuple[Phase, ...], losses: Iterable[str], step: Any) -> Int[Array, ""]:
    """Number of steps before `step` in phases where one of `losses` is active: the argument of the
    schedules of an objective, such as a Gumbel temperature."""
    return _steps_in(phases, [bool(p.losses & set(losses)) for p in phases], step)


def _steps_in(phases: tuple[Phase, ...], counted: Sequence[bool], step: Any) -> Int[Array, ""]:
    starts = np.cumsum([0] + [p.steps for p in phases[:-1]])[list(counted)].astype(np.int32)
    lengths = np.array([p.steps for p in phases], np.int32)[list(counted)]
    return jnp.sum(jnp.clip(step - starts, 0, lengths), dtype=jnp.int32)


def penalty_schedule(
    start: float | int, slope: float | int, cap: float | int
) -> Callable[[Any], Array]:
    """gamma_k = min(cap, start + slope * k), with k the number of steps (or epochs, fractions
    included, if the caller divides) spent in phases of one name. ValueError if start > cap or
    slope < 0."""
    if cap < start or slope < 0:
        raise ValueError(
            f"a penalty rises from start to cap: start={start}, slope={slope}, cap={cap}"
        )

    def gamma(k):
        xp = array_module(k)
        return xp.minimum(xp.float32(cap), xp.float32(start) + xp.float32(slope) * k)

    return gamma


def array_module(k: Any) -> Any:
    """jax.numpy for an array of jax, else numpy, which compiles nothing."""
    return jnp if isinstance(k, jax.Array) else np


# Rate over peak after a share of the phase. "hold" is constant for the first 4/9, then decays
# exponentially to 1/20: after a warm-up of 1/10, the 10/40/50 schedule of wav2vec 2.0.
SHAPES: dict[str, Callable[[Any], Any]] = {
    "constant": lambda share: 1.0,
    "cosine": lambda share: 0.5 * (1 + array_module(share).cos(np.pi * share)),
    "linear": lambda share: 1.0 - share,
    "hold": lambda share: 0.05 ** array_module(share).clip((9 * share - 4) / 5, 0.0, 1.0),
}


def warmup_steps(warmup: float, unit: str, steps: int) -> int:
    """Steps of a warm-up in a phase of `steps`: `warmup` itself, or that share of the phase.
    UserError for a share above 1; ValueError for hours, which `recipes.load` turns into steps."""
    if unit == "step":
        return round(warmup)
    if unit != "share":
        raise ValueError(f"a warm-up in units of {unit!r} depends on the data")
    if warmup > 1:
        raise UserError(f'config.lr: warmup={warmup:g} is above 1, with warmup_unit="share"')
    return round(warmup * steps)


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """k -> rate: linear from 0 to `peak` over `warmup` steps, then `SHAPES[shape]` of the rest of
    `steps`."""

    shape: str
    peak: float
    warmup: int
    steps: int

    def __call__(self, k: Any) -> Any:
        xp, rest = array_module(k), max(self.steps - self.warmup, 1)
        share = xp.clip((k - self.warmup) / rest, 0.0, 1.0)
        rise = xp.minimum(1.0, (k + 1) / max(self.warmup, 1))
        return self.peak * rise * SHAPES[self.shape](share)
