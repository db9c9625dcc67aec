"""Encoders, loaded by file name.

`config.encoder = "conformer"` calls `build(config)` of `models/encoders/conformer.py`, which
returns an `Encoder`. One new file adds an encoder.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Array, Int

from bljust_jax.common import plugins
from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Frames, Lengths, Rng, RowKeys
from bljust_jax.models import audio_features
from bljust_jax.ops.masking import InputMask

LONG = 10**7  # samples, of which 25 ms at the ends of an utterance are a thousandth of a frame


class Encoded(NamedTuple):
    """The output of `Encoder.encode`."""

    output: Frames  # float32, exactly 0 in padded frames
    lengths: Lengths
    # "latents" [B, T, E]: the frames before any context is mixed in; "blocks" on demand
    hidden: dict[str, Any]
    stats: dict[str, Any]  # {"encoder": updated running statistics}; {} without any


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model bound to its features: audio to hidden frames.

    dim, latent_dim, blocks: width of the output, of the latents, number of blocks
    init(rng) -> (params, stats): stats["features"] of log-mel, stats["encoder"] of batch norm, each
        only if the encoder has it
    features(audio int16 [B, S], lengths [B], *, keys, train, stats) -> (x, lengths [B], mask):
        runs inside the jitted step; with `keys` (one per utterance) it augments; `stats` are stored
        feature statistics, for causal contexts; `mask` is the `InputMask` that the encoder is to
        apply, None if the features are masked already
    apply(params, x, lengths, *, context, input_mask, depth, train, stats, rng) ->
        (output [B, T, D], lengths [B], hidden, stats): float32, exactly 0 in padded frames;
        hidden["latents"] [B, T, E] are the frames before any context is mixed in; stats are
        stats["encoder"], before and after
    block_dim: width of a block's output; above 0, `apply` also takes `top`, the number of last
        blocks whose outputs hidden["blocks"] [top, B, T, block_dim] then has, 0 in padded frames
    frames(samples) -> frames of output
    flops(samples, depth) -> floating-point operations of one forward pass, of the first `depth`
        blocks if given
    statistics(batches of audio) -> the stats that are measured before the first step
    log_mel(audio, lengths) -> (log-mel [B, T, M], frames [B]), for pictures
    masks_input: True if `apply` supports `input_mask`, which losses with a learned mask embedding
        need
    contexts: the contexts that `apply` supports
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
    masks_input: bool = False
    contexts: tuple[str, ...] = ("full",)
    block_dim: int = 0

    @functools.cached_property
    def stride(self) -> int:
        """Samples of audio per frame of output: the limit of samples / frames."""
        return round(LONG / self.frames(LONG))

    def encode(self, params: Any, stats: Any, x: Any, lengths: Any, **options: Any) -> Encoded:
        """`apply` with params["encoder"] and stats["encoder"] of a whole system."""
        own = stats.get("encoder", {})
        *encoded, own = self.apply(params["encoder"], x, lengths, stats=own, **options)
        return Encoded(*encoded, {"encoder": own} if own else {})

    def encode_audio(
        self,
        params: Any,
        stats: Any,
        audio: Int[Array, "b s"],
        audio_lengths: Lengths,
        *,
        context: str = "full",
        train: bool = False,
        stored_statistics: bool | None = None,
        augment_keys: RowKeys | None = None,
        input_mask: InputMask | None = None,
        rng: Rng | None = None,
    ) -> Encoded:
        """Features of int16 audio, then `encode`: the forward pass of training and evaluation.

        params, stats: of a whole system
        stored_statistics: normalise features by stats["features"], if the encoder has them; by
            default in a causal context, since statistics of the utterance depend on future frames
        augment_keys: a key per utterance; None: no augmentation
        input_mask: replaces the mask that augmentation draws
        rng: for dropout
        """
        stored = context == "causal" if stored_statistics is None else stored_statistics
        moments = stats.get("features") if stored else None
        x, lengths, drawn = self.features(
            audio, audio_lengths, keys=augment_keys, train=train, stats=moments
        )
        options = {"context": context, "input_mask": drawn if input_mask is None else input_mask}
        return self.encode(params, stats, x, lengths, **options, train=train, rng=rng)

    def check_context(self, field: str, context: str, instead: str) -> None:
        """Raise UserError if `apply` does not support `context`, the value of a config field."""
        if context not in self.contexts:
            raise UserError(
                f"config.{field}={context!r}: this encoder reads future frames; set {instead!r}, "
                "or take a Conformer"
            )


def load(name: str) -> Callable[[Any], Encoder]:
    return plugins.load(__name__, name, "build", "config.encoder")


def log_mel_encoder(config: Any, model: Any, name: str, **fields: Any) -> Encoder:
    """The `Encoder` of a model that reads normalised log-mel features and masks nothing itself;
    `fields` are its other fields."""
    features = audio_features

    def init(rng):
        params, moments = model.init(rng)
        stats = {"features": features.unit_statistics(config)}
        return params, stats | ({"encoder": moments} if moments else {})

    def apply(params, x, lengths, *, input_mask=None, **options):
        if input_mask is not None:
            raise ValueError(f"the {name} masks nothing itself: mask its features")
        return model.apply(params, x, lengths, **options)

    def flops(samples, depth=None):
        return model.flops(features.feature_frames(config, samples), depth)

    return Encoder(
        dim=model.dim,
        init=init,
        features=features.make_features(config),
        apply=apply,
        frames=lambda samples: model.frames(features.feature_frames(config, samples)),
        flops=flops,
        statistics=partial(features.feature_statistics, config),
        log_mel=features.make_log_mel(config),
        **fields,
    )


def make_model(kind: type, config: Any, fields: Mapping[str, Any]) -> Any:
    """A model of class `kind` with the fields of config.model.

    Raises UserError for fields of another encoder, and for values that `kind` rejects.
    """
    required = {f.name: f.default is dataclasses.MISSING for f in dataclasses.fields(kind)}
    unknown = sorted(fields.keys() ^ {n for n in required if required[n] or n in fields})
    if unknown:
        raise UserError(
            f"config.encoder={config.encoder!r} does not go with this config.model, only one of "
            f"them has {', '.join(unknown)}: take a config or a variant that sets both, such as "
            "configs/wav2vec2_just.py or the variant lstm"
        )
    try:
        return kind(**fields)
    except UserError as error:
        raise UserError(f"config.model: {error}") from error
