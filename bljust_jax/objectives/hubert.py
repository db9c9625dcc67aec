"""HuBERT: predict given labels of masked frames, such as k-means classes of features or layers.

Source: Hsu, Bolte, Tsai, Lakhotia, Salakhutdinov, Mohamed, "HuBERT: self-supervised speech
representation learning by masked prediction of hidden units", arXiv 2106.07447, equations 1 to 3.
Labels come from `config.data.frame_labels`; `prepare --labels` makes them, first of log-mel
features, then of a layer of a finished run.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.types import Aux
from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field
from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Frames, Mask
from bljust_jax.models import heads
from bljust_jax.models.encoders import Encoder
from bljust_jax.objectives import EncoderObjective
from bljust_jax.objectives.masked_frames import FrameMask
from bljust_jax.ops import quantizer

FIELDS = {
    "classes": Field(int, "classes of data.frame_labels", r.AT_LEAST_1, 100),
    "mask_prob": Field(float, "share of frames in masked spans, or less", r.FROM_0_TO_1, 0.8),
    "mask_seconds": Field(float, "length of a masked span", r.ABOVE_0, 0.2),
    "noise_std": Field(float, "standard deviation of noise in masked features", r.AT_LEAST_0, 0.1),
    "unmasked_weight": Field(float, "weight of a frame that is not masked", r.AT_LEAST_0, 0.0),
    "width": Field(int, "width of projected outputs and class embeddings", r.AT_LEAST_1, 256),
    "temperature": Field(float, "divisor of the cosine", r.ABOVE_0, 0.1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hubert(EncoderObjective):
    """-log softmax_c( cos(A h_t, e_c) / temperature )[label], in nats per frame.

    classes, width: C class embeddings e_c of `width` values
    unmasked_weight: of frames that are not masked; masked ones have weight 1
    label_rate: frame labels per second

    Parameters params["hubert_head"] = {"project": linear map A, "embeddings" [C, width]}. The loss
    is a weighted sum over frames that have a label and its weight is the sum of the weights.
    Metrics, over masked frames with a label: `<name>/accuracy`; `<name>/majority`, share of the
    batch's most frequent class, at least the accuracy of a constant; `<name>/masked_share` of all.
    """

    name: str = "hubert"
    masking: FrameMask
    classes: int
    width: int
    temperature: float | int
    unmasked_weight: float | int
    label_rate: float | int

    @property
    def frame_classes(self) -> tuple[int, str]:
        return self.classes, "config.hubert.classes"

    def init(self, rng: Any) -> tuple[dict, dict]:
        project, embeddings = jax.random.split(rng)
        head = {
            "project": heads.init(project, self.encoder.dim, self.width),
            "embeddings": jax.random.normal(embeddings, (self.classes, self.width), jnp.float32),
        }
        return {self.head: head}, {}

    def logits(self, params: Any, hidden: Frames) -> Float[Array, "b t c"]:
        head = params[self.head]
        projected = quantizer.unit(heads.apply(head["project"], hidden))
        embeddings = quantizer.unit(head["embeddings"])
        highest = jax.lax.Precision.HIGHEST
        scores = jnp.einsum("btp,cp->btc", projected, embeddings, precision=highest)
        return scores / self.temperature

    def targets(self, data: Any, frames: int) -> tuple[Int[Array, "b t"], Mask]:
        """(label of each output frame, whether it has one): the label at its middle,
        (t + 1/2) stride, in seconds times the rate of the labels."""
        middle = (np.arange(frames) + 0.5) * self.encoder.stride / self.sample_rate
        at = np.floor(middle * self.label_rate).astype(np.int32)
        labels = data["frame_labels"]
        known = jnp.asarray(at)[None, :] < data["frame_label_lengths"][:, None]
        return labels[:, np.minimum(at, labels.shape[1] - 1)], known

    def apply(self, params, extras, batch, rng):
        data, name = batch[self.stream], self.name
        _, _, mask, encoded = self.masking.encode(self.encoder, params, extras, data, rng)
        labels, known = self.targets(data, mask.shape[1])
        valid = jnp.arange(mask.shape[1])[None, :] < encoded.lengths[:, None]
        logits = self.logits(params, scale_gradient(encoded.output, extras.scale[name]))
        nats = quantizer.hard_nats(logits[:, :, None], labels[..., None])[..., 0]
        wanted = mask & known
        weights = jnp.where(wanted, 1.0, jnp.where(valid & known, self.unmasked_weight, 0.0))
        total = jnp.sum(jnp.where(weights > 0, weights * nats, 0))
        hits = wanted & (jnp.argmax(logits, axis=-1) == labels)
        count = jnp.sum(wanted, dtype=jnp.float32)
        used = quantizer.count_codes(labels[..., None], wanted, self.classes)
        metrics = {
            f"{name}/accuracy": (jnp.sum(hits, dtype=jnp.float32), count),
            f"{name}/majority": (jnp.max(used), count),
            f"{name}/masked_share": (count, jnp.sum(valid, dtype=jnp.float32)),
        }
        return {name: (total, jnp.sum(weights))}, Aux(metrics, {})


def build(config: Any, encoder: Encoder) -> Hubert:
    """The loss as `config.hubert` sets it; UserError without `config.data.frame_labels`."""
    if not config.data.frame_labels:
        raise UserError(
            "config.data.frame_labels is empty: the loss hubert predicts the labels of frames that "
            "it names; make them by `python -m bljust_jax.prepare --labels`"
        )
    own = config.hubert
    return Hubert(
        encoder=encoder,
        sample_rate=config.data.sample_rate,
        masking=FrameMask.of(config, encoder, "hubert"),
        label_rate=config.data.frame_label_rate,
        **{key: own[key] for key in ("classes", "width", "temperature", "unmasked_weight")},
    )
