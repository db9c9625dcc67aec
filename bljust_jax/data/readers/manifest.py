"""Reader of JSONL manifests as NeMo's: one JSON object per line, paths relative to the file."""

import difflib
import json
import logging
import os
from collections.abc import Iterator

from bljust_jax.common.errors import UserError
from bljust_jax.common.files import expand_user
from bljust_jax.data.listings import LONGEST, Finder, spelt
from bljust_jax.data.sources import Utterance, each_with_duration, inside, nfc, read_lines

# names that other toolkits give the transcript
SYNONYMS = ("sentence", "transcript", "transcription", "normalized_text", "utterance")


def read(rest: str, root: str = "") -> Iterator[Utterance]:
    """The utterances of the manifest at path `rest`, in its order.

    Fields: audio_filepath; optional duration (by default the rest of the file), offset, text,
    translation (the text in another language), lang, speaker (by default the id: such utterances
    are never joined), id (by default path and offset). Texts become NFC. Audio must lie in `root`,
    by default the manifest's folder. Raises UserError with file:line.
    """
    rest = expand_user(rest)
    folder = os.path.realpath(os.path.dirname(os.path.abspath(rest)))
    audio = Finder([folder], root or folder)
    found = (
        _utterance(entry, where, folder, audio, root or folder) for entry, where in _entries(rest)
    )
    return each_with_duration(found)


def listing(rest: str, root: str = "") -> list[str]:
    """The file that declares the utterances."""
    return [os.path.abspath(expand_user(rest))]


def _entries(path: str) -> Iterator[tuple[dict, str]]:
    """(object, "file:line") of each line; logs at the end that texts have a field of another name,
    by which they are not found."""
    counts, total = dict.fromkeys(SYNONYMS, 0), 0
    for where, line in read_lines(path):
        entry = parse(line, where)
        total += 1
        if "text" not in entry:
            for name in SYNONYMS:
                counts[name] += name in entry
        yield entry, where
    name = max(counts, key=lambda name: counts[name])
    if counts[name]:
        logging.warning(
            '%s: %d of %d lines have no "text" but a "%s": rename that field to train and score'
            " on it",
            *(path, counts[name], total, name),
        )


def _utterance(entry: dict, where: str, folder: str, audio: Finder, root: str) -> Utterance:
    """The utterance of one line."""
    named = os.path.join(folder, os.fsdecode(entry["audio_filepath"].encode()))
    path = audio.regular(named)
    if not path:
        path = inside(spelt(named), root, where)
        if not os.path.isfile(path):
            cure = "correct audio_filepath, relative to the manifest's folder"
            raise UserError(f"{where}: no such file: {path!r}; {cure}")
    return Utterance(path=path, line=where, **fields(entry, where))


def fields(entry: dict, where: str) -> dict:
    """The fields of an utterance, other than its audio; the duration is 0 without the field."""
    named = entry["audio_filepath"]
    offset = _seconds(entry.get("offset") or 0.0, "offset", where)
    duration = entry.get("duration")
    if duration is not None:
        duration = _seconds(duration, "duration", where)
        if duration == 0:
            cure = "leave it out to have the file's own"
            raise UserError(f"{where}: duration must be above 0 seconds; {cure}")
    identity = _name(entry.get("id"), f"{named}@{offset:.10g}" if offset else named)
    return {
        "id": identity,
        "offset": offset,
        "duration": duration or 0.0,
        "text": _text(entry, "text", where),
        "lang": _name(entry.get("lang"), ""),
        "speaker": _name(entry.get("speaker"), identity),
        "translation": _text(entry, "translation", where),
    }


def parse(line: str, where: str) -> dict:
    """The JSON object of a line, with its required field."""
    try:
        entry = json.loads(line.strip())
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: holds half a character (a lone surrogate): {error}") from error
    except (ValueError, RecursionError) as error:
        what = str(error).replace("line 1 ", "")  # of this text, not of the file
        raise UserError(f"{where}: is not JSON: {what}; write one object a line") from error
    if not isinstance(entry, dict):
        raise UserError(f"{where}: is no JSON object; write one with the field audio_filepath")
    named = entry.get("audio_filepath")
    if named is None:
        near = difflib.get_close_matches("audio_filepath", entry, n=1)
        hint = f', but "{near[0]}"; rename that field' if near else "; add that field"
        raise UserError(f'{where}: has no "audio_filepath"{hint}')
    if not isinstance(named, str) or not named or "\0" in named:
        raise UserError(f"{where}: audio_filepath must be the path of an audio file, not {named!r}")
    return entry


def _text(entry: dict, field: str, where: str) -> str | None:
    text = entry.get(field)
    if not isinstance(text, str | None):
        raise UserError(f"{where}: {field} must be a string, not {text!r}; put it in quotes")
    return None if text is None else nfc(text)


def _name(value: object, default: str) -> str:
    """The value of a field as text; `default` for none or an empty one."""
    return default if value is None or value == "" else str(value)


def _seconds(value: object, field: str, where: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < LONGEST:
        wanted = "a number of seconds, 0 or above and without quotes"
        raise UserError(f"{where}: {field} must be {wanted}, not {value!r}")
    return float(value)
