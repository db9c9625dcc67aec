"""Log-mel filterbank features of int16 audio on the device, and their normalisation.

Frame i covers samples [i*hop, i*hop + window), not centred: the number of frames is a function of
the number of samples, and padding after an utterance never enters a valid frame.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bljust_jax.common.shapes import Features, Lengths, Mask, Scalar
from bljust_jax.parallel.batch_map import map_rows

FULL_SCALE = 2.0**-15
# Added to mel energies before the logarithm: about the rounding noise of 16-bit audio per band.
FLOOR = 2.0**-24

Counts = int | np.integer | Int[np.ndarray, "..."] | Int[Array, "..."]
BandMoments = tuple[Float[Array, "m"], Float[Array, "m"]]  # mean and standard deviation per band


def frame_count(samples: Counts, window: int = 400, hop: int = 160) -> Counts:
    """Whole frames in `samples` samples: max(0, 1 + (samples - window) // hop)."""
    frames = 1 + (samples - window) // hop
    return frames * (frames > 0)


def valid_frames(frames: int, lengths: Lengths) -> Mask:
    """True on the first `lengths[b]` of `frames` frames."""
    return jnp.arange(frames)[None, :] < lengths[:, None]


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
    """Log-mel features: log(sum_k F[k, m] |rfft(hann * x)_k|^2 + 2^-24).

    Args:
      audio: int16 samples `[B, S]`; full scale is 1.0 after division by 32768.
      lengths: valid samples per row `[B]`; samples after them never matter.
      sample_rate: in Hz; places the Slaney mel filters (`mel_filters`).
      window, hop, n_fft: in samples; the window is a symmetric Hann.

    Returns:
      float32 features `[B, T, M]`, exactly 0 in padded frames, T = frame_count(S); and the valid
      frame counts `[B]`.

    Raises:
      ValueError: the transform is shorter than the window.
    """
    frames = windows(jnp.asarray(audio).astype(jnp.float32) * FULL_SCALE, window, hop)
    frame_lengths = frame_count(jnp.asarray(lengths), window, hop)
    x = log_energies(frames, sample_rate=sample_rate, n_mels=n_mels, n_fft=n_fft)
    return jnp.where(valid_frames(x.shape[1], frame_lengths)[..., None], x, 0.0), frame_lengths


def windows(samples: Float[Array, "b s"], window: int, hop: int) -> Float[Array, "b t w"]:
    """The `frame_count` overlapping frames, concatenated from strided blocks without a gather."""
    block = math.gcd(window, hop)
    batch, size = samples.shape
    frames = frame_count(size, window, hop)
    blocks = samples[:, : size // block * block].reshape(batch, -1, block)
    step = hop // block
    last = step * (frames - 1) + 1 if frames else 0
    return jnp.concatenate(
        [blocks[:, j : j + last : step] for j in range(window // block)], axis=-1
    )


def log_energies(
    frames: Float[Array, "b t w"], *, sample_rate: int, n_mels: int, n_fft: int
) -> Features:
    """log(sum_k F[k, m] |rfft(hann * frame)_k|^2 + 2^-24), the logarithmic energy of each band.

    Raises:
      ValueError: the transform is shorter than the frames.
    """
    window = frames.shape[-1]
    if n_fft < window:
        raise ValueError(f"n_fft={n_fft} must be at least window={window}")
    hann = np.hanning(window).astype(np.float32)
    transform = map_rows(functools.partial(jnp.fft.rfft, n=n_fft))
    spectrum = transform(frames * hann[None, None, :])
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    filters = mel_filters(sample_rate, n_fft, n_mels)
    return jnp.log(jnp.matmul(power, filters, precision=jax.lax.Precision.HIGHEST) + FLOOR)


def normalise(
    features: Features, frame_lengths: Lengths, stats: BandMoments | None = None, eps: float = 1e-5
) -> Features:
    """(x - mean) * rsqrt(std^2 + eps) per mel band; padded frames stay exactly 0.

    `stats` is a stored (mean `[M]`, std `[M]`); without it, mean and population variance of the
    utterance's valid frames, which depend on the whole utterance and do not suit a causal context.
    Finite for constant bands, single frames and empty rows.
    """
    valid = valid_frames(features.shape[1], frame_lengths)[..., None]
    if stats is None:
        centred, squares, count = masked_moments(features, valid)
        variance = squares / jnp.maximum(count, 1)
    else:
        centred = jnp.where(valid, features - stats[0][None, None, :], 0.0)
        variance = jnp.square(stats[1])[None, None, :]
    return centred * jax.lax.rsqrt(variance + eps)


def masked_moments(
    x: Float[Array, "b t *c"], valid: Bool[Array, "b t *#c"]
) -> tuple[Float[Array, "b t *c"], Float[Array, "b 1 *c"], Float[Array, "b 1 *#c"]]:
    """(x - mean, 0 where not valid; sum of its squares; number n of valid entries) over axis 1.

    The mean of no entries is 0. The variance is squares / n, the unbiased one squares / (n - 1).
    """
    count = jnp.sum(valid, axis=1, keepdims=True).astype(x.dtype)
    mean = jnp.sum(jnp.where(valid, x, 0.0), axis=1, keepdims=True) / jnp.maximum(count, 1)
    centred = jnp.where(valid, x - mean, 0.0)
    return centred, jnp.sum(jnp.square(centred), axis=1, keepdims=True), count


def moments(
    features: Features, lengths: Lengths
) -> tuple[Float[Array, "m"], Float[Array, "m"], Scalar]:
    """Sum `[M]`, sum of squares `[M]` and number of valid frames.

    Sum them over batches in float64 on the host, then apply `mean_and_std`.
    """
    x = jnp.where(valid_frames(features.shape[1], lengths)[..., None], features, 0.0)
    return x.sum((0, 1)), jnp.square(x).sum((0, 1)), lengths.sum().astype(features.dtype)


def mean_and_std(
    total: Float[np.ndarray, "m"], total_squares: Float[np.ndarray, "m"], count: float
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """float32 (mean, std) of accumulated `moments`, the stored statistics of `normalise`."""
    mean = np.asarray(total, np.float64) / count
    variance = np.maximum(np.asarray(total_squares, np.float64) / count - mean**2, 0.0)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


@functools.cache
def mel_filters(
    sample_rate: int = 16000, n_fft: int = 512, n_mels: int = 80
) -> Float[np.ndarray, "k m"]:
    """Triangular filters `[n_fft // 2 + 1, M]` on the Slaney mel scale, each of area 1 (in 1/Hz).

    The scale is linear up to 1 kHz (15 mel) and logarithmic above, 27 mel per factor of 6.4;
    M + 2 corners lie evenly on it from 0 Hz to sample_rate / 2 (Slaney, Auditory Toolbox, 1998).
    """
    corners = band_corners(sample_rate, n_mels)
    left, peak, right = corners[:-2], corners[1:-1], corners[2:]
    hertz = np.arange(n_fft // 2 + 1)[:, None] * (sample_rate / n_fft)
    triangles = np.minimum((hertz - left) / (peak - left), (right - hertz) / (right - peak))
    return (np.maximum(triangles, 0.0) * (2.0 / (right - left))).astype(np.float32)


def band_corners(sample_rate: int, n_mels: int) -> Float[np.ndarray, "n"]:
    """The M + 2 corners of the filters, in Hz; that of index m + 1 is the peak of band m."""
    return _slaney_hz(np.linspace(0.0, _slaney_mel(sample_rate / 2), n_mels + 2))


def _slaney_mel(hertz: float) -> float:
    return 15 + 27 * math.log(hertz / 1000, 6.4) if hertz > 1000 else hertz * 15 / 1000


def _slaney_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel > 15, 1000 * 6.4 ** ((mel - 15) / 27), mel * 1000 / 15)
