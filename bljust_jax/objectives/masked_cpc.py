"""Masked CPC: tell the unmasked input of a masked frame from that of others, without a quantizer.

Source: Talnikar, Likhomanenko, Collobert, Synnaeve, "Joint masked CPC and CTC training for ASR",
ICASSP 2021, arXiv 2011.00093; settings of the authors' public recipe for 100 M parameters.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Aux
from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field
from bljust_jax.common.shapes import Frames
from bljust_jax.models import heads
from bljust_jax.models.encoders import Encoder
from bljust_jax.objectives import EncoderObjective
from bljust_jax.objectives.masked_frames import FrameMask, MaskedPass
from bljust_jax.objectives.wav2vec2 import contrast, draw_negatives

FIELDS = {
    "mask_prob": Field(float, "share of frames in masked spans, or less", r.ABOVE_0_TO_1, 0.75),
    "mask_seconds": Field(float, "length of a masked span", r.ABOVE_0, 0.2),
    "noise_std": Field(float, "standard deviation of noise in masked features", r.AT_LEAST_0, 0.1),
    "negatives": Field(int, "negative masked frames of the same utterance", r.AT_LEAST_1, 100),
    "temperature": Field(float, "divisor of the cosine", r.ABOVE_0, 0.1),
    "width": Field(int, "width of projected targets and predictions", r.AT_LEAST_1, 256),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedCpc(EncoderObjective):
    """-log( exp(s_tt) / (exp(s_tt) + sum over negatives j of exp(s_tj)) ), nats per masked frame.

        s_tj = cosine(P h_t, Q z_j) / temperature

    h_t: output on the masked input. z_j: input of frame j without the mask: the frame before any
    context, where the encoder masks after it (`Encoder.masks_input`; gradients pass), else the
    features of the frame, stacked. Negatives are `negatives` other masked frames of the utterance.

    input_dim: width of z
    Parameters params["masked_cpc_head"] = {"predict": P, "target": Q}, linear maps to `width`.
    The weight is the number of masked frames of utterances that have at least two. Metric:
    `<name>/accuracy`, share of frames whose target scores above every negative.
    """

    name: str = "masked_cpc"
    masking: FrameMask
    input_dim: int
    negatives: int
    temperature: float | int
    width: int

    def init(self, rng: Any) -> tuple[dict, dict]:
        predict, target = jax.random.split(rng)
        head = {
            "predict": heads.init(predict, self.encoder.dim, self.width),
            "target": heads.init(target, self.input_dim, self.width),
        }
        return {self.head: head}, {}

    def head_cost(self, losses: frozenset[str], seconds: float | int) -> float | int:
        """FLOPs of projections and scores, counted on all frames."""
        scores = 6 * (self.negatives + 1) * self.width * self.frames_of(seconds)
        return super().head_cost(losses, seconds) + scores

    def targets(self, passed: MaskedPass) -> Frames:
        """z [B, T, input_dim]; 0 in padded frames."""
        if not self.masking.stack:
            return passed.encoded.hidden["latents"]
        stack, (rows, frames, bands) = self.masking.stack, passed.x.shape
        real = jnp.arange(frames)[None, :, None] < passed.frames[:, None, None]
        x = jnp.pad(jnp.where(real, passed.x, 0), ((0, 0), (0, -frames % stack), (0, 0)))
        return x.reshape(rows, -1, stack * bands)

    def apply(self, params, extras, batch, rng):
        data, name, head = batch[self.stream], self.name, params[self.head]
        pass_rng, negatives_rng = jax.random.split(rng)
        passed = self.masking.encode(self.encoder, params, extras, data, pass_rng)
        mask = passed.mask & (jnp.sum(passed.mask, axis=1, keepdims=True) >= 2)
        scale, z = extras.scale[name], self.targets(passed)
        frames = jnp.broadcast_to(jnp.arange(mask.shape[1])[None, :, None], (*mask.shape, 1))
        nats, hits, _ = contrast(
            heads.apply(head["predict"], scale_gradient(passed.encoded.output, scale)),
            heads.apply(head["target"], scale_gradient(z, scale).astype(jnp.float32)),
            frames,  # no two frames have the same target
            mask,
            draw_negatives(row_keys(negatives_rng, data["ids"]), mask, self.negatives),
            temperature=self.temperature,
        )
        count = jnp.sum(mask, dtype=jnp.float32)
        accuracy = (jnp.sum(hits, dtype=jnp.float32), count)
        return {name: (jnp.sum(nats), count)}, Aux({f"{name}/accuracy": accuracy}, {})


def build(config: Any, encoder: Encoder) -> MaskedCpc:
    """The loss as `config.masked_cpc` sets it."""
    masking = FrameMask.of(config, encoder, "masked_cpc")
    stacked = masking.stack * config.features.n_mels if masking.stack else encoder.latent_dim
    return MaskedCpc(
        encoder=encoder,
        sample_rate=config.data.sample_rate,
        masking=masking,
        input_dim=stacked,
        **{key: config.masked_cpc[key] for key in ("negatives", "temperature", "width")},
    )
