"""Outputs of the last blocks: those of the encoder cut after each, 0 in padding, on demand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.models import encoders
from tests.helpers import systems


@pytest.mark.daily("bljust")
@pytest.mark.parametrize("system", ["bljust", "wav2vec2_just", "lstm"])
def test_a_block_is_the_output_of_the_encoder_cut_after_it(system):
    config = systems.config_for(system)
    if config.encoder == "cnn_rnn":
        config.model.update(rnn_layers=2, proj=0)
    else:
        config.model.scan_unroll = 1
    if config.encoder == "wav2vec2":
        config.model.stable_layer_norm = False  # a norm after the last block
    encoder = encoders.load(config.encoder)(config)
    params, stats = encoder.init(jax.random.key(0))
    batch = systems.make_batch()
    x, frames, _ = encoder.features(batch["audio"], batch["audio_lengths"], keys=None, train=False)
    options = {"context": "full", "input_mask": None, "train": False, "rng": None}

    @jax.jit
    def encode(x):
        def run(**more):
            return encoder.encode({"encoder": params}, stats, x, frames, **options, **more)

        return run(), run(top=2), run(depth=encoder.blocks - 1), run(depth=1, top=1)

    whole, kept, cut, first = encode(x)
    blocks = kept.hidden["blocks"]
    assert blocks.shape == (2, *whole.output.shape[:2], encoder.block_dim)
    assert blocks.dtype == jnp.float32
    assert "blocks" not in whole.hidden
    np.testing.assert_allclose(kept.output, whole.output, atol=1e-6)
    np.testing.assert_allclose(blocks[1], whole.output, atol=1e-5)
    np.testing.assert_allclose(blocks[0], cut.output, atol=1e-5)
    np.testing.assert_allclose(first.hidden["blocks"][0], first.output, atol=1e-5)
    padded = np.arange(blocks.shape[2])[None, :] >= np.asarray(kept.lengths)[:, None]
    assert not np.asarray(blocks)[:, padded].any()
    with pytest.raises(ValueError, match="top=3: there are 2 blocks"):
        encoder.encode({"encoder": params}, stats, x, frames, **options, top=3)
