"""A recogniser without the training around it: audio in, logits out, and what their classes spell.

What transcription starts from, be the model a run's or read from an exported folder.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from bljust_jax import programs, sharding
from bljust_jax.errors import UserError
from bljust_jax.evaluate.trained import Run, open_run

CACHE = "~/.cache/bljust_jax/xla"  # of programs of exported models, which name no folder
FAR = 1 << 30  # samples over which a frame's length is measured


class Recogniser(NamedTuple):
    """predict: {"audio": int16 [B, S], "audio_lengths": int32 [B]} in host memory -> (logits
        [B, T, K], frames [B]), compiled once a shape; class 0 is the blank
    decode: ids in 0..K-1 -> their text; blanks are dropped
    symbols: what the classes 1, ..., K - 1 spell; one that begins with " " or "▁" begins a word
    frames: samples of audio -> frames of logits
    sample_rate: Hz
    name: of the model, for messages
    multiple: rows of a batch must be a multiple of it
    """

    predict: Callable[[Mapping[str, Any]], tuple[Any, Any]]
    decode: Callable[[Sequence[int]], str]
    symbols: tuple[str, ...]
    frames: Callable[[int], int]
    sample_rate: int
    name: str
    multiple: int = 1

    @property
    def hop(self) -> int:
        """Samples from one frame of logits to the next."""
        return round(FAR / self.frames(FAR))


def open_model(folder: pathlib.Path) -> Recogniser:
    """The best weights of a training run, or the model of a folder that `export_checkpoint` wrote.

    Raises UserError where the folder is neither, or is damaged.
    """
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no config.json: give --model a training run, or a folder that "
            "export_checkpoint wrote"
        )
    if _is_exported(folder):
        from bljust_jax.export import pretrained

        programs.keep_compiled(CACHE)
        return pretrained.open_folder(folder)
    opened = open_run(folder)
    programs.keep_compiled(opened.config.compile_cache)
    return from_run(opened)


def _is_exported(folder: pathlib.Path) -> bool:
    """Whether config.json is of the other kind than a run's, which says what is wrong with it."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and "model_type" in found


def from_run(opened: Run) -> Recogniser:
    """What a trained run recognises with: the best weights of its newest checkpoint."""
    program, (params, stats) = jax.jit(opened.recipe.predict), opened.weights

    def predict(batch: Mapping[str, Any]) -> tuple[Any, Any]:
        return program(params, stats, sharding.put_batch(dict(batch), opened.mesh))

    return Recogniser(
        predict=predict,
        decode=opened.tokenizer.decode,
        symbols=opened.tokenizer.symbols,
        frames=opened.recipe.frames,
        sample_rate=opened.config.data.sample_rate,
        name=f"{opened.workdir}, checkpoint {opened.step}",
        multiple=opened.mesh.size,
    )
