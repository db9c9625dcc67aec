"""M2ASR and Objective Soups: multilingual recognition and translation by multi-objective training.

Papers: Saif, Chen, Cui, Lu, Kingsbury, Chen, "M2ASR: multilingual multi-task automatic speech
recognition via multi-objective optimization", Interspeech 2024; "Objective Soups", NeurIPS 2025,
arXiv 2508.09228.

    python -m bljust_jax.main --config=configs/m2asr.py --config.data.root=/data
    python -m bljust_jax.main --config=configs/m2asr.py:digits,vm_uas --config.data.root=SPEECH

Each labelled stream is an objective: `asr/LANG` (CTC with a head and a tokenizer of its own) or
`st/SRC-TGT` (speech translation with an attention decoder of its own). All share the encoder with
the self-supervised loss `config.ssl` on the audio of all languages.

Corpora; `root` holds LibriSpeech/, data_aishell/ and covost/, or the folder of the only one:

    librispeech_aishell         the default: recognition of English (100 h) and Mandarin
    librispeech_aishell_covost  M2ASR's three: recognition of English (960 h) and Mandarin,
                                translation of English into Chinese and of French into English
    covost                      recognition of en fr de es ca, translation of the last four into en
    covost_en_x                 recognition of en, translation into ca, de and zh
    digits                      spoken Arabic and English digit strings and their translations;
                                root holds digits_ar/ and digits_en/; two CPU cores

`linear` after a corpus takes the paper's linear + softmax heads for translation, trained by CTC,
instead of attention decoders.

Methods (`vc` is the default): levels from the upper to the lowest, and the weights of the levels:

    vs         [asr..., st..., ssl]          1                                VS-MSP
    vc         [asr..., st...] [ssl]         1, eta                           VC-MSP = M2ASR
    vm_uas     [asr...] [st...] [ssl]        1, eta1, eta1 eta                VM-MSP, order UAS
    vm_usa     [st...] [asr...] [ssl]        1, eta1, eta1 eta                VM-MSP, order USA
    joint      [asr..., st...] [ssl]         1, a constant; equal fixed weights inside
    two_stage  pretrain: [ssl], then supervised: [asr..., st...], equal fixed weights
    supervised [asr..., st...] alone, equal fixed weights: conventional multilingual training

All take the same FLOPs. `--config.phases.supervised=10` trains the labelled losses alone for 10
epochs before the joint phase.

In a level of several losses the weights lie on the simplex and are computed per step by MoDo
(`config.moo.method="modo"`) or MGDA (`"mgda"`). The direction that leaves the combiner worsens no
objective with MGDA; AdamW, which follows, voids that, and `moo/update_dot/<objective>` logs the
change of each loss by the step as it is made. UAS and USA name the levels from the lowest up, as
in the authors' code: in UAS the recognition losses have no penalty.

Cost, estimated from FLOPs of the encoder (58.2 M parameters), not measured. A joint step takes one
gradient per objective, 15.7 GFLOP per second of audio: for `librispeech_aishell` three, 5.1 EFLOP
for 200 epochs of AISHELL's 150 h and as much of the other two, 4 hours of arithmetic on one H200 at
35 % of its 989 TFLOP/s. `librispeech_aishell_covost` has five, 14 EFLOP, 11 hours. Memory: the
gradients of all objectives of a level are kept until their weights are known, 222 MiB per tree, two
trees per objective with MoDo, sharded like the parameters.

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

METHODS = ("vs", "vc", "vm_uas", "vm_usa", "joint", "two_stage", "supervised")


def fields(c):
    """Fields of M2ASR in addition to `defaults.base`."""
    c.recipe = "m2asr"
    c.method = "vc"  # vs | vc | vm_uas | vm_usa | joint | two_stage | supervised

    c.moo = ConfigDict()  # the weights inside a level of several losses
    c.moo.method = "modo"  # or "mgda"
    # step size of MoDo's weights over a bound of the largest eigenvalue of the Gram matrix, stable
    # below 2: ours. relative=False takes it as it is, as the papers do: 0.01 in Objective Soups,
    # 0.1 in M2ASR. With gradient norms of 50 and 10 that is stable only below 2 / 2,500
    c.moo.rate = 0.05
    c.moo.relative = True
    # pull towards equal weights: ours; Objective Soups 0.001, M2ASR 0. Of orthogonal gradients with
    # normalise="norm", none gets less than rho / (1 + rho) of an equal share: here a third
    c.moo.rho = 0.5
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

    c.decoder = ConfigDict()  # head of translations; the fields below are of "attention"
    # "attention", a decoder: the scripts of Objective Soups; "linear", linear + softmax: M2ASR's
    # paper; its loss and decoding, CTC's, are ours
    c.decoder.kind = "attention"
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
    c.phases.explore = 0.0  # the lowest level alone, first
    # the labelled losses alone, combined as in the joint phase, which follows: ours
    c.phases.supervised = 0.0
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


def librispeech_aishell_covost(c):
    """M2ASR's corpora: recognition on LibriSpeech 960 h and AISHELL-1, translation on CoVoST v2.
    The paper's pairs are not known to us: ours are English to Chinese (364 h) and, of those into
    English, the one with most audio (French, 180 h). An epoch is one pass of each stream."""
    librispeech_aishell(c)
    hours = ("train-clean-100", "train-clean-360", "train-other-500")
    c.data.streams["asr/en"].train = "+".join(f"librispeech:LibriSpeech/{h}" for h in hours)
    for pair in ("en_zh-CN", "fr_en"):
        add_translation(c, pair, "covost/", buckets=(4.0, 6.0, 12.0))
    c.data.temperature = 1.0  # by size: ours; at 0 a pass of the largest is 6 of the smallest
    c.data.unlabelled_batch_seconds = 600.0  # half of the labelled audio, as without CoVoST: ours
    c.phases.supervised = 5.0  # ours
    c.phases.joint = 95.0  # 100 epochs in all: the script of M2ASR


def covost(c):
    """CoVoST v2: recognition of five languages, translation of four into English."""
    c.data.streams = ConfigDict()
    for lang in ("en", "fr", "de", "es", "ca"):
        pair = "en_de" if lang == "en" else f"{lang}_en"
        c.data.streams[f"asr/{lang}"] = recognition(pair)
        if lang != "en":
            add_translation(c, pair)
    covost_batches(c)


def covost_en_x(c):
    """CoVoST v2 from English: recognition, and translation into three of its 15 languages (ours).
    All streams read the same recordings."""
    c.data.streams = ConfigDict({"asr/en": recognition("en_de")})
    for pair in ("en_ca", "en_de", "en_zh-CN"):
        add_translation(c, pair)
    # the recordings once
    c.data.update(unlabelled="covost:en_de/train", unlabelled_with_train=False)
    covost_batches(c)


def covost_batches(c):
    c.data.root = "/data/covost"
    c.data.buckets = (4.0, 6.0, 8.0, 12.0)
    c.data.update(batch_seconds=200.0, unlabelled_batch_seconds=400.0, labels_per_second=12.0)


def recognition(pair):
    """The stream of CoVoST's sentences of a pair. Training texts and references are without case
    and punctuation (apostrophes and hyphens within words stay), and so are the hypotheses: WER is
    that of words. Ours; the papers state no normalisation."""
    uris = {split: f"covost:{pair}/{split}" for split in ("train", "dev", "test")}
    normalise = ("invisible", "lower", "punctuation")
    return defaults.stream(**uris, units="unigram", vocab_size=999, normalise=normalise)


def add_translation(c, pair, folder="", **changes):
    """The stream st/SRC-TGT of CoVoST's translations of a pair, with case and punctuation, as BLEU
    counts them: st/en-zh of en_zh-CN."""
    source, target = (code.partition("-")[0] for code in pair.split("_"))
    # ours, as M2ASR's of AISHELL: each of some thousand characters of Chinese is a piece
    changes["vocab_size"] = 4999 if target == "zh" else 999
    uris = {split: f"covost:{folder}{pair}/{split}" for split in ("train", "dev", "test")}
    c.data.streams[f"st/{source}-{target}"] = defaults.stream(
        **uris, field="translation", measure="bleu", units="unigram", **changes
    )


def linear(c):
    """The paper's linear + softmax heads for translation."""
    c.decoder.kind = "linear"


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
    in_steps(c, explore=0, supervised=0, joint=2400, finetune=0)
    c.ema_decay = 0.99
    c.update(eval_every=600, save_every=600, log_every=20)


def set_lr(c, shape, peak, warmup):
    """One schedule for the labelled losses, a constant rate for the lowest level alone."""
    for name in ("supervised", "joint", "finetune"):
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
    supervised = 8 if c.phases.supervised else 0  # another program to compile
    in_steps(c, explore=8, supervised=supervised, joint=24, finetune=8)


def overfit(c):
    """`variants.overfit`: eight utterances of each stream, without the lowest level."""
    variants.overfit(c)
    synthetic(c, "overfit")
    c.method = "joint"
    c.decoder.update(dim=96, layers=2, heads=4, dropout=0.0)
    in_steps(c, explore=0, supervised=0, joint=0, finetune=400)


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
    "librispeech_aishell_covost": librispeech_aishell_covost,
    "covost": covost,
    "covost_en_x": covost_en_x,
    "linear": linear,
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
    for name in ("ptft_supervised", "turn_ctc", "turn_ssl", "pseudo", "masked_cpc"):
        del c.lr[name]
    return c
