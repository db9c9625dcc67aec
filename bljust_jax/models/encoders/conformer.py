"""The Conformer encoder on log-mel features: subsampling, then a `lax.scan` over stacked blocks."""

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax.common import config_schema
from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Features, Lengths, Rng
from bljust_jax.models import encoders, layers, remat
from bljust_jax.models.attention import Task, choose
from bljust_jax.models.conformer_block import ConformerBlock
from bljust_jax.models.encoders import Encoder
from bljust_jax.models.norms import at_least_float32
from bljust_jax.models.subsampling import FACTORS, Subsampling, output_lengths, subsampling_flops
from bljust_jax.ops.log_mel import valid_frames

# S, M and L are table 1 of Gulati et al. (2020): 10.3, 30.7 and 118.8 M parameters with their LSTM
# transducer decoders. These encoders have 8.7, 27.3 and 115.1 M (tests/golden): the rest, 1.6, 3.4
# and 3.7 M, is about one LSTM layer of 320 or 640 units with its embedding and joint network.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"dim": 96, "layers": 4, "heads": 4, "kernel": 15, "channels": 32},
    "S": {"dim": 144, "layers": 16, "heads": 4, "kernel": 31, "channels": 144},
    "M": {"dim": 256, "layers": 16, "heads": 4, "kernel": 31, "channels": 256},
    "L": {"dim": 512, "layers": 17, "heads": 8, "kernel": 31, "channels": 512},
}

Context = Literal["full", "causal"]


