"""Miniatures of the shipped configs: their own rates, phases, penalties and alarms over 600 steps
of tiny width on synthetic speech."""

import functools
import json

from ml_collections import ConfigDict

from configs import birq, defaults, m2asr, quickstart
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
ROWS, LONGEST = 8, 1.2  # utterances per batch and stream, and seconds, of synthetic:tiny
MODEL = {
    "conformer": {"dim": 24, "layers": 2, "heads": 2, "kernel": 7, "channels": 8},
    "wav2vec2": {"dim": 24, "layers": 2, "heads": 2, "ff_dim": 48, "conv_dim": (16, 16, 16)}
    | {"conv_kernel": (20, 8, 4), "conv_stride": (20, 4, 4), "pos_kernel": 8},
    "cnn_rnn": {"cnn_layers": 1, "rnn_layers": 1, "channels": 4, "latent_dim": 16, "units": 16},
}
CODES = 64
# A batch has 60 masked frames: one code is 2 % of the most, and this 6 codes.
COLLAPSED = 0.1


def make(module, variant, method=""):
    """The variant `smoke` of a config, with the rates, phases, penalties and alarms of the config
    itself."""
    whole = shipped.config(module, variant, method)
    small = shipped.config(module, ",".join(filter(None, (variant, "smoke"))), whole.method)
    small.lr = whole.lr.copy_and_resolve_references()
    for schedule in small.lr.values():
        if hasattr(schedule, "warmup"):
            schedule.warmup = min(schedule.warmup, WARMUP)
    lengths = steps_of_phases(whole)
    for name in ("penalty", "task_penalty"):
        if name in whole:
            small[name] = whole[name]
            # to the same weight at the end of the joint phase
            small[name].slope *= rises(whole) / lengths.get("joint", 1)
            small[name].slope = round(small[name].slope, 6)
    if "penalty" in small:
        small.penalty.per = "step"
    small.phases = whole.phases
    small.phases.update(unit="step", **{name: float(n) for name, n in lengths.items()})
    if "turn" in small.phases:
        small.phases.turn = WARMUP
    if small.method == "noisy_student":  # so short a supervised start makes unsure labels
        with small.unlocked():
            small.pseudo_label = ConfigDict({"min_confidence": 0.0})
    if "moo" in small:
        small.moo.update(warmup=min(whole.moo.warmup, WARMUP), starved_stop=True)
    shrink_data(small)
    shrink_model(small)
    small.collapse.update(share=max(whole.collapse.share, COLLAPSED), stop=True)
    small.update(eval_every=10**6, save_every=10**6, log_every=20, compile_cache="", variant="")
    small.update(samples=0)
    small.mesh.data = 1
    return small


def shrink_data(c):
    """Nothing scored but the recognition of one stream, as recorded: augmentation, normalisation of
    texts and loading are no part of what is tested."""
    shorten(c)
    c.data.update(labels_per_second=25.0, temperature=0.0, balance=0.0, test="")
    c.data.update(speed=(1.0, 1.0), noise_snr=(), join_share=0.0, unlabelled_join_share=0.0)
    c.data.update(labelled_fraction=1.0, unlabelled="", num_threads=2, prefetch=8)
    c.data.text = defaults.data().text
    for name, stream in c.data.streams.items():
        stream.update(dev=stream.dev if name == "asr/en" else "", test="")
        stream.text = defaults.data().text


def shorten(c):
    """`ROWS` utterances of each stream per step, at their own length."""
    seconds = ROWS * LONGEST
    c.data.update(buckets=(LONGEST,), unlabelled_buckets=(), join=(1, 1), unlabelled_join=(1, 1))
    c.data.update(batch_seconds=seconds, unlabelled_batch_seconds=seconds)


def shrink_model(c):
    """Two blocks; in wav2vec 2.0 three convolutions for 50 frames per second, as its seven."""
    c.model.update(MODEL[c.encoder])
    c.best_rq.codes = CODES
    if "decoder" in c:
        c.decoder.update(dim=16, layers=1, heads=2)
    if c.model.get("window", 0) > LONGEST * 25:
        c.model.window = 0  # all frames
    if c.model.get("feat_norm") == "layer":
        c.model.hf_compat = False  # without effect


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
