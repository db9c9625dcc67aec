"""NeMo-style JSONL manifests: one JSON object a line, audio_filepath relative to the manifest."""

import dataclasses
import json
import math
import os
import unicodedata

from bljust_jax.data.sources import Utterance, header_seconds, inside
from bljust_jax.errors import UserError


def read(rest: str, root: str = "") -> list[Utterance]:
    """The utterances of the manifest at path `rest`, in its order.

    Fields: audio_filepath; optional duration (else the rest of the file, from its header), offset,
    text, lang, speaker (else the id: such utterances are never joined), id (else path and offset).
    Audio must lie in `root`, by default the manifest's folder. Raises UserError with file:line.
    """
    if not os.path.isfile(rest):
        raise UserError(f"{rest}: no such manifest")
    folder = os.path.realpath(os.path.dirname(os.path.abspath(rest)))
    root = root or folder
    utterances = []
    with open(rest, encoding="utf-8-sig", newline=None) as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    utterances.append(_utterance(line, f"{rest}:{number}", folder, root))
        except UnicodeDecodeError as error:
            raise UserError(f"{rest}: is not UTF-8 text: {error}") from error
    return _with_durations(utterances)


def _utterance(line: str, where: str, folder: str, root: str) -> Utterance:
    """One line; duration is 0 where the line has none."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: is not JSON: {error}; write one object a line") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("audio_filepath"), str):
        raise UserError(f'{where}: has no "audio_filepath"; write a JSON object with that field')
    named = entry["audio_filepath"]
    path = inside(os.path.join(folder, named), root, where)
    if not os.path.isfile(path):
        raise UserError(f"{where}: no such file: {path}")
    offset = _seconds(entry.get("offset") or 0.0, "offset", where)
    duration = entry.get("duration")
    if duration is not None:
        duration = _seconds(duration, "duration", where)
        if duration == 0:
            raise UserError(f"{where}: duration must be above 0 seconds")
    text = entry.get("text")
    if not isinstance(text, str | None):
        raise UserError(f"{where}: text must be a string, not {text!r}")
    identity = str(entry.get("id") or (f"{named}@{offset:g}" if offset else named))
    return Utterance(
        id=identity,
        path=path,
        offset=offset,
        duration=duration or 0.0,
        text=None if text is None else unicodedata.normalize("NFC", text),
        lang=str(entry.get("lang") or ""),
        speaker=str(entry.get("speaker") or identity),
        line=where,
    )


def _seconds(value: object, field: str, where: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise UserError(f"{where}: {field} must be a number of seconds, not {value!r}")
    return float(value)


def _with_durations(utterances: list[Utterance]) -> list[Utterance]:
    """Missing durations from the files' headers."""
    missing = [u for u in utterances if not u.duration]
    lengths = iter(header_seconds([u.path for u in missing], [u.line for u in missing]))
    complete = []
    for u in utterances:
        if not u.duration:
            u = dataclasses.replace(u, duration=next(lengths) - u.offset)
            if u.duration <= 0:
                raise UserError(f"{u.line}: offset {u.offset} s is past the end of {u.path}")
        complete.append(u)
    return complete
