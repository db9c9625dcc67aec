"""A model without the training around it: audio in, and logits and what their classes spell out, or
a translation.

What transcription starts from, be the model a run's or read from an exported folder.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from bljust_jax.common.errors import UserError
from bljust_jax.inference.trained_run import Run, open_run
from bljust_jax.parallel.compile_cache import keep_compiled
from bljust_jax.parallel.mesh import put_batch

CACHE = "~/.cache/bljust_jax/xla"  # of programs of exported models, which name no folder
FAR = 1 << 30  # samples over which a frame's length is measured


class Recognizer(NamedTuple):
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


class Translator(NamedTuple):
    """predict: ({"audio": int16 [B, S], "audio_lengths": int32 [B]} in host memory, beam) -> ids
        int32 [B, U], -1 after the end, compiled once a shape and beam
    decode: ids in 1..K-1 -> their text
    beam: the width of the search that its config names
    sample_rate, name, multiple: as of a `Recognizer`
    """

    predict: Callable[[Mapping[str, Any], int], Any]
    decode: Callable[[Sequence[int]], str]
    beam: int
    sample_rate: int
    name: str
    multiple: int = 1


def open_model(folder: pathlib.Path, task: str = "") -> Recognizer | Translator:
    """The best weights of a training run, or the model of a folder that `export_checkpoint` wrote;
    `task`: which of a run's tasks, where it has several.

    Raises UserError where the folder is neither, or is damaged, or has not that task.
    """
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no config.json: give --model a training run, or a folder that "
            "export_checkpoint wrote"
        )
    if _is_exported(folder):
        if task:
            raise UserError(f"--task {task}: {folder} is one exported task: leave the flag out")
        from bljust_jax.export import pretrained

        keep_compiled(CACHE)
        return pretrained.open_folder(folder)
    opened = open_run(folder, task)
    keep_compiled(opened.config.compile_cache)
    return translator(opened) if opened.task.translate else from_run(opened)


def _is_exported(folder: pathlib.Path) -> bool:
    """Whether config.json is of the other kind than a run's, which says what is wrong with it."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and "model_type" in found


def from_run(opened: Run) -> Recognizer:
    """What a trained run recognises with: the best weights of its newest checkpoint."""
    program, (params, stats) = jax.jit(opened.recipe.predict), opened.weights

    def predict(batch: Mapping[str, Any]) -> tuple[Any, Any]:
        return program(params, stats, put_batch(dict(batch), opened.mesh))

    return Recognizer(
        predict=predict,
        decode=opened.tokenizer.decode,
        symbols=opened.tokenizer.symbols,
        frames=opened.recipe.frames,
        sample_rate=opened.config.data.sample_rate,
        name=name_of(opened),
        multiple=opened.mesh.size,
    )


def translator(opened: Run) -> Translator:
    """What a trained run translates with: the best weights of its newest checkpoint."""
    program, (params, stats) = jax.jit(opened.task.translate, static_argnums=3), opened.weights

    def predict(batch: Mapping[str, Any], beam: int) -> Any:
        return program(params, stats, put_batch(dict(batch), opened.mesh), beam)

    return Translator(
        predict=predict,
        decode=opened.tokenizer.decode,
        beam=opened.config.decoder.beam,
        sample_rate=opened.config.data.sample_rate,
        name=name_of(opened),
        multiple=opened.mesh.size,
    )


def name_of(opened: Run) -> str:
    """The run, for messages: its workdir, task and checkpoint."""
    task = f", {opened.task.name}" if opened.task.name else ""
    return f"{opened.workdir}{task}, checkpoint {opened.step}"
