"""Variants of all configs: methods, encoders, and the small copies `smoke` and `overfit`.

`--config=configs/X.py:a,b` calls `X.get_config("a,b")`; each name is a variant of X's or one of
`COMMON`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from configs.defaults import schedule

Variant = Callable[[ConfigDict], None]
METHODS = ("bljust", "ptft", "supervised", "weighted_sum", "alternating")
METHODS += ("mpl", "slimipl", "noisy_student", "masked_cpc_ctc")
FIRST, LAST = ("lstm", "lstm_paper", "gru", "parakeet"), ("smoke", "overfit")


def apply_variants(config: ConfigDict, arg: str | None, own: Mapping[str, Variant]) -> ConfigDict:
    """Apply the comma-separated variants: encoders first, as sizes depend on them, then the others
    in the given order, smoke and overfit last. ValueError with the nearest name for an unknown
    one."""
    known = {**COMMON, **own}
    names = [name for name in (arg or "").split(",") if name]
    for name in sorted(names, key=lambda name: (name in LAST) - (name in FIRST)):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ";"
            raise ValueError(f"no variant {name!r}{hint} There are: {', '.join(sorted(known))}")
        known[name](config)
    config.variant = arg or ""
    return config


def set_all_lr(c: ConfigDict, peak: float, warmup: int) -> None:
    """One peak for every phase: constant rates before fine-tuning, then a cosine down to 0. The
    rate of exploration, which is short, rises for a quarter of it."""
    for name in ("explore", "joint", "pretrain", "turn_ctc", "turn_ssl"):
        c.lr[name] = schedule("constant", peak, warmup)
    c.lr.explore.update(warmup=0.25, warmup_unit="share")
    c.lr.finetune = schedule("cosine", peak, 0)
    for name in ("supervised", "ptft_supervised", "pseudo", "masked_cpc"):
        c.lr[name] = schedule("cosine", peak, warmup)
    c.lr.heads = 1.0


def method(name: str) -> Variant:
    def variant(c: ConfigDict) -> None:
        c.method = name

    return variant


# Fields of c.model by encoder: of `tiny_model` and of the variant smoke.
TINY = {
    "conformer": {"dim": 96, "layers": 4, "heads": 4, "kernel": 15, "channels": 32},
    "wav2vec2": {"dim": 96, "layers": 4, "heads": 4, "ff_dim": 384, "conv_dim": (64,) * 7}
    | {"pos_kernel": 32, "pos_groups": 4, "feature_grad_scale": 1.0},
    "cnn_rnn": {"cnn_layers": 1, "rnn_layers": 2, "channels": 16}
    | {"latent_dim": 96, "units": 96, "proj": 0},
}
SMOKE = {
    "conformer": {"dim": 48, "layers": 2, "heads": 2, "kernel": 7, "channels": 16},
    "wav2vec2": {"dim": 48, "layers": 2, "heads": 2, "ff_dim": 96, "conv_dim": (32,) * 7}
    | {"pos_kernel": 16, "pos_groups": 2, "feature_grad_scale": 1.0},
    "cnn_rnn": {"cnn_layers": 1, "rnn_layers": 1, "channels": 8, "latent_dim": 32}
    | {"units": 32, "proj": 0, "heads": 2},
}


def tiny_model(c: ConfigDict) -> None:
    """About a million parameters, for two CPU cores."""
    c.features.n_mels = 40
    c.model.update(**TINY[c.encoder], dropout=0.0, dtype="float32")
    # on CPUs unrolled layers run 15 % faster and compile 2 s longer
    c.model.scan_unroll = 4 if c.encoder != "cnn_rnn" else 1
    c.specaugment.update(freq_masks=2, freq_width=6, time_masks=2, time_width=20)
    c.cpc.update(steps=4, width=64, negatives=0)
    if "hybrid" in c:
        c.decoder.dropout = 0.0
    if "remat" in c.model:
        c.model.remat = "auto"
    # a batch has a few hundred masked frames, so most of 8,192 codes would never occur, and the
    # head would be as large as the encoder
    c.best_rq.codes = 512
    if "wav2vec2" in c:
        c.wav2vec2.update(codes=64, code_dim=64, width=64, negatives=50, tau_decay=0.999)
        # ours: from scratch with 0.1 the codebook collapses to one code, and CTC outputs blanks
        c.wav2vec2.diversity = 1.0


def join_words(c: ConfigDict) -> None:
    """Isolated words of many speakers, 0.3-1 s each: 40 % single words, 60 % strings of 2-5 words
    of one speaker. The lower level reads strings only, as single words are too short for it."""
    c.data.update(join=(2, 5), join_share=0.6)
    c.data.balance = 0.5  # commands are ten times rarer than digits
    # the last length bounds the strings
    c.data.update(buckets=(1.0, 2.2, 4.0), batch_seconds=27.0)
    c.data.update(speed=(0.88, 1.12), noise_snr=(15.0, 40.0))
    c.data.update(unlabelled_join=(4, 5), unlabelled_join_share=1.0)
    c.data.update(unlabelled_buckets=(4.0,), unlabelled_batch_seconds=27.0)


def steps(c: ConfigDict, gradients: int, explore: float = 0.12) -> None:
    """Phases of `gradients` encoder gradients in total: 65 % explore and joint (two per step), 35 %
    finetune. The penalty reaches its cap after 80 % of the joint phase."""
    joint = round((0.65 - explore) * gradients / 2)
    c.phases.update(unit="step", explore=round(explore * gradients), joint=joint)
    c.phases.finetune = gradients - c.phases.explore - 2 * joint
    c.penalty.update(per="step", slope=c.penalty.cap / (0.8 * joint))


def shrink(c: ConfigDict) -> None:
    """Variant `smoke`: the same recipe in about a minute on two cores, on synthetic speech unless
    data are named."""
    synthetic(c, "tiny")
    tiny_model(c)
    c.model.update(**SMOKE[c.encoder], scan_unroll=1)
    if c.model.get("kind") == "gru":
        c.features.n_mels = 8  # its attention is quadratic in frames times bands
    c.freeze = ()
    c.best_rq.codes = 64
    c.cpc.update(steps=4, width=32, negatives=min(c.cpc.negatives, 10), chunk=(0.4, 0.2, 0.2))
    c.data.update(buckets=(4.0,), unlabelled_buckets=(), batch_seconds=32.0)
    c.data.update(unlabelled_batch_seconds=32.0, eval_batch_seconds=32.0)
    set_all_lr(c, 2e-3, 10)
    steps(c, 120)
    c.update(eval_every=10, save_every=10, log_every=5, keep=3, ema_decay=0.9)


def overfit(c: ConfigDict) -> None:
    """Variant `overfit`: eight utterances to WER 0, a first check of new data: the first eight of
    data.train if that is named, else synthetic ones."""
    synthetic(c, "overfit")
    c.data.update(test="", overfit=8)
    tiny_model(c)
    c.method = "supervised"
    c.specaugment.update(freq_masks=0, time_masks=0)
    if "mask" in c:
        c.mask.update(time_prob=0.0, channel_prob=0.0)
    c.data.update(buckets=(4.0, 16.0), unlabelled_buckets=(), batch_seconds=32.0)
    c.data.update(unlabelled_batch_seconds=32.0, eval_batch_seconds=32.0)
    c.data.update(speed=(1.0, 1.0), noise_snr=(), join=(1, 1), unlabelled_join=(1, 1))
    set_all_lr(c, 2e-3, 20)
    steps(c, 400)
    c.update(eval_every=50, save_every=50, log_every=10, ema_decay=0.9)
    c.stop.perfect = 3


def synthetic(c: ConfigDict, name: str) -> None:
    """Synthetic speech for every split; the command line may name other data."""
    if c.model.get("subsampling_factor") == 8:  # too few frames for the characters below
        c.model.subsampling_factor = c.best_rq.stack = 4
    c.data.text.update(units="characters", model="")
    c.data.update(train=f"synthetic:{name}/train", dev=f"synthetic:{name}/dev")
    c.data.update(test=f"synthetic:{name}/test", unlabelled="", root="")
    c.data.update(labelled_fraction=1.0, labelled_speakers=0, unlabelled_hours=0.0)


def parakeet(c: ConfigDict) -> None:
    """Variant `parakeet`: a Conformer that exports as transformers' ParakeetForCTC."""
    c.features.frontend = "nemo"
    c.model.update(subsampling="parakeet", norm="batch")
    c.model.subsampling_factor = 4  # 25 frames a second, for characters; NVIDIA's 8, for pieces


