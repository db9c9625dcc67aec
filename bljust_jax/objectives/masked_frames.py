"""Forward pass of any encoder on input with masked frames, by wav2vec 2.0's rule for spans."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bljust_jax.bilevel.rng import row_keys
from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Lengths, Mask
from bljust_jax.models.encoders import Encoded, Encoder
from bljust_jax.ops.log_mel import valid_frames
from bljust_jax.ops.masking import InputMask, wav2vec2_spans


class MaskedPass(NamedTuple):
    """Input that is not masked, and the encoder's output on the masked one."""

    x: Any  # features, or waveforms
    frames: Lengths  # valid frames of x
    mask: Mask  # at the rate of the output, True = masked
    encoded: Encoded


@dataclasses.dataclass(frozen=True)
class FrameMask:
    """Masked spans of output frames.

    probability, span: of `masking.wav2vec2_spans`, in output frames
    stack: features per output frame, masked together: replaced by N(0, noise_std^2); 0 for an
        encoder that has a learned embedding for masked frames (`Encoder.masks_input`)
    """

    probability: float | int
    span: int
    stack: int = 0
    noise_std: float | int = 0.1

    @classmethod
    def of(cls, config: Any, encoder: Encoder, loss: str) -> "FrameMask":
        """As `config.<loss>`.{mask_prob, mask_seconds, noise_std} set it."""
        own, rate = config[loss], config.data.sample_rate
        span = max(1, round(own.mask_seconds * rate / encoder.stride))
        stack = 0 if encoder.masks_input else encoder.stride // config.features.hop
        return cls(own.mask_prob, span, stack, own.noise_std)

    def encode(self, encoder: Encoder, params: Any, extras: Any, data: Any, rng: Any) -> MaskedPass:
        """The output on the audio of `data`, each utterance masked by a key of its own. UserError
        for an encoder whose frames are not `stack` features each."""
        mask_rng, encoder_rng = jax.random.split(rng)
        audio, lengths = data["audio"], data["audio_lengths"]
        x, frames, _ = encoder.features(audio, lengths, keys=None, train=True)
        keys, spans = row_keys(mask_rng, data["ids"]), {"span": self.span}
        spans["probability"] = self.probability
        options = {"context": "full", "train": True, "rng": encoder_rng}
        if not self.stack:
            size = encoder.frames(audio.shape[1])
            mask = wav2vec2_spans(keys, encoder.frames(lengths), size, **spans)
            encoded = encoder.encode(
                params, extras.stats, x, frames, input_mask=InputMask(mask), **options
            )
            return MaskedPass(x, frames, mask, encoded)
        size = -(-x.shape[1] // self.stack)
        mask = wav2vec2_spans(keys, -(-frames // self.stack), size, **spans)
        hidden = jnp.repeat(mask, self.stack, axis=1)[:, : x.shape[1]]
        hidden = hidden & valid_frames(x.shape[1], frames)
        noise = jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, 2), x.shape[1:], x.dtype)
        )(keys)
        masked = jnp.where(hidden[..., None], self.noise_std * noise, x)
        encoded = encoder.encode(params, extras.stats, masked, frames, input_mask=None, **options)
        if size != encoded.output.shape[1]:
            raise UserError(
                f"masked prediction: this encoder makes {encoded.output.shape[1]} frames of "
                f"{x.shape[1]} features, not one of {self.stack} each; take a Conformer"
            )
        return MaskedPass(x, frames, mask, encoded)
