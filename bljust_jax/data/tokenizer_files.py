"""The tokenizers of a run in its workdir: in the workdir itself where the run has one task, else
each in a folder of its own, tokenizers/asr_en for the stream asr/en."""

import pathlib
from collections.abc import Iterable, Mapping

from bljust_jax.common.errors import UserError, nearest
from bljust_jax.data.streams import LABELLED
from bljust_jax.data.tokenizer import Tokenizer, load_tokenizer

FOLDER = "tokenizers"


def folder_of(workdir: pathlib.Path, stream: str) -> pathlib.Path:
    return workdir if stream == LABELLED else workdir / FOLDER / stream.replace("/", "_")


def save(workdir: pathlib.Path, tokenizers: Mapping[str, Tokenizer]) -> None:
    """Writes {labelled stream: its tokenizer}."""
    for stream, tokenizer in tokenizers.items():
        folder = folder_of(workdir, stream)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)


def load(workdir: pathlib.Path, streams: Iterable[str]) -> dict[str, Tokenizer]:
    """{stream: what `save` wrote}; UserError where one is missing or damaged."""
    return {stream: load_tokenizer(folder_of(workdir, stream)) for stream in streams}


def load_one(workdir: pathlib.Path, task: str) -> Tokenizer:
    """That of one task, as `choose` finds it."""
    there = [p.name.replace("_", "/", 1) for p in (workdir / FOLDER).glob("*")]
    return load_tokenizer(
        folder_of(workdir, choose(workdir, task, sorted(there) or [""]) or LABELLED)
    )


def choose(workdir: pathlib.Path, task: str, there: Iterable[str]) -> str:
    """The task of a run that --task names, "" the only one; UserError lists those that there are,
    of which one without a name stands alone."""
    there = list(there)
    if not task and len(there) == 1:
        return there[0]
    if there == [""]:
        raise UserError(f"--task {task}: {workdir} has one task, without a name: leave it out")
    if not task:
        raise UserError(
            f"{workdir} has several tasks: choose one with --task, of {', '.join(there)}"
        )
    if task not in there:
        raise UserError(f"--task: {workdir} has no task {task!r}{nearest(task, there)}")
    return task
