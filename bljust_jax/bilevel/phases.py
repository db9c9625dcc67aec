"""Phase tables of each method: losses, level weights and learning rates per phase.

method         phases, cut to the FLOPs of bljust: encoder, heads and passes for labels
bljust         explore: lower | joint: upper > lower, rising penalty | finetune: upper
weighted_sum   the same, at a constant penalty
ptft           pretrain: lower | supervised: upper, half of the FLOPs each
supervised     supervised: upper
alternating    explore: lower | turns of the lower and the upper loss | finetune: upper
mpl            supervised: upper | joint: upper > pseudo-labels, at a constant weight
slimipl        supervised: upper | turns of 1 step: upper, `ratio` steps: pseudo-labels
noisy_student  supervised: upper | rounds, each anew: upper > pseudo-labels, at a constant weight
masked_cpc_ctc turns of one step: lower, upper

The losses differ in FLOPs per step: CPC on windows encodes 2 to 3 times the audio, and streams have
batches of their own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bljust_jax.bilevel.schedules import LearningRate, penalty_schedule, warmup_steps
from bljust_jax.bilevel.types import Phase
from bljust_jax.common.config_schema.training import PSEUDO
from bljust_jax.common.errors import UserError


def make_phases(
    config: Any,
    steps_per_epoch: Mapping[str, int],
    upper: tuple[str, ...],
    lower: str,
    heads: tuple[str, ...],
    flops: Callable[[frozenset[str]], float],
    budget: float | int | None = None,
) -> tuple[Phase, ...]:
    """The phases of `config.method` over the losses of the upper level and the lower one, by name.

    flops: active losses -> mean FLOPs of a step
    budget: FLOPs of the run, those of `bljust_flops` over the losses of BL-JUST, for the methods
        that have another lower loss

    An epoch is one pass over the labelled plan, in exploration over the unlabelled one. The groups
    in `heads` have the learning rate of the encoder times `rates.heads` of the phase.
    """
    totals: dict[str, int] = {}
    cost = _Cost.of(flops, upper, lower)
    if budget is None:
        table = _table(config, steps_per_epoch, cost)
    else:
        table = _table_of_peer(config, budget, cost)
    for name, steps in table:
        totals[name] = totals.get(name, 0) + steps
    levels = {"joint": (upper, (lower,))}
    levels |= dict.fromkeys(("explore", "pretrain", "turn_ssl", "turn_pseudo"), ((lower,),))
    levels |= dict.fromkeys(("finetune", "supervised", "turn_ctc"), (upper,))
    levels |= {name: levels["joint"] for name, _ in table if name.startswith("round_")}

    def phase(name: str, steps: int) -> Phase:
        weights = one if len(levels[name]) == 1 else penalised(config, steps_per_epoch["labelled"])
        rate = _rate(config, name)
        made = one_phase(config.lr, name, steps, levels[name], weights, heads, totals[name], rate)
        turn = turns and name.startswith("turn")
        return dataclasses.replace(made, turn=turn, anew=name.startswith("round_"))

    turns = config.method in ("slimipl", "masked_cpc_ctc")
    phase = functools.cache(phase) if turns else phase  # thousands of turns are two objects
    return tuple(phase(name, steps) for name, steps in table if steps > 0)


class _Cost(NamedTuple):
    """Mean FLOPs of a step with the upper loss, the lower one, both."""

    upper: float
    lower: float
    both: float

    @classmethod
    def of(
        cls, flops: Callable[[frozenset[str]], float], upper: tuple[str, ...], lower: str
    ) -> _Cost:
        return cls(*(flops(frozenset(losses)) for losses in (upper, (lower,), (*upper, lower))))


def _lengths(config: Any, steps_per_epoch: Mapping[str, int]) -> tuple[int, int, int]:
    """Steps of BL-JUST's phases: explore, joint, finetune."""
    length = config.phases
    labelled = steps_per_epoch["labelled"]
    unlabelled = labelled if config.share_forward else steps_per_epoch["unlabelled"]
    unit, unit_ssl = (1, 1) if length.unit == "step" else (labelled, unlabelled)
    return (
        round(length.explore * unit_ssl),
        round(length.joint * unit),
        round(length.finetune * unit),
    )


def bljust_flops(
    config: Any,
    steps_per_epoch: Mapping[str, int],
    upper: tuple[str, ...],
    lower: str,
    flops: Callable[[frozenset[str]], float],
) -> float | int:
    """FLOPs of a run of method bljust over these losses: the budget of every method."""
    return _budget(_lengths(config, steps_per_epoch), _Cost.of(flops, upper, lower))


def _budget(lengths: tuple[int, int, int], cost: _Cost) -> float | int:
    explore, joint, finetune = lengths
    return explore * cost.lower + joint * cost.both + finetune * cost.upper


def _rate(config: Any, name: str) -> Any:
    """The learning rate of a phase of `config.method`."""
    if config.method == "ptft" and name == "supervised":  # before the field: that of supervised
        return config.lr.get("ptft_supervised", config.lr.supervised)
    if config.method == "masked_cpc_ctc":
        return config.lr.masked_cpc
    if name.startswith("round_"):  # from scratch
        return config.lr.supervised
    return config.lr.pseudo if config.method in PSEUDO and name != "supervised" else config.lr[name]


# Share of the FLOPs on labels alone before the pseudo-labels: ours
START = {"mpl": 0.5, "slimipl": 0.5, "noisy_student": 0.3}


