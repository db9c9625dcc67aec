"""Dense layers with normal kernels; initialisation, scan and dropout keys of stacked blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float, Key

from bljust_jax.common.shapes import Rng
from bljust_jax.models import remat
from bljust_jax.models.norms import at_least_float32
from bljust_jax.parallel.rules import gathered

# Normal with variance 1 / fan-in, the product of all axes but the last.
KERNEL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

Params = dict[str, Any]
Dense = partial(nn.Dense, kernel_init=KERNEL)


class Dropout(nn.Module):
    """x / (1 - rate) with probability 1 - rate, else 0, if `active`; needs the rng "dropout"."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*n"], active: bool) -> Float[Array, "*n"]:
        if not active or self.rate == 0:
            return x
        mask = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape)
        mask = remat.keep(mask, "dropout_mask")
        return jnp.where(mask, x / (1 - self.rate), 0.0)


def init_params(module: nn.Module, rng: Rng, *inputs: Any) -> Params:
    """Parameters of a module by its own initialisers; `inputs` give shapes only."""
    return module.lazy_init(rng, *inputs)["params"]


def init_stack(block: nn.Module, rng: Rng, layers: int, *inputs: Any) -> Params:
    """Parameters of `layers` equal blocks, each leaf stacked on axis 0."""
    keys = jax.random.split(rng, layers)
    return jax.vmap(lambda key: init_params(block, key, *inputs))(keys)


def scan_blocks(
    step: Callable[..., Any], x: Any, params: Params, *own: Any, policy: str = "none", unroll: int
) -> tuple[Any, Any]:
    """x through stacked blocks, `step(x, params, *own) -> (x, output)` for each: (x, outputs).

    params, own: trees with the blocks on axis 0, or None; the parameters of a block are gathered
        from the devices that share them
    policy: of rematerialisation; unroll: blocks per iteration
    """

    if unroll > 1 and jax.default_backend() == "cpu":
        step = _call(step)

    def block(x, layer):
        params, *own = layer
        return step(x, gathered(params), *own)

    block = remat.wrap(block, policy, unrolled=unroll > 1)
    return lax.scan(block, x, (params, *own), unroll=unroll)


def _call(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a call that XLA does not inline, nor its gradient.

    Unrolled blocks then read their parameters as operands of equal shapes instead of as slices at
    different places, and XLA:CPU, which compiles equal kernels once, compiles those of one block.
    """

    @jax.jit
    def called(*args):
        with set_xla_metadata(inlineable="true"):  # calls inside are inlined
            return function(*args)

    def call(*args):
        with set_xla_metadata(inlineable="false"):
            return called(*args)

    return call


def top_blocks(every: Array | list[Array] | None, top: int, valid: Array) -> dict[str, Array]:
    """{"blocks": outputs of the last `top` blocks `[top, B, T, D]`, float32, 0 in padded frames} of
    those of all L blocks, `[B, T, D]` each; {} for 0. Raises ValueError for more than there are."""
    if not top:
        return {}
    if top > len(every):
        raise ValueError(f"top={top}: there are {len(every)} blocks")
    last = jnp.stack(every[-top:]) if isinstance(every, list) else every[-top:]
    return {"blocks": jnp.where(valid[None, ..., None], at_least_float32(last), 0.0)}


def shapes_of(init: Callable[[Any], Any]) -> Any:
    """The shape of each array that `init(rng)` returns."""
    return jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(init, jax.random.key(0)))


def resolve_depth(depth: int | None, layers: int, least: int = 0) -> int:
    """`depth`, or all `layers` if None. Raises ValueError outside of least..layers."""
    depth = layers if depth is None else depth
    if not least <= depth <= layers:
        raise ValueError(f"depth={depth} must lie in {least}..{layers}")
    return depth


def drops(rate: float | int, train: bool, rng: Rng | None) -> bool:
    """True if dropout at `rate` is active. Raises ValueError if it is and has no key."""
    if train and rate > 0 and rng is None:
        raise ValueError("training with dropout needs rng")
    return train and rate > 0


def dropout_keys(rng: Rng, count: int) -> Key[Array, "n"]:
    """`count` fast (rbg) keys."""
    bits = jax.random.bits(rng, (4,), jnp.uint32)
    return jax.random.split(jax.random.wrap_key_data(bits, impl="rbg"), count)
