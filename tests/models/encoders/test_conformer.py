"""The Conformer as an encoder: the front end that a config names, the statistics it carries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from bljust_jax.common.errors import UserError
from bljust_jax.models import encoders
from bljust_jax.ops import log_mel, nemo


def config(**changes):
    c = ConfigDict(
        {
            "data": {"sample_rate": 16000},
            "features": {
                "frontend": "nemo", "n_mels": 16, "window": 400, "hop": 160, "n_fft": 512,
            },
            "specaugment": {
                "freq_masks": 0, "freq_width": 1, "time_masks": 0, "time_width": 1,
                "max_time_share": 0.1,
            },
            "model": {
                "dim": 12, "layers": 2, "heads": 3, "kernel": 5, "channels": 6, "norm": "batch",
                "subsampling": "parakeet",
            },
        }
    )  # fmt: skip
    c.update_from_flattened_dict(changes)
    return c


def build(**changes):
    return encoders.load("conformer")(config(**changes))


@pytest.mark.daily("nemo-*")
@pytest.mark.parametrize(("name", "module"), [("nemo", nemo), ("log_mel", log_mel)])
def test_the_front_end_is_the_one_named(name, module):
    encoder = build(**{"features.frontend": name})
    audio = np.random.default_rng(0).normal(0, 900, (2, 4000)).astype(np.int16)
    lengths = np.array([4000, 2345])
    x, frames, input_mask = encoder.features(audio, lengths, train=False)
    expected, counted = module.log_mel(audio, lengths, n_mels=16)
    np.testing.assert_array_equal(x, module.normalise(expected, counted))
    assert input_mask is None
    assert frames.tolist() == [module.frame_count(n) for n in (4000, 2345)]
    assert encoder.frames(4000) == -(-module.frame_count(4000) // 8)
    np.testing.assert_array_equal(encoder.log_mel(audio, lengths)[0], expected)
    stats = encoder.statistics([{"audio": audio, "audio_lengths": lengths}])["features"]
    stored = encoder.features(audio, lengths, train=False, stats=stats)[0]
    valid = np.arange(x.shape[1])[None] < np.asarray(frames)[:, None]
    np.testing.assert_allclose(stored[valid].mean(0), 0, atol=1e-4)  # float32 sums
    np.testing.assert_allclose(stored[valid].std(0), 1, atol=1e-3)


def test_an_unknown_front_end_is_the_users_error():
    with pytest.raises(UserError, match="frontend='mfcc' is none of log_mel, nemo"):
        build(**{"features.frontend": "mfcc"})


def test_moments_of_batch_norm_are_the_encoders_stats():
    encoder = build()
    params, stats = jax.jit(encoder.init)(jax.random.key(0))
    assert jax.tree.map(jnp.shape, stats["encoder"]) == {"mean": (2, 12), "var": (2, 12)}
    how = {"context": "full", "input_mask": None, "train": True, "rng": None}
    run = jax.jit(lambda p, s, x: encoder.apply(p, x, jnp.array([17]), stats=s, **how))
    _, n, _, moved = run(params, stats["encoder"], jnp.ones((1, 20, 16)))
    assert n.tolist() == [3]
    assert jax.tree.structure(moved) == jax.tree.structure(stats["encoder"])
    assert np.any(moved["mean"] != 0)
    assert (
        "encoder" not in jax.eval_shape(build(**{"model.norm": "layer"}).init, jax.random.key(0))[1]
    )


def test_masks_of_the_encoders_own_are_refused():
    with pytest.raises(ValueError, match="masks nothing"):
        build().apply({}, jnp.ones((1, 2, 16)), jnp.array([2]), input_mask=jnp.ones((1, 2), bool))


def test_flops_are_those_of_the_first_blocks():
    encoder = build()
    none, one, two = (encoder.flops(32000, depth) for depth in (0, 1, 2))
    assert two == encoder.flops(32000) == none + 2 * (one - none) > one