def lstm(c: ConfigDict) -> None:
    """Variant `lstm`: the encoder in the text of LSTM-JUST (Chen and Saif, 2024), a CNN with LSTM
    layers, and its learning rates."""
    c.encoder = "cnn_rnn"
    c.model = ConfigDict({"kind": "lstm", "cnn_layers": 3, "rnn_layers": 5, "channels": 32})
    # 256 units per direction: the paper; no layer before the head
    c.model.update(latent_dim=512, units=256, proj=0, heads=8, dropout=0.1)
    c.model.update(dtype="float32", scan_unroll=1)
    c.best_rq.stack = 2
    c.cpc.context = "chunked"  # a bidirectional encoder sees the frames to predict
    # one frequency mask of 27 bands and 10 time masks of 15 frames: the paper
    c.specaugment.update(freq_masks=1, freq_width=27, time_masks=10, time_width=15)
    # peaks: the best pair of the paper's table 1, alpha of the lower level, beta of the upper one;
    # in the joint phase one optimizer trains the encoder, at beta. Shapes and warm-up: ours
    for name in ("explore", "pretrain"):
        c.lr[name] = schedule("constant", 1e-3, 1000)
    names = ("joint", "ptft_supervised", "turn_ctc", "turn_ssl", "pseudo", "masked_cpc")
    for name in names:
        c.lr[name] = schedule("cosine", 1e-4, 1000)


