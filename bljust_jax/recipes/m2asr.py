"""M2ASR and the Objective Soups: recognition and translation of many languages on one encoder.

Interspeech 2024, and NeurIPS 2025 (arXiv 2508.09228). Each labelled stream is an objective,
`asr/<lang>` (CTC) or `st/<src>-<tgt>` (an attention decoder, or CTC), each with its own head; the
self-supervised loss `config.ssl` reads the stream `unlabelled`. Levels, upper level first:

    method     joint                           weights          then, without the lowest level
    vs         [asr, st, ssl]                  1                finetune
    vc         [asr, st] [ssl]                 1, eta           finetune
    vm_uas     [asr] [st] [ssl]                1, eta1, eta     finetune
    vm_usa     [st] [asr] [ssl]                1, eta1, eta     finetune
    joint      [asr, st] [ssl], fixed weights  1, constant      finetune
    two_stage  [ssl] alone                     1                [asr, st], fixed weights
    supervised -                                                [asr, st], fixed weights

with eta of vm times eta1, at most its cap; all at the same FLOPs. The first four may begin with
exploration, [ssl] alone, and with supervised training, the levels of finetune. A level of several
losses is combined by `config.moo` (MoDo or MGDA, `bilevel/levels.py`); fixed weights are equal and
sum to 1.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

from bljust_jax import objectives
from bljust_jax.bilevel import phases
from bljust_jax.bilevel.levels import combine_levels
from bljust_jax.bilevel.multi_objective import Conflict
from bljust_jax.bilevel.schedules import array_module, penalty_schedule
from bljust_jax.bilevel.types import Phase, Recipe, Task
from bljust_jax.common.errors import UserError
from bljust_jax.models import encoders
from bljust_jax.recipes import Facts, assemble, head_owners, make_groups, step_flops
from bljust_jax.tasks import recognition, translation

STATIC = ("joint", "two_stage", "supervised")  # methods with fixed weights
KINDS = {"asr": recognition.build, "st": translation.build}
NAME = re.compile(r"asr/[^/]+|st/[^/]+-[^/]+")


def build(config: Any, facts: Facts) -> Recipe:
    if config.model.get("norm") == "batch":
        raise UserError('config.model.norm="batch": its moments are one loss\'s: set norm="layer"')
    encoder = encoders.load(config.encoder)(config)
    supervised, tasks = zip(*build_tasks(config, encoder, facts), strict=True)
    lower = objectives.load(config.ssl)(config, encoder)
    system = (*supervised, lower)
    owners = head_owners(system)
    names = tuple(objective.name for objective in supervised)
    flops = step_flops(config, facts, system)
    table = make_phases(config, facts, names, lower.name, tuple(owners), flops)
    dynamic = tuple(dict.fromkeys(level for phase in table for level in phase.dynamic_levels))
    groups = make_groups(config, owners)
    shared = next(group.pattern for group in groups if group.name == "encoder")
    return assemble(
        config,
        encoder,
        system,
        heads=(lower, *supervised),
        phases=table,
        combiner=combine_levels(conflict(config, shared, table), dynamic),
        tasks=tasks,
    )


def build_tasks(config: Any, encoder: encoders.Encoder, facts: Facts) -> list[tuple[Any, Task]]:
    """(objective, task) of each labelled stream, sorted by name. Raises UserError for a name that
    is neither recognition nor translation."""
    found = []
    for name in sorted(config.data.streams):
        if not NAME.fullmatch(name):
            raise UserError(
                f"config.data.streams: {name!r} is neither asr/LANG nor st/SRC-TGT: rename it"
            )
        kind = KINDS[name.partition("/")[0]]
        found.append(kind(config, encoder, facts.vocab_sizes[name], name))
    if not found:
        raise UserError("config.data.streams is empty: name at least one, such as asr/en")
    return found


def conflict(config: Any, shared: str, table: tuple[Phase, ...]) -> Conflict:
    """Settings of dynamic weights, computed from the gradients of the parameters whose path matches
    `shared`: the trained part of the encoder. The weights are equal in the first `moo.warmup` steps
    of the phases of `table` that have dynamic levels. Raises UserError for batches that MoDo cannot
    halve and for a rate that is not stable."""
    m, rows = config.moo, config.data.rows_multiple
    if config.method not in STATIC and m.method == "modo" and rows % 2:
        raise UserError(f"config.data.rows_multiple={rows}: MoDo halves each batch: set it to 2")
    before = itertools.takewhile(lambda phase: not phase.dynamic_levels, table)
    equal_until = sum(phase.steps for phase in before) + m.warmup
    try:
        return Conflict(
            method=m.method,
            rate=m.rate,
            relative=m.relative,
            rho=m.rho,
            normalise=m.normalise,
            equal_until=equal_until,
            threshold=m.threshold if m.layers == "conflicting" else None,
            every=m.every,
            stacked=r"^encoder/blocks/",
            shared=shared,
        )
    except ValueError as error:
        raise UserError(f"config.moo: {error}") from error


def make_phases(
    config: Any,
    facts: Facts,
    tasks: tuple[str, ...],
    ssl: str,
    heads: tuple[str, ...],
    flops: Callable[[frozenset[str]], float],
) -> tuple[Phase, ...]:
    """The phases of `config.method`, at the same total FLOPs (`flops`: losses -> mean FLOPs of a
    step). An epoch is one pass of the labelled stream with most batches, in exploration of the
    unlabelled stream. Method two_stage takes as many gradients of the self-supervised loss as the
    others."""
    epoch = max(facts.steps_per_epoch[name] for name in tasks)
    lengths = phase_lengths(config, epoch, facts.steps_per_epoch["unlabelled"])
    if config.method in ("two_stage", "supervised"):
        alone, labelled = flops(frozenset({ssl})), flops(frozenset(tasks))
        shared = flops(frozenset({*tasks, ssl}))
        costs = {"explore": alone, "supervised": labelled, "joint": shared, "finetune": labelled}
        budget = sum(steps * costs[name] for name, steps in lengths.items())
        first = lengths["explore"] + lengths["joint"] if config.method == "two_stage" else 0.0
        pretrain = round(first)
        lengths = {"pretrain": pretrain, "supervised": (budget - pretrain * alone) / labelled}
    upper = upper_levels(config, tasks)

    def phase(name: str, steps: int) -> Phase:
        if name in ("explore", "pretrain"):
            levels, weights = ((ssl,),), phases.one
        elif name == "joint":
            levels = ((*tasks, ssl),) if config.method == "vs" else (*upper, (ssl,))
            weights = penalised(config, len(levels), epoch)
        else:
            levels, weights = upper, fixed(*(1.0, config.task_penalty.cap)[: len(upper)])
        made = phases.one_phase(config.lr, name, steps, levels, weights, heads, steps)
        return weighed(config, made)

    return tuple(phase(name, round(n)) for name, n in lengths.items() if round(n) > 0)


def phase_lengths(config: Any, epoch: int, unlabelled_epoch: int) -> dict[str, float]:
    """{phase: steps} of the methods with a joint phase, in order, from steps per epoch."""
    per_step = config.phases.unit == "step"
    units = {"explore": unlabelled_epoch}
    names = ("explore", "supervised", "joint", "finetune")
    return {n: config.phases[n] * (1 if per_step else units.get(n, epoch)) for n in names}


def upper_levels(config: Any, tasks: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Levels of the labelled losses. Raises UserError if one of them would be empty."""
    order = {"vm_uas": ("asr", "st"), "vm_usa": ("st", "asr")}.get(config.method)
    if order is None:
        return (tasks,)
    levels = tuple(tuple(t for t in tasks if t.startswith(f"{kind}/")) for kind in order)
    if not all(levels):
        raise UserError(
            f"config.method={config.method!r} puts recognition and translation on levels of their "
            f"own, but config.data.streams has {', '.join(tasks)} alone: take vc"
        )
    return levels


