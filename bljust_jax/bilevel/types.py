"""A system as data: pure objectives over one set of parameters, the groups that own them, phases.

Randomness is a function of (seed, stream name, step, utterance id) and is never stored; schedules
are functions of the steps spent in a phase.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import optax

Tree = Any
# name -> (sum, weight); the mean is taken once, over a whole window
Means = dict[str, tuple[Any, Any]]


class TrainState(NamedTuple):
    """All that a checkpoint holds. `frozen` (codebooks, a fixed extractor) and `stats` (feature
    statistics) are no one's gradient."""

    step: Any
    params: Tree
    opt_state: Tree
    ema: Tree
    frozen: Tree
    stats: Tree

    @property
    def weights(self) -> Weights:
        return Weights(self.ema, self.stats)


class Weights(NamedTuple):
    """What recognises: averaged parameters and the statistics that belong to them."""

    params: Tree
    stats: Tree


class Extras(NamedTuple):
    """What an objective may read besides parameters and batch. `scale` holds the losses that are
    active: `scale[name]` multiplies the gradient that loss `name` sends into shared hidden states
    (1 unless the step takes one backward pass over all losses)."""

    step: Any
    frozen: Tree
    stats: Tree
    ema: Tree
    scale: Mapping[str, Any]


class Aux(NamedTuple):
    metrics: Means
    stats: dict


@dataclass(frozen=True)
class Objective:
    """`apply(params, extras, batch, rng) -> ({loss name: (loss_sum, weight)}, Aux)`, pure; a loss
    is sum / max(weight, 1), float32."""

    losses: tuple[str, ...]
    streams: tuple[str, ...]
    apply: Callable[..., tuple[dict[str, tuple[Any, Any]], Aux]]

    @property
    def name(self) -> str:
        return "+".join(self.losses)


class SelfSupervised(NamedTuple):
    """What `objectives/<name>.py` binds to an encoder: an objective on the stream `unlabelled`, its
    head and its cost. `bind(config, encoder, encode, linear)` gives it, with
    encode(params, x, lengths, *, stats, context, hide, upto, train, rng): `Encoder.apply`, which
        finds its own part of params and stats
    linear: the linear maps of `models.heads`, init(rng, dim, out) and apply(params, x).
    """

    objective: Objective
    # rng -> (head, frozen): params["<name>_head"] and what no gradient reaches, frozen["<name>"]
    init: Callable[[Any], tuple[Tree, Tree]]
    # padded seconds of one row -> encoder FLOPs of one training step (forward 1, backward 2)
    cost: Callable[[float], float]
    # for a forward pass that several losses share (`objectives.shared`); None where it cannot be
    reader: Callable | None = None


@dataclass(frozen=True)
class Group:
    """Parameters whose path matches `pattern`, owned by the losses named in `owners`; owned by
    every loss of a recipe = shared."""

    name: str
    pattern: str
    owners: frozenset[str]
    clip: float
    weight_decay: float


@dataclass(frozen=True)
class Phase:
    """A stretch of training. `levels` lists the active losses, upper level first; `weights(k)`
    gives the absolute level weights and `lr[group](k)` the learning rates, k = steps spent so far
    in phases of this name. Phases of one name differ in length alone."""

    name: str
    steps: int
    levels: tuple[tuple[str, ...], ...]
    weights: Callable[[Any], tuple[Any, ...]]
    lr: Mapping[str, Callable[[Any], Any]]
    moments: str = "keep"
    # how the gradients of each level's losses become one: "sum", "mgda" or "modo"
    # (bilevel/multi_objective.py); () = all by "sum". A level of one loss is always summed
    combine: tuple[str, ...] = ()
    # {loss: weight} inside a level of "sum"; 1 where a loss is not named
    inner: Mapping[str, float] = field(default_factory=dict)

    @property
    def losses(self) -> frozenset[str]:
        return frozenset(name for level in self.levels for name in level)

    @property
    def dynamic_levels(self) -> dict[tuple[str, ...], str]:
        """{level: "mgda" or "modo"} of the levels whose gradients stay apart: those of several
        losses that are not summed."""
        how = self.combine or ("sum",) * len(self.levels)
        return {
            level: method
            for level, method in zip(self.levels, how, strict=True)
            if method != "sum" and len(level) > 1
        }

    def describe_levels(self) -> str:
        """ctc > cpc: the upper level first."""
        return " > ".join("+".join(level) for level in self.levels)

    def level_of(self, loss: str) -> int:
        return next(n for n, level in enumerate(self.levels) if loss in level)


