"""wav2vec 2.0 on waveforms of mean 0 and variance 1; it masks its own frames."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from bljust_jax.models import encoders
from bljust_jax.models.encoders import Encoder, conformer
from bljust_jax.models.wav2vec2 import Wav2Vec2
from bljust_jax.ops import log_mel as feature_ops
from bljust_jax.ops.masking import Hide, wav2vec2_spans

VARIANCE_FLOOR = 1e-7


def build(config: Any) -> Encoder:
    model = make_model(config)
    return Encoder(
        dim=model.dim,
        latent_dim=model.conv_dim[-1],
        blocks=model.layers,
        init=model.init,
        features=make_features(config, model),
        apply=model.apply,
        frames=model.frames,
        flops=model.flops,
        statistics=lambda batches: {},
        log_mel=conformer.make_log_mel(config),
        hides=True,
    )


def make_model(config: Any) -> Wav2Vec2:
    """`config.model` but `normalise`, which belongs to the waveform; a saved config has lists."""
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config.model.items()}
    fields.pop("normalise", None)
    return encoders.make_model(Wav2Vec2, config, fields)


def make_features(config: Any, model: Wav2Vec2):
    """int16 audio -> waveform, inside the jitted step: the one door for training and evaluation.

    `config.model.normalise`: to mean 0 and variance 1 an utterance. With `keys` (one an utterance)
    it draws what the encoder shall mask, by `config.mask`: spans of frames and spans of channels.
    Stored statistics do not enter: the encoder hears the whole utterance anyway.
    """
    normalised, mask = config.model.normalise, config.mask

    def features(audio, lengths, *, keys=None, train, stats=None):
        x = waveform(audio, lengths, normalised)
        if not train or keys is None:
            return x, lengths, None
        frames, valid = model.frames(audio.shape[1]), model.frames(lengths)
        in_time, in_width = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        time = wav2vec2_spans(
            in_time, valid, frames, probability=mask.time_prob, span=mask.time_length
        )
        width = jnp.full_like(valid, model.dim)
        channels = wav2vec2_spans(
            in_width, width, model.dim, probability=mask.channel_prob, span=mask.channel_length
        )
        return x, lengths, Hide(time, channels)

    return features


def waveform(
    audio: Int[Array, "b s"], lengths: Int[Array, "b"], normalised: bool
) -> Float[Array, "b s"]:
    """int16 samples to float32, full scale 1.0; `normalised`: (x - mean) / sqrt(var + 1e-7), taken
    over the valid samples of the utterance. Padded samples are 0."""
    valid = feature_ops.valid_frames(audio.shape[1], lengths)
    x = jnp.where(valid, audio, 0).astype(jnp.float32) * feature_ops.FULL_SCALE
    if not normalised:
        return x
    count = jnp.maximum(lengths, 1).astype(jnp.float32)[:, None]
    mean = jnp.sum(x, axis=1, keepdims=True) / count
    x = jnp.where(valid, x - mean, 0.0)
    variance = jnp.sum(jnp.square(x), axis=1, keepdims=True) / count
    return x * lax.rsqrt(variance + VARIANCE_FLOOR)
