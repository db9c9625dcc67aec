"""BiRQ: self-labelling pre-training with BEST-RQ as the lower level, then CTC fine-tuning.

Paper: Jiang, Cui, Kingsbury, Chen, Chen, "BiRQ: bi-level self-labeling random quantization for
self-supervised speech recognition", ICASSP 2026, arXiv 2509.15430. One run has two phases:
`pretrain`, both self-supervised levels on all audio, and `finetune`, CTC on the labelled part.

    python -m bljust_jax.main --config=configs/birq.py --config.data.root=/data/LibriSpeech
    python -m bljust_jax.main --config=configs/birq.py:tiny \
        --config.data.train=train.jsonl --config.data.dev=dev.jsonl

Variants. Corpora: `librispeech` (the default: 960 h of audio, 100 h labelled, 10 blocks, 153.9 M
parameters), `ami` (the same encoder on AMI, headset and distant microphones), `yodas` (10 blocks,
273.3 M, attention over 200 frames; audio of YODAS, labels of AMI), `tiny` (0.9 M, two CPU cores,
your own manifests). Methods: `birq` (the default); `best_rq`, the baseline of one level; `relabel`,
offline relabelling: labels from layer k of a finished run, `--config.teacher_from=RUN`, computed
inside the step; `supervised`, CTC alone. A tenth of the labels with `tiny`:
`--config.data.labelled_fraction=0.1`.

Cost, estimated from FLOPs of the encoder, not measured. A step of BEST-RQ is one forward and one
backward pass. BiRQ adds a pass of the clean features through the first k = 7 of 10 layers, with its
backward pass: 1.80 times the compute. `--config.birq.label_gradient=False` makes that 1.27, as does
`relabel`, besides its teacher's run. 100 epochs of 960 h are 11 EFLOP with BEST-RQ and 20 EFLOP
with BiRQ, fine-tuning 0.35 EFLOP: on one H200 at 35 % of its 989 TFLOP/s 16 hours of arithmetic for
BiRQ. `yodas`: 100 epochs of 5,000 h are 181 EFLOP, six days of that device.

Expected scores, the paper's, not reproduced by us; WER of test-clean / test-other with a 4-gram:
supervised 7.4 / 20.5, BEST-RQ 6.8 / 19.6, BiRQ 5.0 / 12.6; AMI, headset / distant microphone
(`yodas`): 25.7 / 47.0, 18.4 / 37.2, 16.3 / 34.0. Our runs are in results/README.md.

Below, "ours" marks our choice where the paper gives no value.
"""

from ml_collections import ConfigDict

from configs import defaults, variants
from configs import librispeech as librispeech_base

METHODS = ("birq", "best_rq", "relabel")


def fields(c):
    """Fields of BiRQ in addition to `defaults.base`."""
    c.recipe = "birq"
    c.method = "birq"  # birq | best_rq | relabel | supervised
    c.teacher_from = ""  # method relabel: workdir of a finished run of the same c.model

    c.birq = ConfigDict()
    c.birq.enhanced_weight = 0.1  # w1 of the upper level: the paper
    c.birq.anchor_weight = 2.4  # w2 of the lower level: the paper
    # k: its output on the clean features is quantised into the enhanced label; 0 = round(0.7
    # blocks): the paper, which compares 2, 3, 4 of 5 and takes 7 of 10
    c.birq.layer = 0
    # gradient of the enhanced loss through its labels, too: the paper. False: cheaper
    c.birq.label_gradient = True
    # beta, weight of the entropy of the batch's mean label: ours. At 0, the paper's equations, the
    # label gradient collapses sharp labels to one code; at 1 it does not reward a code for being
    # frequent. No effect without the label gradient
    c.birq.label_entropy = 1.0
    c.birq.label_dropout = False  # dropout in the pass that computes labels: ours
    c.birq.normalise = "feature"  # z over time, as BEST-RQ's input; or per "frame": ours
    c.birq.score = "cosine"  # of A' z and a code; or minus their "distance": ours
    # factor of the score, before noise: ours. With 8,192 codes of width 16 a draw has at most 0.7
    # nats of information on its frame at 5 and 4.9 at 20 (ln V minus the entropy of softmax(s))
    c.birq.sharpness = 20.0
    c.birq.noise = True  # Gumbel noise on the scores: the paper; in all steps: ours
    c.birq.hard = False  # soft labels; True = one-hot, straight-through gradient: ours
    c.birq.tau_start = 0.5  # temperature at step 0: the paper
    c.birq.tau_end = 0.5  # tau = max(tau_end, tau_start * tau_decay^step); constant: ours
    c.birq.tau_decay = 1.0  # per step
    # one softmax head for both losses ("its prediction head"), or one each: "separate"
    c.birq.head = "shared"
    # one codebook for both labels ("a fixed codebook"), or one each: "separate"; each label has a
    # projection of its own, as the inputs differ in width
    c.birq.codebook = "shared"

    c.phases = ConfigDict({"unit": "epoch"})  # of the stream that a phase reads; or "step"
    c.phases.pretrain = 100.0  # over all audio: the paper (also 300)
    c.phases.finetune = 30.0  # CTC on the labelled audio: the paper
    c.phases.supervised = 30.0  # method supervised: the same


