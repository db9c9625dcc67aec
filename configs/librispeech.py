"""BL-JUST on LibriSpeech: 100 h labelled, all 960 h for the self-supervised lower level.

Papers: Saif et al., "Joint unsupervised and supervised training for automatic speech recognition
via bilevel optimization", ICASSP 2024, arXiv 2401.06980; Cui et al., the journal version, arXiv
2412.08548.

    python -m bljust_jax.main --config=configs/librispeech.py --config.data.root=/data/LibriSpeech

expects the unpacked corpus of openslr.org/12 (SPLIT/SPEAKER/CHAPTER/*.flac and *.trans.txt). The
splits below are relative to `root`.

Variants. Sizes `S`, `M` (default), `L`: Conformer encoders of 16 x 144, 16 x 256 and 17 x 512
(blocks x width; Gulati et al. 2020). The papers use about 8 blocks of width 512:
`--config.model.dim=512 --config.model.layers=8 --config.model.heads=8`. Methods: `bljust`
(default), `ptft`, `supervised`, `weighted_sum`, `alternating`, `mpl`, `slimipl`, `noisy_student`,
`masked_cpc_ctc`, at equal FLOPs, and `hybrid` (docs/method.md has sources and settings). Data:
`h960` labels all 960 h; `rest860` removes the labelled 100 h from the lower level's audio. Lower
level: `chunked` (CPC as published), `best_rq`. Encoders: `fast` for any size, with the front end of
Fast Conformer (subsampling by 8), `lstm` and `gru`, the two networks of LSTM-JUST. As published:
`script`, the authors' public script; `lstm_paper`, LSTM-JUST's rates.

Cost, estimated, not measured. An encoder gradient costs 2.0, 6.0, 24 GFLOP per second of audio for
S, M, L, with `fast` 1.0, 2.3, 8.5 (docs/speed.md). The default phases are 5 passes of 960 h, 100
epochs of 100 h with two gradients per step, and 5 epochs of 100 h: 25,300 h of audio. S 0.18,
M 0.55, L 2.2 EFLOP; on one H200 at 15, 25, 35 % of its 989 TFLOP/s about 20 minutes, 37 minutes,
1.8 hours of arithmetic. Expect several times that if reading FLAC is the bottleneck (S and M read
10-20 h of audio per second). On disk: 60 GB of FLAC for the 960 h, 0.7 GB for the dev and test
splits.

Expected score: none; we could not read the WER tables, nor the journal's learning rates, batch
sizes, penalty cap and phase lengths. Known: in the authors' public script the penalty rises by
0.002 per epoch from 0 towards 1, so it ends below 0.4 after 200 epochs. A third-party account of a
115 M FastConformer with a contrastive lower level on train-other-500, greedy and without a language
model, has test-clean / test-other WER 8.7 / 23.0 supervised, 7.4 / 19.5 PT+FT, 7.0 / 17.1 BL-JUST
from 100 h of labels. Below, a comment "ours" marks our choice, "script" the authors' script.
"""

from configs import defaults, variants

LABELLED = "librispeech:train-clean-100"
CLEAN_REST = "librispeech:train-clean-360"
OTHER = "librispeech:train-other-500"


def size(dim, layers, heads, channels, batch_seconds):
    def variant(c):
        if c.model.get("subsampling_factor") != 8:  # else `fast` has set its channels
            c.model.channels = channels
        c.model.update(dim=dim, layers=layers, heads=heads)
        c.data.batch_seconds = c.data.unlabelled_batch_seconds = batch_seconds

    return variant


def fast(c):
    """The front end of Fast Conformer (Rekesh et al., ASRU 2023): subsampling by 8, separable
    convolutions of 256 channels. At 80 ms per frame characters do not fit, so texts are in pieces;
    both lower levels predict and mask the same milliseconds as without it."""
    c.model.update(subsampling="parakeet", subsampling_factor=8, channels=256)
    c.data.text.update(units="unigram", vocab_size=1023)  # with the blank 1,024: the paper
    c.cpc.steps = 6  # 480 ms
    c.best_rq.update(stack=8, mask_prob=0.08, mask_length=5)


def h960(c):
    c.data.train = f"{LABELLED}+{CLEAN_REST}+{OTHER}"
    c.data.unlabelled = ""


def rest860(c):
    c.data.unlabelled_with_train = False


def chunked(c):
    """CPC as published: 2 s of context and the next 1 s, encoded separately."""
    c.cpc.context = "chunked"


def lstm(c):
    """LSTM-JUST on LibriSpeech: 100 h for both levels, test-clean. The paper's test WER with 3 + 5
    layers: PT+FT 11.6, BL-JUST 10.0; configs/wav2vec2_just.py explains how it is counted."""
    variants.lstm(c)
    c.data.update(unlabelled="", test="librispeech:test-clean")
    c.data.text.update(units="unigram", vocab_size=1022)  # with the blank 1,023: the paper
    c.data.batch_seconds = c.data.unlabelled_batch_seconds = 400.0


def gru(c):
    """LSTM-JUST with the network of its published parameter count, 27,257,631. Its attention is
    quadratic in frames times bands, so batches are small."""
    lstm(c)
    variants.gru(c)
    c.data.batch_seconds = c.data.unlabelled_batch_seconds = 50.0


def best_rq(c):
    """BEST-RQ as the lower level; exploration is its pre-training."""
    c.ssl = "best_rq"


