"""The Conformer encoder: subsampling, then blocks run by `lax.scan` over stacked parameters."""

import dataclasses
import itertools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from bljust_jax.errors import UserError
from bljust_jax.models.frontend import FACTORS, Subsampling, output_lengths, subsampling_flops
from bljust_jax.models.layers import ConformerBlock, at_least_float32
from bljust_jax.ops.features import valid_frames

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
    """Log-mel features to hidden frames, `factor` feature frames each (Gulati et al., 2020).

    Fields: width, blocks, attention heads, taps of the depthwise convolution (odd), mel bands,
    channels of the front end, feed-forward expansion, dropout rate on each branch, dtype of the
    products ("float32" or "bfloat16"; parameters stay float32), blocks unrolled a scan step,
    whether blocks are recomputed in the backward pass, and the front end: "conv2d" or "parakeet"
    (separable convolutions, a seventh of the cost), with its factor, 4 or 8; 0 is the usual one,
    `frontend.FACTORS`.
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
    remat: bool = False
    subsampling: str = "conv2d"
    subsampling_factor: int = 0

    def __post_init__(self):
        if self.dim % self.heads or self.dim % 2:
            raise UserError(f"dim={self.dim} must be even and a multiple of heads={self.heads}")
        if self.dtype not in ("float32", "bfloat16", "float64"):
            raise UserError(f"dtype={self.dtype} must be float32 or bfloat16 (float64 in tests)")
        if self.kernel % 2 == 0:
            raise UserError(f"kernel={self.kernel} must be odd, as its taps are centred")
        if self.subsampling not in FACTORS:
            known = " or ".join(FACTORS)
            raise UserError(f"subsampling={self.subsampling!r} must be {known}")
        if self.factor not in (4, 8):
            raise UserError(f"subsampling_factor={self.subsampling_factor} must be 4 or 8")

    @property
    def factor(self) -> int:
        """Feature frames an output frame."""
        return self.subsampling_factor or FACTORS[self.subsampling]

    @property
    def frontend(self) -> Subsampling:
        separable, dtype = self.subsampling == "parakeet", jnp.dtype(self.dtype)
        return Subsampling(self.channels, self.dim, self.factor, separable, dtype)

    @property
    def block(self) -> ConformerBlock:
        dtype = jnp.dtype(self.dtype)
        return ConformerBlock(self.heads, self.kernel, self.ff_mult, self.dropout, dtype)

    def init(self, rng: Key[Array, ""]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Float32 parameters {"frontend", "blocks"} and no stats; blocks are stacked on axis 0.

        Kernels are normal with variance 1 / fan-in, scales 1, biases 0, all from one draw: an
        initialiser a parameter would compile for many times as long. The front end's last bias is
        normal of deviation 0.1: frames that SpecAugment blanks are that bias alone, and at exactly
        0 the first LayerNorm would multiply their gradient by a thousand.
        """
        lengths, valid = jnp.ones(1, jnp.int32), jnp.ones((1, 1), bool)
        features, latents = jnp.zeros((1, 4, self.n_mels)), jnp.zeros((1, 1, self.dim))
        key = jax.random.key(0)
        frontend = jax.eval_shape(self.frontend.init, key, features, lengths)["params"]
        block = jax.eval_shape(self.block.init, key, latents, valid)["params"]
        stacked = jax.tree.map(lambda leaf: (self.layers, *leaf.shape), block)
        shapes = {"frontend": jax.tree.map(lambda leaf: leaf.shape, frontend), "blocks": stacked}
        params = _draw(rng, shapes)
        bias = 0.1 * jax.random.normal(jax.random.fold_in(rng, 1), (self.dim,), jnp.float32)
        params["frontend"]["linear"]["bias"] = bias
        return params, {}

    def apply(
        self,
        params: dict[str, Any],
        x: Float[Array, "b t m"],
        lengths: Int[Array, "b"],
        *,
        context: Context = "full",
        upto: int | None = None,
        train: bool = False,
        stats: dict[str, Any] | None = None,
        rng: Key[Array, ""] | None = None,
    ) -> tuple[
        Float[Array, "b u d"], Int[Array, "b"], dict[str, Float[Array, "b u d"]], dict[str, Any]
    ]:
        """Encodes features.

        Args:
          x: normalised features `[B, T, M]`; padded frames never matter, NaN included.
          lengths: valid frames `[B]`; 0 is allowed.
          context: "full", or "causal": the same weights with a triangular attention mask and the
            future taps of the blocks' depthwise convolutions left out; output t then depends on
            feature frames up to factor (t + 1) - 1 alone (`frontend.receptive_field`).
          upto: run only the first `upto` blocks.
          train, rng: dropout is active in training and then needs a key.

        Returns:
          float32 output `[B, ceil(T / factor), D]`, exactly 0 in padded frames; its lengths `[B]`;
          {"latents": the front end's output, same shape}; the stats unchanged (there are none).

        Raises:
          ValueError: an unknown context, or dropout without `rng`.
        """
        if context not in ("full", "causal"):
            raise ValueError(f"context={context!r} must be 'full' or 'causal'")
        dropping = train and self.dropout > 0
        if dropping and rng is None:
            raise ValueError("training with dropout needs rng")
        layers = self.layers if upto is None else upto
        if not 0 <= layers <= self.layers:
            raise ValueError(f"upto={upto} must lie in 0..{self.layers}")
        subsample = jax.checkpoint(self.frontend.apply) if self.remat else self.frontend.apply
        latents, lengths = subsample({"params": params["frontend"]}, x, lengths)
        valid = valid_frames(latents.shape[1], lengths)
        blocks = jax.tree.map(lambda leaf: leaf[:layers], params["blocks"])
        keys = _dropout_keys(rng, layers) if dropping else None
        block, causal = self.block, context == "causal"

        def step(x, layer):
            weights, key = layer
            rngs = {"dropout": key} if dropping else {}
            return block.apply({"params": weights}, x, valid, causal, dropping, rngs=rngs), None

        if self.remat:
            step = jax.checkpoint(step, prevent_cse=self.scan_unroll > 1)
        output, _ = lax.scan(step, latents, (blocks, keys), unroll=self.scan_unroll)
        output = jnp.where(valid[..., None], at_least_float32(output), 0.0)
        return output, lengths, {"latents": at_least_float32(latents)}, stats or {}

    def frames(self, frames: int) -> int:
        """Output frames of `frames` feature frames."""
        return output_lengths(frames, self.factor)

    def flops(self, frames: int) -> float:
        """Floating-point operations of one forward pass over `frames` feature frames (heads apart).

        Those of the front end (`frontend.subsampling_flops`) and L (2 t ((4 e + 7) d^2 + k d) +
        6 t^2 d), with t output frames and e = ff_mult; 6 t^2 d is attention's content scores,
        position scores and weighted sum. A backward pass costs twice as much.
        """
        d, separable = self.dim, self.subsampling == "parakeet"
        subsampling, t = subsampling_flops(
            frames, self.n_mels, self.channels, d, self.factor, separable
        )
        frame = 2 * ((4 * self.ff_mult + 7) * d**2 + self.kernel * d) + 6 * t * d
        return float(subsampling + self.layers * t * frame)


