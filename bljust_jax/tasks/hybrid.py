"""Speech recognition by CTC and an attention decoder, trained together (`objectives/hybrid.py`)."""

import dataclasses
from typing import Any

from bljust_jax.bilevel.types import Task
from bljust_jax.models.encoders import Encoder
from bljust_jax.objectives.hybrid import CtcAttention
from bljust_jax.tasks import recognition, translation


def build(
    config: Any, encoder: Encoder, vocab_size: int, suited: str = "wer"
) -> tuple[CtcAttention, Task]:
    """Both losses on the labelled stream as `config.ctc`, `config.decoder` and `config.hybrid` set
    them, with the task of the head `config.hybrid.decode`.

    CTC is decoded as in `recognition`; attention by greedy search during training and by
    `config.decoder.beam` in `evaluate`.
    """
    ctc, task = recognition.build(config, encoder, vocab_size, suited=suited)
    attention = translation.attention(config, encoder, vocab_size, ctc.stream, name="attention")
    both = CtcAttention(ctc=ctc, attention=attention, ctc_weight=config.hybrid.ctc_weight)
    if config.hybrid.decode == "attention":
        search = translation.searcher(config, attention)
        task = dataclasses.replace(
            task, head=attention.head, predict=None, translate=search, losses={}
        )
    return both, task
