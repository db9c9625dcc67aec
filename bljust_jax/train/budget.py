"""Scale all fields that are counted in steps or epochs together to the length `config.budget`."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from bljust_jax import recipes
from bljust_jax.common.errors import UserError
from bljust_jax.recipes import Facts

LENGTHS = ("explore", "joint", "finetune", "pretrain", "supervised")
INTERVALS = ("eval_every", "save_every", "log_every")
UNITS = {"gradient": "encoder gradients", "epoch": "epochs", "tflop": "TFLOP"}
UNITS |= {"minute": "minutes", "hour": "hours"}
SECONDS = {"minute": 60.0, "hour": 3600.0}  # units that depend on the machine
MOST_EVALUATION = 0.5  # share of the time that evaluations may take


class Measured(NamedTuple):
    """Seconds that a machine needs, by `budget_trial` or an estimate.

    origin: how they were found, for the log
    steps: {phase name: seconds per step}
    evaluation: seconds per evaluation of dev; last: seconds of the scores after the last step
    """

    origin: str
    steps: dict[str, float]
    evaluation: float = 0.0
    last: float = 0.0


def is_time(config: Any) -> bool:
    """Whether the budget is in minutes or hours, so that `scale` needs a `Measured`."""
    return bool(config.budget) and config.budget_unit in SECONDS


def scale(config: Any, facts: Facts, measured: Measured | None = None) -> tuple[Any, list[str]]:
    """(a copy of the config of the length `config.budget`, log lines); the config itself for 0.

    With f = budget / length as configured, f multiplies the lengths of phases, warm-ups in steps or
    hours, steps of equal weights and the intervals of evaluation, saves and logs, and divides the
    slopes of penalties; the temperature of wav2vec 2.0 decays by tau_decay^(1/f) per step. So every
    schedule has the same course over the run. For a budget in minutes or hours f is that of
    `time_factor`. UserError for a budget that leaves a phase no step.
    """
    if not config.budget:
        return config, []
    if is_time(config):
        if measured is None:
            raise ValueError(f"a budget in units of {config.budget_unit!r} depends on the machine")
        f, spent = time_factor(config, facts, measured)
    else:
        f, spent = config.budget / length(config, facts), []
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
    line = f"config.budget={config.budget:g} {UNITS[config.budget_unit]}"
    line += f": lengths, warm-ups and intervals times {f:.3g}"
    return made, [f"{line}, slopes of penalties divided by it", *spent]


def _shortened(steps: float, unit: str) -> float:
    if unit != "step":
        return steps
    if steps < 0.5:
        raise UserError("config.budget leaves a phase without a step: raise it")
    return float(round(steps))


def length(config: Any, facts: Facts) -> float:
    """Length of the run as configured, in gradients of the encoder (one per loss and step), or for
    `config.budget_unit="epoch"` in passes of the labelled data, those of phases that read
    unlabelled audio alone included; for "tflop" in 1e12 FLOPs of encoder, heads and passes for
    labels, forward 1, backward 2."""
    recipe = recipes.load(config.recipe)(config, facts)
    phases = recipe.phases
    if config.budget_unit == "tflop":
        of_step = recipes.step_flops(config, facts, recipe.objectives)
        return sum(phase.steps * of_step(phase.losses) for phase in phases) / 1e12
    if config.budget_unit == "gradient":
        return float(sum(phase.steps * len(phase.losses) for phase in phases))
    epoch = max(n for name, n in facts.steps_per_epoch.items() if name != "unlabelled")
    return sum(phase.steps for phase in phases) / epoch


def steps_by_phase(config: Any, facts: Facts) -> dict[str, int]:
    """{phase name: steps of the run as configured}."""
    table = recipes.load(config.recipe)(config, facts).phase_table
    return {name: steps for name, steps, _ in table}


def time_factor(config: Any, facts: Facts, measured: Measured) -> tuple[float, list[str]]:
    """(f, a log line): the factor that makes steps and evaluations take `config.budget`,

        f = (seconds - evaluations) / sum over phases of steps as configured * seconds per step.

    The number of evaluations does not change with f, as their interval is multiplied by it.
    UserError if they take more than `MOST_EVALUATION` of the time.
    """
    seconds = config.budget * SECONDS[config.budget_unit]
    steps = steps_by_phase(config, facts)
    count = -(-sum(steps.values()) // config.eval_every)
    evaluations = count * measured.evaluation + measured.last
    if evaluations > MOST_EVALUATION * seconds:
        raise UserError(
            f"config.budget={config.budget:g} {UNITS[config.budget_unit]}: {count} evaluations and"
            f" the last scores alone take {evaluations:.0f} s: raise it, or config.eval_every"
            f" above {config.eval_every}"
        )
    per_step = ", ".join(f"{name} {measured.steps[name]:.3g}" for name in steps)
    line = (
        f"seconds per step, {measured.origin}: {per_step}; {count} evaluations and the last scores:"
        f" {evaluations:.0f} s"
    )
    training = sum(n * measured.steps[name] for name, n in steps.items())
    return (seconds - evaluations) / training, [line]