def gru(c: ConfigDict) -> None:
    """Variant `gru`: the network with the published parameter count of LSTM-JUST."""
    lstm(c)
    c.model.update(kind="gru", units=512, proj=2048)


def slimipl(c: ConfigDict) -> None:
    """Variant `slimipl`: with its 10 time masks in SpecAugment, each at most 4 % of the utterance:
    50 frames there, of 12.3 s on average."""
    c.method = "slimipl"
    c.specaugment.update(time_masks=10, max_time_share=0.04)


def hybrid(c: ConfigDict) -> None:
    """Variant `hybrid`: CTC and an attention decoder as the supervised level, with any method
    without pseudo-labels. ESPnet's Conformer recipes: CTC weight 0.3, 6 decoder layers; ours: 2
    layers, and CTC is scored (`hybrid.decode`)."""
    c.hybrid = ConfigDict({"ctc_weight": 0.3, "decode": "ctc"})
    dim = c.model.get("dim", 256)
    c.decoder = ConfigDict({"kind": "attention", "dim": dim, "layers": 2, "heads": 4, "ff_mult": 4})
    c.decoder.update(
        dropout=c.model.get("dropout", 0.1),
        smoothing=0.1,
        beam=4,
        alpha=0.6,
        max_ratio=1.0,
        max_extra=10,
    )


COMMON: dict[str, Variant] = {
    **{name: method(name) for name in METHODS},
    "slimipl": slimipl,
    "hybrid": hybrid,
    "parakeet": parakeet,
    "lstm": lstm,
    "gru": gru,
    "smoke": shrink,
    "overfit": overfit,
}
