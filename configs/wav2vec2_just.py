"""Wav2Vec2-JUST: joint wav2vec 2.0 and CTC training for languages with a few hours of labels.

Paper: Chen and Saif, 2024. The upper level is CTC, the lower one wav2vec 2.0's contrastive and
diversity losses (Baevski et al., NeurIPS 2020), on one encoder that starts from a pretrained
checkpoint if one is named:

    python -m bljust_jax.main --config=configs/wav2vec2_just.py:nl \
        --config.data.root=/data/covost --config.init_from=/models/wav2vec2-xls-r-300m
    python -m bljust_jax.main --config=configs/wav2vec2_just.py:tiny \
        --config.data.train=train.jsonl --config.data.dev=dev.jsonl

`init_from` is a folder or file of transformers, read without torch, or a run of ours. The lower
level needs its quantiser (`init_parts`), so the file of a Wav2Vec2ForPreTraining; `ft` accepts any.
A quantiser that is taken has the encoder's rate and the end of the Gumbel temperature. Name the
size of the file: `base` (wav2vec2-base: 94 M parameters) or `large` (the default: LV-60k, XLS-R
300M, 315 M). Another size is refused with the fields to set.

Variants. Languages of CoVoST v2: `nl`, `mn`, `ar`; `manifest`, your own data (the default).
Methods: `bljust` (the default); `ft`, the paper's baseline: CTC alone from the same checkpoint;
`ptft`, `weighted_sum`, `alternating`. Sizes: `base`, `large`, `tiny` (0.6 M parameters, from
scratch, two CPU cores), `digits` (`tiny` for isolated words). `compat`: the group norm of `base`
counts padding, as transformers' does. `thaw` also trains the waveform convolutions.

Cost, estimated, not measured: an encoder gradient of `large` costs 0.11 TFLOP per second of audio,
so 100 epochs of 3 h with two gradients per step are 0.24 EFLOP: 11 minutes of an H200's arithmetic
at 35 % of its 989 TFLOP/s.

Expected scores, the paper's, not reproduced by us; test WER of FT / JUST from a LibriSpeech
checkpoint of unknown size: Dutch 59.2 / 58.4, Mongolian 72.6 / 71.8, Arabic 71.6 / 70.2. They are
not comparable: its public code counts character edits under that name. Our runs are in
results/README.md.

Below, "ours" marks our choice where the paper gives no value.
"""

from ml_collections import ConfigDict

from configs import defaults, variants

# CoVoST v2; the paper trains on 2 h of Dutch, 3 h of Mongolian, 2 h of Arabic.
PAIRS = {"nl": "nl_en", "mn": "mn_en", "ar": "ar_en"}


def fields(c):
    """Fields of wav2vec 2.0 and of its masks."""
    c.encoder = "wav2vec2"
    c.ssl = "wav2vec2"
    c.init_parts = ("encoder", "wav2vec2_head")  # of init_from: the quantizer, too
    c.freeze = ("frontend",)  # the waveform convolutions: wav2vec 2.0's fine-tuning

    c.mask = ConfigDict()  # augmentation of CTC: masked input spans of the Transformer
    # share of frames in masked spans, before overlaps: wav2vec 2.0, 10 h, where it is written as
    # 0.065, the share of frames that start a span
    c.mask.time_prob = 0.65
    c.mask.time_length = 10  # frames of 20 ms
    c.mask.channel_prob = 0.256  # share of channels, likewise: 0.004 start a span
    c.mask.channel_length = 64  # channels

    c.wav2vec2 = ConfigDict()  # the lower level, all after wav2vec 2.0
    c.wav2vec2.mask_prob = 0.65  # share of frames in masked spans, before overlaps
    c.wav2vec2.mask_length = 10  # frames of 20 ms
    c.wav2vec2.negatives = 100  # other masked frames of the same utterance
    c.wav2vec2.temperature = 0.1  # divisor of the cosine
    c.wav2vec2.diversity = 0.1  # weight of the diversity loss
    c.wav2vec2.feature_penalty = 10.0  # weight of the features' mean square
    c.wav2vec2.groups = 2  # codebooks
    c.wav2vec2.codes = 320  # per codebook
    c.wav2vec2.code_dim = 768  # width of all groups' codevectors together; base 256
    c.wav2vec2.width = 768  # of projected targets and predictions; base 256
    # Gumbel temperature max(tau_end, tau_start * tau_decay^k), k the steps of the lower level;
    # tau_end all along with a pretrained quantizer
    c.wav2vec2.tau_start = 2.0
    c.wav2vec2.tau_end = 0.1  # base 0.5
    c.wav2vec2.tau_decay = 0.999995  # per step


