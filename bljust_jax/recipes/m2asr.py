"""M2ASR and the Objective Soups: recognition and translation of many languages on one encoder.

Interspeech 2024, and NeurIPS 2025 (arXiv 2508.09228). Each labelled stream is an objective,
`asr/<lang>` (CTC) or `st/<src>-<tgt>` (an attention decoder), each with a head of its own; the
self-supervised loss `config.ssl` hears the stream `unlabelled`. Levels, the upper one first:

    method     joint                           weights          then, without the lowest level
    vs         [asr, st, ssl]                  1                finetune
    vc         [asr, st] [ssl]                 1, eta           finetune
    vm_uas     [asr] [st] [ssl]                1, eta1, eta     finetune
    vm_usa     [st] [asr] [ssl]                1, eta1, eta     finetune
    joint      [asr, st] [ssl], fixed weights  1, constant      finetune
    two_stage  [ssl] alone                     1                [asr, st], fixed weights

with eta of vm times eta1, at most its cap. A level of several losses is combined by `config.moo`
(MoDo or MGDA, `bilevel/levels.py`); fixed weights are equal and sum to 1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bljust_jax import objectives
from bljust_jax.bilevel import phases
from bljust_jax.bilevel.levels import combine_levels
from bljust_jax.bilevel.multi_objective import Conflict
from bljust_jax.bilevel.schedules import penalty_schedule
from bljust_jax.bilevel.types import Phase, Recipe
from bljust_jax.common.errors import UserError
from bljust_jax.models import encoders, heads
from bljust_jax.recipes import Facts
from bljust_jax.recipes.bljust import make_groups
from bljust_jax.tasks import recognition, translation

STATIC = ("joint", "two_stage")  # of fixed weights
KINDS = {"asr": recognition.Recognition, "st": translation.Translation}
NAME = re.compile(r"asr/[^/]+|st/[^/]+-[^/]+")


def build(config: Any, facts: Facts) -> Recipe:
    if config.model.get("norm") == "batch":
        raise UserError('config.model.norm="batch": its moments are one loss\'s: set norm="layer"')
    encoder = encoders.load(config.encoder)(config)
    tasks = bind_tasks(config, encoder, facts)
    encode = partial(recognition.encode, encoder)
    lower = objectives.load(config.ssl)(config, encoder, encode, heads)
    (ssl,) = lower.objective.losses
    owners = {task.head: frozenset({name}) for name, task in tasks.items()}
    owners[f"{ssl}_head"] = frozenset({ssl})

    def init(rng):
        k_encoder, k_ssl, *keys = jax.random.split(rng, 2 + len(tasks))
        params, stats = encoder.init(k_encoder)
        head, frozen = lower.init(k_ssl)
        params = {"encoder": params, f"{ssl}_head": head}
        params |= {
            task.head: task.init_head(key) for task, key in zip(tasks.values(), keys, strict=True)
        }
        return params, ({ssl: frozen} if frozen else {}), stats

    def cost(losses, seconds):
        (loss,) = losses
        return lower.cost(seconds) if loss == ssl else tasks[loss].cost(seconds)

    table = make_phases(config, facts, tuple(tasks), ssl, tuple(owners))
    dynamic = tuple(dict.fromkeys(level for phase in table for level in phase.dynamic_levels))
    groups = make_groups(config, owners)
    shared = next(group.pattern for group in groups if group.name == "encoder")
    return Recipe(
        objectives=(*(task.objective() for task in tasks.values()), lower.objective),
        groups=groups,
        phases=table,
        init=init,
        combiner=combine_levels(conflict(config, shared), dynamic),
        tasks=tuple(task.task() for task in tasks.values()),
        log_mel=encoder.log_mel,
        frames=encoder.frames,
        statistics=encoder.statistics,
        cost=cost,
        head_scale=config.head_scale,
        ema_decay=config.ema_decay,
    )


def bind_tasks(config: Any, encoder: Any, facts: Facts) -> dict[str, Any]:
    """{stream: what learns from it}, sorted by name; UserError for a name of neither kind."""
    found = {}
    for name in sorted(config.data.streams):
        if not NAME.fullmatch(name):
            raise UserError(
                f"config.data.streams: {name!r} is neither asr/LANG nor st/SRC-TGT: rename it"
            )
        found[name] = KINDS[name.partition("/")[0]](config, encoder, facts.vocab_sizes[name], name)
    if not found:
        raise UserError("config.data.streams is empty: name at least one, such as asr/en")
    return found


def conflict(config: Any, shared: str) -> Conflict:
    """How a level of several losses is weighed, by the gradients of the parameters whose path
    matches `shared`: those of the encoder that move. UserError for batches that MoDo cannot
    halve."""
    m, rows = config.moo, config.data.rows_multiple
    if config.method not in STATIC and m.method == "modo" and rows % 2:
        raise UserError(f"config.data.rows_multiple={rows}: MoDo halves each batch: set it to 2")
    return Conflict(
        method=m.method,
        rate=m.rate,
        rho=m.rho,
        normalise=m.normalise,
        threshold=m.threshold if m.layers == "conflicting" else None,
        every=m.every,
        stacked=r"^encoder/blocks/",
        shared=shared,
    )


def make_phases(
    config: Any, facts: Facts, tasks: tuple[str, ...], ssl: str, heads: tuple[str, ...]
) -> tuple[Phase, ...]:
    """The phases of `config.method`. An epoch is a pass of the labelled stream with most batches,
    in exploration of the unlabelled one."""
    epoch = max(facts.steps_per_epoch[name] for name in tasks)
    per_step = config.phases.unit == "step"
    explore = config.phases.explore * (1 if per_step else facts.steps_per_epoch["unlabelled"])
    joint, finetune = (
        config.phases[name] * (1 if per_step else epoch) for name in ("joint", "finetune")
    )
    lengths = {"explore": explore, "joint": joint, "finetune": finetune}
    if config.method == "two_stage":  # as many gradients of each loss
        lengths = {"pretrain": explore + joint, "supervised": joint + finetune}
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


def upper_levels(config: Any, tasks: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The levels of the labelled losses; UserError where one of them would be empty."""
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
    """k -> the weights of the levels: (1,), (1, eta) or (1, eta1, min(cap, eta1 eta))."""
    lowest, middle = (
        penalty_schedule(p.start, p.slope, p.cap) for p in (config.penalty, config.task_penalty)
    )
    per = 1 if config.penalty.per == "step" else epoch

    def three(k):
        product = middle(k // per) * lowest(k // per)
        return 1.0, middle(k // per), jnp.minimum(config.penalty.cap, product)

    if config.method == "joint":
        return fixed(1.0, config.penalty.constant)
    return {1: phases.one, 2: lambda k: (1.0, lowest(k // per)), 3: three}[levels]


def fixed(*weights: float) -> Callable[[Any], tuple[Any, ...]]:
    return lambda k: weights


def weighed(config: Any, phase: Phase) -> Phase:
    """The phase with the way in which each of its levels is combined."""
    if config.method not in STATIC:
        how = tuple(config.moo.method if len(level) > 1 else "sum" for level in phase.levels)
        return dataclasses.replace(phase, combine=how)
    inner = {loss: 1 / len(level) for level in phase.levels for loss in level}
    return dataclasses.replace(phase, combine=("sum",) * len(phase.levels), inner=inner)