def penalised(config: Any, levels: int, epoch: int) -> Callable[[Any], tuple[Any, ...]]:
    """k -> level weights: (1,), (1, eta) or (1, eta1, min(cap, eta1 eta))."""
    lowest, middle = (
        penalty_schedule(p.start, p.slope, p.cap) for p in (config.penalty, config.task_penalty)
    )
    per = phases.penalty_unit(config, epoch)

    def three(k):
        product = middle(per(k)) * lowest(per(k))
        return 1.0, middle(per(k)), array_module(k).minimum(config.penalty.cap, product)

    if config.method == "joint":
        return fixed(1.0, config.penalty.constant)
    return {1: phases.one, 2: lambda k: (1.0, lowest(per(k))), 3: three}[levels]


def fixed(*weights: float) -> Callable[[Any], tuple[Any, ...]]:
    return lambda k: weights


def weighed(config: Any, phase: Phase) -> Phase:
    """The phase with the combination rule of each of its levels."""
    if config.method not in STATIC:
        how = tuple(config.moo.method if len(level) > 1 else "sum" for level in phase.levels)
        return dataclasses.replace(phase, combine=how)
    inner = {loss: 1 / len(level) for level in phase.levels for loss in level}
    return dataclasses.replace(phase, combine=("sum",) * len(phase.levels), inner=inner)
