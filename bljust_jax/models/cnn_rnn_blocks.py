"""Flax modules of the CNN-RNN: 3x3 convolutions, attention over the grid, recurrent layers.

Parameters are float32; products have the dtype of the input. Norms, the softmax and the recurrent
state are float32.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from bljust_jax.common.shapes import Grid, Lengths, Mask
from bljust_jax.models.attention import MASKED_SCORE
from bljust_jax.models.layers import KERNEL, Dense, Params
from bljust_jax.models.norms import LayerNorm, at_least_float32

GATES = {"gru": 3, "lstm": 4}
SCORES = 2**26  # attention scores per block of queries, 256 MiB in float32
gelu = partial(jax.nn.gelu, approximate=False)

Both = Float[Array, "2 b h"]  # a state of H units in both directions


class Convolution(nn.Module):
    """3x3 convolution over (time, band), padding 1; padded frames are read as 0."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Grid, valid: Mask) -> Float[Array, "b u g k"]:
        kernel = self.param("kernel", KERNEL, (3, 3, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,))
        y = lax.conv_general_dilated(
            jnp.where(valid[..., None, None], x, 0.0),
            kernel.astype(x.dtype),
            (self.stride, self.stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + bias.astype(x.dtype)[None, None, None, :]


class ConvolutionLayer(nn.Module):
    """The CNN layer of the network "lstm": GELU, dropout, 3x3 convolution."""

    channels: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Grid, valid: Mask, train: bool = False) -> Grid:
        x = nn.Dropout(self.dropout, deterministic=not train)(gelu(x))
        return Convolution(self.channels, name="conv")(x, valid)


class ResidualLayer(nn.Module):
    """The CNN layer of the network "gru": x + a branch of self-attention, added to its input, and
    four 3x3 convolutions to 2C, 2C, 2C and C channels, each after LayerNorm, GELU and dropout."""

    channels: int
    heads: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Grid, valid: Mask, train: bool = False) -> Grid:
        branch = x + GridAttention(self.heads, name="attention")(x, valid)
        for n, factor in enumerate((2, 2, 2, 1), start=1):
            branch = gelu(LayerNorm(x.dtype, 2, name=f"norm{n}")(branch))
            branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
            branch = Convolution(factor * self.channels, name=f"conv{n}")(branch, valid)
        return x + branch


class GridAttention(nn.Module):
    """Self-attention over all (frame, band) positions of valid frames, without position encoding:
    softmax(q k / sqrt(C / heads)) v.

    Queries are processed in blocks of at most `SCORES` scores (at least one query per row of the
    batch), which the backward pass recomputes. A row without valid frames is finite.
    """

    heads: int

    @nn.compact
    def __call__(self, x: Grid, valid: Mask) -> Grid:
        channels = x.shape[-1]
        mixed = Dense(3 * channels, dtype=x.dtype, name="input")(x)
        context = _attend_in_blocks(mixed, valid, self.heads)
        return Dense(channels, dtype=x.dtype, name="out")(context).reshape(x.shape)


