"""BEST-RQ: predict the codes that a fixed random quantiser gives masked frames.

Source: Chiu, Qin, Zhang, Yu, Wu, "Self-supervised learning with random-projection quantizer for
speech recognition", ICML 2022. The quantiser reads the clean features, the encoder the masked ones;
labels are targets of the head and never an input.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Aux
from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field
from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Features, Frames, Lengths, Logits, Mask, RowKeys, Scalar
from bljust_jax.models import heads
from bljust_jax.models.encoders import Encoded, Encoder
from bljust_jax.objectives import EncoderObjective
from bljust_jax.ops import quantizer
from bljust_jax.ops.log_mel import normalise, valid_frames
from bljust_jax.ops.masking import start_spans
from bljust_jax.ops.quantizer import Codes, CodeScores

FIELDS = {
    "stack": Field(
        int, "feature frames per label: the encoder's subsampling factor", r.AT_LEAST_1, 4
    ),
    "mask_prob": Field(
        float, "probability that a span starts at a label frame", r.ABOVE_0_TO_1, 0.04
    ),
    "mask_length": Field(int, "label frames per masked span", r.AT_LEAST_1, 10),
    "noise_std": Field(
        float, "standard deviation of the noise in masked frames", r.AT_LEAST_0, 0.1
    ),
    "codes": Field(int, "codes per codebook", r.AT_LEAST_1, 8192),
    "code_dim": Field(int, "width of a code", r.AT_LEAST_1, 16),
    "codebooks": Field(int, "codebooks; the loss is their mean", r.AT_LEAST_1, 1),
}


class QuantizerSize(NamedTuple):
    """Shape of the fixed quantiser: projections `[C, dim, code_dim]`, codes `[C, V, code_dim]`."""

    dim: int
    codes: int
    code_dim: int
    codebooks: int

    @classmethod
    def of(cls, config: Any) -> "QuantizerSize":
        c = config.best_rq
        return cls(c.stack * config.features.n_mels, c.codes, c.code_dim, c.codebooks)

    def flops(self) -> int:
        """Of one label: projection and distances to all codes."""
        return 2 * self.codebooks * self.code_dim * (self.dim + self.codes)


class Masking(NamedTuple):
    """Masking of input frames, the settings of `mask_input`."""

    stack: int  # feature frames per label: the encoder's subsampling factor
    probability: float | int  # that a span starts at a label frame
    span: int  # label frames
    noise_std: float | int

    @classmethod
    def of(cls, config: Any) -> "Masking":
        c = config.best_rq
        return cls(c.stack, c.mask_prob, c.mask_length, c.noise_std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestRq(EncoderObjective):
    """Cross-entropy of the anchor labels in masked frames, in nats per frame, mean of codebooks.

    entries: logits in memory at a time, of `quantizer.sum_over_frames`
    dtype: of the head's products (`heads.apply`)

    Parameters params["best_rq_head"] = {"head": a linear map to the codes of all codebooks};
    `extras.frozen["best_rq"]` = {"projection", "codebook"}. The loss is a sum over masked frames
    and its weight is their number. Metrics: `<name>/accuracy`; `<name>/masked_share` of the valid
    frames; `codebook/anchor/...` (`quantizer.usage_metrics`) of the labels in masked frames. Raises
    UserError for an encoder of waveforms, or with another subsampling factor than `masking.stack`.
    """

    name: str = "best_rq"
    masking: Masking
    size: QuantizerSize
    entries: int = quantizer.ENTRIES
    dtype: str = "float32"

    def init(self, rng: Any) -> tuple[dict, dict]:
        size = self.size
        head, labels = jax.random.split(rng)
        kernel = heads.init(head, self.encoder.dim, size.codebooks * size.codes)
        frozen = quantizer.init_random_projection(labels, *size)
        return {self.head: {"head": kernel}}, {self.name: frozen}

    def head_cost(self, losses: frozenset[str], seconds: float | int) -> float | int:
        """FLOPs of the head, counted on all frames, and of the quantiser's forward pass."""
        return super().head_cost(losses, seconds) + self.frames_of(seconds) * self.size.flops()

    def logits(self, params: Any, h: Frames) -> CodeScores:
        return split_codebooks(heads.apply(params[self.head]["head"], h, self.dtype), self.size)

    def apply(self, params, extras, batch, rng):
        data, frozen, name = batch[self.stream], extras.frozen[self.name], self.name
        masked = encode_masked(self.encoder, self.masking, params, extras, data, rng, name)
        mask = masked.mask
        labels = anchor_labels(frozen, masked.features, masked.frames, self.masking.stack)
        hidden = scale_gradient(masked.encoded.output, extras.scale[name])

        def score(positions, wanted, hidden, labels):
            return score_labels(self.logits(params, hidden), labels, wanted)

        codebooks, codes, _ = frozen["codebook"].shape
        nats, hits = quantizer.sum_over_frames(
            score, mask, hidden, labels, width=codebooks * codes, entries=self.entries
        )
        frames = jnp.sum(mask, dtype=jnp.float32)
        metrics = {
            f"{name}/accuracy": (hits, frames),
            f"{name}/masked_share": (frames, jnp.sum(masked.encoded.lengths, dtype=jnp.float32)),
            **quantizer.usage_metrics("anchor", quantizer.count_codes(labels, mask, codes)),
        }
        return {name: (nats, frames)}, Aux(metrics, {})


