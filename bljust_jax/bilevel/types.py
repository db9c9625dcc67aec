"""Types of a training system: train state, objectives, parameter groups, phases, tasks, recipe.

Randomness is a function of (seed, stream name, step, utterance id) and is never stored; schedules
are functions of the number of steps spent in a phase.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import optax

Tree = Any
# {metric: (sum, weight)}; the mean is taken once, over a whole log window
Means = dict[str, tuple[Any, Any]]


class TrainState(NamedTuple):
    """All arrays of a checkpoint. `frozen` (codebooks, a fixed extractor, a `Teacher`) and `stats`
    (feature statistics) receive no gradient."""

    step: Any
    params: Tree
    opt_state: Tree
    ema: Tree
    frozen: Tree
    stats: Tree

    @property
    def weights(self) -> Weights:
        """EMA parameters and statistics."""
        return Weights(self.ema, self.stats)


class Weights(NamedTuple):
    """EMA parameters used for inference, and their statistics."""

    params: Tree
    stats: Tree


class Teacher(NamedTuple):
    """An average of parameters that computes the targets of a loss, one of `TrainState.frozen`.

    Before step k of the loss (from 0) it is d t + (1 - d) params[part], d = decay(k), and
    params[part] itself at k = 0, as in the initial state; no gradient reaches it. Without a decay
    it stays until a phase starts anew (`Phase.anew`).
    """

    loss: str
    part: str
    decay: Callable[[Any], Any] | None


class Extras(NamedTuple):
    """Inputs of an objective besides parameters and batch. `step` counts the earlier steps in which
    one of its losses was active, whatever the phase. `scale` has the active losses:
    `scale[name]` multiplies the gradient of loss `name` with respect to shared hidden states (1
    unless the step takes one backward pass over all losses)."""

    step: Any
    frozen: Tree
    stats: Tree
    ema: Tree
    scale: Mapping[str, Any]


class Aux(NamedTuple):
    """Metrics and updated arrays of an objective: statistics, and frozen arrays by name."""

    metrics: Means
    stats: dict


@runtime_checkable
class Objective(Protocol):
    """One or several named losses of one pure function; a loss is sum / max(weight, 1), float32.

    name: the names in `losses` joined by "+"
    losses, streams: names of the losses, and of the batches that `apply` reads
    kind: equal for objectives of one loss and one stream that differ in these names alone: the same
        function of shared parameters, params[head], batch and key; None if there are no such ones
    apply(params, extras, batch, rng) -> ({loss name: (loss_sum, weight)}, Aux)
    """

    @property
    def name(self) -> str: ...
    @property
    def losses(self) -> tuple[str, ...]: ...
    @property
    def streams(self) -> tuple[str, ...]: ...
    @property
    def kind(self) -> Any: ...
    @property
    def apply(self) -> Callable[..., tuple[dict[str, tuple[Any, Any]], Aux]]: ...


@dataclass(frozen=True)
class Group:
    """Parameters whose path matches `pattern`, owned by the losses `owners`; parameters that all
    losses of a recipe own are the shared ones."""

    name: str
    pattern: str
    owners: frozenset[str]
    clip: float
    weight_decay: float


@dataclass(frozen=True)
class Phase:
    """A part of training with fixed losses. `levels` lists the active losses, upper level first;
    `weights(k)` gives the absolute level weights and `lr[group](k)` the learning rates, k the
    number of steps so far in phases of this name. Phases of one name differ only in length."""

    name: str
    steps: int
    levels: tuple[tuple[str, ...], ...]
    weights: Callable[[Any], tuple[Any, ...]]
    lr: Mapping[str, Callable[[Any], Any]]
    moments: str = "keep"
    # how the gradients of each level's losses become one: "sum", "mgda" or "modo"
    # (bilevel/multi_objective.py); () = all by "sum". A level of one loss is always summed
    combine: tuple[str, ...] = ()
    # {loss: weight} within a level of "sum"; 1 for losses that are not named
    inner: Mapping[str, float] = field(default_factory=dict)
    # one of many short phases that take turns: no window of metrics ends with it
    turn: bool = False
    # at its first step all teachers become the EMA parameters, and parameters, EMA and optimizer
    # state those of a new run
    anew: bool = False

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
    """Recognition or translation: what is evaluated, and how it is computed from audio.

    name: "" for the only task of a recipe, else that of its stream ("asr/en", "st/fr-en")
    stream: the labelled stream that it is trained on, whose tokenizer decodes its outputs
    measure: the score that selects the best weights: "wer", "cer", "mer" or "bleu"
    predict: recognition: (params, stats, batch) -> (logits [B, T, K], frames [B]), class 0 is the
        blank; None for a translation
    translate: translation: (params, stats, batch, beam) -> ids int32 [B, U], -1 after the end of
        sequence; a beam of 1 is greedy; None for recognition
    head: name of its head in the parameters
    losses: {loss: (logits, frames, batch) -> (nats [B], weight [B])} of `predict`, which are
        computed where a split is scored during training
    """

    name: str
    stream: str
    measure: str
    head: str
    predict: Callable[..., Any] | None = None
    translate: Callable[..., Any] | None = None
    losses: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def split(self, name: str) -> str:
        """Name of the task's part of a split: dev, or dev/asr/en."""
        return f"{name}/{self.name}" if self.name else name


