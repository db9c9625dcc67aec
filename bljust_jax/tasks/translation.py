"""Speech translation on an encoder: attention decoder with beam search, or linear head with CTC."""

from functools import partial
from typing import Any

from bljust_jax.bilevel.types import Task
from bljust_jax.decoding import attention_beam
from bljust_jax.models.decoder import Decoder
from bljust_jax.models.encoders import Encoder
from bljust_jax.objectives.cross_entropy import CrossEntropy
from bljust_jax.objectives.ctc import Ctc
from bljust_jax.tasks import recognition


def build(
    config: Any, encoder: Encoder, vocab_size: int, stream: str
) -> tuple[CrossEntropy | Ctc, Task]:
    """The translation of `stream` into `vocab_size` classes, as `config.decoder.kind` sets it,
    with the task that evaluates it. Loss and task are named after the stream, "st/fr-en".

    attention: the decoder of `config.decoder`, trained by cross-entropy, decoded by beam search
    linear: linear + softmax per frame (M2ASR), trained and decoded as recognition is, by CTC: its
        order of words is that of the audio
    """
    if config.decoder.kind == "linear":
        return recognition.build(config, encoder, vocab_size, stream)
    objective = attention(config, encoder, vocab_size, stream, name=stream)
    measure, search = config.data.streams[stream].measure, searcher(config, objective)
    return objective, Task(stream, stream, measure, objective.head, translate=search)


def attention(
    config: Any, encoder: Encoder, vocab_size: int, stream: str, *, name: str
) -> CrossEntropy:
    """The loss of the attention decoder of `config.decoder` on `stream`."""
    c = config.decoder
    fields = {key: c[key] for key in ("dim", "layers", "heads", "ff_mult", "dropout")}
    fields |= {"vocab_size": vocab_size, "memory_dim": encoder.dim, "dtype": config.model.dtype}
    return CrossEntropy(
        encoder=encoder,
        name=name,
        stream=stream,
        sample_rate=config.data.sample_rate,
        decoder=Decoder(**fields),
        smoothing=c.smoothing,
        context=config.ctc.context,
        labels_per_second=config.data.labels_per_second,
    )


def searcher(config: Any, objective: CrossEntropy) -> Any:
    """`Task.translate` of an attention decoder, with the limits of `config.decoder`."""
    c = config.decoder
    limits = {"alpha": c.alpha, "max_ratio": c.max_ratio, "max_extra": c.max_extra}
    return partial(translate, objective, limits)


def translate(
    objective: CrossEntropy, limits: dict, params: Any, stats: Any, batch: Any, beam: int
) -> Any:
    """ids int32 [B, U], -1 after the end, of the audio of a batch; `limits` of `search`."""
    audio = batch["audio"], batch["audio_lengths"]
    encoded = objective.encoder.encode_audio(params, stats, *audio, context=objective.context)
    decoder, own, frames = objective.decoder, params[objective.head], encoded.lengths
    return attention_beam.search(
        partial(decoder.begin, own, encoded.output, frames),
        partial(decoder.extend, own),
        frames,
        encoded.output.shape[1],
        beam=beam,
        **limits,
    )
