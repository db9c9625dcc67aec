"""Read and write the tokenizer files of a run.

They lie in its workdir for a run of one task, else in one folder per stream, tokenizers/asr_en for
asr/en.
"""

import pathlib
from collections.abc import Iterable, Mapping

from bljust_jax.common.errors import UserError, nearest
from bljust_jax.data.streams import LABELLED
from bljust_jax.data.tokenizer import Tokenizer, load_tokenizer

FOLDER = "tokenizers"


def folder_of(workdir: pathlib.Path, stream: str) -> pathlib.Path:
    return workdir if stream == LABELLED else workdir / FOLDER / stream.replace("/", "_")


def save(workdir: pathlib.Path, tokenizers: Mapping[str, Tokenizer]) -> None:
    """Write {labelled stream: its tokenizer}."""
    for stream, tokenizer in tokenizers.items():
        folder = folder_of(workdir, stream)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)


def load(workdir: pathlib.Path, streams: Iterable[str]) -> dict[str, Tokenizer]:
    """{stream: its saved tokenizer}; UserError for a missing or damaged one."""
    return {stream: load_tokenizer(folder_of(workdir, stream)) for stream in streams}


def load_one(workdir: pathlib.Path, task: str) -> Tokenizer:
    """The tokenizer of one task, "" for the only one."""
    there = [p.name.replace("_", "/", 1) for p in (workdir / FOLDER).glob("*")]
    stream = choose(workdir, task, sorted(there) or [""]) or LABELLED
    return load_tokenizer(folder_of(workdir, stream))


def choose(workdir: pathlib.Path, task: str, there: Iterable[str]) -> str:
    """The task named by --task, or the only one for ""; UserError listing the tasks `there`. The
    task of a run with a single stream has the name ""."""
    there = list(there)
    if not task and len(there) == 1:
        return there[0]
    if there == [""]:
        raise UserError(f"--task {task}: {workdir} has one task, without a name: leave it out")
    if not task:
        tasks = ", ".join(there)
        raise UserError(f"{workdir} has several tasks: choose one with --task, of {tasks}")
    if task not in there:
        raise UserError(f"--task: {workdir} has no task {task!r}{nearest(task, there)}")
    return task