def build(config: Any, encoder: Encoder) -> BestRq:
    """BEST-RQ as `config.best_rq` sets it."""
    return BestRq(
        encoder=encoder,
        sample_rate=config.data.sample_rate,
        masking=Masking.of(config),
        size=QuantizerSize.of(config),
        dtype=heads.dtype_of(config),
    )


class MaskedPass(NamedTuple):
    """A forward pass over masked features."""

    features: Features  # not masked
    frames: Lengths  # valid frames of the features
    mask: Bool[Array, "b u"]  # at the rate of the output, True = masked
    encoded: Encoded


def encode_masked(
    encoder: Encoder, masking: Masking, params: Any, extras: Any, data: Any, rng: Any, loss: str
) -> MaskedPass:
    """Features of `data`, masked by a key per utterance, and the encoder's output on them."""
    mask_rng, encoder_rng = jax.random.split(rng)
    x, frames, _ = encoder.features(data["audio"], data["audio_lengths"], keys=None, train=True)
    if x.ndim != 3:
        raise UserError(
            f"the loss {loss} masks log-mel frames: config.encoder must read features, such as "
            '"conformer"'
        )
    keys = row_keys(mask_rng, data["ids"])
    masked, mask = mask_input(x, frames, keys, **masking._asdict())
    options = {"context": "full", "input_mask": None, "train": True, "rng": encoder_rng}
    encoded = encoder.encode(params, extras.stats, masked, frames, **options)
    if mask.shape[1] != encoded.output.shape[1]:
        raise UserError(
            f"config.best_rq.stack={masking.stack} makes {mask.shape[1]} labels where the encoder "
            f"makes {encoded.output.shape[1]} frames: set it to the encoder's subsampling factor"
        )
    return MaskedPass(x, frames, mask, encoded)


def split_codebooks(logits: Logits, size: QuantizerSize) -> CodeScores:
    """K = C V classes by codebook."""
    return logits.reshape(*logits.shape[:2], size.codebooks, size.codes)


def anchor_labels(
    frozen: dict[str, Float[Array, "..."]], x: Features, lengths: Lengths, stack: int
) -> Int[Array, "b u c"]:
    """The nearest code of each `stack` frames of features, U = ceil(T / stack).

    Features are normalised per band over the valid frames of the utterance and concatenated `stack`
    at a time, zeros filling up the last group; then `quantizer.nearest`. No gradient.
    """
    x = normalise(x, lengths)
    batch, frames, bands = x.shape
    groups = -(-frames // stack)
    x = jnp.pad(x, ((0, 0), (0, groups * stack - frames), (0, 0)))
    return quantizer.nearest(frozen, x.reshape(batch, groups, stack * bands))


def mask_input(
    x: Features,
    lengths: Lengths,
    keys: RowKeys,
    *,
    stack: int,
    probability: float,
    span: int,
    noise_std: float,
) -> tuple[Features, Bool[Array, "b u"]]:
    """(features with masked frames replaced by N(0, noise_std^2), mask at the rate of labels).

    Spans are drawn at the rate of labels (`masking.start_spans`), so that the frames of one label
    are masked together; True = masked. Padded frames are not changed.
    """
    frames, bands = x.shape[1:]
    labels = -(-frames // stack)
    mask = start_spans(keys, -(-lengths // stack), labels, probability=probability, span=span)
    noise = jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, 2), (frames, bands), jnp.float32)
    )(keys)
    hidden = jnp.repeat(mask, stack, axis=1)[:, :frames] & valid_frames(frames, lengths)
    return jnp.where(hidden[..., None], noise_std * noise, x), mask


def score_labels(logits: CodeScores, labels: Codes, wanted: Mask) -> tuple[Scalar, Scalar]:
    """Sums over the wanted frames of (nats, hits) of hard labels, each frame the mean of its
    codebooks."""
    nats = jnp.mean(quantizer.hard_nats(logits, labels), axis=-1)
    hits = jnp.mean(jnp.argmax(logits, axis=-1) == labels, axis=-1, dtype=jnp.float32)
    return jnp.sum(jnp.where(wanted, nats, 0)), jnp.sum(jnp.where(wanted, hits, 0))
