"""The fields of `config.data`: sources, labels, batches, augmentation and reading."""

from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field

TRAIN = Field(str, "URI of the labelled audio: a *.jsonl manifest or SCHEME:REST; join with +")
DEV = Field(str, "URI, scored during training: chooses the best parameters")
TEST = Field(str, "URI, scored once, at the end")

MEASURES = ("auto", "wer", "cer", "mer")
DATA = {
    "train": TRAIN,
    "unlabelled": Field(str, "URI of audio without labels, for the self-supervised loss alone"),
    "unlabelled_with_train": Field(bool, "that loss reads the audio of data.train as well"),
    "frame_labels": Field(str, "files of labels per frame of the unlabelled stream; empty: none"),
    "frame_label_rate": Field(float, "frame labels per second", r.ABOVE_0),
    "dev": DEV,
    "test": TEST,
    "root": Field(str, "folder that all audio lies in; empty: the folder of the manifest"),
    "sample_rate": Field(int, "Hz; other rates are resampled", r.AT_LEAST_1),
    "labelled_fraction": Field(float, "share of utterances that keep their labels", r.ABOVE_0_TO_1),
    "labelled_speakers": Field(int, "speakers that keep their labels; 0: all", r.AT_LEAST_0),
    "labelled_draw": Field(int, "seed of the draw of labels; -1: config.seed", r.OPTIONAL_SEED),
    "held_back_speakers": Field(int, "speakers of train that are scored as dev", r.AT_LEAST_0),
    "held_back_draw": Field(int, "seed of the draw of speakers held back", r.SEED),
    "overfit": Field(int, "number of utterances to train and score on; 0: all", r.AT_LEAST_0),
    "mix": Field(tuple, "weights of the sources of data.train; empty: all audio once", r.WEIGHTS),
    "join": Field(tuple, "utterances of one speaker joined into one item", r.JOIN),
    "join_share": Field(float, "share of items that are joined utterances", r.FROM_0_TO_1),
    "balance": Field(float, "share of draws that are uniform over distinct texts", r.FROM_0_TO_1),
    "buckets": Field(tuple, "lengths in seconds that batches are padded to", r.LENGTHS),
    "num_buckets": Field(int, "lengths chosen from durations; -1: by cost", r.NUMBER_OF_BUCKETS),
    "program_hours": Field(float, "padded audio as costly as compiling a program", r.ABOVE_0),
    "batch_seconds": Field(float, "padded audio per labelled batch, seconds", r.ABOVE_0),
    "temperature": Field(float, "T of the labelled streams' shares, hours^(1/T)", r.TEMPERATURE),
    "rows_multiple": Field(int, "rows of a training batch are a multiple of it", r.AT_LEAST_1),
    "labels_per_second": Field(float, "room for labels per second of padded audio", r.ABOVE_0),
    "speed": Field(tuple, "range of speed perturbation, drawn uniformly", r.SPEED),
    "noise": Field(str, "folder or URI of noise and music; empty: white and pink noise"),
    "noise_snr": Field(tuple, "dB, range of the SNR of added noise; empty: none", r.DECIBELS),
    "noise_share": Field(float, "share of items with added noise", r.FROM_0_TO_1),
    "babble": Field(str, "folder or URI of speech, mixed in as 3 to 7 voices; empty: none"),
    "babble_snr": Field(tuple, "dB, range of the SNR of babble", r.DECIBELS),
    "babble_share": Field(float, "share of items with babble", r.FROM_0_TO_1),
    "reverb": Field(str, "folder of impulse responses, or simulated; empty: none"),
    "reverb_share": Field(float, "share of items with reverberation", r.FROM_0_TO_1),
    "volume": Field(tuple, "dB, range of the gain; empty: none", r.DECIBELS),
    "telephone_share": Field(float, "share of items limited to 300-3400 Hz", r.FROM_0_TO_1),
    "codec_share": Field(float, "share of items coded by mu-law or GSM at 8 kHz", r.FROM_0_TO_1),
    "min_seconds": Field(float, "shorter utterances are skipped", r.NO_LIMIT_OR_ABOVE),
    "max_seconds": Field(float, "longer utterances are skipped", r.NO_LIMIT_OR_ABOVE),
    "unlabelled_hours": Field(float, "hours of data.unlabelled; 0: all", r.NO_LIMIT_OR_ABOVE),
    "unlabelled_cut": Field(bool, "cut unlabelled audio above max_seconds into pieces"),
    "unlabelled_buckets": Field(tuple, "seconds; empty: data.buckets", r.LENGTHS_OR_EMPTY),
    "unlabelled_batch_seconds": Field(float, "batch_seconds of unlabelled audio", r.BATCH_SECONDS),
    "unlabelled_temperature": Field(float, "T of the languages' shares of an epoch", r.TEMPERATURE),
    "unlabelled_join": Field(tuple, "data.join of unlabelled audio", r.JOIN),
    "unlabelled_join_share": Field(float, "data.join_share of unlabelled audio", r.FROM_0_TO_1),
    "measure": Field(str, "the score that chooses the best parameters", MEASURES),
    "train_sample": Field(int, "training utterances scored beside dev; 0: none", r.AT_LEAST_0),
    "min_spellable": Field(float, "least share of texts to score that can be spelt", r.FROM_0_TO_1),
    "eval_batch_seconds": Field(float, "padded audio per batch in evaluation, seconds", r.ABOVE_0),
    "num_threads": Field(int, "decoding threads; they change no number", r.AT_LEAST_0),
    "prefetch": Field(int, "batches read ahead", r.AT_LEAST_1),
    "timeout": Field(float, "seconds without a batch before the run exits with 69", r.ABOVE_0),
    "max_bad_fraction": Field(float, "largest share of corrupt audio per split", r.FROM_0_TO_1),
}

STREAM = {
    "train": TRAIN,
    "dev": DEV,
    "test": TEST,
    "field": Field(str, "the text of an utterance that is the label", ("text", "translation")),
    "measure": Field(str, "the score that chooses the best parameters", (*MEASURES[1:], "bleu")),
    "buckets": Field(tuple, "lengths in seconds; empty: data.buckets", r.LENGTHS_OR_EMPTY),
}

NORMALISERS = ("invisible", "lower", "upper", "punctuation", "alef", "diacritics")
TEXT = {
    "units": Field(str, "the unit of a label", ("characters", "unigram", "bpe")),
    "vocab_size": Field(int, "number of SentencePiece pieces", r.AT_LEAST_1),
    "model": Field(str, "path of a SentencePiece model; empty: learned from the texts"),
    "sha256": Field(str, "checksum that the SentencePiece model must have; empty: any"),
    "normalise": Field(tuple, "steps of text normalisation, in order", NORMALISERS),
}
