"""The wav2vec 2.0 encoder: waveform convolutions, masking, a Transformer run by `lax.scan`."""

import dataclasses
import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from bljust_jax.common import config_schema
from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Frames, Lengths, Rng
from bljust_jax.models import audio_features, encoders, layers, remat
from bljust_jax.models import wav2vec2_blocks as parts
from bljust_jax.models.attention import Task, choose
from bljust_jax.models.encoders import Encoder
from bljust_jax.models.norms import at_least_float32
from bljust_jax.ops.log_mel import FULL_SCALE, Counts, frame_count, masked_moments, valid_frames
from bljust_jax.ops.masking import InputMask, wav2vec2_spans

VARIANCE_FLOOR = 1e-7
KERNEL, STRIDE = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
# "base" is section 4.2 of the paper; "large" is its LV-60k model, whose shapes XLS-R 300M has too.
# "tiny", 0.6 M parameters, trains on two CPU cores.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 96, "layers": 4, "heads": 4, "ff_dim": 384, "conv_dim": (64,) * 7}
    | {"conv_bias": True, "feat_norm": "layer", "stable_layer_norm": True},
    "base": {"dim": 768, "layers": 12, "heads": 12, "ff_dim": 3072},
    "large": {"dim": 1024, "layers": 24, "heads": 16, "ff_dim": 4096}
    | {"conv_bias": True, "feat_norm": "layer", "stable_layer_norm": True},
}


