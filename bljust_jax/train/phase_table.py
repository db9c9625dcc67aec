"""Phase table of a run before its first step: lengths, compute of each loss, penalties, rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from bljust_jax import recipes
from bljust_jax.bilevel.types import Recipe


class Course(NamedTuple):
    """A schedule at the first, middle and last step of a phase, and its largest value there."""

    start: float
    middle: float
    end: float
    most: float


class Row(NamedTuple):
    """All phases of one name together.

    levels: of losses, upper level first; weights: the course of each level's weight
    flops, hours: {objective: FLOPs (encoder, heads, passes for labels), hours of padded audio}
    share: of the run's FLOPs
    rates: {"encoder": course, "heads": course} of the learning rates
    warmup: steps of their rise
    ema: share of the averaged parameters at the end of the phase that is of this phase
    ema_steps: length of that average, 1 / (1 - decay)
    """

    name: str
    stretches: int
    steps: int
    levels: tuple[tuple[str, ...], ...]
    weights: tuple[Course, ...]
    flops: dict[str, float]
    hours: dict[str, float]
    share: float
    rates: dict[str, Course]
    warmup: int
    ema: float
    ema_steps: float

    @property
    def total(self) -> float:
        return sum(self.flops.values())


def phase_table(config: Any, recipe: Recipe, facts: recipes.Facts) -> list[Row]:
    """One row per phase name, in the order of first appearance."""
    made = [_row(config, recipe, facts, name) for name, _, _ in recipe.phase_table]
    whole = sum(row.total for row in made)
    return [row._replace(share=row.total / whole) for row in made]


def _row(config: Any, recipe: Recipe, facts: recipes.Facts, name: str) -> Row:
    same = [phase for phase in recipe.phases if phase.name == name]
    first, steps = same[0], sum(phase.steps for phase in same)
    spent = recipes.step_compute(config, facts, recipe.objectives, first.losses)
    heads = next(group for group in sorted(recipe.active_groups(first)) if group != "encoder")
    decay = recipe.ema_decay_in(first)
    return Row(
        name=name,
        stretches=len(same),
        steps=steps,
        levels=first.levels,
        weights=tuple(
            course(lambda k, n=n: first.weights(k)[n], steps) for n in range(len(first.levels))
        ),
        flops={loss: steps * each.flops for loss, each in spent.items()},
        hours={loss: steps * each.seconds / 3600 for loss, each in spent.items()},
        share=0.0,
        rates={
            kind: course(first.lr[group], steps)
            for kind, group in (("encoder", "encoder"), ("heads", heads))
        },
        warmup=first.lr["encoder"].warmup,
        ema=1 - decay**steps,
        ema_steps=1 / (1 - decay),
    )


POINTS = 200  # steps of a phase at which the largest value of a schedule is looked for


def course(schedule: Any, steps: int) -> Course:
    """A schedule over the steps of its phase, evaluated on the host."""
    values = {k: float(schedule(k)) for k in {i * (steps - 1) // POINTS for i in range(POINTS + 1)}}
    start, middle, end = (float(schedule(k)) for k in (0, steps // 2, steps - 1))
    return Course(start, middle, end, max(*values.values(), start, middle, end))


def describe_row(row: Row) -> str:
    """phase joint: 32 steps of ctc > cpc, 61 % of the FLOPs (ctc 30 %, cpc 31 %), weight of cpc 0
    to 0.3, at most 0.3."""
    text = f"phase {row.name}: {row.steps} steps of {levels(row)}, {row.share:.1%} of the FLOPs"
    if len(row.flops) > 1:
        whole = row.total / row.share
        parts = (f"{name} {flops / whole:.1%}" for name, flops in row.flops.items())
        text += f" ({', '.join(parts)})"
    for level, weight in zip(row.levels[1:], row.weights[1:], strict=True):
        text += f", weight of {'+'.join(level)} {weight.start:.3g} to {weight.end:.3g}"
        text += f", at most {weight.most:.3g}"
    return text


def levels(row: Row) -> str:
    """ctc > cpc: the upper level first."""
    return " > ".join("+".join(level) for level in row.levels)


def to_json(row: Row) -> dict[str, Any]:
    """The row for run.json."""
    return {
        "name": row.name,
        "share": row.share,
        "tflop": {name: flops / 1e12 for name, flops in row.flops.items()},
        "hours": row.hours,
        "weights": {
            "+".join(level): weight._asdict()
            for level, weight in zip(row.levels, row.weights, strict=True)
        },
        "lr": {kind: rate._asdict() for kind, rate in row.rates.items()},
        "warmup": row.warmup,
        "ema_share": row.ema,
    }


LONG_WARMUP = 1 / 3  # of a phase


def long_warmups(rows: Sequence[Row]) -> list[str]:
    """Log lines on phases whose learning rate rises for more than `LONG_WARMUP` of them."""
    found = [row for row in rows if row.warmup > LONG_WARMUP * row.steps]
    return [
        f"warning: phase {row.name}: the learning rate rises for {row.warmup} of {row.steps} steps:"
        f" lower config.lr.{row.name}.warmup, or give it as a share (warmup_unit)"
        for row in found
    ]
