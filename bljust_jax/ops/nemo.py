"""NVIDIA NeMo's log-mel features, the input of Parakeet models, and their normalisation.

Four differences from `ops.log_mel`: the signal is pre-emphasised; frame i is centred on sample
i * hop (samples outside the utterance are 0); n samples have `n // hop` frames; normalisation
divides by the unbiased standard deviation plus 1e-5. A causal encoder then looks ahead by another
half window. Names and shapes are those of `ops.log_mel`, so either module can be a front end.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bljust_jax.common.shapes import Features, Lengths
from bljust_jax.ops import log_mel as uncentred
from bljust_jax.ops.log_mel import FULL_SCALE, BandMoments, Counts, valid_frames, windows

PREEMPHASIS = 0.97


def frame_count(samples: Counts, window: int = 400, hop: int = 160) -> Counts:
    """Frames in `samples` samples: samples // hop, for any integers; the window is not used."""
    del window
    return samples // hop


def log_mel(
    audio: Int[Array, "b s"] | Int[np.ndarray, "b s"],
    lengths: Lengths | Int[np.ndarray, "b"],
    *,
    sample_rate: int = 16000,
    n_mels: int = 80,
    window: int = 400,
    hop: int = 160,
    n_fft: int = 512,
) -> tuple[Features, Lengths]:
    """`ops.log_mel.log_mel` of x[n] - 0.97 x[n - 1], frame i over samples i * hop -+ window / 2.

    Args:
      audio: int16 samples `[B, S]`; samples after an utterance never matter.
      lengths: valid samples per row `[B]`.
      sample_rate, window, hop, n_fft: as in `ops.log_mel.log_mel`.

    Returns:
      float32 features `[B, S // hop, M]`, exactly 0 in padded frames; the valid frames `[B]`.

    Raises:
      ValueError: the transform is shorter than the window.
    """
    lengths = jnp.asarray(lengths)
    x = jnp.asarray(audio).astype(jnp.float32) * FULL_SCALE
    x = x - PREEMPHASIS * jnp.pad(x, ((0, 0), (1, 0)))[:, :-1]
    x = jnp.where(valid_frames(x.shape[1], lengths), x, 0.0)
    before = n_fft // 2 - (n_fft - window) // 2
    frames = windows(jnp.pad(x, ((0, 0), (before, window))), window, hop)
    frames, frame_lengths = frames[:, : frame_count(x.shape[1], hop=hop)], lengths // hop
    features = uncentred.log_energies(frames, sample_rate=sample_rate, n_mels=n_mels, n_fft=n_fft)
    valid = valid_frames(features.shape[1], frame_lengths)[..., None]
    return jnp.where(valid, features, 0.0), frame_lengths


def normalise(
    features: Features, frame_lengths: Lengths, stats: BandMoments | None = None, eps: float = 1e-5
) -> Features:
    """(x - mean) / (std + eps) per mel band; padded frames stay exactly 0.

    Mean and unbiased variance are those of the utterance's valid frames. With `stats`, a stored
    (mean `[M]`, std `[M]`), it is `ops.log_mel.normalise`. Finite for constant bands, single frames
    and empty rows.
    """
    if stats is not None:
        return uncentred.normalise(features, frame_lengths, stats, eps)
    valid = valid_frames(features.shape[1], frame_lengths)[..., None]
    centred, squares, count = uncentred.masked_moments(features, valid)
    return centred / (jnp.sqrt(squares / jnp.maximum(count - 1, 1)) + eps)
