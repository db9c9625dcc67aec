"""Run a model over pieces of audio in padded batches of few shapes, to compile few programs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.data.buckets import evaluation_batches
from bljust_jax.data.splits import Batch, empty_batch, fill_row
from bljust_jax.decoding import greedy
from bljust_jax.inference.alignment import power_of_two
from bljust_jax.inference.recognizer import Recognizer, Translator

PADDED_LENGTHS = (1 / 8, 1 / 4, 1 / 2, 1)  # as shares of a window


class AudioRow(NamedTuple):
    """Samples int16 [S] of one row of a batch; `seconds` of them are in no other row."""

    audio: np.ndarray
    seconds: float


class DecodedRow(NamedTuple):
    """Model output of one row without padding: the best path [T], or ids of a translation [T]; and,
    if kept, log-probabilities [T, K] in nats."""

    path: np.ndarray
    log_probs: np.ndarray | None


def ctc_decoder(recognizer: Recognizer, *, keep_log_probs: bool) -> Callable[[Batch], tuple]:
    """batch -> (best paths [B, T], -1 where padded; log-probabilities [B, T, K] or None)."""

    @jax.jit
    def from_logits(logits, lengths):
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32)) if keep_log_probs else None
        return greedy.best_path(logits, lengths), log_probs

    return lambda batch: from_logits(*recognizer.predict(batch))


class BatchDecoder:
    """Decodes rows of at most `length` samples in batches of `batch_seconds` of padded audio.

    decode: batch -> (ids [B, T], -1 where padded; log-probabilities [B, T, K] or None)
    """

    def __init__(
        self,
        decode: Callable[[Batch], tuple[Any, Any]],
        model: Recognizer | Translator,
        length: int,
        batch_seconds: float,
    ):
        self._decode, self._multiple = decode, model.multiple
        self.sample_rate, self.batch_seconds = model.sample_rate, batch_seconds
        self._lengths = [length * share / model.sample_rate for share in PADDED_LENGTHS]

    def __call__(
        self, rows: Sequence[AudioRow], progress: Callable[[float], None]
    ) -> list[DecodedRow]:
        """The output of each row, in order; calls `progress` with the seconds of each batch."""
        rate, multiple = self.sample_rate, self._multiple
        found: dict[int, DecodedRow] = {}
        durations = [len(row.audio) / rate for row in rows]
        batches = evaluation_batches(durations, self._lengths, self.batch_seconds, multiple)
        for bucket, members in batches:
            count = multiple * power_of_two(-(-len(members) // multiple))
            batch = empty_batch(bucket, min(count, bucket.batch_size), rate)
            for place, n in enumerate(members):
                fill_row(batch, place, 0, rows[n].audio)
            paths, log_probs = self._run(batch)
            for place, n in enumerate(members):
                real = paths[place] != greedy.PADDING
                kept = None if log_probs is None else log_probs[place][real]
                found[n] = DecodedRow(paths[place][real], kept)
            progress(sum(rows[n].seconds for n in members))
        return [found[n] for n in range(len(rows))]

    def _run(self, batch: Batch) -> Any:
        """`decode(batch)` in host memory; UserError if the device runs out of memory."""
        try:
            return jax.device_get(self._decode(batch))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            cure = "lower --batch_seconds, then --window"
            raise UserError(f"a batch does not fit the device: {cure}") from error