def librispeech(c):
    """960 h of audio, train-clean-100 labelled; the corpus of configs/librispeech.py."""
    size(768, 12, 576)(c)
    # 64 utterances of 12.3 s on average: the paper's batch
    c.data.unlabelled_batch_seconds = 800.0
    c.data.batch_seconds = 800.0  # ours
    c.data.speed = (1.0, 1.0)  # none in the paper
    c.lr.pretrain = defaults.schedule("constant", 1e-4, 10000)  # peak: the paper; warm-up: ours
    # warm-up, hold, anneal: the paper; their lengths (1, 4, 5 tenths) and peak: ours
    c.lr.finetune = defaults.schedule("hold", 1e-4, 1400, moments="reset")
    c.lr.supervised = defaults.schedule("hold", 1e-3, 1400)  # ours
    c.lr.heads = 1.0
    c.collapse.stop = True  # a collapse of the labels wastes the rest of the run
    c.update(eval_every=2000, save_every=2000)


def ami(c):
    """AMI, all labelled."""
    c.data.root = "/data/ami"
    microphones(c, "ami:")
    c.data.buckets = (2.0, 4.0, 8.0, 16.0, 32.0)  # segments are short: mean 2.6 s
    c.data.labels_per_second = 30.0  # spontaneous speech is fast


def yodas(c):
    """5,000 h of English YODAS without labels, AMI labelled; `root` has both: /data/{yodas,ami}."""
    ami(c)
    size(1024, 16, 768)(c)
    c.model.window = 200  # frames that attention covers: the paper
    c.data.root = "/data"
    microphones(c, "ami:ami/")
    c.data.unlabelled = "yodas:yodas/en000"
    c.data.unlabelled_with_train = False
    c.data.unlabelled_hours = 5000.0  # the paper; which 5,000 h: not known, so drawn by the seed
    c.data.unlabelled_batch_seconds = 1000.0  # 128 utterances: the paper's batch, of 8 s


def microphones(c, corpus):
    """Splits of AMI with the individual headsets (ihm) and the single distant microphone (sdm) of
    each meeting, as separate utterances: 150 h of training audio, the paper's. The WER of both
    chooses the best weights; test/eval/wer is of headsets, test/eval-2/wer of the distant one."""
    c.data.unlabelled = ""
    for split, name in (("train", "train"), ("dev", "dev"), ("test", "eval")):
        c.data[split] = "+".join(f"{corpus}{mic}/{name}" for mic in ("ihm", "sdm"))


def size(dim, heads, channels):
    """10 Conformer blocks: depth and parameters are the paper's; width, heads, front end ours."""

    def variant(c):
        c.model.update(dim=dim, layers=10, heads=heads, channels=channels, kernel=31)
        c.model.update(dropout=0.1, dtype="bfloat16", remat="full")

    return variant


def tiny(c):
    """0.9 M parameters on two CPU cores; read sentences of 1-10 s, a few hours."""
    variants.tiny_model(c)
    # a batch has 300 masked frames, so most of 8,192 codes would never occur, and the head would be
    # as large as the encoder
    c.best_rq.codes = 512
    # at 20 and label_entropy=0 the label gradient collapses them to one code within 100 steps
    c.birq.sharpness = 5.0
    c.data.update(root="", train="", unlabelled="", dev="", test="")
    c.data.update(buckets=(3.0, 5.0, 8.0), batch_seconds=40.0, unlabelled_batch_seconds=40.0)
    c.data.update(eval_batch_seconds=160.0, labels_per_second=25.0, num_threads=2, prefetch=8)
    c.data.noise_snr = ()
    c.lr.pretrain = defaults.schedule("constant", 1e-3, 200)
    c.lr.finetune = defaults.schedule("hold", 2e-3, 100, moments="reset")
    c.lr.supervised = defaults.schedule("hold", 2e-3, 100)
    c.phases.update(unit="step", pretrain=3000.0, finetune=1500.0, supervised=1500.0)
    c.ema_decay = 0.995
    c.update(eval_every=500, save_every=500, log_every=20)


def smoke(c):
    """`variants.shrink` for these phases: 40 steps of each."""
    variants.shrink(c)
    in_steps(c, pretrain=40, finetune=40, supervised=80)


def overfit(c):
    """`variants.overfit` with method supervised."""
    variants.overfit(c)
    in_steps(c, pretrain=0, finetune=0, supervised=400)


def in_steps(c, **phases):
    c.phases = ConfigDict({"unit": "step", **phases})
    c.best_rq.codes = 64


VARIANTS = {
    **{name: variants.method(name) for name in METHODS},
    "librispeech": librispeech,
    "ami": ami,
    "yodas": yodas,
    "tiny": tiny,
    "smoke": smoke,
    "overfit": overfit,
}


def get_config(arg=None):
    c = librispeech_base.get_config()
    fields(c)
    librispeech(c)
    c = variants.apply_variants(c, arg, VARIANTS)
    for name in ("ssl", "cpc", "penalty", "gradients", "share_forward"):  # of BL-JUST only
        del c[name]
    for name in (
        "explore",
        "joint",
        "ptft_supervised",
        "turn_ctc",
        "turn_ssl",
        "pseudo",
        "masked_cpc",
    ):
        del c.lr[name]
    return c
