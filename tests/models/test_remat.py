"""Rematerialisation policies: what each keeps between forward and backward pass."""

import jax
import jax.numpy as jnp
import pytest

from bljust_jax.models import remat
from bljust_jax.models.platform import compile_for
from tests.helpers.residuals import residuals


def layer(x, w):
    return jnp.sin(remat.keep(jnp.sin(x @ w), "ff_up"))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("none", ["f32[2,5]"] * 2), ("names", ["f32[2,5]"]), ("dots", ["f32[2,5]"]), ("full", [])],
)
def test_a_policy_keeps(policy, expected):
    """none: two cosines; dots: the product; full: the arguments."""
    found = residuals(remat.wrap(layer, policy), *ones())
    assert [residual.type for residual in found] == expected


def test_names_keeps_the_named_value_and_not_the_product():
    assert residuals(remat.wrap(layer, "names"), *ones()) == [("f32[2,5]", "ff_up")]


@pytest.mark.parametrize(("name", "policy"), [("cpu", "none"), ("gpu", "names"), ("tpu", "names")])
def test_auto_is_the_policy_of_the_platform(name, policy):
    with compile_for(name):
        found = residuals(remat.wrap(layer, "auto"), *ones())
    assert found == residuals(remat.wrap(layer, policy), *ones())


def ones():
    return jnp.ones((2, 3)), jnp.ones((3, 5))


@pytest.mark.parametrize("policy", remat.POLICIES)
def test_every_policy_gives_the_same_gradient(policy):
    x, w = (jax.random.normal(jax.random.key(n), a.shape) for n, a in enumerate(ones()))
    loss = jax.grad(lambda w: jnp.sum(remat.wrap(layer, policy)(x, w) ** 2))
    expected = jax.grad(lambda w: jnp.sum(layer(x, w) ** 2))(w)
    assert jnp.allclose(loss(w), expected, rtol=1e-6)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'qvk' is not one of"):
        remat.keep(jnp.ones(2), "qvk")
