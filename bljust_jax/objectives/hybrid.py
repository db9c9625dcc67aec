"""Hybrid CTC and attention: two supervised losses on one forward pass, in one level.

Source: Watanabe, Hori, Kim, Hershey, Hayashi, "Hybrid CTC/attention architecture for end-to-end
speech recognition", IEEE JSTSP 2017, equation 14; a CTC weight of 0.3 is ESPnet's for Conformers.
"""

import dataclasses
from typing import Any

import jax

from bljust_jax.bilevel.types import Aux
from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field
from bljust_jax.objectives.cross_entropy import CrossEntropy
from bljust_jax.objectives.ctc import Ctc

FIELDS = {
    "ctc_weight": Field(float, "weight of CTC; attention has the rest", r.SHARE, 0.3),
    "decode": Field(str, "head that is scored and decoded", ("ctc", "attention"), "ctc"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CtcAttention:
    """w CTC + (1 - w) cross-entropy of the attention decoder, on one augmented pass of the encoder.

    ctc_weight: w, which scales gradients of the encoder; each head has the gradient of its own loss
    """

    ctc: Ctc
    attention: CrossEntropy
    ctc_weight: float | int
    kind: None = None

    @property
    def parts(self) -> dict[str, tuple[Any, float]]:
        """{loss: (its objective, its weight)}."""
        weights = self.ctc_weight, 1 - self.ctc_weight
        return {o.name: (o, w) for o, w in zip((self.ctc, self.attention), weights, strict=True)}

    @property
    def losses(self) -> tuple[str, ...]:
        return tuple(self.parts)

    @property
    def streams(self) -> tuple[str, ...]:
        return self.ctc.streams

    @property
    def name(self) -> str:
        return "+".join(self.losses)

    @property
    def head_owners(self) -> dict[str, frozenset[str]]:
        return self.ctc.head_owners | self.attention.head_owners

    def init(self, rng: Any) -> tuple[dict, dict]:
        ctc, attention = jax.random.split(rng)
        return self.ctc.init(ctc)[0] | self.attention.init(attention)[0], {}

    def cost(self, losses: frozenset[str], seconds: float | int) -> float:
        """Encoder FLOPs of one pass, as of one part."""
        return self.ctc.cost(losses, seconds)

    def head_cost(self, losses: frozenset[str], seconds: float | int) -> float | int:
        return sum(part.head_cost(losses, seconds) for part, _ in self.parts.values())

    def apply(self, params, extras, batch, rng):
        data = batch[self.ctc.stream]
        *keys, decoder_rng = jax.random.split(rng, 3)
        encoded = self.ctc.encode_augmented(params, extras, data, self.ctc.context, *keys)
        losses, metrics = {}, {}
        for name, (part, weight) in self.parts.items():
            given = extras._replace(scale={name: weight * extras.scale[name]})
            own, aux = part.apply_encoded(params, given, data, encoded, decoder_rng)
            losses, metrics = losses | own, metrics | aux.metrics
        return losses, Aux(metrics, encoded.stats)
