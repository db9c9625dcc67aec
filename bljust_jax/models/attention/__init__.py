"""Multi-head self-attention with relative or rotary positions, and the choice of its form.

`xla`, `cudnn` and `splash` compute softmax(q k^T + bias) v; `relative` and `rope` are positions.
"""

import importlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Frames, Mask
from bljust_jax.models import platform, remat
from bljust_jax.models.attention import relative, rope, xla
from bljust_jax.models.attention.task import Task
from bljust_jax.models.attention.xla import MASKED_SCORE
from bljust_jax.models.layers import KERNEL, Dense

__all__ = ["MASKED_SCORE", "Attention", "Task", "attend", "choose", "project"]

# All but "auto" are modules of this folder with `attend`, `available`, `limit` and DETERMINISTIC.
FORMS = ("auto", "xla", "cudnn", "splash")
# The rule of "auto": per platform the first of these forms that supports the task and gives the
# same bits each time, as exact resume needs.
AUTO = {"gpu": ("cudnn", "xla"), "tpu": ("splash", "xla")}


def choose(form: str, task: Task) -> str:
    """The form that computes `task`: `form` itself, or the choice of "auto" for `platform()`.

    Raises UserError for a named form that does not support the task.
    """
    if form != "auto":
        if limit := _module(form).limit(task):
            raise UserError(f"attention={form!r} {limit}: set 'auto' or 'xla'")
        return form
    modules = {name: _module(name) for name in AUTO.get(platform.platform(), ("xla",))}
    return next(
        name
        for name, module in modules.items()
        if module.DETERMINISTIC and module.available() and not module.limit(task)
    )


def _module(form: str) -> Any:
    return importlib.import_module(f"{__name__}.{form}")


def attend(
    query: Float[Array, "b t h s"],
    key: Float[Array, "b t h s"],
    value: Float[Array, "b t h s"],
    bias: Float[Array, "b h t t"] | None,
    valid: Mask,
    *,
    causal: bool = False,
    reach: int = 0,
    form: str = "auto",
) -> Float[Array, "b t h s"]:
    """softmax_j(query_i . key_j + bias_ij) value_j over the valid keys j; causal: those with
    j <= i; reach above 0: those with |i - j| <= reach.

    `valid` is True on the first frames of each utterance, its real ones; outputs of the others are
    finite and meaningless. Raises UserError for a named form that does not support the task.
    """
    task = Task(query.shape[-1], query.dtype, bias is not None, causal, reach)
    return _module(choose(form, task)).attend(query, key, value, bias, valid, task)


class _Linear(nn.Module):
    """Kernel `[C, D]` and, if `use_bias`, bias `[D]` of a linear map, named as those of `Dense`."""

    features: int
    use_bias: bool

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Array, Array | None]:
        kernel = self.param("kernel", KERNEL, (inputs, self.features))
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,))


def project(x: Frames, heads: int, dtype: Any, biases: tuple[str, ...]) -> list[Array]:
    """Query, key and value `[B, T, H, S]` of x, in one product with the three kernels side by side.

    To be called in a module's compact method: the maps "query", "key" and "value" are its
    parameters, each of its own name and, for those in `biases`, with a bias.
    """
    names, dim = ("query", "key", "value"), x.shape[-1]
    maps = [_Linear(dim, name in biases, name=name)(dim) for name in names]
    # on an axis of their own, as `tensor` splits the last one
    kernel = jnp.stack([kernel.astype(dtype) for kernel, _ in maps], axis=1)
    product = remat.keep(jnp.einsum("btd,dne->btne", x.astype(dtype), kernel), "qkv")
    parts = []
    for part, (_, bias) in zip(jnp.split(product, 3, axis=2), maps, strict=True):
        part = part.reshape(x.shape)
        part = part if bias is None else part + bias.astype(dtype)[None, None]
        parts.append(part.reshape(*x.shape[:-1], heads, dim // heads))
    return parts


class Attention(nn.Module):
    """Multi-head self-attention with positions, in one of two kinds:

        "relative"  score[i, j] = ((q_i + u) . k_j + (q_i + v) . W r_{i-j}) / sqrt(D / H)
        "rope"      score[i, j] = (R_i q_i) . (R_j k_j) / sqrt(D / H)

    with a softmax over the valid keys j; causal: those with j <= i; with a window: those with
    |i - j| <= window // 2. The window adds no parameter. "relative" has a bias in the output map
    only: biases of the projections would cancel in the softmax or duplicate u, v and it. "rope" has
    no parameter for positions; its query and key have biases, whose product after rotation is a
    score by distance, and its value has none, which would duplicate that of the output map.
    Sources: Transformer-XL, section 3.3; RoFormer (`rope`).
    """

    heads: int
    window: int = 0
    dtype: Any = jnp.float32
    positions: str = "relative"
    form: str = "auto"

    @nn.compact
    def __call__(self, x: Frames, valid: Mask, causal: bool = False) -> Frames:
        """`valid` is True on real frames; an utterance without any is finite."""
        context = self._rope if self.positions == "rope" else self._relative
        out = context(x, valid, causal).reshape(x.shape)
        return Dense(x.shape[-1], dtype=self.dtype, name="out")(out)

    def _relative(self, x: Frames, valid: Mask, causal: bool) -> Array:
        frames, dim = x.shape[1:]
        size, reach = dim // self.heads, self.window // 2
        query, key, value = project(x, self.heads, self.dtype, ())

        def distances(first: int, last: int) -> Array:
            table = jnp.asarray(relative.relative_positions(first, last, dim))
            dense = Dense(dim, use_bias=False, dtype=self.dtype, name="position")
            return dense(table).reshape(-1, self.heads, size)

        def biased_query(name: str) -> Array:
            bias = self.param(name, nn.initializers.zeros_init(), (self.heads, size))
            return (query + bias.astype(self.dtype)[None, None]) * size**-0.5

        content, position = biased_query("content_bias"), biased_query("position_bias")
        if xla.is_local(frames, reach):
            task = Task(size, query.dtype, True, causal, reach)
            table = distances(reach, 0 if causal else -reach)
            return xla.local_attention(content, key, value, position, table, valid, task)
        chunk = relative.chunk_size(frames)
        first = -(-frames // chunk) * chunk - 1
        table = distances(first, 0 if causal else -frames)
        if causal:  # keys ahead are masked
            table = jnp.pad(table, ((0, frames), (0, 0), (0, 0)))
        bias = relative.position_scores(position, table, chunk)
        options = {"causal": causal, "reach": reach if reach < frames else 0}
        return attend(content, key, value, bias, valid, **options, form=self.form)

    def _rope(self, x: Frames, valid: Mask, causal: bool) -> Array:
        frames, reach = x.shape[1], self.window // 2
        query, key, value = project(x, self.heads, self.dtype, ("query", "key"))
        query, key = rope.rotate(query * query.shape[-1] ** -0.5), rope.rotate(key)
        options = {"causal": causal, "reach": reach if reach < frames else 0}
        return attend(query, key, value, None, valid, **options, form=self.form)
