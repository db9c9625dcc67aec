"""The CNN-RNN encoder of LSTM-JUST: 2-d convolutions, a linear map, bidirectional layers.

Source: Chen and Saif, "Wav2Vec2-JUST and LSTM-JUST", 2024. Its text and its table of parameter
counts describe two networks; `CnnRnn.kind` selects one. The counts determine the layers of the
second but not their connection: here residual branches of norm, GELU, dropout, layer.
"""

import dataclasses
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax.common import config_schema
from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Features, Lengths, Rng
from bljust_jax.models import cnn_rnn_blocks as parts
from bljust_jax.models import encoders, layers
from bljust_jax.models.encoders import Encoder
from bljust_jax.models.norms import at_least_float32
from bljust_jax.models.subsampling import output_lengths
from bljust_jax.ops.log_mel import valid_frames


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
        config_schema.check_model(self)
        if self.kind == "gru" and self.channels % self.heads:
            raise UserError(f"channels={self.channels} must be a multiple of heads={self.heads}")

    @property
    def dim(self) -> int:
        """Width of the output."""
        return self.proj or 2 * self.units

    @property
    def bands(self) -> int:
        """Bands after the stem."""
        return output_lengths(self.n_mels, 2)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules of the parameters of the same names, in the order of their application."""
        dtype, rate = jnp.dtype(self.dtype), self.dropout
        cnn = parts.ConvolutionLayer(self.channels, rate)
        if self.kind == "gru":
            cnn = parts.ResidualLayer(self.channels, self.heads, rate)
        rnn = parts.RecurrentLayer(self.kind, self.units, rate, self.scan_unroll)
        modules = {"stem": parts.Convolution(self.channels, 2)}
        modules |= {f"cnn{i + 1}": cnn for i in range(self.cnn_layers)}
        modules["linear"] = layers.Dense(self.latent_dim, dtype=dtype)
        modules |= {f"rnn{i + 1}": rnn for i in range(self.rnn_layers)}
        return modules | ({"proj": layers.Dense(self.proj, dtype=dtype)} if self.proj else {})

    @partial(jax.jit, static_argnums=0)
    def init(self, rng: Rng) -> tuple[dict[str, Any], dict[str, Any]]:
        """Float32 parameters {"stem", "cnn1", ..., "linear", "rnn1", ..., "proj"} and no stats."""
        c, width, valid = self.channels, 2 * self.units, jnp.ones((1, 1), bool)
        grid, backwards = jnp.zeros((1, 1, self.bands, c)), jnp.zeros((1, 1, 1), jnp.int32)
        inputs = {
            "stem": (jnp.zeros((1, 1, self.n_mels, 1)), valid),
            "cnn": (grid, valid),
            "linear": (grid.reshape(1, 1, -1),),
            "rnn1": (jnp.zeros((1, 1, self.latent_dim)), backwards),
            "rnn": (jnp.zeros((1, 1, width)), backwards),
            "proj": (jnp.zeros((1, 1, width)),),
        }
        modules = dataclasses.replace(self, dtype="float32").modules
        keys = jax.random.split(rng, len(modules))
        params = {}
        for (name, module), key in zip(modules.items(), keys, strict=True):
            given = inputs[name] if name in inputs else inputs[name.rstrip("0123456789")]
            params[name] = layers.init_params(module, key, *given)
        return params, {}

    def apply(
        self,
        params: dict[str, Any],
        x: Features,
        lengths: Lengths,
        *,
        context: Literal["full", "causal"] = "full",
        depth: int | None = None,
        top: int = 0,
        train: bool = False,
        stats: dict[str, Any] | None = None,
        rng: Rng | None = None,
    ) -> tuple[Float[Array, "b u d"], Lengths, dict[str, Float[Array, "*k b u e"]], dict[str, Any]]:
        """Encode features.

        Args:
          x: normalised features `[B, T, M]`; padded frames never matter, NaN included.
          lengths: valid frames `[B]`; 0 is allowed.
          context: "full" alone: the layers are bidirectional.
          depth: run the first `depth` RNN layers only, at least 1, then the output map.
          train, rng: dropout is active in training and needs a key.

        Returns:
          float32 output `[B, ceil(T / 2), D]`, exactly 0 in padded frames; its lengths `[B]`;
          {"latents": `[B, ceil(T / 2), E]`, the input of the RNN, "blocks": see
          `layers.top_blocks` for `top`}; the stats unchanged (none).

        Raises ValueError for a causal context, `depth` out of range, or dropout without `rng`.
        """
        if context != "full":
            raise ValueError(
                f"context={context!r}: a bidirectional encoder reads future frames; set"
                " config.cpc.context='chunked' and config.ctc.context='full'"
            )
        depth = layers.resolve_depth(depth, self.rnn_layers, least=1)
        train = layers.drops(self.dropout, train, rng)
        keys = iter(layers.dropout_keys(rng, self.cnn_layers + depth)) if train else None
        modules = self.modules

        def run(name: str, *given: Array, options: tuple = ()) -> Array:
            rngs = {"dropout": next(keys)} if train and options else {}
            return modules[name].apply({"params": params[name]}, *given, *options, rngs=rngs)

        x = x.astype(self.dtype)[..., None]
        x = run("stem", x, valid_frames(x.shape[1], lengths))
        lengths = output_lengths(lengths, 2)
        valid = valid_frames(x.shape[1], lengths)
        for i in range(self.cnn_layers):
            x = run(f"cnn{i + 1}", x, valid, options=(train,))
        x = jnp.where(valid[..., None, None], x, 0.0)
        latents = run("linear", x.reshape(*x.shape[:2], -1))
        latents = jnp.where(valid[..., None], latents, 0.0)
        backwards = parts.reversed_frames(latents.shape[1], lengths)
        every = [latents]
        for i in range(depth):
            every.append(run(f"rnn{i + 1}", every[-1], backwards, options=(train,)))
        last = parts.gelu(run("proj", every[-1])) if self.proj else every[-1]
        output = jnp.where(valid[..., None], at_least_float32(last), 0.0)
        hidden = {"latents": at_least_float32(latents)} | layers.top_blocks(every[1:], top, valid)
        return output, lengths, hidden, stats or {}

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
            total += 4 * t * parts.GATES[self.kind] * h * (inputs + h)
        return float(total + 4 * t * h * self.proj)


def build(config: Any) -> Encoder:
    fields = {"n_mels": config.features.n_mels, **config.model}
    model = encoders.make_model(CnnRnn, config, fields)
    sizes = {"latent_dim": model.latent_dim, "blocks": model.rnn_layers}
    sizes["block_dim"] = 2 * model.units
    return encoders.log_mel_encoder(config, model, "CNN-RNN", **sizes)