def _attend_in_blocks(
    mixed: Float[Array, "b t f d"], valid: Mask, heads: int
) -> Float[Array, "b n c"]:
    """Attention of the positions' queries, keys and values, concatenated in `mixed`; N = T F."""
    batch, frames, bands, width = mixed.shape
    channels = width // 3
    n, size = frames * bands, channels // heads
    mixed = mixed.reshape(batch, n, 3, heads, size)
    query, key, value = mixed[:, :, 0] * size**-0.5, mixed[:, :, 1], mixed[:, :, 2]
    mask = jnp.repeat(valid, bands, axis=1)[:, None, None, :]
    rows = min(n, max(1, SCORES // (batch * heads * n)))
    blocks = -(-n // rows)

    @jax.checkpoint
    def attend(query: Array) -> Array:
        scores = at_least_float32(jnp.einsum("bqhd,bkhd->bhqk", query, key))
        weights = jax.nn.softmax(jnp.where(mask, scores, MASKED_SCORE)).astype(mixed.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)

    query = jnp.pad(query, ((0, 0), (0, blocks * rows - n), (0, 0), (0, 0)))
    query = query.reshape(batch, blocks, rows, heads, size).swapaxes(0, 1)
    context = lax.map(attend, query).swapaxes(0, 1).reshape(batch, blocks * rows, channels)
    return context[:, :n]


class Linear(nn.Module):
    """The parameters {"kernel", "bias"} of a linear map, without its application."""

    features: int

    @nn.compact
    def __call__(self, inputs: int) -> Params:
        kernel = self.param("kernel", KERNEL, (inputs, self.features))
        return {
            "kernel": kernel,
            "bias": self.param("bias", nn.initializers.zeros_init(), (self.features,)),
        }


class Cell(nn.Module):
    """The parameters of a recurrent cell: {"input", "recurrent"}, each a `Linear`."""

    gates: int
    units: int

    @nn.compact
    def __call__(self, inputs: int) -> Params:
        own = Linear(self.gates * self.units, name="recurrent")(self.units)
        return {"input": Linear(self.gates * self.units, name="input")(inputs), "recurrent": own}


class RecurrentLayer(nn.Module):
    """LayerNorm, GELU, a GRU or LSTM in both directions, dropout.

    One scan computes both directions; the second starts at the last valid frame of each utterance.
    Padded frames come last in both, so they do not affect valid ones.
    """

    kind: str
    units: int
    dropout: float = 0.0
    unroll: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t i"], backwards: Int[Array, "b t 1"], train: bool = False
    ) -> Float[Array, "b t o"]:
        """`backwards`: `reversed_frames`."""
        inputs, gates = x.shape[-1], GATES[self.kind]
        x = gelu(LayerNorm(x.dtype, name="norm")(x))
        directions = (Cell(gates, self.units, name=n)(inputs) for n in ("forward", "backward"))
        cells = jax.tree.map(lambda *p: jnp.stack(p).astype(x.dtype), *directions)
        both = jnp.stack([x, jnp.take_along_axis(x, backwards, axis=1)])
        gates = jnp.einsum("dbti,dig->tdbg", both, cells["input"]["kernel"])
        gates = gates + cells["input"]["bias"][None, :, None, :]
        step = partial({"gru": gru_step, "lstm": lstm_step}[self.kind], cells["recurrent"])
        start = jnp.zeros((2, x.shape[0], self.units), jnp.promote_types(x.dtype, jnp.float32))
        carry = start if self.kind == "gru" else (start, start)
        _, states = lax.scan(step, carry, gates, unroll=self.unroll)
        forward, backward = states[:, 0].swapaxes(0, 1), states[:, 1].swapaxes(0, 1)
        backward = jnp.take_along_axis(backward, backwards, axis=1)
        output = jnp.concatenate([forward, backward], axis=-1).astype(x.dtype)
        return nn.Dropout(self.dropout, deterministic=not train)(output)


def reversed_frames(frames: int, lengths: Lengths) -> Int[Array, "b t 1"]:
    """Indices `[B, T, 1]` that reverse the valid frames of each row and keep the padded ones."""
    time = jnp.arange(frames)[None, :]
    return jnp.where(time < lengths[:, None], lengths[:, None] - 1 - time, time)[..., None]


def _recurrent_gates(p: Params, hidden: Array) -> Array:
    """U h + b of both directions `[2, B, G H]`, in the dtype of the carry."""
    gates = jnp.einsum("dbh,dhg->dbg", hidden.astype(p["kernel"].dtype), p["kernel"])
    return gates.astype(hidden.dtype) + p["bias"].astype(hidden.dtype)[:, None, :]


def gru_step(p: Params, hidden: Both, gates: Float[Array, "2 b g"]) -> tuple[Both, Both]:
    """One step of a GRU in both directions, `gates` = W x + b in the order reset, update, new:

    r = sigmoid(.), z = sigmoid(.), n = tanh(W_n x + b_n + r (U_n h + c_n)), h' = (1 - z) n + z h.

    The reset gate acts after the product, which therefore has its own bias, as in the published
    counts (Cho et al. 2014 apply it before).
    """
    reset, update, new = jnp.split(gates.astype(hidden.dtype), 3, axis=-1)
    from_reset, from_update, from_new = jnp.split(_recurrent_gates(p, hidden), 3, axis=-1)
    update = jax.nn.sigmoid(update + from_update)
    new = jnp.tanh(new + jax.nn.sigmoid(reset + from_reset) * from_new)
    hidden = new + update * (hidden - new)
    return hidden, hidden


def lstm_step(
    p: Params, carry: tuple[Both, Both], gates: Float[Array, "2 b g"]
) -> tuple[tuple[Both, Both], Both]:
    """One step of an LSTM in both directions, `gates` = W x + b in the order input, forget, new,
    output: c' = f c + i tanh(g), h' = o tanh(c')."""
    hidden, cell = carry
    gates = gates.astype(hidden.dtype) + _recurrent_gates(p, hidden)
    enter, forget, new, leave = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
    hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
    return (hidden, cell), hidden
