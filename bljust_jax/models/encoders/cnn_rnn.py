"""The CNN-RNN encoder of LSTM-JUST: 2-d convolutions, a linear map, bidirectional layers.

Source: Chen and Saif, "Wav2Vec2-JUST and LSTM-JUST", 2024. Its text and its table of parameter
counts describe two networks; `CnnRnn.kind` selects one. The counts determine the layers of the
second but not their connection: here residual branches of norm, GELU, dropout, layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from bljust_jax.common.errors import UserError
from bljust_jax.models import encoders, initial
from bljust_jax.models.attention import MASKED_SCORE
from bljust_jax.models.encoders import Encoder
from bljust_jax.models.norms import EPSILON, at_least_float32
from bljust_jax.models.subsampling import output_lengths
from bljust_jax.ops.log_mel import valid_frames

GATES = {"gru": 3, "lstm": 4}
SCORES = 2**26  # attention scores per block of queries, 256 MiB in float32

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CnnRnn:
    """Log-mel features to hidden frames, two feature frames each.

    A 3x3 convolution of stride 2 halves time and bands; `cnn_layers` layers keep that shape; a
    linear map gives the latents; `rnn_layers` bidirectional layers (LayerNorm, GELU, RNN) and a
    linear map with GELU give the output. By kind:

    "gru": the network of the published counts. A CNN layer is a residual block: self-attention
        over all (frame, band) positions, added to its input, then four 3x3 convolutions to 2C, 2C,
        2C and C channels, each after a LayerNorm over bands and GELU. The RNN is a GRU. With 80 mel
        bands, the fields' defaults and a CTC head of 1023 this has the totals of table 2
        (27,257,631 for 3 + 5 layers).
    "lstm": the network of the text. A CNN layer is one 3x3 convolution of C maps after GELU, the
        RNN an LSTM; units=256, proj=0 is the published width. The stem's stride is the table's.

    Attention is quadratic: ceil(T / 2) ceil(M / 2) positions, 20,000 for 10 s of 80 bands, so
    3.2e9 scores per layer and utterance. Queries are processed in blocks of `SCORES` scores,
    recomputed in the backward pass, which bounds memory but not time.

    channels, latent_dim: maps C, width of the latents
    units: RNN units per direction
    proj: width of the output map; 0: none, the output has the RNN's 2 units
    heads: attention heads of "gru"
    dropout: rate after each GELU of the CNN and each RNN layer
    dtype: of the products; parameters stay float32
    scan_unroll: time steps per scan iteration
    """

    n_mels: int
    kind: str = "gru"
    cnn_layers: int = 3
    rnn_layers: int = 5
    channels: int = 32
    latent_dim: int = 512
    units: int = 512
    proj: int = 2048
    heads: int = 8
    dropout: float = 0.0
    dtype: str = "float32"
    scan_unroll: int = 1

    def __post_init__(self):
        if self.kind not in GATES:
            raise UserError(f"kind={self.kind!r} must be {' or '.join(GATES)}")
        if self.kind == "gru" and self.channels % self.heads:
            raise UserError(f"channels={self.channels} must be a multiple of heads={self.heads}")
        if self.rnn_layers < 1:
            raise UserError(f"rnn_layers={self.rnn_layers} must be at least 1")
        if self.dtype not in ("float32", "bfloat16", "float64"):
            raise UserError(f"dtype={self.dtype} must be float32 or bfloat16 (float64 in tests)")

    @property
    def dim(self) -> int:
        """Width of the output."""
        return self.proj or 2 * self.units

    @property
    def bands(self) -> int:
        """Bands after the stem."""
        return output_lengths(self.n_mels, 2)

    def init(self, rng: Key[Array, ""]) -> tuple[Params, dict[str, Any]]:
        """Float32 parameters {"stem", "cnn1", ..., "linear", "rnn1", ..., "proj"} and no stats.

        Kernels are normal with variance 1 / fan-in, scales 1, biases 0, all from one draw.
        """
        return initial.draw(rng, self._shapes()), {}

    def _shapes(self) -> dict[str, Any]:
        c, width, gates = self.channels, 2 * self.units, GATES[self.kind] * self.units
        norm = {"scale": (self.bands,), "bias": (self.bands,)}
        if self.kind == "gru":
            sizes = [c, 2 * c, 2 * c, 2 * c, c]
            layer = {"attention": {"input": _linear(c, 3 * c), "out": _linear(c, c)}}
            for i in range(4):
                conv = _linear(3, 3, sizes[i], sizes[i + 1])
                layer |= {f"norm{i + 1}": norm, f"conv{i + 1}": conv}
        else:
            layer = {"conv": _linear(3, 3, c, c)}
        shapes = {"stem": _linear(3, 3, 1, c)}
        shapes |= {f"cnn{i + 1}": layer for i in range(self.cnn_layers)}
        shapes["linear"] = _linear(self.bands * c, self.latent_dim)
        for i in range(self.rnn_layers):
            inputs = width if i else self.latent_dim
            cell = {"input": _linear(inputs, gates), "recurrent": _linear(self.units, gates)}
            norm = {"scale": (inputs,), "bias": (inputs,)}
            shapes[f"rnn{i + 1}"] = {"norm": norm, "forward": cell, "backward": cell}
        if self.proj:
            shapes["proj"] = _linear(width, self.proj)
        return shapes

    def apply(
        self,
        params: Params,
        x: Float[Array, "b t m"],
        lengths: Int[Array, "b"],
        *,
        context: Literal["full", "causal"] = "full",
        depth: int | None = None,
        train: bool = False,
        stats: dict[str, Any] | None = None,
        rng: Key[Array, ""] | None = None,
    ) -> tuple[
        Float[Array, "b u d"], Int[Array, "b"], dict[str, Float[Array, "b u e"]], dict[str, Any]
    ]:
        """Encode features.

        Args:
          x: normalised features `[B, T, M]`; padded frames never matter, NaN included.
          lengths: valid frames `[B]`; 0 is allowed.
          context: "full" alone: the layers are bidirectional.
          depth: run the first `depth` RNN layers only, at least 1, then the output map.
          train, rng: dropout is active in training and needs a key.

        Returns:
          float32 output `[B, ceil(T / 2), D]`, exactly 0 in padded frames; its lengths `[B]`;
          {"latents": `[B, ceil(T / 2), E]`, the input of the RNN}; the stats unchanged (none).

        Raises:
          ValueError: a causal context, `depth` out of range, or dropout without `rng`.
        """
        if context != "full":
            raise ValueError(
                f"context={context!r}: a bidirectional encoder reads future frames; set"
                " config.cpc.context='chunked' and config.ctc.context='full'"
            )
        layers = self.rnn_layers if depth is None else depth
        if not 1 <= layers <= self.rnn_layers:
            raise ValueError(f"depth={depth} must lie in 1..{self.rnn_layers}")
        rate = self.dropout if train else 0.0
        if rate and rng is None:
            raise ValueError("training with dropout needs rng")
        calls = 4 * self.cnn_layers + layers
        drop = _dropout(rate, initial.dropout_keys(rng, calls) if rate else None)
        latents, lengths = self._convolve(params, x, lengths, drop)
        valid, hidden = valid_frames(latents.shape[1], lengths), latents
        backwards = _backwards(latents.shape[1], lengths)
        for i in range(layers):
            hidden = drop(self._recur(params[f"rnn{i + 1}"], hidden, backwards))
        if self.proj:
            hidden = jax.nn.gelu(_apply_linear(params["proj"], hidden), approximate=False)
        output = jnp.where(valid[..., None], at_least_float32(hidden), 0.0)
        return output, lengths, {"latents": at_least_float32(latents)}, stats or {}

    def _convolve(
        self, params: Params, x: Array, lengths: Array, drop: Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """Latents `[B, ceil(T / 2), E]`, 0 in padded frames, and their lengths."""
        x = x.astype(self.dtype)[..., None]
        x = _convolution(params["stem"], x, valid_frames(x.shape[1], lengths), stride=2)
        lengths = output_lengths(lengths, 2)
        valid = valid_frames(x.shape[1], lengths)
        for i in range(self.cnn_layers):
            layer = params[f"cnn{i + 1}"]
            if self.kind == "gru":
                branch = x + attention_over_grid(layer["attention"], x, valid, self.heads)
                for n in range(1, 5):
                    branch = _layer_norm(layer[f"norm{n}"], branch, axis=2)
                    branch = drop(jax.nn.gelu(branch, approximate=False))
                    branch = _convolution(layer[f"conv{n}"], branch, valid)
                x = x + branch
            else:
                x = drop(jax.nn.gelu(x, approximate=False))
                x = _convolution(layer["conv"], x, valid)
        x = jnp.where(valid[..., None, None], x, 0.0)
        x = _apply_linear(params["linear"], x.reshape(*x.shape[:2], -1))
        return jnp.where(valid[..., None], x, 0.0), lengths

    def _recur(self, layer: Params, x: Array, backwards: Array) -> Array:
        """LayerNorm, GELU, both directions: `[B, T, I]` to `[B, T, 2 units]`.

        One scan computes both directions; the second starts at the last valid frame of each
        utterance. Padded frames come last in both, so they do not affect valid ones.
        """
        x = jax.nn.gelu(_layer_norm(layer["norm"], x, axis=2), approximate=False)
        cells = jax.tree.map(lambda *p: jnp.stack(p), layer["forward"], layer["backward"])
        cells = jax.tree.map(lambda p: p.astype(x.dtype), cells)
        both = jnp.stack([x, jnp.take_along_axis(x, backwards, axis=1)])
        gates = jnp.einsum("dbti,dig->tdbg", both, cells["input"]["kernel"])
        gates = gates + cells["input"]["bias"][None, :, None, :]
        step = partial({"gru": gru_step, "lstm": lstm_step}[self.kind], cells["recurrent"])
        start = jnp.zeros((2, x.shape[0], self.units), jnp.promote_types(x.dtype, jnp.float32))
        carry = start if self.kind == "gru" else (start, start)
        _, states = lax.scan(step, carry, gates, unroll=self.scan_unroll)
        forward, backward = states[:, 0].swapaxes(0, 1), states[:, 1].swapaxes(0, 1)
        backward = jnp.take_along_axis(backward, backwards, axis=1)
        return jnp.concatenate([forward, backward], axis=-1).astype(x.dtype)

    def frames(self, frames: int) -> int:
        """Output frames of `frames` feature frames."""
        return output_lengths(frames, 2)

    def flops(self, frames: int, depth: int | None = None) -> float:
        """Floating-point operations of one forward pass over `frames` feature frames (heads apart).

        With t output frames of f bands, n = t f, C maps, E latents, H units, G gates, I inputs:
        18 n C (stem) + layers of n (216 C^2 + 8 C^2 + 4 n C) for "gru" or 18 n C^2 for "lstm" +
        2 n C E + 4 t G H (I + H) per recurrent layer + 4 t H P. `depth` as in `apply`.
        """
        t, c, h = output_lengths(frames, 2), self.channels, self.units
        n = t * self.bands
        layer = n * (224 * c**2 + 4 * n * c) if self.kind == "gru" else 18 * n * c**2
        total = 18 * n * c + self.cnn_layers * layer + 2 * n * c * self.latent_dim
        for i in range(self.rnn_layers if depth is None else depth):
            inputs = 2 * h if i else self.latent_dim
            total += 4 * t * GATES[self.kind] * h * (inputs + h)
        return float(total + 4 * t * h * self.proj)


def _linear(*shape: int) -> dict[str, tuple[int, ...]]:
    return {"kernel": shape, "bias": shape[-1:]}


def _apply_linear(p: Params, x: Array) -> Array:
    """x @ kernel + bias over the last axis, in x's dtype."""
    bias = p["bias"].astype(x.dtype)
    return x @ p["kernel"].astype(x.dtype) + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


