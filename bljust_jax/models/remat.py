"""Rematerialisation (gradient checkpointing) of encoder blocks.

It chooses the values that the backward pass keeps, and those that it computes again.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Shaped

from bljust_jax.models.platform import platform

# The values that "names" keeps: results of products and convolutions, sums along the residual
# path, and two numbers per row of a norm. What lies between them is elementwise.
NAMES = (
    "convolution",  # of a front end, before norm and activation
    "qkv",  # queries, keys and values, one product
    "attention_weights",  # where plain XLA computes attention
    "attention_context",  # weighted sum of values, input of the output map
    "ff_up",  # first map of a feed-forward, input of its activation
    "glu",  # input of the gated linear unit
    "depthwise",  # output of the depthwise convolution
    "dropout_mask",
    "residual",  # x + branch
    "norm_mean",
    "norm_rstd",  # 1 / standard deviation
)
# Primitives whose results "names" keeps too, as their statistics have no name: cuDNN attention.
_KERNELS = ("dot_product_attention_fwd", "dot_product_attention_fwd_wrapper")

_named = jax.checkpoint_policies.save_only_these_names(*NAMES)


def _save_named(primitive: Any, *args: Any, **params: Any) -> Any:
    return primitive.name in _KERNELS or _named(primitive, *args, **params)


# "none" stores all activations; "full" stores the block's input and recomputes the rest; "dots"
# also stores the results of products with weights; "names" stores the values of `NAMES`
POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "names": _save_named,
}


def keep(x: Shaped[Array, "..."], name: str) -> Shaped[Array, "..."]:
    """x, kept for the backward pass under the policy "names". Raises ValueError for a name that is
    not in `NAMES`."""
    if name not in NAMES:
        raise ValueError(f"{name!r} is not one of {', '.join(NAMES)}")
    return checkpoint_name(x, name)


def wrap(function: Callable, policy: str, unrolled: bool = True) -> Callable:
    """`function` under one of `POLICIES`, or "auto": "names" for programs of GPUs and TPUs, where
    memory traffic limits the step; "none" on CPUs, whose small models gain nothing.

    unrolled: False in a loop with one call per iteration, where the compiler cannot merge both
    computations, so that no barrier is needed.
    """
    if policy == "auto":
        policy = "none" if platform() == "cpu" else "names"
    if policy == "none":
        return function
    return jax.checkpoint(function, policy=POLICIES[policy], prevent_cse=unrolled)
