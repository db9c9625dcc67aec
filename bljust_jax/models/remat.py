"""Rematerialisation policies of encoder blocks (gradient checkpointing): memory against time."""

from collections.abc import Callable

import jax

# "none" stores all activations; "full" stores the block's input and recomputes the rest; "dots"
# also stores the results of products with weights, the most expensive to recompute
POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def wrap(function: Callable, policy: str, unrolled: bool = True) -> Callable:
    """`function` under a policy. `unrolled`: False in a loop with one call per iteration, where the
    compiler cannot merge both computations, so that no barrier is needed."""
    if policy == "none":
        return function
    return jax.checkpoint(function, policy=POLICIES[policy], prevent_cse=unrolled)
