"""The fields of `config.data`: sources, labels, batches, augmentation and reading."""

from bljust_jax.common.config_schema import field
from bljust_jax.common.config_schema.field import AT_LEAST_0, AT_LEAST_1, FROM_0_TO_1, Field

TRAIN = Field(str, "URI of the labelled audio: a *.jsonl manifest or SCHEME:REST; join with +")
DEV = Field(str, "URI, scored during training: chooses the best parameters")
TEST = Field(str, "URI, scored once, at the end")

DATA = {
    "train": TRAIN,
    "unlabelled": Field(str, "URI of the audio without labels; empty: all audio of data.train"),
    "dev": DEV,
    "test": TEST,
    "root": Field(str, "folder that all audio lies in; empty: the folder of the manifest"),
    "sample_rate": Field(int, "Hz; other rates are resampled", AT_LEAST_1),
    "labelled_fraction": Field(
        float, "share of the utterances of data.train that keep their labels", field.ABOVE_0_TO_1
    ),
    "labelled_speakers": Field(
        int, "speakers of data.train that keep their labels; 0: all", AT_LEAST_0
    ),
    "overfit": Field(int, "number of utterances to train and score on; 0: all", AT_LEAST_0),
    "join": Field(tuple, "utterances of one speaker joined into one item", field.JOIN),
    "join_share": Field(float, "share of items that are joined utterances", FROM_0_TO_1),
    "balance": Field(float, "share of draws that are uniform over distinct texts", FROM_0_TO_1),
    "buckets": Field(tuple, "lengths in seconds that batches are padded to", field.LENGTHS),
    "batch_seconds": Field(float, "padded audio per labelled batch, seconds", field.ABOVE_0),
    "temperature": Field(
        float, "T of the labelled streams' shares of a batch, hours^(1/T)", field.TEMPERATURE
    ),
    "rows_multiple": Field(int, "rows of a training batch are a multiple of it", AT_LEAST_1),
    "labels_per_second": Field(
        float, "labels that a batch has room for, per second of audio", field.ABOVE_0
    ),
    "speed": Field(tuple, "range of speed perturbation, drawn uniformly", field.SPEED),
    "noise_snr": Field(tuple, "dB, range of the SNR of added noise; empty: none", field.DECIBELS),
    "min_seconds": Field(float, "shorter utterances are skipped", field.NO_LIMIT_OR_ABOVE),
    "max_seconds": Field(float, "longer utterances are skipped", field.NO_LIMIT_OR_ABOVE),
    "unlabelled_buckets": Field(
        tuple, "buckets of the unlabelled stream; empty: data.buckets", field.LENGTHS_OR_EMPTY
    ),
    "unlabelled_batch_seconds": Field(
        float, "padded audio per unlabelled batch, seconds", field.BATCH_SECONDS_OR_ABOVE
    ),
    "unlabelled_temperature": Field(
        float, "T of the languages' shares of the unlabelled stream", field.TEMPERATURE
    ),
    "unlabelled_join": Field(tuple, "data.join of the unlabelled stream", field.JOIN),
    "unlabelled_join_share": Field(float, "data.join_share of the unlabelled stream", FROM_0_TO_1),
    "eval_batch_seconds": Field(
        float, "padded audio per batch in evaluation, seconds", field.ABOVE_0
    ),
    "num_threads": Field(int, "decoding threads; they change no number", AT_LEAST_0),
    "prefetch": Field(int, "batches read ahead", AT_LEAST_1),
    "timeout": Field(
        float, "seconds without a batch after which the run exits with 69", field.ABOVE_0
    ),
    "max_bad_fraction": Field(
        float, "stop if a larger share of a split's audio cannot be decoded", FROM_0_TO_1
    ),
}

STREAM = {
    "train": TRAIN,
    "dev": DEV,
    "test": TEST,
    "field": Field(str, "the text of an utterance that is the label", ("text", "translation")),
    "measure": Field(str, "the score that chooses the best parameters", ("wer", "cer", "bleu")),
    "buckets": Field(
        tuple, "seconds, as many as data.buckets; empty: those", field.LENGTHS_OR_EMPTY
    ),
}

TEXT = {
    "units": Field(str, "the unit of a label", ("characters", "unigram", "bpe")),
    "vocab_size": Field(int, "number of SentencePiece pieces", AT_LEAST_1),
    "model": Field(str, "path of a SentencePiece model; empty: learned from the texts"),
    "sha256": Field(str, "checksum that the SentencePiece model must have; empty: any"),
    "normalise": Field(
        tuple,
        "steps of text normalisation, in order",
        ("lower", "upper", "punctuation", "alef", "diacritics"),
    ),
}
