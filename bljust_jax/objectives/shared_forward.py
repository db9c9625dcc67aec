"""One forward pass of the encoder for several losses, where they read the same audio.

All losses must accept the same audio, features and encoder context. CPC and CTC do, on a causal
encoder without masked input: the queries of CPC must not depend on future frames, and CTC works
with a causal encoder. Both levels then draw the same batch, which gives another (correlated)
estimate of the penalised gradient than two batches do.
"""

import dataclasses

import jax

from bljust_jax.bilevel.types import Aux
from bljust_jax.objectives import EncoderObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedForward:
    """The losses of `parts` on one causal pass over `stream`, without augmentation.

    A part that `extras.scale` does not name is not computed, so a phase without it costs nothing
    for it. Needs `gradients="fused"`: each part takes the hidden states through `scale_gradient`.
    """

    parts: tuple[EncoderObjective, ...]
    stream: str = "labelled"
    kind: None = None

    @property
    def losses(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    @property
    def streams(self) -> tuple[str, ...]:
        return (self.stream,)

    @property
    def name(self) -> str:
        return "+".join(self.losses)

    @property
    def head_owners(self) -> dict[str, frozenset[str]]:
        return {head: own for part in self.parts for head, own in part.head_owners.items()}

    def cost(self, losses: frozenset[str], seconds: float | int) -> float:
        """Encoder FLOPs of one pass, as of one part."""
        return self.parts[0].cost(losses, seconds)

    def head_cost(self, losses: frozenset[str], seconds: float | int) -> float | int:
        """FLOPs of the heads of the active parts."""
        active = (part for part in self.parts if part.name in losses)
        return sum(part.head_cost(losses, seconds) for part in active)

    def apply(self, params, extras, batch, rng):
        data = batch[self.stream]
        encoder_rng, *keys = jax.random.split(rng, 1 + len(self.parts))
        audio = data["audio"], data["audio_lengths"]
        options = {"context": "causal", "train": True, "rng": encoder_rng}
        encoded = self.parts[0].encoder.encode_audio(params, extras.stats, *audio, **options)
        losses, metrics, stats = {}, {}, {}
        for part, key in zip(self.parts, keys, strict=True):
            if part.name not in extras.scale:
                continue
            own, aux = part.apply_encoded(params, extras, data, encoded, key)
            losses, metrics, stats = losses | own, metrics | aux.metrics, stats | aux.stats
        return losses, Aux(metrics, stats)
