"""BL-JUST on TED-LIUM release 2: 207 h of talks, all labelled, read by both levels.

Papers: Saif et al., "Joint unsupervised and supervised training for automatic speech recognition
via bilevel optimization", ICASSP 2024, arXiv 2401.06980, on LibriSpeech and TED-LIUM v2; the
corpus: Rousseau et al., "Enhancing the TED-LIUM corpus with selected data for language modeling and
more TED talks", LREC 2014.

    python -m bljust_jax.main --config=configs/tedlium.py --config.data.root=/data/TEDLIUM_release2

expects openslr.org/19 unpacked: train, dev and test, each with sph/TALK.sph and stm/TALK.stm. The
root of release 3 works, too: its folder `legacy` has release 2's dev and test and more training
talks. bljust_jax/data/readers/tedlium.py lists skipped segments and the spelling of texts.

Variants: sizes `S`, `M` (default), `L` and `chunked` as in configs/librispeech.py; every method
(`bljust`, `ptft`, `supervised`, `weighted_sum`, `alternating`); `tenth`: a tenth of the labels, all
of the audio.

Cost, estimated as in configs/librispeech.py, not measured: 5 passes of 207 h, 100 epochs with two
gradients per step, and 5 epochs are 43,500 h of audio. S 0.31, M 0.94, L 3.8 EFLOP; on one H200 at
15, 25, 35 % of its 989 TFLOP/s about 35 minutes, 1.1 hours, 3 hours of arithmetic, if reading keeps
up. On disk: about 40 GB unpacked (16-bit SPHERE of whole talks, half of it segments), the same for
the archive until it is removed; about 13 GB as shards of `bljust_jax.prepare`.

Expected score: none; we could not read the paper's split into labelled and unlabelled audio, its
learning rates, batch sizes, penalty and WER table. 100 joint epochs are the papers'. All else is
configs/librispeech.py's, whose comments name the source, or our choice if set below.
"""

from configs import librispeech, variants


def tenth(c):
    """Labels for a tenth of the utterances; the lower level reads all of them."""
    c.data.labelled_fraction = 0.1


VARIANTS = {name: librispeech.VARIANTS[name] for name in ("S", "M", "L", "chunked")}
VARIANTS["tenth"] = tenth


def get_config(arg=None):
    c = librispeech.get_config()
    c.data.root = "/data/TEDLIUM_release2"
    c.data.train = "tedlium:train"  # 207 h, 93,000 segments, mean 8 s
    c.data.unlabelled = ""  # the same audio
    c.data.dev = "tedlium:dev"  # 1.6 h, 8 talks; chooses the best parameters
    c.data.test = "tedlium:test"  # 2.6 h, 11 talks
    c.data.buckets = (4.0, 7.0, 10.0, 13.0, 16.0, 20.5)  # the longest segment has 20.3 s
    c.data.labels_per_second = 25.0  # characters; the mean is 16
    # exploration has a fifth of LibriSpeech's steps, whose warm-up would be most of it: ours
    c.lr.explore.update(warmup=0.25, warmup_unit="share")
    return variants.apply_variants(c, arg, VARIANTS)