@dataclass(frozen=True)
class Recipe:
    """A training system: objectives over one set of parameters, their combiner, and phases."""

    objectives: tuple[Objective, ...]
    groups: tuple[Group, ...]
    phases: tuple[Phase, ...]
    init: Callable[[Any], tuple[Tree, Tree, Tree]]  # rng -> (params, frozen, stats)
    combiner: optax.GradientTransformationExtraArgs
    tasks: tuple[Task, ...]
    # (audio [B, S], lengths [B]) -> (log-mel [B, T, M], frames [B]), for pictures
    log_mel: Callable[..., Any]
    # samples of audio -> frames of logits
    frames: Callable[[int], int]
    # batches of audio -> statistics that are computed before the first step
    statistics: Callable[[Any], Tree]
    # (active losses of an objective, padded seconds of one row) -> encoder FLOPs of one training
    # step: forward 1, backward 2, passes that compute target labels included
    cost: Callable[[frozenset[str], float], float]
    # "separate": one gradient per objective; "fused": one backward pass over the sum of the losses
    gradients: str = "separate"
    # as `cost`, of heads, decoders and quantisers in the same step
    head_cost: Callable[[frozenset[str], float], float] = lambda losses, seconds: 0.0
    # "plain": a head has the gradient of its own loss; "penalised": that times the level weight,
    # the exact gradient of the penalised objective
    head_scale: str = "plain"
    ema_decay: float = 0.999  # largest decay of the averaged parameters
    ema_share: float = 0.0  # of the steps of a phase, the longest average; 0: no bound
    # {phase name: steps of the longest average}; {}: no bound
    ema_steps: Mapping[str, float] = field(default_factory=dict)
    # {name: workdir of a finished run}: its best encoder, as Weights({"encoder": ...}, stats),
    # replaces the tree of the same shapes in frozen[name] of the initial state
    borrow: Mapping[str, str] = field(default_factory=dict)
    # {name in frozen: how the step moves it}
    teachers: Mapping[str, Teacher] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # log lines at the start of a run
    # order of the unlabelled batches of phases without labelled ones (`data/replay.Replay`), and
    # the frozen array of what is kept of them, which no other run can start from
    replay: Any = None
    cache: str = ""

    @property
    def losses(self) -> frozenset[str]:
        return frozenset(name for objective in self.objectives for name in objective.losses)

    @property
    def predict(self) -> Callable[..., Any]:
        """That of the first recognition task: (params, stats, batch) -> (logits, frames)."""
        return next(task.predict for task in self.tasks if task.predict)

    @property
    def phase_table(self) -> list[tuple[str, int, str]]:
        """(name, total steps, levels) of each phase, in the order of first appearance."""
        steps: dict[str, int] = {}
        for phase in self.phases:
            steps[phase.name] = steps.get(phase.name, 0) + phase.steps
        levels = {p.name: p.describe_levels() for p in self.phases}
        return [(name, n, levels[name]) for name, n in steps.items()]

    def ema_decay_in(self, phase: Phase) -> float:
        """Decay of the averaged parameters in a phase of n steps (all phases of its name together):

            d = min(ema_decay, 1 - 1 / (ema_share n), 1 - 1 / ema_steps), at least 0

        so 1 - d^n of the average is of the phase at its end: at least 1 - exp(-1 / ema_share), 0.98
        at a share of 0.25. A share of 0 is no bound.
        """
        n = sum(p.steps for p in self.phases if p.name == phase.name)
        lengths = [self.ema_share * n] if self.ema_share else []
        lengths += [self.ema_steps[phase.name]] if self.ema_steps else []
        return min([self.ema_decay, *(1 - 1 / max(steps, 1) for steps in lengths)])

    def active(self, phase: Phase) -> tuple[Objective, ...]:
        """The objectives with a loss in the phase."""
        return tuple(o for o in self.objectives if phase.losses & set(o.losses))

    def active_groups(self, phase: Phase) -> frozenset[str]:
        """Names of the groups that an active loss owns."""
        return frozenset(g.name for g in self.groups if g.owners & phase.losses)
