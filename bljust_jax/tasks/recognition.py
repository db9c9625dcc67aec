"""Speech recognition by CTC on an encoder: its objective, and the logits that are decoded."""

from typing import Any

from bljust_jax.bilevel.types import Task
from bljust_jax.common.errors import UserError
from bljust_jax.models.encoders import Encoder
from bljust_jax.objectives import ctc

LOSS = "ctc"


def build(
    config: Any,
    encoder: Encoder,
    vocab_size: int,
    stream: str = "labelled",
    suited: str = "wer",
) -> tuple[ctc.Ctc, Task]:
    """CTC on `stream` as `config.ctc` sets it, with the task that evaluates it.

    suited: the measure of config.data.measure="auto"

    Loss and task are named after the stream ("asr/en"); "ctc" and "" for the stream "labelled".
    Raises UserError for a context that the encoder does not support.
    """
    c = config.ctc
    encoder.check_context("ctc.context", c.context, instead="full")
    if c.context == "causal" and config.model.get("norm") == "batch":
        raise UserError(
            'config.model.norm="batch": its moments are measured by CTC in full context alone; '
            'set config.ctc.context="full", or norm="layer"'
        )
    single = stream == "labelled"
    objective = ctc.Ctc(
        encoder=encoder,
        name=LOSS if single else stream,
        stream=stream,
        sample_rate=config.data.sample_rate,
        vocab_size=vocab_size,
        **c.to_dict(),
    )
    measure = config.data.measure if single else config.data.streams[stream].measure
    measure = suited if measure == "auto" else measure
    name, losses = "" if single else stream, {objective.name: objective.nats}
    task = Task(name, stream, measure, objective.head, objective.predict, losses=losses)
    return objective, task
