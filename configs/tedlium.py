"""BL-JUST on TED-LIUM release 2: 207 h of talks, labelled for the upper level, heard by the lower.

Papers: Saif et al., "Joint unsupervised and supervised training for automatic speech recognition
via bilevel optimization", ICASSP 2024, arXiv 2401.06980, on LibriSpeech and TED-LIUM v2; the
corpus: Rousseau et al., "Enhancing the TED-LIUM corpus with selected data for language modeling and
more TED talks", LREC 2014.

    python -m bljust_jax.main --config=configs/tedlium.py --config.data.root=/data/TEDLIUM_release2

expects openslr.org/19 unpacked: train, dev and test, each with sph/TALK.sph and stm/TALK.stm. The
root of release 3 does too: its folder `legacy` holds release 2's dev and test and more training
talks. What the reader leaves out and how it spells texts is said in
bljust_jax/data/readers/tedlium.py.

Variants: sizes `S`, `M` (default), `L` and `chunked` as in configs/librispeech.py, every method
(`bljust`, `ptft`, `supervised`, `weighted_sum`, `alternating`), and `tenth`: a tenth of the labels,
all of the audio.

Cost, estimated as there, not measured: 5 passes of 207 h, 100 epochs with two gradients a step,
then 5 epochs are 43,500 h of audio, so S 0.31, M 0.94, L 3.8 EFLOP, or on one H200 at 15, 25, 35 %
of its 989 TFLOP/s about 35 minutes, 1.1 hours, 3 hours of arithmetic, if reading keeps up. On disk:
about 40 GB unpacked (uncompressed 16-bit SPHERE of whole talks, of which the segments are half),
and as much for the archive until it is removed; as shards of `bljust_jax.prepare` about 13 GB.

What the papers leave unknown. How the ICASSP paper splits the corpus into labels and unlabelled
audio, its learning rates, batch sizes, penalty and WER table could not be read by us, so no score
is promised here. 100 joint epochs are the papers'; the rest is configs/librispeech.py's, whose
comments say what comes from the authors' script, and what is set below is our choice.
"""

from configs import common, librispeech


def tenth(c):
    """Labels for a tenth of the utterances; the lower level hears all of them."""
    c.data.labelled_fraction = 0.1


VARIANTS = {name: librispeech.VARIANTS[name] for name in ("S", "M", "L", "chunked")}
VARIANTS["tenth"] = tenth


def get_config(arg=None):
    c = librispeech.get_config()
    c.data.root = "/data/TEDLIUM_release2"
    c.data.train = "tedlium:train"  # 207 h, 93,000 segments of 8 s on average
    c.data.unlabelled = ""  # the same audio
    c.data.dev = "tedlium:dev"  # 1.6 h, 8 talks; chooses the best weights
    c.data.test = "tedlium:test"  # 2.6 h, 11 talks
    c.data.buckets = (4.0, 7.0, 10.0, 13.0, 16.0, 20.5)  # the longest segment has 20.3 s
    c.data.labels_per_second = 25.0  # characters: 16 on average, talks run faster than books
    return common.apply_variants(c, arg, VARIANTS)