@dataclasses.dataclass(frozen=True)
class Wav2Vec2:
    """wav2vec 2.0: waveform to hidden frames, 50 per second at 16 kHz (Baevski et al., NeurIPS
    2020).

    dim, layers, heads, ff_dim: width, blocks, attention heads, feed-forward width
    conv_dim, conv_kernel, conv_stride, conv_bias: waveform convolutions
    feat_norm: their norm, "group" (over time, after the first) or "layer" (after each)
    stable_layer_norm: a block normalises its input, else its sums
    pos_kernel, pos_groups: taps and groups of the convolutional positions
    dropout: rate after the positions, on each branch and on attention weights
    layerdrop: probability that training skips a block
    feature_grad_scale: factor on the gradient of the waveform convolutions (0.1 in the authors'
        code, 0 freezes them)
    dtype: of the products, "float32" or "bfloat16"; parameters stay float32
    scan_unroll: blocks per scan iteration
    remat: rematerialisation policy (`remat.wrap`)
    hf_compat: the "group" norm includes padded frames, as in transformers, so that the output
        depends on padding
    attention: form that computes it (`attention.choose`); changes no result but its rounding
    """

    dim: int
    layers: int
    heads: int
    ff_dim: int
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = KERNEL
    conv_stride: tuple[int, ...] = STRIDE
    conv_bias: bool = False
    feat_norm: str = "group"
    stable_layer_norm: bool = False
    pos_kernel: int = 128
    pos_groups: int = 16
    dropout: float = 0.0
    layerdrop: float = 0.0
    feature_grad_scale: float = 1.0
    dtype: str = "float32"
    scan_unroll: int = 1
    remat: str = "none"
    hf_compat: bool = False
    attention: str = "auto"

    def __post_init__(self):
        config_schema.check_model(self)
        for name, number in (("heads", self.heads), ("pos_groups", self.pos_groups)):
            if self.dim % number:
                raise UserError(f"dim={self.dim} must be a multiple of {name}={number}")
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride) > 0:
            raise UserError("conv_dim, conv_kernel and conv_stride must have as many entries each")
        choose(self.attention, Task(self.dim // self.heads, jnp.dtype(self.dtype), biased=False))

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules behind the parameters of the same names; "blocks" is one block."""
        dtype = jnp.dtype(self.dtype)
        shapes = self.conv_dim, self.conv_kernel, self.conv_stride
        waveform = parts.WaveformEncoder(
            *shapes, self.conv_bias, self.feat_norm, self.hf_compat, dtype=dtype
        )
        block = parts.TransformerBlock(
            *(self.heads, self.ff_dim, self.stable_layer_norm, self.dropout, dtype),
            self.attention,
        )
        return {
            "frontend": waveform,
            "projection": parts.Projection(self.dim, dtype),
            "positions": parts.Positions(self.pos_kernel, self.pos_groups),
            "norm": parts.LayerNorm(dtype=dtype),
            "blocks": block,
        }

    @partial(jax.jit, static_argnums=0)
    def init(self, rng: Rng) -> tuple[dict[str, Any], dict[str, Any]]:
        """Float32 parameters {"frontend", "projection", "masked_embedding", "positions", "norm",
        "blocks"} and no stats; blocks are stacked on axis 0. The mask embedding is uniform on
        [0, 1)."""
        valid, lengths = jnp.ones((1, 1), bool), jnp.ones(1, jnp.int32)
        frames = jnp.zeros((1, 1, self.dim))
        audio = jnp.zeros((1, math.prod(self.conv_stride) * sum(self.conv_kernel)))
        inputs = {
            "frontend": (audio, lengths),
            "projection": (jnp.zeros((1, 1, self.conv_dim[-1])),),
            "positions": (frames,),
            "norm": (frames,),
        }
        modules = self.modules
        embedding, blocks, *keys = jax.random.split(rng, 2 + len(inputs))
        params = {
            name: layers.init_params(modules[name], key, *given)
            for (name, given), key in zip(inputs.items(), keys, strict=True)
        }
        params["blocks"] = layers.init_stack(modules["blocks"], blocks, self.layers, frames, valid)
        params["masked_embedding"] = jax.random.uniform(embedding, (self.dim,), jnp.float32)
        return params, {}

    def shapes(self) -> dict[str, Any]:
        """The shape of each parameter of `init`."""
        return layers.shapes_of(self.init)[0]

    def apply(
        self,
        params: dict[str, Any],
        x: Float[Array, "b s"],
        lengths: Lengths,
        *,
        context: str = "full",
        input_mask: InputMask | None = None,
        depth: int | None = None,
        top: int = 0,
        train: bool = False,
        stats: dict[str, Any] | None = None,
        rng: Rng | None = None,
    ) -> tuple[Frames, Lengths, dict[str, Float[Array, "*k b t c"]], dict[str, Any]]:
        """Encode waveforms.

        Args:
          x: waveform `[B, S]`, of mean 0 and variance 1; padded samples never matter, NaN included
            (but see `hf_compat`).
          lengths: valid samples `[B]`; 0 is allowed.
          context: "full", the only one.
          input_mask: masks after the projection: frames `time` `[B, T]` become the learned
            embedding, then `channels` `[B, D]` become 0; None masks nothing.
          depth: run only the first `depth` blocks. Without the last block, a stable
            encoder skips its final norm.
          top: number of last blocks whose outputs are returned too.
          train, rng: dropout and layerdrop are active in training and need a key.

        Returns:
          float32 output `[B, T, D]`, T = frames(S), exactly 0 in padded frames; its lengths `[B]`;
          {"latents": the features under the projection's norm, never masked, "conv": the features
          before it}, `[B, T, C]` each, 0 in padded frames, and with `top` > 0 "blocks"
          `[top, B, T, D]`, as `layers.top_blocks`; the stats unchanged (there are none).

        Raises:
          UserError: another context.
          ValueError: an unknown depth, or dropout without `rng`.
        """
        if context != "full":
            raise UserError(f"wav2vec 2.0 has no context {context!r}: it reads the whole utterance")
        layers.drops(max(self.dropout, self.layerdrop), train, rng)
        depth = layers.resolve_depth(depth, self.layers)
        embed = remat.wrap(self._embed, self.remat)
        x, conv, latents, lengths = embed(params, x, lengths, input_mask)
        valid = valid_frames(x.shape[1], lengths)
        x, every = self._transform(params, x, valid, depth, rng if train else None, top > 0)
        output, latents, conv = (
            jnp.where(valid[..., None], at_least_float32(h), 0.0) for h in (x, latents, conv)
        )
        hidden = {"latents": latents, "conv": conv, **layers.top_blocks(every, top, valid)}
        return output, lengths, hidden, stats or {}

    def _embed(
        self, params: dict[str, Any], x: Array, lengths: Array, input_mask: InputMask | None
    ) -> tuple[Array, Array, Array, Array]:
        """(input of the Transformer, masked and 0 in padding; conv; latents; frames)."""
        conv, lengths = self._run("frontend", params, x, lengths)
        conv = scaled_gradient(conv, self.feature_grad_scale)
        x, latents = self._run("projection", params, conv)
        if input_mask is not None:
            embedding = params["masked_embedding"].astype(x.dtype)[None, None, :]
            x = jnp.where(input_mask.time[..., None], embedding, x)
            if input_mask.channels is not None:
                x = jnp.where(input_mask.channels[:, None, :], 0.0, x)
        x = jnp.where(valid_frames(x.shape[1], lengths)[..., None], x, 0.0)
        return x, conv, latents, lengths

    def _transform(
        self,
        params: dict[str, Any],
        x: Array,
        valid: Array,
        depth: int,
        rng: Rng | None,
        keep: bool,
    ) -> tuple[Array, Array | None]:
        """(positions, then the first `depth` blocks; with `keep`, the outputs of all of them); with
        `rng`, dropout and layerdrop."""
        dropping, skipping = (rng is not None and p > 0 for p in (self.dropout, self.layerdrop))
        keys, skips = None, None
        if skipping:
            skips = jax.random.uniform(jax.random.fold_in(rng, 1), (depth,)) < self.layerdrop
        x = self._run("positions", params, x)
        if not self.stable_layer_norm:
            x = self._run("norm", params, x)
        if dropping:
            keys = layers.dropout_keys(rng, depth + 1)
            x = nn.Dropout(self.dropout).apply({}, x, deterministic=False, rng=keys[0])
            keys = keys[1:]
        block = self.modules["blocks"]

        def step(x, weights, key, skip):
            rngs = {"dropout": key} if dropping else {}
            y = block.apply({"params": weights}, x, valid, dropping, rngs=rngs)
            y = y if skip is None else jnp.where(skip, x, y)
            return y, (y if keep else None)

        blocks = jax.tree.map(lambda leaf: leaf[:depth], params["blocks"])
        how = {"policy": self.remat, "unroll": self.scan_unroll}
        x, every = layers.scan_blocks(step, x, blocks, keys, skips, **how)
        if self.stable_layer_norm and depth == self.layers:
            x = self._run("norm", params, x)
        return x, every

    def _run(self, name: str, params: dict[str, Any], *args: Array) -> Any:
        return self.modules[name].apply({"params": params[name]}, *args)

    def frames(self, samples: Counts) -> Counts:
        """Output frames of `samples` samples: floor((n - taps) / stride) + 1 per convolution."""
        for taps, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            samples = frame_count(samples, taps, stride)
        return samples

    def flops(self, samples: int, depth: int | None = None) -> float:
        """Floating-point operations of one forward pass over `samples` samples (heads apart).

        2 t_n k_n c_(n-1) c_n of convolution n, 2 t c d of the projection, 4 (t + K) d^2 / groups of
        the positions' spectra and L t (8 d^2 + 4 d f + 4 t d), with t output frames, f = ff_dim and
        L blocks, `depth` if given. A backward pass costs twice as much.
        """
        d, depth = self.dim, self.layers if depth is None else depth
        total, inputs, t = 0, 1, samples
        for width, taps, stride in zip(
            self.conv_dim, self.conv_kernel, self.conv_stride, strict=True
        ):
            t = frame_count(t, taps, stride)
            total, inputs = total + 2 * t * taps * inputs * width, width
        positions = 4 * (t + self.pos_kernel) * d**2 // self.pos_groups
        block = t * (8 * d**2 + 4 * d * self.ff_dim + 4 * t * d)
        return float(total + 2 * t * inputs * d + positions + depth * block)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def scaled_gradient(x: Array, scale: float) -> Array:
    """x forwards, the cotangent times `scale` backwards."""
    return x


scaled_gradient.defvjp(lambda x, scale: (x, None), lambda scale, _, ct: (scale * ct,))


def build(config: Any) -> Encoder:
    model = make_model(config)
    return Encoder(
        dim=model.dim,
        latent_dim=model.conv_dim[-1],
        blocks=model.layers,
        block_dim=model.dim,
        init=model.init,
        features=make_features(config, model),
        apply=model.apply,
        frames=model.frames,
        flops=model.flops,
        statistics=lambda batches: {},
        log_mel=audio_features.make_log_mel(config),
        masks_input=True,
    )


def make_model(config: Any) -> Wav2Vec2:
    """The model of `config.model`, without `normalise`, a setting of the waveform; lists, as in a
    saved config, become tuples."""
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config.model.items()}
    fields.pop("normalise", None)
    return encoders.make_model(Wav2Vec2, config, fields)


def make_features(config: Any, model: Wav2Vec2):
    """`Encoder.features`: int16 audio to waveforms, for training and evaluation.

    `config.model.normalise`: to mean 0 and variance 1 per utterance. With `keys` (one per
    utterance) it draws the `InputMask` of `config.mask`: spans of frames and of channels. Stored
    statistics are not used, since the encoder reads the whole utterance.
    """
    normalised, mask = config.model.normalise, config.mask

    def features(audio, lengths, *, keys=None, train, stats=None):
        x = waveform(audio, lengths, normalised)
        if not train or keys is None:
            return x, lengths, None
        frames, valid = model.frames(audio.shape[1]), model.frames(lengths)
        in_time, in_width = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        time = wav2vec2_spans(
            in_time, valid, frames, probability=mask.time_prob, span=mask.time_length
        )
        width = jnp.full_like(valid, model.dim)
        channels = wav2vec2_spans(
            in_width, width, model.dim, probability=mask.channel_prob, span=mask.channel_length
        )
        return x, lengths, InputMask(time, channels)

    return features


def waveform(audio: Int[Array, "b s"], lengths: Lengths, normalised: bool) -> Float[Array, "b s"]:
    """int16 samples to float32, full scale 1.0, 0 in padding; `normalised`: (x - mean) /
    sqrt(var + 1e-7) over the valid samples of the utterance."""
    valid = valid_frames(audio.shape[1], lengths)
    x = jnp.where(valid, audio, 0).astype(jnp.float32) * FULL_SCALE
    if not normalised:
        return x
    centred, squares, count = masked_moments(x, valid)
    return centred * lax.rsqrt(squares / jnp.maximum(count, 1) + VARIANCE_FLOOR)