def _layer_norm(p: Params, x: Array, axis: int) -> Array:
    """LayerNorm of `axis` alone, statistics in float32."""
    wide = at_least_float32(x)
    centred = wide - jnp.mean(wide, axis, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis, keepdims=True)
    shape = [x.shape[axis] if a == axis else 1 for a in range(x.ndim)]
    scale, bias = p["scale"].reshape(shape), p["bias"].reshape(shape)
    return (centred * lax.rsqrt(variance + EPSILON) * scale + bias).astype(x.dtype)


def _convolution(p: Params, x: Array, valid: Array, stride: int = 1) -> Array:
    """3x3 convolution over (time, band), padding 1; padded frames of x are read as 0."""
    x = jnp.where(valid[..., None, None], x, 0.0)
    y = lax.conv_general_dilated(
        x,
        p["kernel"].astype(x.dtype),
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + p["bias"].astype(x.dtype)[None, None, None, :]


def attention_over_grid(
    p: Params, x: Float[Array, "b t f c"], valid: Bool[Array, "b t"], heads: int
) -> Float[Array, "b t f c"]:
    """Self-attention over all (frame, band) positions of valid frames, without position encoding:
    softmax(q k / sqrt(C / heads)) v.

    Queries are processed in blocks of at most `SCORES` scores (at least one query per row of the
    batch), which the backward pass recomputes. A row without valid frames is finite.
    """
    batch, frames, bands, channels = x.shape
    n, size = frames * bands, channels // heads
    mixed = _apply_linear(p["input"], x).reshape(batch, n, 3, heads, size)
    query, key, value = mixed[:, :, 0] * size**-0.5, mixed[:, :, 1], mixed[:, :, 2]
    mask = jnp.repeat(valid, bands, axis=1)[:, None, None, :]
    rows = min(n, max(1, SCORES // (batch * heads * n)))
    blocks = -(-n // rows)

    @jax.checkpoint
    def attend(query: Array) -> Array:
        scores = at_least_float32(jnp.einsum("bqhd,bkhd->bhqk", query, key))
        weights = jax.nn.softmax(jnp.where(mask, scores, MASKED_SCORE)).astype(x.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)

    query = jnp.pad(query, ((0, 0), (0, blocks * rows - n), (0, 0), (0, 0)))
    query = query.reshape(batch, blocks, rows, heads, size).swapaxes(0, 1)
    mixed = lax.map(attend, query).swapaxes(0, 1).reshape(batch, blocks * rows, channels)
    return _apply_linear(p["out"], mixed[:, :n]).reshape(x.shape)


def _recurrent_gates(p: Params, hidden: Array) -> Array:
    """U h + b of both directions `[2, B, G H]`, in the dtype of the carry."""
    gates = jnp.einsum("dbh,dhg->dbg", hidden.astype(p["kernel"].dtype), p["kernel"])
    return gates.astype(hidden.dtype) + p["bias"].astype(hidden.dtype)[:, None, :]


def gru_step(
    p: Params, hidden: Float[Array, "2 b h"], gates: Float[Array, "2 b g"]
) -> tuple[Float[Array, "2 b h"], Float[Array, "2 b h"]]:
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
    p: Params,
    carry: tuple[Float[Array, "2 b h"], Float[Array, "2 b h"]],
    gates: Float[Array, "2 b g"],
) -> tuple[tuple[Float[Array, "2 b h"], Float[Array, "2 b h"]], Float[Array, "2 b h"]]:
    """One step of an LSTM in both directions, `gates` = W x + b in the order input, forget, new,
    output: c' = f c + i tanh(g), h' = o tanh(c')."""
    hidden, cell = carry
    gates = gates.astype(hidden.dtype) + _recurrent_gates(p, hidden)
    enter, forget, new, leave = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
    hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
    return (hidden, cell), hidden


def _backwards(frames: int, lengths: Array) -> Array:
    """Indices `[B, T, 1]` that reverse the valid frames of each row and keep the padded ones."""
    time = jnp.arange(frames)[None, :]
    return jnp.where(time < lengths[:, None], lengths[:, None] - 1 - time, time)[..., None]


def _dropout(rate: float, keys: Key[Array, "n"] | None) -> Callable[[Array], Array]:
    """Dropout at `rate`, with the next key at each call."""
    if not rate:
        return lambda x: x
    rest = iter(keys)

    def drop(x: Array) -> Array:
        kept = jax.random.bernoulli(next(rest), 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))

    return drop


def build(config: Any) -> Encoder:
    fields = {"n_mels": config.features.n_mels, **config.model}
    model = encoders.make_model(CnnRnn, config, fields)
    sizes = {"latent_dim": model.latent_dim, "blocks": model.rnn_layers}
    return encoders.log_mel_encoder(config, model, "CNN-RNN", **sizes)