def _table_of_peer(config: Any, budget: float | int, cost: _Cost) -> list[tuple[str, int]]:
    """(name, steps) of each phase of a method with another lower loss than BL-JUST's, with its
    FLOPs: for pseudo-labels the share `config.pseudo_label.start` on labels alone first."""
    if config.method == "masked_cpc_ctc":
        turns = max(1, round(budget / (cost.lower + cost.upper)))
        return turns * [("turn_ssl", 1), ("turn_ctc", 1)]
    own = config.pseudo_label
    start = round((own.start or START[config.method]) * budget / cost.upper)
    rest = budget - start * cost.upper
    if config.method == "slimipl":
        turn = [("turn_ctc", 1), ("turn_pseudo", own.ratio)]
        turns = max(1, round(rest / (cost.upper + own.ratio * cost.lower)))
        return [("supervised", start), *turns * turn]
    if config.method == "noisy_student":
        steps = round(rest / cost.both / own.rounds)
        return [("supervised", start), *((f"round_{n + 1}", steps) for n in range(own.rounds))]
    return [("supervised", start), ("joint", round(rest / cost.both))]


def _table(config: Any, steps_per_epoch: Mapping[str, int], cost: _Cost) -> list[tuple[str, int]]:
    """(name, steps) of each phase of `config.method`, with the FLOPs of BL-JUST's phases."""
    length, labelled = config.phases, steps_per_epoch["labelled"]
    lengths = explore, joint, finetune = _lengths(config, steps_per_epoch)
    budget = _budget(lengths, cost)
    if config.method in ("bljust", "weighted_sum"):
        rounds = 1 if length.explore_when == "once" else max(1, round(joint / labelled))
        return _rounds([("explore", explore), ("joint", joint)], rounds) + [("finetune", finetune)]
    if config.method == "supervised":
        return [("supervised", round(budget / cost.upper))]
    if cost.lower == 0:
        raise UserError(
            f"config.ssl={config.ssl!r} encodes nothing in batches of config.data.buckets (or "
            f"unlabelled_buckets): method {config.method} needs longer ones"
        )
    if config.method == "ptft":
        pretrain = round(budget / 2 / cost.lower)
        return [
            ("pretrain", pretrain),
            ("supervised", round((budget - pretrain * cost.lower) / cost.upper)),
        ]
    turn = round(joint * cost.both / (cost.lower + cost.upper))
    rounds = max(1, round(turn / length.turn))
    turns = _rounds([("turn_ssl", turn), ("turn_ctc", turn)], rounds)
    return [("explore", explore), *turns, ("finetune", finetune)]


def _rounds(parts: list[tuple[str, int]], rounds: int) -> list[tuple[str, int]]:
    """Each part split into `rounds` nearly equal lengths, interleaved."""
    return [
        (name, steps * (r + 1) // rounds - steps * r // rounds)
        for r in range(rounds)
        for name, steps in parts
    ]


def one_phase(
    rates: Any,
    name: str,
    steps: int,
    levels: tuple[tuple[str, ...], ...],
    weights: Callable[[Any], tuple[Any, ...]],
    heads: tuple[str, ...],
    total: int,
    rate: Any = None,
) -> Phase:
    """A phase with learning rates `rate`, by default `rates[name]`, scheduled over `total` steps in
    phases of that name; those of heads are times `rates.heads`."""
    rate = rate or rates[name]
    warmup = warmup_steps(float(rate.warmup), rate.get("warmup_unit", "step"), total)
    encoder = LearningRate(rate.shape, rate.peak, warmup, total)
    head = LearningRate(rate.shape, rate.peak * rates.heads, warmup, total)
    lr = {"encoder": encoder} | dict.fromkeys(heads, head)
    return Phase(name, steps, levels, weights, lr, rate.moments)


def one(k: Any) -> tuple[Any, ...]:
    """Level weights of a phase with one level."""
    del k
    return (1.0,)


def penalised(config: Any, steps_per_epoch: int) -> Callable[[Any], tuple[Any, ...]]:
    """k -> (1, gamma_k): the penalty rises with the steps of its phases, by `slope` per step or per
    epoch, of which fractions count; constant for `weighted_sum` and the methods of `PSEUDO`."""
    if config.method == "weighted_sum":
        return lambda k: (1.0, config.penalty.constant)
    if config.method in PSEUDO:
        return lambda k: (1.0, config.pseudo_label.weight)
    p = config.penalty
    gamma = penalty_schedule(p.start, p.slope, p.cap)
    per = penalty_unit(config, steps_per_epoch)
    return lambda k: (1.0, gamma(per(k)))


def penalty_unit(config: Any, steps_per_epoch: int) -> Callable[[Any], Any]:
    """k -> number of `config.penalty.per` in k steps: k itself, or epochs with fractions."""
    return (lambda k: k) if config.penalty.per == "step" else (lambda k: k / steps_per_epoch)


def check_penalties(phases: tuple[Phase, ...]) -> None:
    """Raise UserError for a phase in which the weight of a level stays 0: its losses would be
    computed and not trained."""
    for name in dict.fromkeys(p.name for p in phases):
        same = [p for p in phases if p.name == name]
        steps = sum(p.steps for p in same)
        # schedules never fall, so the last step has the largest weight
        for level, weight in zip(same[0].levels, same[0].weights(steps - 1), strict=True):
            if float(weight) == 0:
                raise UserError(
                    f"config.penalty: the weight of {'+'.join(level)} stays 0 in all {steps} steps "
                    f"of phase {name}: raise config.penalty.start, slope or cap (method "
                    "weighted_sum: constant), or take method supervised"
                )