def _draw(rng: Key[Array, ""], shapes: dict[str, Any]) -> dict[str, Any]:
    """Arrays of the given shapes; a kernel's fan-in is the product of its own axes but the last."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        shapes, is_leaf=lambda node: isinstance(node, tuple)
    )
    sizes = [math.prod(shape) if path[-1].key == "kernel" else 0 for path, shape in leaves]
    ends = list(itertools.accumulate(sizes))

    def fill(rng: Key[Array, ""]) -> list[Array]:
        normal = jax.random.normal(rng, (ends[-1],), jnp.float32)
        arrays = []
        for (path, shape), size, end in zip(leaves, sizes, ends, strict=True):
            if size:
                own = shape[1:] if path[0].key == "blocks" else shape
                kernel = normal[end - size : end].reshape(shape)
                arrays.append(kernel * math.prod(own[:-1]) ** -0.5)
            else:
                arrays.append(jnp.full(shape, float(path[-1].key == "scale")))
        return arrays

    return jax.tree.unflatten(treedef, jax.jit(fill)(rng))


def _dropout_keys(rng: Key[Array, ""], layers: int) -> Key[Array, "l"]:
    """One fast (rbg) key a block."""
    bits = jax.random.bits(rng, (4,), jnp.uint32)
    return jax.random.split(jax.random.wrap_key_data(bits, impl="rbg"), layers)
