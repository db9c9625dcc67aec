"""What the model says of stretches of audio, in batches of a few shapes: few programs compile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax.data.plan import evaluation_batches
from bljust_jax.data.splits import Batch, empty_batch, fill
from bljust_jax.decode import greedy
from bljust_jax.errors import UserError
from bljust_jax.recogniser import Recogniser
from bljust_jax.transcribe.labels import power_of_two

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of a window: the lengths to which shorter audio is padded


class Row(NamedTuple):
    """Samples that are heard at once; seconds: of them, those that no other row holds."""

    audio: np.ndarray
    seconds: float


class Heard(NamedTuple):
    """Of one row without its padding: best path [T] and, for a search, log-probabilities [T, K] in
    nats."""

    path: np.ndarray
    log_probs: np.ndarray | None


class Listener:
    """A recogniser for rows of at most `length` samples, in batches of `batch_seconds` of padded
    audio."""

    def __init__(
        self, recogniser: Recogniser, length: int, batch_seconds: float, *, keep_log_probs: bool
    ):
        self._recogniser, self._batch_seconds = recogniser, batch_seconds
        self._lengths = [length * share / recogniser.sample_rate for share in SHARES]
        self._keep = keep_log_probs
        self._program = jax.jit(self._read_out)

    def __call__(self, rows: Sequence[Row], heard: Callable[[float], None]) -> list[Heard]:
        """What the model says of each row; `heard` is told the seconds of each batch."""
        rate, multiple = self._recogniser.sample_rate, self._recogniser.multiple
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
                kept = log_probs[place][real] if self._keep else None
                found[n] = Heard(paths[place][real], kept)
            heard(sum(rows[n].seconds for n in members))
        return [found[n] for n in range(len(rows))]

    def _predict(self, batch: Batch) -> Any:
        """Best paths [B, T] and log-probabilities [B, T, K] or None, in host memory."""
        try:
            return jax.device_get(self._program(*self._recogniser.predict(batch)))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            cure = "lower --batch_seconds, then --window"
            raise UserError(f"a batch does not fit the device: {cure}") from error

    def _read_out(self, logits, lengths):
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32)) if self._keep else None
        return greedy.best_path(logits, lengths), log_probs
