"""M2ASR and Objective Soups: multilingual recognition and translation by multi-objective training.

Papers: Saif, Chen, Cui, Lu, Kingsbury, Chen, "M2ASR: multilingual multi-task automatic speech
recognition via multi-objective optimization", Interspeech 2024; "Objective Soups", NeurIPS 2025,
arXiv 2508.09228.

    python -m bljust_jax.main --config=configs/m2asr.py --config.data.root=/data
    python -m bljust_jax.main --config=configs/m2asr.py:digits,vm_uas --config.data.root=SPEECH

Each labelled stream is an objective: `asr/LANG` (CTC with a head and a tokenizer of its own) or
`st/SRC-TGT` (speech translation with an attention decoder of its own). All share the encoder with
the self-supervised loss `config.ssl` on the audio of all languages.

Corpora: `librispeech_aishell` (the default; recognition of English and Mandarin, below `root` the
unpacked LibriSpeech/ and data_aishell/), `covost` (recognition of en fr de es ca, translation of
the last four into English, below `root` one folder per language), `digits` (spoken Arabic and
English digit strings with translations; below `root` digits_ar/ and digits_en/; two CPU cores).

Methods (`vc` is the default): levels from the upper to the lowest, and the weights of the levels:

    vs         [asr..., st..., ssl]          1                                VS-MSP
    vc         [asr..., st...] [ssl]         1, eta                           VC-MSP = M2ASR
    vm_uas     [asr...] [st...] [ssl]        1, eta1, eta1 eta                VM-MSP, order UAS
    vm_usa     [st...] [asr...] [ssl]        1, eta1, eta1 eta                VM-MSP, order USA
    joint      [asr..., st...] [ssl]         1, a constant; equal fixed weights inside
    two_stage  pretrain: [ssl], then supervised: [asr..., st...], equal fixed weights

In a level of several losses the weights lie on the simplex and are computed per step by MoDo
(`config.moo.method="modo"`) or MGDA (`"mgda"`). The direction that leaves the combiner worsens no
objective with MGDA; AdamW, which follows, voids that, and `moo/update_dot/<objective>` logs the
change of each loss by the step as it is made. UAS and USA name the levels from the lowest up, as
in the authors' code: in UAS the recognition losses have no penalty.

Cost, estimated from FLOPs of the encoder (58.2 M parameters), not measured. A joint step takes one
gradient per objective, 15.7 GFLOP per second of audio: for `librispeech_aishell` three, 5.1 EFLOP
for 200 epochs of AISHELL's 150 h and as much of the other two, 4 hours of arithmetic on one H200 at
35 % of its 989 TFLOP/s. Memory: the gradients of all objectives of a level are kept until their
weights are known, 222 MiB per tree, two trees per objective with MoDo, sharded like the parameters.

Expected scores, the papers', not reproduced by us: M2ASR 7.3 % WER on LibriSpeech and 6.2 % CER on
AISHELL-1 (100 h + 178 h; conventional multilingual training 11.8 and 10.2), as reported in a later
work of the same authors. Of Objective Soups we know relative figures from summaries by others:
VS-MSP over two-stage training 9.8 % WER and 8.6 % BLEU, VM over VC 4.2 % and 2.8 %. Our runs are in
results/README.md.

Below, "ours" marks our choice where the papers give no value, as do all numbers without a comment
and all of `digits`.
"""

from ml_collections import ConfigDict

from configs import defaults, variants

METHODS = ("vs", "vc", "vm_uas", "vm_usa", "joint", "two_stage")


