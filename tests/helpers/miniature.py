"""Miniatures of the shipped configs: their own rates, phases, penalties and alarms over 600 steps
of tiny width on synthetic speech."""

import functools
import json

from configs import birq, m2asr, quickstart
from tests.helpers import shipped

STEPS = 600
WARMUP = 20  # steps of a learning rate, and of equal weights, at most
SHORTEST = 20  # steps of a phase
# {recipe: its phases with a length of their own, of the first method}
PHASES = {
    "bljust": ("explore", "joint", "finetune"),
    "birq": ("pretrain", "finetune"),
    "m2asr": ("explore", "supervised", "joint", "finetune"),
}
# A batch has 30 to 50 masked frames: one code is 2 to 3 % of the most, and this 3 to 5 codes.
COLLAPSED = 0.1


def make(module, variant, method=""):
    """The variant `smoke` of a config, with the rates, phases, penalties and alarms of the config
    itself."""
    whole = shipped.config(module, variant, method)
    small = shipped.config(module, ",".join(filter(None, (variant, "smoke"))), whole.method)
    small.lr = whole.lr
    for schedule in small.lr.values():
        if hasattr(schedule, "warmup"):
            schedule.warmup = min(schedule.warmup, WARMUP)
    lengths = steps_of_phases(whole)
    for name in ("penalty", "task_penalty"):
        if name in whole:
            small[name] = whole[name]
            # to the same weight at the end of the joint phase
            small[name].slope *= rises(whole) / lengths.get("joint", 1)
    if "penalty" in small:
        small.penalty.per = "step"
    small.phases = whole.phases
    small.phases.update(unit="step", **{name: float(n) for name, n in lengths.items()})
    if "turn" in small.phases:
        small.phases.turn = WARMUP
    if "moo" in small:
        small.moo.update(warmup=min(whole.moo.warmup, WARMUP), starved_stop=True)
    seconds = 16.0 if small.data.streams else 24.0  # of 4 s each; a step reads each stream
    small.data.update(batch_seconds=seconds, unlabelled_batch_seconds=seconds, test="")
    for name, stream in small.data.streams.items():
        stream.update(dev=stream.dev if name == "asr/en" else "", test="")
    small.collapse.update(share=max(whole.collapse.share, COLLAPSED), stop=True)
    small.update(eval_every=10**6, save_every=10**6, log_every=20, compile_cache="")
    small.update(ema_decay=whole.ema_decay, variant="")
    small.mesh.data = 1
    return small


def rises(whole):
    """Number of units of the penalty's slope in the joint phase of a run."""
    epoch = max(n for s, n in shipped.facts(whole).steps_per_epoch.items() if s != "unlabelled")
    in_steps = whole.phases.joint * (1 if whole.phases.unit == "step" else epoch)
    return in_steps / (1 if whole.penalty.per == "step" else epoch)


def steps_of_phases(config):
    """{phase: steps}, `STEPS` in all, in proportion to the lengths of the run."""
    names = PHASES[config.recipe]
    if config.recipe == "birq" and config.method == "supervised":
        names = ("supervised",)
    epochs = shipped.facts(config).steps_per_epoch
    labelled = max(n for name, n in epochs.items() if name != "unlabelled")
    units = {"explore": epochs["unlabelled"], "pretrain": epochs["unlabelled"]}
    if config.phases.unit == "step":
        units, labelled = {}, 1
    whole = {n: config.phases[n] * units.get(n, labelled) for n in names if config.phases[n]}
    scale = STEPS / sum(whole.values())
    return {n: max(SHORTEST, round(length * scale)) for n, length in whole.items()}


@functools.cache
def unique():
    """{name: (module, variant, method)} of the shipped configs, with each method of each recipe,
    that differ as miniatures."""
    cases = [(module, variant, "") for module, variant in shipped.names()]
    for module, variant in ((quickstart, ""), (birq, ""), (m2asr, ""), (m2asr, "digits")):
        made = shipped.config(module, variant)
        methods = shipped.methods(made) if not variant else ("vm_uas", "vm_usa")
        cases += [(module, variant, m) for m in methods if m != made.method]
    found, names = {}, {}
    for module, variant, method in cases:
        config = make(module, variant, method)
        name = "-".join(filter(None, (shipped.label(module), variant, method)))
        names.setdefault(json.dumps(config.to_dict(), sort_keys=True, default=str), name)
        found[name] = (module, variant, method)
    return {name: found[name] for name in names.values()}
