"""Linear heads: one map and a stack of maps."""

import functools

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


def rounded(x):
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


def test_bfloat16_rounds_factors_and_sums_in_float32():
    """Output and gradients are those of float64 products of the rounded factors."""
    params = heads.init(jax.random.key(0), 64, 5, steps=3)
    x, grad = (
        jax.random.normal(jax.random.key(n), shape)
        for n, shape in ((1, (2, 7, 64)), (2, (2, 7, 3, 5)))
    )
    out, pull = jax.vjp(lambda p, x: heads.apply(p, x, "bfloat16"), params, x)
    of_params, of_x = pull(grad)
    assert {a.dtype for a in (out, of_x, *of_params.values())} == {jnp.dtype(jnp.float32)}
    kernel, y, g = rounded(params["kernel"]), rounded(x), rounded(grad)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(out, np.einsum("btd,sdk->btsk", y, kernel))
    close(of_x, np.einsum("btsk,sdk->btd", g, kernel))
    close(of_params["kernel"], np.einsum("btd,btsk->sdk", y, g))
    close(of_params["bias"], np.sum(np.asarray(grad, np.float64), (0, 1)))


def test_bfloat16_keeps_the_type_of_its_input():
    params = heads.init(jax.random.key(0), 8, 5)
    x = jnp.ones((1, 2, 8), jnp.bfloat16)
    of_x = jax.grad(lambda x: jnp.sum(heads.apply(params, x, "bfloat16")))(x)
    assert of_x.dtype == jnp.bfloat16