@dataclasses.dataclass(frozen=True)
class Conformer:
    """Conformer: log-mel features to hidden frames, one per `factor` (Gulati et al., 2020).

    dim, layers, heads: width, blocks, attention heads
    kernel: taps of the depthwise convolution, odd
    n_mels, channels: mel bands; channels of the front end
    ff_mult: feed-forward width over `dim`
    dropout: rate on each branch
    dtype: of the products, "float32" or "bfloat16"; parameters stay float32
    scan_unroll: blocks per scan iteration
    remat: rematerialisation policy (`remat.wrap`)
    subsampling, subsampling_factor: front end "conv2d", or "parakeet" with separable convolutions
        (a seventh of the cost); factor 4 or 8, 0 takes the default of `subsampling.FACTORS`
    norm: after the depthwise convolution, "layer", or the paper's "batch", whose running moments
        are the stats
    window: frames that attention covers around each frame, half on either side; 0 covers all. A
        causal context takes the left half, and stored moments.
    positions: of attention, "relative" (Transformer-XL) or "rope", which has no bias per pair of
        frames
    attention: form that computes it (`attention.choose`); changes no result but its rounding
    """

    dim: int
    layers: int
    heads: int
    kernel: int
    n_mels: int
    channels: int
    ff_mult: int = 4
    dropout: float = 0.0
    dtype: str = "float32"
    scan_unroll: int = 1
    remat: str = "none"
    subsampling: str = "conv2d"
    subsampling_factor: int = 0
    norm: str = "layer"
    window: int = 0
    positions: str = "relative"
    attention: str = "auto"

    def __post_init__(self):
        config_schema.check_model(self)
        if self.dim % self.heads or self.dim % 2:
            raise UserError(f"dim={self.dim} must be even and a multiple of heads={self.heads}")
        if self.kernel % 2 == 0:
            raise UserError(f"kernel={self.kernel} must be odd, as its taps are centred")
        size, biased = self.dim // self.heads, self.positions == "relative"
        if size % 2 and not biased:
            raise UserError(f"positions='rope' needs heads of even width: dim/heads is {size}")
        task = Task(size, jnp.dtype(self.dtype), biased, reach=self.window // 2)
        choose(self.attention, task)

    @property
    def factor(self) -> int:
        """Feature frames per output frame."""
        return self.subsampling_factor or FACTORS[self.subsampling]

    @property
    def frontend(self) -> Subsampling:
        separable, dtype = self.subsampling == "parakeet", jnp.dtype(self.dtype)
        return Subsampling(self.channels, self.dim, self.factor, separable, dtype)

    @property
    def block(self) -> ConformerBlock:
        return ConformerBlock(
            *(self.heads, self.kernel, self.ff_mult, self.dropout, self.window),
            *(jnp.dtype(self.dtype), self.positions, self.attention),
        )

    @partial(jax.jit, static_argnums=0)
    def init(self, rng: Rng) -> tuple[dict[str, Any], dict[str, Any]]:
        """Float32 parameters {"frontend", "blocks"} and stats; blocks are stacked on axis 0.

        Stats are {"mean": 0, "var": 1}, `[L, D]` each, for the "batch" norm and {} for "layer".
        """
        lengths, valid = jnp.ones(1, jnp.int32), jnp.ones((1, 1), bool)
        features, latents = jnp.zeros((1, 4, self.n_mels)), jnp.zeros((1, 1, self.dim))
        frontend, blocks = jax.random.split(rng)
        params = {
            "frontend": layers.init_params(self.frontend, frontend, features, lengths),
            "blocks": layers.init_stack(self.block, blocks, self.layers, latents, valid),
        }
        moments = self.layers, self.dim
        batch = self.norm == "batch"
        return params, {"mean": jnp.zeros(moments), "var": jnp.ones(moments)} if batch else {}

    def shapes(self) -> dict[str, Any]:
        """The shape of each parameter of `init`."""
        return layers.shapes_of(self.init)[0]

    def apply(
        self,
        params: dict[str, Any],
        x: Features,
        lengths: Lengths,
        *,
        context: Context = "full",
        depth: int | None = None,
        top: int = 0,
        train: bool = False,
        stats: dict[str, Any] | None = None,
        rng: Rng | None = None,
    ) -> tuple[Float[Array, "b u d"], Lengths, dict[str, Float[Array, "*k b u d"]], dict[str, Any]]:
        """Encode features.

        Args:
          x: normalised features `[B, T, M]`; padded frames never matter, NaN included.
          lengths: valid frames `[B]`; 0 is allowed.
          context: "full", or "causal": the same weights with a triangular attention mask and
            without future taps of the depthwise convolutions; output t then depends on
            feature frames up to factor (t + 1) - 1 alone.
          depth: run the first `depth` blocks only.
          train, rng: dropout is active in training and needs a key.
          stats: of `init` or the last call, for the "batch" norm.

        Returns:
          float32 output `[B, ceil(T / factor), D]`, 0 in padded frames; its lengths; {"latents":
          output of the front end, "blocks": see `layers.top_blocks` for `top`}; stats, updated by a
          "batch" norm that trains in full context.

        Raises ValueError for an unknown context or depth, dropout without `rng`, a "batch" norm
        without stats.
        """
        if context not in ("full", "causal"):
            raise ValueError(f"context={context!r} must be 'full' or 'causal'")
        dropping = layers.drops(self.dropout, train, rng)
        stats = (stats or {}) if self.norm == "batch" else {}
        if self.norm == "batch" and not stats:
            raise ValueError('norm="batch" needs stats')
        depth = layers.resolve_depth(depth, self.layers)
        subsample = remat.wrap(self.frontend.apply, self.remat)
        latents, lengths = subsample({"params": params["frontend"]}, x, lengths)
        valid = valid_frames(latents.shape[1], lengths)
        blocks = jax.tree.map(lambda leaf: leaf[:depth], params["blocks"])
        moments = jax.tree.map(lambda leaf: leaf[:depth], stats) or None
        keys = layers.dropout_keys(rng, depth) if dropping else None
        block, causal = self.block, context == "causal"

        def step(x, weights, moments, key):
            rngs = {"dropout": key} if dropping else {}
            y, new = block.apply({"params": weights}, x, valid, causal, train, moments, rngs=rngs)
            return y, (new, y if top else None)

        how = {"policy": self.remat, "unroll": self.scan_unroll}
        output, (moments, every) = layers.scan_blocks(step, latents, blocks, moments, keys, **how)
        if moments:
            stats = jax.tree.map(lambda old, new: old.at[:depth].set(new), stats, moments)
        output = jnp.where(valid[..., None], at_least_float32(output), 0.0)
        hidden = {"latents": at_least_float32(latents), **layers.top_blocks(every, top, valid)}
        return output, lengths, hidden, stats

    def frames(self, frames: int) -> int:
        """Output frames of `frames` feature frames."""
        return output_lengths(frames, self.factor)

    def flops(self, frames: int, depth: int | None = None) -> float:
        """Floating-point operations of one forward pass over `frames` feature frames (heads apart).

        `subsampling_flops` + L (2 t ((4 e + 7) d^2 + k d) + 6 t s d), with t output frames,
        e = ff_mult and s = min(t, window + 1) keys per query; 6 t s d are content scores, position
        scores and weighted sum of attention, 4 t s d without position scores (rope); L = `depth` if
        given. A backward pass costs twice as much.
        """
        d, separable = self.dim, self.subsampling == "parakeet"
        depth = self.layers if depth is None else depth
        subsampling, t = subsampling_flops(
            frames, self.n_mels, self.channels, d, self.factor, separable
        )
        keys = min(t, 2 * (self.window // 2) + 1) if self.window else t
        scores = 4 if self.positions == "rope" else 6
        frame = 2 * ((4 * self.ff_mult + 7) * d**2 + self.kernel * d) + scores * keys * d
        return float(subsampling + depth * t * frame)


def build(config: Any) -> Encoder:
    model = make_model(config)
    sizes = {"latent_dim": model.dim, "blocks": model.layers, "block_dim": model.dim}
    contexts = ("full", "causal")
    return encoders.log_mel_encoder(config, model, "Conformer", **sizes, contexts=contexts)


def make_model(config: Any) -> Conformer:
    fields = {"n_mels": config.features.n_mels, **config.model}
    return encoders.make_model(Conformer, config, fields)