def fields(c):
    """Fields of M2ASR in addition to `defaults.base`."""
    c.recipe = "m2asr"
    c.method = "vc"  # vs | vc | vm_uas | vm_usa | joint | two_stage

    c.moo = ConfigDict()  # the weights inside a level of several losses
    c.moo.method = "modo"  # or "mgda"
    # step size of MoDo's weights over a bound of the largest eigenvalue of the Gram matrix, stable
    # below 2: ours. relative=False takes it as it is, as the papers do: 0.01 in Objective Soups,
    # 0.1 in M2ASR. With gradient norms of 50 and 10 that is stable only below 2 / 2,500
    c.moo.rate = 0.05
    c.moo.relative = True
    # pull towards equal weights: ours; Objective Soups 0.001, M2ASR 0
    c.moo.rho = 0.1
    # "norm": gradients of a level scaled to their mean norm: ours; the papers "none", with which
    # the smallest gradient gets nearly all the weight, in vs the self-supervised one
    c.moo.normalise = "norm"
    c.moo.warmup = 1000  # steps of equal weights, while gradients of new heads settle: ours
    # "conflicting": weights from the layers whose gradients have a mean cosine below the threshold,
    # the paper's layer selection; all layers train in either case
    c.moo.layers = "all"
    c.moo.threshold = 0.0  # the prototype
    c.moo.every = 50  # steps between selections: ours
    # warn if the mean weight of an objective is below starved_weight in starved_rows consecutive
    # rows of metrics.jsonl; starved_stop=True ends the run
    c.moo.update(starved_weight=0.02, starved_rows=1, starved_stop=False)

    # eta1 of the middle level of vm_uas and vm_usa; eta of the lowest level is config.penalty, and
    # the weight of the lowest level is min(cap, eta1 eta)
    c.task_penalty = ConfigDict({"start": 0.1, "slope": 0.02, "cap": 1.5})

    c.decoder = ConfigDict()  # attention decoder of translations
    c.decoder.dim = 512  # width of the blocks
    c.decoder.layers = 3  # number of blocks: the scripts
    c.decoder.heads = 8  # attention heads: the scripts
    c.decoder.ff_mult = 4  # feed-forward width over dim
    c.decoder.dropout = 0.1
    c.decoder.smoothing = 0.1  # label smoothing: ours
    c.decoder.beam = 4  # beam width of `evaluate`, ours; training scores dev greedily
    c.decoder.alpha = 0.6  # length normalisation ln P / ((5 + length) / 6) ** alpha: ours
    # a text has at most max_ratio tokens per frame and max_extra more: ours
    c.decoder.max_ratio = 1.0
    c.decoder.max_extra = 10

    c.data.rows_multiple = 2  # MoDo halves each batch
    c.penalty.update(start=0.0, slope=0.02, cap=1.5, per="epoch")  # Objective Soups
    c.penalty.constant = 0.3  # of method joint: ours
    c.phases = ConfigDict({"unit": "epoch"})  # of the largest labelled stream; or "step"
    c.phases.explore = 0.0  # the lowest level alone, before
    c.phases.joint = 200.0  # Objective Soups; two_stage: 200 of each of its phases
    c.phases.finetune = 0.0  # the labelled losses alone, after


def librispeech_aishell(c):
    """Recognition on LibriSpeech train-clean-100 and AISHELL-1; the lowest level reads both."""
    c.data.root = "/data"
    c.data.streams = ConfigDict()
    c.data.streams["asr/en"] = defaults.stream(
        train="librispeech:LibriSpeech/train-clean-100",
        dev="librispeech:LibriSpeech/dev-other",
        test="librispeech:LibriSpeech/test-clean+librispeech:LibriSpeech/test-other",
        buckets=(10.0, 14.0, 17.0),
        units="unigram",
        vocab_size=999,  # with the blank 1,000: the script
    )
    c.data.streams["asr/zh"] = defaults.stream(
        train="aishell:data_aishell/train",
        dev="aishell:data_aishell/dev",
        test="aishell:data_aishell/test",
        measure="cer",
        buckets=(4.0, 6.0, 15.0),
        units="unigram",
        vocab_size=4999,  # with the blank 5,000: the script
    )
    c.data.buckets = (6.0, 10.0, 17.0)  # of the unlabelled stream
    c.data.update(batch_seconds=300.0, unlabelled_batch_seconds=300.0, labels_per_second=10.0)


def covost(c):
    """CoVoST v2: recognition of five languages, translation of four into English."""
    c.data.root = "/data/covost"
    c.data.streams = ConfigDict()
    pairs = {"en": "en_de", "fr": "fr_en", "de": "de_en", "es": "es_en", "ca": "ca_en"}
    for lang, pair in pairs.items():
        uris = {split: f"covost:{pair}/{split}" for split in ("train", "dev", "test")}
        pieces = {"units": "unigram", "vocab_size": 999}
        c.data.streams[f"asr/{lang}"] = defaults.stream(**uris, **pieces)
        if lang != "en":
            c.data.streams[f"st/{lang}-en"] = defaults.stream(
                **uris, **pieces, field="translation", measure="bleu"
            )
    c.data.buckets = (4.0, 6.0, 8.0, 12.0)
    c.data.update(batch_seconds=200.0, unlabelled_batch_seconds=400.0, labels_per_second=12.0)


