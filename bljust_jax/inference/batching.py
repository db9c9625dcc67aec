"""What the model says of stretches of audio, in batches of a few shapes: few programs compile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.data.batch_plan import evaluation_batches
from bljust_jax.data.splits import Batch, empty_batch, fill
from bljust_jax.decoding import greedy
from bljust_jax.inference.alignment import power_of_two
from bljust_jax.inference.recognizer import Recognizer, Translator

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of a window: the lengths to which shorter audio is padded


class Row(NamedTuple):
    """Samples that are heard at once; seconds: of them, those that no other row holds."""

    audio: np.ndarray
    seconds: float


class Heard(NamedTuple):
    """Of one row without its padding: best path [T], or the ids of its translation [T], and, for a
    search in frames, log-probabilities [T, K] in nats."""

    path: np.ndarray
    log_probs: np.ndarray | None


def by_frame(recogniser: Recognizer, *, keep_log_probs: bool) -> Callable[[Batch], tuple]:
    """batch -> (best paths [B, T], -1 where padded; log-probabilities [B, T, K] or None)."""

    @jax.jit
    def read_out(logits, lengths):
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32)) if keep_log_probs else None
        return greedy.best_path(logits, lengths), log_probs

    return lambda batch: read_out(*recogniser.predict(batch))


class Listener:
    """A model for rows of at most `length` samples, in batches of `batch_seconds` of padded audio:
    `say(batch)` gives ids [B, T], -1 where there are none, and log-probabilities or None."""

    def __init__(
        self,
        say: Callable[[Batch], tuple[Any, Any]],
        model: Recognizer | Translator,
        length: int,
        batch_seconds: float,
    ):
        self._say, self._model, self._batch_seconds = say, model, batch_seconds
        self._lengths = [length * share / model.sample_rate for share in SHARES]

    def __call__(self, rows: Sequence[Row], heard: Callable[[float], None]) -> list[Heard]:
        """What the model says of each row; `heard` is told the seconds of each batch."""
        rate, multiple = self._model.sample_rate, self._model.multiple
        found: dict[int, Heard] = {}
        durations = [len(row.audio) / rate for row in rows]
        for bucket, members in evaluation_batches(
            durations, self._lengths, self._batch_seconds, multiple
        ):
            count = multiple * power_of_two(-(-len(members) // multiple))
            batch = empty_batch(bucket, min(count, bucket.batch_size), rate)
            for place, n in enumerate(members):
                fill(batch, place, 0, rows[n].audio)
            paths, log_probs = self._predict(batch)
            for place, n in enumerate(members):
                real = paths[place] != greedy.PADDING
                kept = None if log_probs is None else log_probs[place][real]
                found[n] = Heard(paths[place][real], kept)
            heard(sum(rows[n].seconds for n in members))
        return [found[n] for n in range(len(rows))]

    def _predict(self, batch: Batch) -> Any:
        """Ids [B, T] and log-probabilities [B, T, K] or None, in host memory."""
        try:
            return jax.device_get(self._say(batch))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            cure = "lower --batch_seconds, then --window"
            raise UserError(f"a batch does not fit the device: {cure}") from error
