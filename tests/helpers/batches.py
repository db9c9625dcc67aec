"""Batches of noise for objectives, and encoders that are a few products."""

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax.models.encoders import Encoded, Encoder


def unused(*_):
    raise AssertionError("the test does not provide this function")


class ToyEncoder(Encoder):
    """Two functions as an encoder: `features` of audio, and `run`, which reads the whole parameter
    tree."""

    def __init__(self, features, run, **fields):
        sizes = dict.fromkeys(("dim", "latent_dim", "blocks"), 0)
        functions = dict.fromkeys(("init", "frames", "flops", "statistics", "log_mel"), unused)
        super().__init__(**sizes | functions | {"features": features, "apply": run} | fields)

    def encode(self, params, stats, x, lengths, **options):
        return Encoded(*self.apply(params, x, lengths, stats=stats, **options))


def unlabelled(lengths, samples, limit=900):
    """{"unlabelled": a row a length, in samples}, integers of -limit .. limit - 1, padding too."""
    audio = np.random.default_rng(1).integers(-limit, limit, (len(lengths), samples))
    data = {
        "audio": jnp.asarray(audio, jnp.int16),
        "audio_lengths": jnp.asarray(lengths, jnp.int32),
        "ids": jnp.arange(11, 11 + len(lengths), dtype=jnp.uint32),
    }
    return {"unlabelled": data}


HOP = 4


def features(audio, lengths, *, keys, train, stats=None):
    """Frames of four samples; with keys, noise from each utterance's own key."""
    assert train
    assert stats is None
    x = audio.astype(jnp.float32).reshape(len(audio), -1, HOP) / 1000
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    return x + 0.1 * noise, lengths // HOP, None


def encode(params, x, lengths, *, stats, context, input_mask, train, rng):
    assert (context, input_mask, stats) == ("full", None, {})
    assert train
    return jnp.tanh(x @ params["encoder"]), lengths, {}, {}


def toy_encoder():
    return ToyEncoder(features, encode)
