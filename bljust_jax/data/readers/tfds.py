"""Reader of TFDS: `tfds:DIR/SPLIT`, a folder of ArrayRecord files; `tfds:NAME/SPLIT`, a data set.

A folder made by `python -m bljust_jax.prepare` needs no TensorFlow and lists its utterances in an
index. Other folders are read once for their durations. Official speech data sets, whose audio
feature needs TensorFlow, must be built (`tfds build NAME --file_format=array_record`).
"""

import contextlib
import io
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soundfile

from bljust_jax.common.errors import UserError
from bljust_jax.data import containers, shards
from bljust_jax.data.sources import Utterance, encode_audio, inside, nfc, why

NAME = r"[a-z]\w*(/[\w.+-]+)?"  # of a data set, with its configuration
# Names of the features in public data sets, in order of preference.
AUDIO = ("audio", "speech")
TEXT = ("text", "transcript", "transcription", "sentence")
IDENTITY = ("id", "utterance_id", "utt_id")
SPEAKER = ("speaker_id", "speaker", "client_id")
LANG = ("lang", "language", "locale")


def read(rest: str, root: str = "") -> list[Utterance]:
    """The utterances of DIR/SPLIT or NAME/SPLIT, in the order of their records.

    DIR is relative to a given `root`; for NAME `root` is the folder of built data sets (by default
    TFDS's). Features have one of the names above; audio is integer samples (16 bit) or an encoded
    file; the default id is SPLIT-NUMBER. Raises UserError for a folder, split, feature or data set
    that cannot be used.
    """
    parent, _, split = rest.rstrip("/").rpartition("/")
    folder = pathlib.Path(root, parent).absolute()
    for candidate in (folder / split, folder):
        if (candidate / "dataset_info.json").is_file():
            inside(candidate, root, f"tfds:{rest}")
            if shards.index_path(candidate, split).is_file():
                return shards.read(str(candidate), split)
            return _scan(str(candidate), split)
    built = _built(parent, root) if re.fullmatch(NAME, parent) else ""
    if not built:
        raise UserError(
            f"tfds:{rest}: no dataset_info.json in {folder / split} or {folder}, and no data set of"
            " TFDS has that name; name DIR/SPLIT as `python -m bljust_jax.prepare ... --out DIR"
            " --split SPLIT` made it"
        )
    return _scan(built, split)


def _built(name: str, root: str) -> str:
    """The version folder of an official data set built on this machine; "" for an unknown name."""
    api = shards.tfds()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints a banner about TensorFlow
            folder = api.builder(name, data_dir=root or None).data_dir
    except api.core.registered.DatasetNotFoundError:
        return ""
    except Exception as error:
        raise UserError(shards.explain(name, error)) from error
    if not os.path.isfile(os.path.join(folder, "dataset_info.json")):
        cure = f"`tfds build {name} --file_format=array_record`"
        raise UserError(f"tfds:{name}: is not built in {folder}: {cure}")
    return str(folder)


def _scan(folder: str, split: str) -> list[Utterance]:
    """Utterances of a TFDS folder without an index: every record is read once for its duration."""
    records = shards.Records(folder, split)
    with contextlib.redirect_stdout(io.StringIO()):  # the same banner
        size = len(records)
    return [_utterance(records, i) for i in range(size)]


def _utterance(records: shards.Records, i: int) -> Utterance:
    where = f"{records.folder}: record {i} of {records.split}"
    record = records[i]
    duration, fault = 0.0, ""
    try:
        length = containers.length(io.BytesIO(_file(records, record, where)))
        duration, fault = length.seconds, length.problem
    except soundfile.SoundFileError as error:
        fault = f"does not decode: {why(error, '')}"
    identity = _text(record, IDENTITY) or f"{records.split}-{i}"
    text = _text(record, TEXT)
    return Utterance(
        id=identity,
        path=f"{records.folder}#{i}",
        offset=0.0,
        duration=duration,
        text=None if text is None else nfc(text),
        lang=_text(record, LANG) or "",
        speaker=_text(record, SPEAKER) or identity,
        line=where,
        fetch=lambda: _file(records, records[i], where),
        fault=fault and f"{where}: its audio {fault}; build the data set again",
    )


def _file(records: shards.Records, record: Mapping[str, Any], where: str) -> bytes:
    """The audio of a record as an encoded file: samples are written as WAV."""
    name = next((name for name in AUDIO if name in record), None)
    if name is None:
        raise UserError(f"{where}: has none of the features {', '.join(AUDIO)}")
    audio = record[name]
    if isinstance(audio, bytes):
        return audio
    if audio.ndim != 1 or audio.dtype.kind not in "iu":
        raise UserError(f"{where}: {name} is {audio.dtype} {audio.shape}, not integer samples [S]")
    rate = record.get("sample_rate", records.sample_rate(name))
    if rate is None:
        raise UserError(f"{where}: neither the record nor the feature {name} has a sample_rate")
    return encode_audio(audio.astype(np.int16), int(rate), "WAV")


def _text(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of the named features, as text."""
    for name in names:
        if name in record:
            value = record[name]
            return value.decode() if isinstance(value, bytes) else str(value)
    return None