def rates(c, lower, upper):
    """Constant rates without warm-up, for encoder and heads alike: those of the lower level alone,
    and of phases with the upper level."""
    for name in ("explore", "pretrain", "turn_ssl"):
        c.lr[name] = defaults.schedule("constant", lower, 0)
    for name in ("joint", "ptft_supervised", "turn_ctc", "supervised", "pseudo", "masked_cpc"):
        c.lr[name] = defaults.schedule("constant", upper, 0)
    c.lr.heads = 1.0


def script(c):
    """The authors' public script as far as one encoder for both levels allows: 100 h for both,
    exploration in each epoch, constant rates. Ours remain: one front end, log-mel, CPC with a map
    per step and negatives of the same utterance, batches by length."""
    c.model.update(dim=512, layers=8, heads=8, channels=512)  # kernel 31 is the library's default
    c.features.n_mels = 40
    chunked(c)
    c.cpc.negatives = 0  # all others
    c.data.update(unlabelled="", test="librispeech:test-other", speed=(1.0, 1.0))
    c.data.text.update(units="unigram", vocab_size=1000)
    # 60 labelled utterances, 64 files of the lower level, of 12.7 s on average
    c.data.update(batch_seconds=760.0, unlabelled_batch_seconds=810.0)
    # 4 passes of the lower level in each of 200 epochs
    c.phases.update(explore=800.0, joint=200.0, finetune=5.0, explore_when="every_epoch")
    c.penalty.update(start=0.0, slope=0.002, cap=1.0)  # ends at 0.4
    rates(c, lower=1e-3, upper=1e-4)
    c.lr.finetune = defaults.schedule("constant", 1e-5, 0)
    c.optim.update(b2=0.999, clip=1e6)  # AdamW's default; no clipping
    c.ema_decay = 0.0  # none


def lstm_paper(c):
    """`lstm` with the paper's constant rates: alpha where the lower level trains alone, beta where
    CTC trains, heads at the same rates. 100 epochs in which both levels alternate, batches of ten
    utterances and the penalty: the paper's figure and notebook; its exploration: ours."""
    lstm(c)
    rates(c, lower=1e-3, upper=1e-4)
    c.data.batch_seconds = c.data.unlabelled_batch_seconds = 125.0
    c.phases.update(explore=100.0, joint=100.0, finetune=0.0, explore_when="every_epoch")
    c.penalty.update(start=0.0, slope=0.002, cap=1.0)


VARIANTS = {
    "S": size(144, 16, 4, 144, 1600.0),
    "M": size(256, 16, 4, 256, 1200.0),
    "L": size(512, 17, 8, 512, 600.0),
    "fast": fast,
    "h960": h960,
    "rest860": rest860,
    "chunked": chunked,
    "best_rq": best_rq,
    "lstm": lstm,
    "gru": gru,
    "script": script,
    "lstm_paper": lstm_paper,
}


def get_config(arg=None):
    c = defaults.base()
    c.data.root = "/data/LibriSpeech"
    c.data.train = LABELLED  # 100.6 h, 251 speakers
    c.data.unlabelled = f"{CLEAN_REST}+{OTHER}"  # with data.train 961 h, 2,338 speakers
    c.data.dev = "librispeech:dev-other"  # chooses the best parameters
    # scored together and separately: test/test-clean/wer, test/test-other/wer
    c.data.test = "librispeech:test-clean+librispeech:test-other"
    # under 10 % of padding; the longest training utterance lasts 24.5 s (35 s in dev and test)
    c.data.buckets = (4.0, 8.0, 12.0, 14.0, 16.0, 25.0)
    c.data.labels_per_second = 22.0  # characters; 0.1 % of the utterances are denser
    c.data.speed = (0.9, 1.1)  # ours
    c.data.num_threads = 16
    c.data.prefetch = 32
    size(256, 16, 4, 256, 1200.0)(c)  # M; 20 minutes of padded audio per batch: ours
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    # the script
    c.specaugment.update(freq_masks=1, freq_width=27, time_masks=10, time_width=40)
    c.specaugment.max_time_share = 0.05

    # one linear map per step: ours; the published recipe applies one map repeatedly
    c.cpc.update(steps=12, first_step=2, width=256, negatives=100, temperature=0.1)

    # ours reaches its cap; the script has slope 0.002
    c.penalty.update(start=0.0, slope=0.02, cap=1.0, per="epoch")
    # joint: the papers; explore, finetune: ours
    c.phases.update(unit="epoch", explore=5.0, joint=100.0, finetune=5.0)
    c.lr.explore = defaults.schedule("constant", 1e-3, 2000)  # rho: the script
    # alpha: ours; the script's is constant, 1e-4 (variant `script`). The same in all methods whose
    # encoder is pre-trained, and the grid of configs/defaults.py around it: 1e-4, 3e-4, 9e-4
    for name in ("joint", "ptft_supervised", "turn_ctc", "turn_ssl", "pseudo"):
        c.lr[name] = defaults.schedule("cosine", 3e-4, 2000)
    c.lr.masked_cpc = defaults.schedule("cosine", 1e-3, 2000)  # from scratch
    c.lr.finetune = defaults.schedule("linear", 1e-5, 0)  # tau: the script; shape: ours
    c.lr.supervised = defaults.schedule("cosine", 1e-3, 2000)  # ours, from scratch
    c.lr.pretrain = defaults.schedule("constant", 1e-3, 2000)  # as rho
    c.lr.heads = 10.0  # ours: heads start untrained after exploration
    c.ema_decay = 0.9998  # at most: ours
    c.update(eval_every=500, save_every=500, log_every=50)
    return variants.apply_variants(c, arg, VARIANTS)