def model(**fields):
    """wav2vec 2.0 encoder, the fields of c.model; `fields` replace the defaults."""
    c = ConfigDict()
    c.normalise = True  # waveforms to mean 0 and variance 1 per utterance
    c.dim = 1024  # width of the blocks
    c.layers = 24  # number of blocks
    c.heads = 16  # attention heads
    c.ff_dim = 4096  # feed-forward width
    c.conv_dim = (512,) * 7  # channels of the waveform convolutions
    c.conv_kernel = (10, 3, 3, 3, 3, 2, 2)  # samples
    c.conv_stride = (5, 2, 2, 2, 2, 2, 2)  # 50 frames per second
    c.conv_bias = True  # bias of the waveform convolutions
    c.feat_norm = "layer"  # after each convolution; or "group", over time after the first
    c.stable_layer_norm = True  # blocks normalise their input (pre-norm)
    c.pos_kernel = 128  # frames of the positional convolution
    c.pos_groups = 16  # groups of the positional convolution
    c.dropout = 0.1
    c.layerdrop = 0.0  # share of blocks skipped per training step
    c.feature_grad_scale = 0.1  # factor of the gradient into the waveform convolutions: fairseq
    c.dtype = "bfloat16"  # of the arithmetic; parameters are float32
    c.scan_unroll = 1  # layers per iteration of the scan over layers
    c.remat = "full"  # the backward pass recomputes whole blocks
    c.attention = "auto"  # what computes attention: xla, cudnn (NVIDIA GPUs), splash (TPUs)
    c.hf_compat = False  # group norm counts padded frames, as transformers' does
    c.update(**fields)
    return c


def large(c):
    c.model = model()
    c.wav2vec2.update(code_dim=768, width=768, tau_end=0.1)


def base(c):
    c.model = model(dim=768, layers=12, heads=12, ff_dim=3072, conv_bias=False)
    c.model.update(feat_norm="group", stable_layer_norm=False)
    c.wav2vec2.update(code_dim=256, width=256, tau_end=0.5)


def tiny(c):
    """From scratch on two CPU cores: the convolutions train, too; penalty and rates as in
    configs/manifest.py."""
    variants.tiny_model(c)
    thaw(c)
    # ours: a tenth or less, as there are no pretrained parameters
    c.mask.update(time_prob=0.065, channel_prob=0.004)
    c.data.update(buckets=(3.0, 5.0, 8.0), batch_seconds=32.0, unlabelled_batch_seconds=32.0)
    c.data.speed = (0.9, 1.1)
    c.penalty.update(start=0.0, cap=0.3)
    variants.set_all_lr(c, 1e-3, 100)
    variants.steps(c, 1000, explore=0.0)
    c.ema_decay = 0.995
    c.update(eval_every=200, save_every=200, log_every=20)


def digits(c):
    """`tiny` for isolated words, as `digits` in configs/manifest.py."""
    tiny(c)
    variants.join_words(c)
    variants.steps(c, 1200, explore=0.0)


def ft(c):
    c.method = "supervised"


def compat(c):
    c.model.hf_compat = True


def thaw(c):
    c.freeze = ()


def manifest(c):
    c.data.update(root="", train="", unlabelled="", dev="", test="")


def language(pair):
    def variant(c):
        c.data.root = "/data/covost"
        c.data.update(train=f"covost:{pair}/train", unlabelled="")
        c.data.update(dev=f"covost:{pair}/dev", test=f"covost:{pair}/test")
        c.data.text.normalise = ("invisible", "lower", "punctuation")
        if pair.startswith("ar"):
            c.data.text.normalise = ("invisible", "lower", "punctuation", "alef", "diacritics")

    return variant


VARIANTS = {
    **{name: language(pair) for name, pair in PAIRS.items()},
    "manifest": manifest,
    "base": base,
    "large": large,
    "tiny": tiny,
    "digits": digits,
    "ft": ft,
    "compat": compat,
    "thaw": thaw,
}


def get_config(arg=None):
    c = defaults.base()
    fields(c)
    large(c)
    c.data.buckets = (4.0, 6.0, 8.0, 12.0)  # clips of 4-6 s, mean
    c.data.batch_seconds = c.data.unlabelled_batch_seconds = 200.0  # ours
    c.data.labels_per_second = 25.0
    # 100 epochs: the paper; its public code raises the penalty by 1/500 per epoch
    c.phases.update(unit="epoch", explore=0.0, joint=100.0, finetune=5.0)
    c.penalty.update(start=0.0, slope=0.02, cap=1.0, per="epoch")  # ours: reaches its cap
    # one optimizer trains both levels, at the encoder's rate of the joint phase
    # ours, after wav2vec 2.0's fine-tuning: warm-up, hold, decay; the same for all methods, and the
    # grid of configs/defaults.py around it: 1e-5, 3e-5, 9e-5
    names = ("joint", "supervised", "ptft_supervised", "turn_ctc", "turn_ssl", "pseudo")
    for name in (*names, "masked_cpc"):
        c.lr[name] = defaults.schedule("hold", 3e-5, 500)
    c.lr.finetune = defaults.schedule("linear", 1e-5, 0)  # ours
    c.lr.pretrain = defaults.schedule("constant", 3e-5, 500)  # ours
    c.lr.heads = 10.0  # ours: CTC's head starts untrained; heads of init_from take the encoder's
    c.ema_decay = 0.999
    c.collapse.stop = True  # a collapse of the codebook wastes the rest of the run
    c.update(eval_every=200, save_every=200, log_every=20)
    return variants.apply_variants(c, arg, VARIANTS)
