"""Linear heads: one map and a stack of maps."""

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax.models import heads


def test_one_map():
    params = heads.init(jax.random.key(0), 8, 5)
    x = jax.random.normal(jax.random.key(1), (2, 3, 8))
    params["bias"] = jnp.arange(5.0)
    out = heads.apply(params, x.astype(jnp.bfloat16))
    assert out.dtype == jnp.float32
    rounded, kernel = (
        np.asarray(a, np.float32) for a in (x.astype(jnp.bfloat16), params["kernel"])
    )
    expected = rounded @ kernel + np.arange(5.0)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_a_stack_of_maps_is_each_map():
    params = heads.init(jax.random.key(0), 8, 5, steps=4)
    assert params["kernel"].shape == (4, 8, 5)
    x = jax.random.normal(jax.random.key(1), (2, 3, 8))
    out = heads.apply(params, x)
    assert out.shape == (2, 3, 4, 5)
    for step in range(4):
        one = {name: leaf[step] for name, leaf in params.items()}
        np.testing.assert_allclose(out[:, :, step], heads.apply(one, x), atol=1e-5)


def test_outputs_start_at_unit_variance():
    x = jax.random.normal(jax.random.key(1), (4, 50, 64))
    out = heads.apply(heads.init(jax.random.key(0), 64, 32), x)
    np.testing.assert_allclose(np.std(out), 1.0, rtol=0.1)
