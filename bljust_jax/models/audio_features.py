"""Log-mel features of int16 audio as `config.features` sets them, and their stored statistics."""

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from bljust_jax.common.errors import UserError
from bljust_jax.ops import log_mel, nemo
from bljust_jax.ops.specaugment import specaugment

FRONTENDS = {"log_mel": log_mel, "nemo": nemo}


def frontend(config: Any) -> ModuleType:
    """The module named by `config.features.frontend`, with log_mel, normalise and frame_count."""
    name = config.features.frontend
    if name not in FRONTENDS:
        raise UserError(f"config.features.frontend={name!r} is none of {', '.join(FRONTENDS)}")
    return FRONTENDS[name]


def feature_frames(config: Any, samples: int) -> int:
    """Feature frames of `samples` samples of audio."""
    return frontend(config).frame_count(samples, config.features.window, config.features.hop)


def make_log_mel(config: Any):
    """`log_mel(audio, lengths)` with the settings of `config.features`. Raises UserError for n_fft
    below the window."""
    f = config.features
    if f.n_fft < f.window:
        raise UserError(f"config.features.n_fft={f.n_fft} must be at least window={f.window}")
    settings = {k: v for k, v in f.items() if k != "frontend"}
    return partial(frontend(config).log_mel, sample_rate=config.data.sample_rate, **settings)


def make_features(config: Any):
    """`Encoder.features`: int16 audio to normalised log-mel features, for training and evaluation.

    Normalised by stored statistics if `stats` is given (independent of future frames), else by
    those of the utterance. With `keys` (one per utterance) SpecAugment is applied.
    """
    mel, normalise = make_log_mel(config), frontend(config).normalise
    masks = config.specaugment.to_dict()

    @jax.named_scope("log_mel")
    def features(audio, lengths, *, keys=None, train, stats=None):
        x, lengths = mel(audio, lengths)
        x = normalise(x, lengths, None if stats is None else (stats["mean"], stats["std"]))
        if train and keys is not None:
            x = specaugment(x, lengths, keys, **masks)
        return x, lengths, None

    return features


def unit_statistics(config: Any) -> dict:
    """Mean 0 and deviation 1, until `feature_statistics` measures the data."""
    bands = config.features.n_mels
    return {"mean": jnp.zeros(bands), "std": jnp.ones(bands)}


def feature_statistics(config: Any, batches: Any) -> dict:
    """{"features": {"mean" [M], "std" [M]}} of log-mel over the batches, for causal contexts."""
    mel = make_log_mel(config)
    moments = jax.jit(lambda audio, lengths: log_mel.moments(*mel(audio, lengths)))
    total, squares, count = 0.0, 0.0, 0.0
    for batch in batches:
        s, q, n = jax.device_get(moments(batch["audio"], batch["audio_lengths"]))
        total, squares, count = total + s.astype(float), squares + q.astype(float), count + float(n)
    mean, std = log_mel.mean_and_std(total, squares, count)
    return {"features": {"mean": jnp.asarray(mean), "std": jnp.asarray(std)}}