@dataclass(frozen=True)
class Task:
    """What a recipe does with audio and is scored for.

    name: "" where it is a recipe's only one, else that of its stream ("asr/en", "st/fr-en")
    stream: the labelled stream that teaches it, whose tokenizer spells what it says
    measure: the score that the best weights are chosen by: "wer", "cer" or "bleu"
    predict: recognition: (params, stats, batch) -> (logits [B, T, K], frames [B]), class 0 is the
        blank; None for a translation
    translate: translation: (params, stats, batch, beam) -> ids int32 [B, U], -1 after the end; a
        beam of 1 is greedy; None for recognition
    head: its part of the parameters
    """

    name: str
    stream: str
    measure: str
    head: str
    predict: Callable[..., Any] | None = None
    translate: Callable[..., Any] | None = None

    def split(self, name: str) -> str:
        """The name of its part of a split: dev, or dev/asr/en."""
        return f"{name}/{self.name}" if self.name else name


@dataclass(frozen=True)
class Recipe:
    """A whole system as data: objectives over one set of parameters, how they are combined, and
    when."""

    objectives: tuple[Objective, ...]
    groups: tuple[Group, ...]
    phases: tuple[Phase, ...]
    init: Callable[[Any], tuple[Tree, Tree, Tree]]  # rng -> (params, frozen, stats)
    combiner: optax.GradientTransformationExtraArgs
    tasks: tuple[Task, ...]  # what is evaluated
    # (audio [B, S], lengths [B]) -> (log-mel [B, T, M], frames [B]), for pictures
    log_mel: Callable[..., Any]
    # samples of audio -> frames of logits
    frames: Callable[[int], int]
    # batches of audio -> the stats that are measured before the first step
    statistics: Callable[[Any], Tree]
    # (an objective's active losses, padded seconds of one row) -> FLOPs of one training step in the
    # encoder: forward 1, backward 2, passes that make labels included
    cost: Callable[[frozenset[str], float], float]
    # "separate": a gradient an objective; "fused": one backward pass over the sum of the losses
    gradients: str = "separate"
    # "plain": a head takes its own gradient; "penalised": times its level's weight, the exact
    # gradient of the penalised objective
    head_scale: str = "plain"
    ema_decay: float = 0.999
    # {name: workdir of a finished run}: its best encoder, as Weights({"encoder": ...}, stats),
    # becomes frozen[name] of a fresh state, in place of the tree of the same shapes of `init`
    borrow: Mapping[str, str] = field(default_factory=dict)

    @property
    def losses(self) -> frozenset[str]:
        return frozenset(name for objective in self.objectives for name in objective.losses)

    @property
    def predict(self) -> Callable[..., Any]:
        """That of the first task that recognises: (params, stats, batch) -> (logits, frames)."""
        return next(task.predict for task in self.tasks if task.predict)

    @property
    def phase_table(self) -> list[tuple[str, int, str]]:
        """(name, steps in all, levels) of each phase, in the order of first appearance."""
        steps: dict[str, int] = {}
        for phase in self.phases:
            steps[phase.name] = steps.get(phase.name, 0) + phase.steps
        levels = {p.name: p.describe_levels() for p in self.phases}
        return [(name, n, levels[name]) for name, n in steps.items()]

    def active(self, phase: Phase) -> tuple[Objective, ...]:
        return tuple(o for o in self.objectives if phase.losses & set(o.losses))

    def active_groups(self, phase: Phase) -> frozenset[str]:
        return frozenset(g.name for g in self.groups if g.owners & phase.losses)


# Randomness


# Schedules and shared hidden states
