"""Scale all fields that are counted in steps or epochs together to the length `config.budget`."""

from __future__ import annotations

import copy
from typing import Any

from bljust_jax import recipes
from bljust_jax.common.errors import UserError
from bljust_jax.recipes import Facts

LENGTHS = ("explore", "joint", "finetune", "pretrain", "supervised")
INTERVALS = ("eval_every", "save_every", "log_every")


def scale(config: Any, facts: Facts) -> tuple[Any, list[str]]:
    """(a copy of the config of the length `config.budget`, log lines); the config itself for 0.

    With f = budget / length as configured, f multiplies the lengths of phases, warm-ups in steps or
    hours, steps of equal weights and the intervals of evaluation, saves and logs, and divides the
    slopes of penalties; the temperature of wav2vec 2.0 decays by tau_decay^(1/f) per step. So every
    schedule has the same course over the run. UserError for a budget that leaves a phase no step.
    """
    if not config.budget:
        return config, []
    whole = length(config, facts)
    f = config.budget / whole
    made = copy.deepcopy(config)
    for name in LENGTHS:
        if made.phases.get(name, 0):
            made.phases[name] = _shortened(made.phases[name] * f, made.phases.unit)
    for group in ("penalty", "task_penalty"):
        if group in made:
            made[group].slope /= f
    for schedule in made.lr.values():
        if hasattr(schedule, "warmup") and schedule.warmup_unit != "share":
            schedule.warmup = float(schedule.warmup * f)
    if made.get("ema_hours", 0):
        made.ema_hours *= f
    for name in INTERVALS:
        made[name] = max(1, round(made[name] * f))
    if "moo" in made:
        made.moo.warmup = round(made.moo.warmup * f)
    if "wav2vec2" in made:
        made.wav2vec2.tau_decay = made.wav2vec2.tau_decay ** (1 / f)
    unit = {"gradient": "encoder gradients", "epoch": "epochs"}[config.budget_unit]
    line = f"config.budget={config.budget:g} {unit}: lengths, warm-ups and intervals times {f:.3g}"
    return made, [f"{line}, slopes of penalties divided by it"]


def _shortened(steps: float, unit: str) -> float:
    if unit != "step":
        return steps
    if steps < 0.5:
        raise UserError("config.budget leaves a phase without a step: raise it")
    return float(round(steps))


def length(config: Any, facts: Facts) -> float:
    """Length of the run as configured, in `config.budget_unit`: encoder gradients (one per loss and
    step), or passes of the labelled data, those of phases that read unlabelled audio alone
    included."""
    phases = recipes.load(config.recipe)(config, facts).phases
    if config.budget_unit == "gradient":
        return float(sum(phase.steps * len(phase.losses) for phase in phases))
    epoch = max(n for name, n in facts.steps_per_epoch.items() if name != "unlabelled")
    return sum(phase.steps for phase in phases) / epoch
