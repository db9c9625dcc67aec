"""Transformer decoder: logits of the next token given the previous ones and an encoder's output.

Id 0 is the first input of a text and its last output. Parameters are float32; `dtype` is the
dtype of the products. Residual sums, norms, the softmax and the logits are float32.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bljust_jax.common import config_schema
from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Labels, Lengths, Mask, Rng
from bljust_jax.models import heads, layers
from bljust_jax.models.attention import MASKED_SCORE
from bljust_jax.models.attention.relative import relative_positions
from bljust_jax.models.conformer_block import FeedForward
from bljust_jax.models.layers import Params
from bljust_jax.models.norms import LayerNorm, at_least_float32
from bljust_jax.ops.log_mel import valid_frames

Memory = Float[Array, "b t c"]  # frames of an encoder


class KeysValues(NamedTuple):
    """Keys and values of attention, `[..., keys, H, S]` each, S = D / H."""

    keys: Array
    values: Array


class Cache(NamedTuple):
    """Decoding state of B rows of W texts that grow by one token per call."""

    memory: KeysValues  # of the encoder's output, [L, B, T, H, S]
    valid: Mask  # True on its real frames
    past: KeysValues  # of the tokens so far, [L, B, W, N, H, S], N = the maximum length


class Attention(nn.Module):
    """softmax_j(q_i . k_j / sqrt(D / H)) v_j with H heads (Vaswani et al., NeurIPS 2017, 3.2).

    The maps of keys and values have no bias: it would cancel in the softmax or duplicate the bias
    of the output map.
    """

    dim: int
    heads: int
    dtype: Any = jnp.float32

    def setup(self):
        dense = partial(layers.Dense, self.dim, dtype=self.dtype)
        self.query, self.out = dense(), dense()
        self.key, self.value = dense(use_bias=False), dense(use_bias=False)

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.heads, self.dim // self.heads)

    def keys_values(self, x: Float[Array, "b k c"]) -> KeysValues:
        """Keys and values of `x`, `[B, K, H, S]`."""
        return KeysValues(self._split(self.key(x)), self._split(self.value(x)))

    def __call__(
        self, x: Float[Array, "b q d"], given: KeysValues, mask: Bool[Array, "#b #q k"]
    ) -> Float[Array, "b q d"]:
        """`mask` is True where a key may be attended; a query without a key is finite."""
        query = self._split(self.query(x)) * (self.dim // self.heads) ** -0.5
        scores = at_least_float32(jnp.einsum("bqhs,bkhs->bhqk", query, given.keys))
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, MASKED_SCORE))
        context = jnp.einsum("bhqk,bkhs->bqhs", weights.astype(self.dtype), given.values)
        return self.out(context.reshape(*x.shape[:-1], self.dim))


class DecoderBlock(nn.Module):
    """x + causal self-attention, + attention over the encoder's output, + feed-forward, each branch
    normalised at its input. Dropout, with rng "dropout", acts on each branch before it is added."""

    dim: int
    heads: int
    expansion: int = 4
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def setup(self):
        norm = partial(LayerNorm, dtype=self.dtype)
        attention = partial(Attention, self.dim, self.heads, self.dtype)
        self.self_norm, self.cross_norm, self.ff_norm = norm(), norm(), norm()
        self.self_attention, self.cross_attention = attention(), attention()
        self.feed_forward = FeedForward(self.expansion, self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def project_memory(self, memory: Memory) -> KeysValues:
        """Keys and values of an encoder's output, for the second branch."""
        return self.cross_attention.keys_values(memory)

    def __call__(
        self, x: Float[Array, "b u d"], memory: Memory, valid: Mask, train: bool = False
    ) -> Float[Array, "b u d"]:
        """All positions of a text at once; `valid` is True on real frames of `memory`."""
        causal = jnp.asarray(np.tri(x.shape[1], dtype=bool)[None])
        normed = self.self_norm(x)
        branch = self.self_attention(normed, self.self_attention.keys_values(normed), causal)
        x = x + self.drop(branch, deterministic=not train)
        return self._finish(x, self.project_memory(memory), valid, train)

    def extend(
        self,
        x: Float[Array, "b w d"],
        memory: KeysValues,
        valid: Mask,
        past: KeysValues,
        position: Int[Array, ""],
    ) -> tuple[Float[Array, "b w d"], KeysValues]:
        """One position of W texts per row; also its keys and values `[B, W, 1, H, S]`."""
        texts = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])  # noqa: E731
        normed = texts(self.self_norm(x))[:, None]
        new = self.self_attention.keys_values(normed)
        write = partial(lax.dynamic_update_slice_in_dim, start_index=position, axis=1)
        given = jax.tree.map(lambda old, new: write(texts(old), new), past, new)
        written = jnp.arange(given.keys.shape[1]) <= position
        branch = self.self_attention(normed, given, written[None, None])
        x = self._finish(x + branch.reshape(x.shape), memory, valid, False)
        return x, jax.tree.map(lambda leaf: leaf.reshape(*x.shape[:2], *leaf.shape[1:]), new)

    def _finish(self, x: Array, memory: KeysValues, valid: Array, train: bool) -> Array:
        branch = self.cross_attention(self.cross_norm(x), memory, valid[:, None])
        x = x + self.drop(branch, deterministic=not train)
        branch = self.feed_forward(self.ff_norm(x))
        return x + self.drop(branch, deterministic=not train)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Tokens and an encoder's output to logits of the next token (Vaswani et al., NeurIPS 2017,
    with norms at the input of the branches: Xiong et al., ICML 2020).

    dim, layers, heads: width, blocks, attention heads
    vocab_size: classes K, with 0 at begin and end of a text
    memory_dim: width of the encoder's output
    ff_mult: feed-forward width over `dim`
    dropout: rate on the embedded tokens and on each branch
    dtype: of the products, "float32" or "bfloat16"; parameters stay float32
    scan_unroll: blocks per scan iteration
    """

    dim: int
    layers: int
    heads: int
    vocab_size: int
    memory_dim: int
    ff_mult: int = 4
    dropout: float = 0.0
    dtype: str = "float32"
    scan_unroll: int = 1

    def __post_init__(self):
        config_schema.check_model(self, "decoder ")
        if self.dim % self.heads or self.dim % 2:
            raise UserError(
                f"decoder dim={self.dim} must be even and a multiple of heads={self.heads}"
            )
        if self.vocab_size < 2:
            raise UserError(f"decoder vocab_size={self.vocab_size} must be at least 2: end, token")

    def flops(self, tokens: int, frames: int) -> float:
        """Floating-point operations of one forward pass over a text of `tokens` and `frames` of the
        encoder's output.

        With u tokens, t frames of width c, e = ff_mult and K classes: 2 u K d + L (2 u (6 + 2 e)
        d^2 + 4 t c d + 4 u (u + t) d), the last term for scores and weighted sums of both
        attentions.
        """
        u, t, d = tokens, frames, self.dim
        block = 2 * u * (6 + 2 * self.ff_mult) * d**2 + 4 * t * self.memory_dim * d
        block += 4 * u * (u + t) * d
        return float(2 * u * self.vocab_size * d + self.layers * block)

    @property
    def block(self) -> DecoderBlock:
        dtype = jnp.dtype(self.dtype)
        return DecoderBlock(self.dim, self.heads, self.ff_mult, self.dropout, dtype)

    @partial(jax.jit, static_argnums=0)
    def init(self, rng: Rng) -> Params:
        """Float32 parameters {"embedding" `[K, D]`, "blocks" stacked on axis 0, "norm", "output"}.

        Kernels are normal with variance 1 / fan-in, the embedding with variance 1 / D, scales 1,
        biases 0.
        """
        embedding, blocks, output = jax.random.split(rng, 3)
        x, memory = jnp.zeros((1, 1, self.dim)), jnp.zeros((1, 1, self.memory_dim))
        valid, shape = jnp.ones((1, 1), bool), (self.vocab_size, self.dim)
        return {
            "embedding": jax.random.normal(embedding, shape, jnp.float32) * self.dim**-0.5,
            "blocks": layers.init_stack(self.block, blocks, self.layers, x, memory, valid),
            "norm": layers.init_params(LayerNorm(), rng, x),
            "output": heads.init(output, self.dim, self.vocab_size),
        }

    def apply(
        self,
        params: Params,
        memory: Memory,
        memory_lengths: Lengths,
        tokens: Labels,
        token_lengths: Lengths,
        *,
        train: bool = False,
        rng: Rng | None = None,
    ) -> Float[Array, "b u k"]:
        """Logits of the token after each of `tokens`, all positions at once (teacher forcing).

        Args:
          memory: an encoder's output `[B, T, C]`; padded frames never matter, NaN included.
          memory_lengths: its real frames `[B]`; 0 is allowed.
          tokens: inputs `[B, U]`, 0 first; padded ones never matter.
          token_lengths: real inputs `[B]`; 0 is allowed.
          train, rng: dropout is active in training and needs a key.

        Returns:
          float32 `[B, U, K]`, exactly 0 at padded tokens. Logits at position t depend on tokens
          0..t only, bit for bit.

        Raises:
          ValueError: dropout without `rng`.
        """
        dropping = layers.drops(self.dropout, train, rng)
        valid, memory = _clean(memory, memory_lengths)
        real = valid_frames(tokens.shape[1], token_lengths)
        positions = _positions(tokens.shape[1], self.dim)[None]
        x = self._embed(params, tokens, positions)
        keys = None
        if dropping:
            keys = layers.dropout_keys(rng, self.layers + 1)
            x = nn.Dropout(self.dropout).apply({}, x, deterministic=False, rng=keys[0])
            keys = keys[1:]
        block = self.block

        def step(x, weights, key):
            rngs = {"dropout": key} if dropping else {}
            return block.apply({"params": weights}, x, memory, valid, dropping, rngs=rngs), None

        x, _ = layers.scan_blocks(step, x, params["blocks"], keys, unroll=self.scan_unroll)
        return jnp.where(real[..., None], self._logits(params, x), 0.0)

    def begin(
        self, params: Params, memory: Memory, memory_lengths: Lengths, max_len: int, beam: int = 1
    ) -> Cache:
        """The empty cache of `beam` texts per row, of at most `max_len` inputs each, 0 first.

        The encoder's output is projected once for all blocks, positions and texts.
        """
        valid, memory = _clean(memory, memory_lengths)
        project = partial(self.block.apply, method="project_memory")
        given = jax.vmap(lambda weights: project({"params": weights}, memory))(params["blocks"])
        blocks, batch, _, *split = given.keys.shape
        shape = (blocks, batch, beam, max_len, *split)
        past = KeysValues(*(jnp.zeros(shape, given.keys.dtype) for _ in KeysValues._fields))
        return Cache(given, valid, past)

    def extend(
        self,
        params: Params,
        cache: Cache,
        tokens: Int[Array, "b w"],
        position: Int[Array, ""] | int,
        parents: Int[Array, "b w"] | None = None,
    ) -> tuple[Float[Array, "b w k"], Cache]:
        """Logits `[B, W, K]` after one more token of each text, at `position`, and the cache.

        parents: text w of a row continues its previous text parents[w]; None: text w. Equal to
        `apply` on whole texts up to rounding.
        """
        position, past = jnp.asarray(position), cache.past
        if parents is not None:
            rows = parents[None, :, :, None, None, None]
            past = jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, rows, axis=2), past)
        table = _positions(past.keys.shape[3], self.dim)
        here = lax.dynamic_index_in_dim(table, position, keepdims=False)
        x, block = self._embed(params, tokens, here[None, None]), self.block

        def step(x, layer):
            weights, memory, past = layer
            inputs = x, memory, cache.valid, past, position
            return block.apply({"params": weights}, *inputs, method="extend")

        stacked = params["blocks"], cache.memory, past
        x, new = lax.scan(step, x, stacked, unroll=self.scan_unroll)
        write = partial(lax.dynamic_update_slice_in_dim, start_index=position, axis=3)
        return self._logits(params, x), cache._replace(past=jax.tree.map(write, past, new))

    def _embed(self, params: Params, tokens: Array, positions: Array) -> Array:
        x = params["embedding"][tokens] * self.dim**0.5
        return x + positions.astype(x.dtype)

    def _logits(self, params: Params, x: Array) -> Array:
        return heads.apply(params["output"], LayerNorm().apply({"params": params["norm"]}, x))


def _clean(memory: Array, lengths: Array) -> tuple[Array, Array]:
    """(True on real frames, encoder output with 0 in the others)."""
    valid = valid_frames(memory.shape[1], lengths)
    return valid, jnp.where(valid[..., None], memory, 0.0)


def _positions(count: int, dim: int) -> Float[Array, "n d"]:
    """Sinusoids of positions 0, 1, ..., a row each (Vaswani et al., 3.5, sines before cosines)."""
    return jnp.asarray(relative_positions(count - 1, 0, dim)[::-1])