def digits(c):
    """Recognition of Arabic and English digit strings and translation into each other, with an
    encoder of half a million parameters. Training joins 1-7 digits into random strings; the strings
    of dev, 3-7 digits, are fixed, and there is no test split."""
    c.data.root = ""
    c.data.streams = ConfigDict()
    for lang, other in (("ar", "en"), ("en", "ar")):
        uris = {
            "train": f"digits:digits_{lang}/train",
            "dev": f"digits:digits_{lang}/dev/strings",
        }
        c.data.streams[f"asr/{lang}"] = defaults.stream(**uris)
        c.data.streams[f"st/{lang}-{other}"] = defaults.stream(
            **uris,
            field="translation",
            measure="bleu",
            units="bpe",
            vocab_size=60,  # one piece per word
        )
    variants.tiny_model(c)
    c.model.update(dim=80, layers=3)
    c.model.scan_unroll = 1  # a step has one encoder per objective: unrolled layers compile long
    c.decoder.update(dim=80, layers=2, heads=4, dropout=0.0)
    c.moo.warmup = 50  # as the learning rate
    c.data.update(join=(1, 7), join_share=1.0, speed=(0.88, 1.12), noise_snr=(15.0, 40.0))
    c.data.update(unlabelled_join=(4, 5), unlabelled_join_share=1.0)
    c.data.update(buckets=(4.0,), batch_seconds=24.0, unlabelled_batch_seconds=24.0)
    c.data.update(eval_batch_seconds=160.0, labels_per_second=12.0, num_threads=2, prefetch=8)
    set_lr(c, "cosine", 2e-3, 50)
    in_steps(c, explore=0, joint=2400, finetune=0)
    c.ema_decay = 0.99
    c.update(eval_every=600, save_every=600, log_every=20)


def set_lr(c, shape, peak, warmup):
    """One schedule for the labelled losses, a constant rate for the lowest level alone."""
    for name in ("joint", "supervised", "finetune"):
        c.lr[name] = defaults.schedule(shape, peak, warmup)
    for name in ("explore", "pretrain"):
        c.lr[name] = defaults.schedule("constant", peak, warmup)
    c.lr.heads = 1.0


def in_steps(c, **phases):
    """Phases in steps; penalties reach their caps after 80 % of the joint phase."""
    c.phases = ConfigDict({"unit": "step", **{k: float(v) for k, v in phases.items()}})
    c.penalty.per = "step"
    for penalty, cap in ((c.penalty, 0.3), (c.task_penalty, 1.0)):
        penalty.cap = cap
        penalty.slope = (cap - penalty.start) / (0.8 * max(phases["joint"], 1))


def smoke(c):
    """`variants.shrink` for these streams: synthetic commands in each; a translation is the words
    in reverse order."""
    variants.shrink(c)
    synthetic(c, "tiny")
    c.decoder.update(dim=32, layers=1, heads=2)
    c.moo.warmup = 8
    in_steps(c, explore=8, joint=24, finetune=8)


def overfit(c):
    """`variants.overfit`: eight utterances of each stream, without the lowest level."""
    variants.overfit(c)
    synthetic(c, "overfit")
    c.method = "joint"
    c.decoder.update(dim=96, layers=2, heads=4, dropout=0.0)
    in_steps(c, explore=0, joint=0, finetune=400)


def synthetic(c, name):
    """Synthetic speech in every stream."""
    c.data.update(train="", dev="", test="")
    for stream in c.data.streams.values():
        uris = {split: f"synthetic:{name}/{split}" for split in ("train", "dev", "test")}
        stream.update(**uris, buckets=())
        stream.text.update(units="characters", model="")


VARIANTS = {
    **{name: variants.method(name) for name in METHODS},
    "librispeech_aishell": librispeech_aishell,
    "covost": covost,
    "digits": digits,
    "smoke": smoke,
    "overfit": overfit,
}


def get_config(arg=None):
    c = defaults.base()
    fields(c)
    # 8 blocks of width 512, 8 heads, kernel 31: the papers
    c.model.update(dim=512, layers=8, heads=8, kernel=31, channels=512, dropout=0.1)
    c.model.update(dtype="bfloat16", remat="full")
    c.data.update(num_threads=16, prefetch=32)
    librispeech_aishell(c)
    # Objective Soups: 5e-5 for the encoder and 5e-4 for the heads; the shape is ours. The same for
    # all methods, and the grid of configs/defaults.py around it: 1.7e-5, 5e-5, 1.5e-4
    set_lr(c, "cosine", 5e-5, 1000)
    c.lr.heads = 10.0
    c.ema_decay = 0.9998
    c.update(eval_every=1000, save_every=1000, log_every=50)
    c = variants.apply_variants(c, arg, VARIANTS)
    for name in ("gradients", "share_forward"):  # of BL-JUST only
        del c[name]
    for name in ("ptft_supervised", "turn_ctc", "turn_ssl"):
        del c.lr[name]
    return c
