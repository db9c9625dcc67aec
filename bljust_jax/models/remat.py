"""What of a block's forward pass is kept for its backward pass: memory against time."""

from collections.abc import Callable

import jax

from bljust_jax.common.errors import UserError

# "none" keeps everything, "full" the block's input alone and computes the rest again; "dots" also
# keeps the results of products with weights, which cost most to compute again
POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def check(policy: str) -> None:
    """UserError for a policy of another name."""
    if policy not in POLICIES:
        raise UserError(f"config.model.remat={policy!r} must be one of {', '.join(POLICIES)}")


def wrap(function: Callable, policy: str, unrolled: bool = True) -> Callable:
    """`function` under a policy. `unrolled`: False in a loop of one call an iteration, where the
    compiler cannot merge the two computations and need not be kept from it."""
    if policy == "none":
        return function
    return jax.checkpoint(function, policy=POLICIES[policy], prevent_cse=unrolled)
