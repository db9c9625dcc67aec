"""Encoders, loaded by file name: `config.encoder = "conformer"` calls `build(config)` of
`models/encoders/conformer.py`, which binds a model to its features. One new file here adds one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from bljust_jax.common import plugins
from bljust_jax.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Audio to hidden frames, and all that training and evaluation ask of it.

    init(rng) -> (params, stats): stats["features"] are those of log-mel, stats["encoder"] the
        running ones of batch norm; each only where there are some
    features(audio int16 [B, S], lengths [B], *, keys, train, stats) -> (x, lengths [B], hide):
        inside the jitted step; with `keys` (one an utterance) it augments; `stats` are stored
        feature statistics, for contexts that must not see the future; `hide` is what the encoder
        itself masks, None where the features are masked already
    apply(params, x, lengths, *, context, hide, upto, train, stats, rng) ->
        (output [B, T, D], lengths [B], hidden, stats): float32, exactly 0 in padded frames;
        hidden["latents"] [B, T, E] are the frames before any context is mixed in; stats are
        stats["encoder"], in and out
    frames(samples) -> frames of output
    flops(samples, upto) -> floating-point operations of one forward pass, of the first `upto`
        blocks where given
    statistics(batches of audio) -> the stats that are measured before the first step
    log_mel(audio, lengths) -> (log-mel [B, T, M], frames [B]), for pictures
    hides: whether `apply` can mask frames itself, as losses with a learned mask embedding need
    contexts: those that `apply` knows
    """

    dim: int
    latent_dim: int
    blocks: int
    init: Callable[..., tuple[Any, Any]]
    features: Callable[..., tuple[Any, Any, Any]]
    apply: Callable[..., tuple[Any, Any, Any, Any]]
    frames: Callable[[int], int]
    flops: Callable[..., float]
    statistics: Callable[[Any], dict]
    log_mel: Callable[..., tuple[Any, Any]]
    hides: bool = False
    contexts: tuple[str, ...] = ("full",)

    def check_context(self, field: str, context: str, instead: str) -> None:
        """UserError where `field` of the config asks for a context that `apply` does not know."""
        if context not in self.contexts:
            raise UserError(
                f"config.{field}={context!r}: this encoder hears the future; set {instead!r}, or "
                "take a Conformer"
            )


def load(name: str) -> Callable[[Any], Encoder]:
    return plugins.load(__name__, name, "build", "config.encoder")


def make_model(kind: type, config: Any, fields: Mapping[str, Any]) -> Any:
    """The model `kind` of `fields`, which are those of config.model.

    Raises UserError for fields that are another encoder's, and for values that `kind` refuses.
    """
    own = {f.name: f.default is dataclasses.MISSING for f in dataclasses.fields(kind)}
    strange = sorted(fields.keys() ^ {name for name in own if own[name] or name in fields})
    if strange:
        raise UserError(
            f"config.encoder={config.encoder!r} does not go with this config.model, only one of "
            f"them knows {', '.join(strange)}: take a config or a variant that sets both, such as "
            "configs/wav2vec2_just.py or the variant lstm"
        )
    try:
        return kind(**fields)
    except UserError as error:
        raise UserError(f"config.model: {error}") from error
