"""data2vec: regress the outputs of an averaged copy of the encoder on audio that is not masked.

Source: Baevski, Hsu, Xu, Babu, Gu, Auli, "data2vec: a general framework for self-supervised
learning in speech, vision and language", arXiv 2202.03555, sections 3.3 and 4.2. Theirs averages
the outputs of the feed-forward networks, ours those of whole blocks.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.types import Aux, Teacher
from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field
from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Frames, Mask, Scalar
from bljust_jax.models import heads
from bljust_jax.models.encoders import Encoder
from bljust_jax.objectives import EncoderObjective
from bljust_jax.objectives.masked_frames import FrameMask, MaskedPass
from bljust_jax.ops.log_mel import normalise

FIELDS = {
    "top": Field(int, "K, last blocks that make targets; 0: two thirds of all", r.AT_LEAST_0, 0),
    "beta": Field(float, "error that the loss is linear from on; 0: squared", r.AT_LEAST_0, 0.0),
    "mask_prob": Field(float, "share of frames in masked spans, or less", r.FROM_0_TO_1, 0.65),
    "mask_seconds": Field(float, "length of a masked span", r.ABOVE_0, 0.2),
    "noise_std": Field(float, "standard deviation of noise in masked features", r.AT_LEAST_0, 0.1),
    "tau_start": Field(float, "the teacher's decay at step 0 of the loss", r.FROM_0_TO_1, 0.999),
    "tau_end": Field(float, "the teacher's decay from tau_steps on", r.FROM_0_TO_1, 0.9999),
    "tau_steps": Field(int, "steps of the linear change of the decay", r.AT_LEAST_1, 30000),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data2vec(EncoderObjective):
    """Mean over masked frames of mean_e l(prediction_te - target_te).

        target = 1/K sum over the last K blocks k of normalise(b_k), over the time of the utterance
        l(d)   = d^2 if beta = 0, else d^2 / (2 beta) if |d| <= beta, else |d| - beta / 2

    b_k: outputs of the teacher on the input that is not masked, in evaluation mode (no dropout).
    `extras.frozen["data2vec"]`, the teacher, averages the encoder's parameters at the decay
    tau_start + (tau_end - tau_start) min(k / tau_steps, 1), k the steps of this loss so far. No
    gradient reaches it.

    Parameters params["data2vec_head"]: a linear map to the width of a block. Metrics:
    `<name>/target_std` and `<name>/prediction_std`, standard deviation over the masked frames of
    the batch, mean of the channels: near 0 once all frames have the same target.
    """

    name: str = "data2vec"
    masking: FrameMask
    top: int
    beta: float | int
    tau_start: float | int
    tau_end: float | int
    tau_steps: int

    @property
    def teachers(self) -> dict[str, Teacher]:
        return {self.name: Teacher(self.name, "encoder", self.decay)}

    def decay(self, k: Any) -> Scalar:
        share = jnp.minimum(jnp.asarray(k, jnp.float32) / self.tau_steps, 1)
        return self.tau_start + (self.tau_end - self.tau_start) * share

    def init(self, rng: Any) -> tuple[dict, dict]:
        return {self.head: heads.init(rng, self.encoder.dim, self.encoder.block_dim)}, {}

    def cost(self, losses: frozenset[str], seconds: float | int) -> float:
        """The student's pass, forward and backward, and the teacher's."""
        return super().cost(losses, seconds) * 4 / 3

    def targets(self, extras: Any, passed: MaskedPass) -> Float[Array, "b t e"]:
        """Mean of the teacher's normalised blocks; no gradient, 0 in padded frames."""
        options = {"context": "full", "input_mask": None, "train": False, "top": self.top}
        teacher = {"encoder": extras.frozen[self.name]}
        encoded = self.encoder.encode(
            teacher, extras.stats, passed.x, passed.frames, rng=None, **options
        )
        blocks = jax.lax.stop_gradient(encoded.hidden["blocks"])
        normal = jax.vmap(lambda block: normalise(block, encoded.lengths))(blocks)
        return jnp.mean(normal, axis=0)

    def apply(self, params, extras, batch, rng):
        data, name = batch[self.stream], self.name
        passed = self.masking.encode(self.encoder, params, extras, data, rng)
        hidden = scale_gradient(passed.encoded.output, extras.scale[name])
        predicted, target = heads.apply(params[self.head], hidden), self.targets(extras, passed)
        mask = passed.mask
        error = jnp.mean(penalty(predicted - target, self.beta), axis=-1)
        count = jnp.sum(mask, dtype=jnp.float32)
        some = (count > 0).astype(jnp.float32)
        metrics = {
            f"{name}/target_std": (some * deviation(target, mask), some),
            f"{name}/prediction_std": (some * deviation(predicted, mask), some),
        }
        return {name: (jnp.sum(jnp.where(mask, error, 0)), count)}, Aux(metrics, {})


def build(config: Any, encoder: Encoder) -> Data2vec:
    """The loss as `config.data2vec` sets it; UserError for an encoder without outputs of blocks,
    for more blocks than it has, and for one with running statistics."""
    own = config.data2vec
    if not encoder.block_dim:
        raise UserError(
            f"config.ssl='data2vec': the encoder {config.encoder!r} has no outputs of blocks; take "
            "a Conformer"
        )
    if own.top > encoder.blocks:
        raise UserError(
            f"config.data2vec.top={own.top} must be 1 .. {encoder.blocks}, or 0 for two thirds"
        )
    _, stats = jax.eval_shape(encoder.init, jax.random.key(0))
    if "encoder" in stats:
        raise UserError(
            "config.ssl='data2vec': the teacher has no running statistics of its own; set "
            "config.model.norm='layer'"
        )
    fields = ("beta", "tau_start", "tau_end", "tau_steps")
    return Data2vec(
        encoder=encoder,
        sample_rate=config.data.sample_rate,
        masking=FrameMask.of(config, encoder, "data2vec"),
        top=own.top or max(1, round(2 * encoder.blocks / 3)),
        **{field: own[field] for field in fields},
    )


def penalty(d: Frames, beta: float | int) -> Frames:
    """l(d) of `Data2vec`."""
    if beta == 0:
        return jnp.square(d)
    size = jnp.abs(d)
    return jnp.where(size <= beta, jnp.square(d) / (2 * beta), size - beta / 2)


def deviation(x: Frames, mask: Mask) -> Scalar:
    """Mean over channels of the standard deviation over the masked frames of a batch."""
    chosen, count = mask[..., None], jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(jnp.where(chosen, x, 0), axis=(0, 1)) / count
    squares = jnp.where(chosen, jnp.square(x - mean[None, None, :]), 0)
    return jnp.mean(jnp.sqrt(jnp.sum(squares, axis=(0, 1)) / count))
