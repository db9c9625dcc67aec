"""Batches of noise for objectives on encoders of a few products."""

import jax.numpy as jnp
import numpy as np


def unlabelled(lengths, samples, limit=900):
    """{"unlabelled": a row a length, in samples}, integers of -limit .. limit - 1, padding too."""
    audio = np.random.default_rng(1).integers(-limit, limit, (len(lengths), samples))
    data = {
        "audio": jnp.asarray(audio, jnp.int16),
        "audio_lengths": jnp.asarray(lengths, jnp.int32),
        "ids": jnp.arange(11, 11 + len(lengths), dtype=jnp.uint32),
    }
    return {"unlabelled": data}
