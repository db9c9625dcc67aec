"""Attention by cuDNN's flash kernels on NVIDIA GPUs: no scores in memory, a bias if any."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Mask
from bljust_jax.models import platform
from bljust_jax.models.attention.task import Task

# Not yet observed on a device: the backward pass may add the parts of a sum in any order. Exact
# resume needs equal bits, so "auto" leaves this form out until `make gpu` has found them equal
# (tests/models/attention/test_forms.py); then this becomes True.
DETERMINISTIC = False
CAPABILITY = (8, 0)  # Ampere; Hopper is 9.0
MULTIPLE, WIDEST = 8, 128  # width of a head


def limit(task: Task) -> str:
    """Why cuDNN cannot compute the task; "" if it can."""
    if task.dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs dtype='bfloat16', not {jnp.dtype(task.dtype).name}"
    if task.size % MULTIPLE or task.size > WIDEST:
        return f"needs heads of a width of 8, 16, ... or 128: dim/heads is {task.size}"
    if task.reach:
        return "has no window"
    return ""


def available() -> bool:
    """Whether programs are for NVIDIA GPUs of the Ampere generation or newer."""
    if platform.platform() != "gpu":
        return False
    if platform.is_ahead():
        return True
    capability = str(getattr(jax.devices()[0], "compute_capability", "0.0"))
    return tuple(int(part) for part in capability.split(".")) >= CAPABILITY


def attend(
    query: Float[Array, "b t h s"],
    key: Float[Array, "b t h s"],
    value: Float[Array, "b t h s"],
    bias: Float[Array, "b h t t"] | None,
    valid: Mask,
    task: Task,
) -> Float[Array, "b t h s"]:
    """`attention.attend` by `jax.nn.dot_product_attention(implementation="cudnn")`.

    Lengths and causality are masks of the kernel, so the bias is the only array of all pairs of
    frames. An odd number of frames is padded by one: the kernel takes none with a bias that is
    trained, and jax none in training. An utterance without frames is given one, lest the kernel
    divides 0 by 0.
    Raises UserError without a GPU of the Ampere generation or newer.
    """
    if not available():
        raise UserError("config.model.attention='cudnn' needs an NVIDIA GPU of Ampere or newer")
    frames = query.shape[1]
    if frames % 2:
        query, key, value = (
            jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value)
        )
        bias = None if bias is None else jnp.pad(bias, ((0, 0), (0, 0), (0, 1), (0, 1)))
    lengths = jnp.maximum(jnp.sum(valid, axis=1, dtype=jnp.int32), 1)
    out = jax.nn.dot_product_attention(
        *(query, key, value, bias),
        scale=1.0,
        is_causal=task.causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :frames]
