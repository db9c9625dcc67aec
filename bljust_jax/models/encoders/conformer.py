"""The Conformer on normalised log-mel features."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from bljust_jax.common.errors import UserError
from bljust_jax.models import encoders
from bljust_jax.models.conformer import Conformer
from bljust_jax.models.encoders import Encoder
from bljust_jax.ops import log_mel, nemo
from bljust_jax.ops.specaugment import specaugment

FRONTENDS = {"log_mel": log_mel, "nemo": nemo}


def build(config: Any) -> Encoder:
    model = make_model(config)

    def init(rng):
        params, moments = model.init(rng)
        stats = {"features": unit_statistics(config)}
        return params, stats | ({"encoder": moments} if moments else {})

    def apply(params, x, lengths, *, hide=None, **how):
        if hide is not None:
            raise ValueError("the Conformer masks nothing itself: mask its features")
        return model.apply(params, x, lengths, **how)

    return Encoder(
        dim=model.dim,
        latent_dim=model.dim,
        blocks=model.layers,
        init=init,
        features=make_features(config),
        apply=apply,
        frames=lambda samples: model.frames(feature_frames(config, samples)),
        flops=lambda samples, upto=None: model.flops(feature_frames(config, samples), upto),
        statistics=partial(feature_statistics, config),
        log_mel=make_log_mel(config),
        contexts=("full", "causal"),
    )


def make_model(config: Any) -> Conformer:
    fields = {"n_mels": config.features.n_mels, **config.model}
    return encoders.make_model(Conformer, config, fields)


def frontend(config: Any) -> ModuleType:
    """The module that `config.features.frontend` names: its log_mel, normalise and frame_count."""
    name = config.features.frontend
    if name not in FRONTENDS:
        raise UserError(f"config.features.frontend={name!r} is none of {', '.join(FRONTENDS)}")
    return FRONTENDS[name]


def feature_frames(config: Any, samples: int) -> int:
    """Feature frames of `samples` samples of audio."""
    return frontend(config).frame_count(samples, config.features.window, config.features.hop)


def make_log_mel(config: Any):
    if config.features.n_fft < config.features.window:
        raise UserError(
            f"config.features.n_fft={config.features.n_fft} must be at least config.features."
            f"window={config.features.window}"
        )
    settings = {k: v for k, v in config.features.items() if k != "frontend"}
    return partial(frontend(config).log_mel, sample_rate=config.data.sample_rate, **settings)


def make_features(config: Any):
    """int16 audio -> normalised log-mel, inside the jitted step: the one door for training and
    evaluation.

    With `stats` they are normalised by stored statistics (nothing of the future leaks), without by
    the utterance's own. With `keys` (one an utterance) SpecAugment is applied.
    """
    mel, normalise = make_log_mel(config), frontend(config).normalise
    masks = config.specaugment.to_dict()

    def hear(audio, lengths, *, keys=None, train, stats=None):
        x, lengths = mel(audio, lengths)
        x = normalise(x, lengths, None if stats is None else (stats["mean"], stats["std"]))
        if train and keys is not None:
            x = specaugment(x, lengths, keys, **masks)
        return x, lengths, None

    return hear


def unit_statistics(config: Any) -> dict:
    """Feature statistics that change nothing, until `feature_statistics` has measured them."""
    bands = config.features.n_mels
    return {"mean": jnp.zeros(bands), "std": jnp.ones(bands)}


def feature_statistics(config: Any, batches: Any) -> dict:
    """{"features": {"mean" [M], "std" [M]}} of log-mel over the given batches, for causal
    contexts."""
    mel = make_log_mel(config)
    moments = jax.jit(lambda audio, lengths: log_mel.moments(*mel(audio, lengths)))
    total, squares, count = 0.0, 0.0, 0.0
    for batch in batches:
        s, q, n = jax.device_get(moments(batch["audio"], batch["audio_lengths"]))
        total, squares, count = total + s.astype(float), squares + q.astype(float), count + float(n)
    mean, std = log_mel.mean_and_std(total, squares, count)
    return {"features": {"mean": jnp.asarray(mean), "std": jnp.asarray(std)}}
