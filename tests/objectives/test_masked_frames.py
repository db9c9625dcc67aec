"""Masked input of any encoder: noise in features, or the encoder's own embedding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel.types import Extras
from bljust_jax.common.errors import UserError
from bljust_jax.models import encoders
from bljust_jax.objectives.masked_frames import FrameMask
from bljust_jax.ops.masking import InputMask
from tests.helpers import systems

FACTOR, BANDS, T = 4, 3, 50
LENGTHS = np.array([50, 31, 0, 42])


def fake(seen, *, masks_input, factor=FACTOR):
    """An encoder of given features that notes what it is given; `factor` features per frame."""

    def apply(params, x, lengths, *, input_mask, stats, **options):
        seen.update(x=x, input_mask=input_mask, options=options)
        output = jnp.zeros((x.shape[0], -(-x.shape[1] // factor), 2))
        return output, -(-lengths // factor), {}, stats

    x = np.random.default_rng(0).normal(size=(4, T, BANDS)).astype(np.float32)
    return x, encoders.Encoder(
        dim=2,
        latent_dim=2,
        blocks=1,
        init=unused,
        apply=apply,
        features=lambda audio, lengths, **_: (jnp.asarray(x), lengths, None),
        frames=lambda n: -(-n // factor),
        flops=unused,
        statistics=unused,
        log_mel=unused,
        masks_input=masks_input,
    )


def unused(*_):
    raise AssertionError("not of the forward pass")


def encode(masking, encoder, seed=0):
    data = {
        "audio": jnp.zeros((4, T), jnp.int16),
        "audio_lengths": jnp.asarray(LENGTHS),
        "ids": jnp.arange(4, dtype=jnp.uint32),
    }
    extras = Extras(0, {}, {}, {}, {})
    return masking.encode(encoder, {"encoder": {}}, extras, data, jax.random.key(seed))


def test_features_of_masked_frames_are_noise_and_others_as_they_are():
    seen = {}
    x, encoder = fake(seen, masks_input=False)
    masking = FrameMask(0.6, 3, stack=FACTOR, noise_std=0.5)
    found = encode(masking, encoder)
    mask = np.asarray(found.mask)
    assert mask.shape == (4, -(-T // FACTOR))
    assert mask[0].any()
    assert not mask[2].any()
    noise = []
    for row, length in enumerate(LENGTHS):
        for t in range(T):
            given = np.asarray(seen["x"][row, t])
            if mask[row, t // FACTOR] and t < length:
                assert np.all(given != x[row, t])
                noise.append(given)
            else:
                np.testing.assert_array_equal(given, x[row, t])
    assert np.std(noise) == pytest.approx(0.5, rel=0.15)
    assert seen["input_mask"] is None
    assert seen["options"]["train"] is True
    np.testing.assert_array_equal(found.x, x)
    other = encode(masking, encoder, seed=1)
    assert np.any(np.asarray(other.mask) != mask)


def test_an_encoder_with_an_embedding_masks_itself():
    seen = {}
    x, encoder = fake(seen, masks_input=True)
    found = encode(FrameMask(0.6, 3), encoder)
    np.testing.assert_array_equal(seen["x"], x)
    assert isinstance(seen["input_mask"], InputMask)
    np.testing.assert_array_equal(seen["input_mask"].time, found.mask)


def test_an_encoder_of_other_frames_is_refused():
    _, encoder = fake({}, masks_input=False, factor=2)
    with pytest.raises(UserError, match="makes 25 frames of 50 features, not one of 4 each"):
        encode(FrameMask(0.6, 3, stack=FACTOR), encoder)


@pytest.mark.parametrize(
    ("system", "stride", "stack", "span"),
    [("bljust", 640, 4, 5), ("lstm", 320, 2, 10), ("wav2vec2_just", 320, 0, 10)],
)
def test_spans_have_the_same_seconds_on_each_encoder(system, stride, stack, span):
    config = systems.choose_loss(systems.config_for(system), "hubert")
    encoder = encoders.load(config.encoder)(config)
    assert encoder.stride == stride
    assert dataclasses.astuple(FrameMask.of(config, encoder, "hubert")) == (0.8, span, stack, 0.1)
