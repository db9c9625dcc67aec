"""The same 200 utterances in the layout of each input format, and mistakes planted in it."""

import csv
import json
import pathlib
import re
from typing import NamedTuple

import numpy as np
import soundfile

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import open_source

RATE = 8000
SPEAKERS = 4
TEXTS = ("Wie schön", 'say "yes", now', "plain words", "e\u0301te\u0301 d'or", "a; b, c")


class Spoken(NamedTuple):
    """An utterance of int16 samples [S]; start: its seconds in the speaker's recording."""

    id: str
    speaker: str
    text: str | None
    samples: np.ndarray
    start: float

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE

    @property
    def end(self) -> float:
        return round(self.start + self.seconds, 3)


def spoken(count: int = 200) -> list[Spoken]:
    """Noise of 0.2 to 0.6 s by four speakers, every tenth without a text."""
    rng, found, ends = np.random.default_rng(0), [], dict.fromkeys(range(SPEAKERS), 0.0)
    for i in range(count):
        samples = rng.integers(-2000, 2000, 8 * int(rng.integers(200, 600))).astype(np.int16)
        text = TEXTS[i % len(TEXTS)] + "abc"[: i % 4] if i % 10 != 9 else None
        start = ends[i % SPEAKERS]
        found.append(Spoken(f"u{i:03d}", f"s{i % SPEAKERS}", text, samples, start))
        ends[i % SPEAKERS] = round(start + len(samples) / RATE + 0.05, 3)
    return found


def write_audio(folder: pathlib.Path, found: list[Spoken], suffix: str = ".flac") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for u in found:
        soundfile.write(folder / f"{u.id}{suffix}", u.samples, RATE, subtype="PCM_16")


def write_recordings(folder: pathlib.Path, found: list[Spoken]) -> None:
    """SPEAKER.flac with all utterances of a speaker, at their starts."""
    folder.mkdir(parents=True, exist_ok=True)
    for speaker in {u.speaker for u in found}:
        own = [u for u in found if u.speaker == speaker]
        whole = np.zeros(round(own[-1].end * RATE) + 800, np.int16)
        for u in own:
            at = round(u.start * RATE)
            whole[at : at + len(u.samples)] = u.samples
        soundfile.write(folder / f"{speaker}.flac", whole, RATE, subtype="PCM_16")


def write_lines(path: pathlib.Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def labelled(found: list[Spoken]) -> list[Spoken]:
    return [u for u in found if u.text is not None]


def manifest(top: pathlib.Path, found: list[Spoken], speakers: bool = True) -> str:
    """The reference: a manifest of one file per utterance."""
    write_audio(top / "audio", found)
    rows = []
    for u in found:
        row = {"audio_filepath": f"audio/{u.id}.flac", "id": u.id}
        row |= {"speaker": u.speaker} if speakers else {}
        rows.append(row | ({"text": u.text} if u.text is not None else {}))
    write_lines(top / "m.jsonl", (json.dumps(row) for row in rows))
    return str(top / "m.jsonl")


def folder_of_pairs(top: pathlib.Path, found: list[Spoken], suffix: str = ".txt") -> str:
    write_audio(top, found, ".wav")
    for u in labelled(found):
        write_lines(top / f"{u.id}{suffix}", [u.text])
    return f"folder:{top}"


def folder_of_labels(top: pathlib.Path, found: list[Spoken]) -> str:
    return folder_of_pairs(top, found, ".lab")


def folder_with_list(top: pathlib.Path, found: list[Spoken]) -> str:
    write_audio(top, found)
    write_lines(top / "transcripts.txt", (f"{u.id}.flac\t{u.text}" for u in labelled(found)))
    (top / "README.txt").unlink(missing_ok=True)
    return f"folder:{top}"


def folder_with_chapters(top: pathlib.Path, found: list[Spoken]) -> str:
    """As LibriSpeech's chapters, all in one folder."""
    write_audio(top, found)
    for speaker in {u.speaker for u in found}:
        own = [u for u in labelled(found) if u.speaker == speaker]
        write_lines(top / f"{speaker}.trans.txt", (f"{u.id} {u.text}" for u in own))
    return f"folder:{top}"


def folder_of_imagefolder(top: pathlib.Path, found: list[Spoken]) -> str:
    """As the audiofolder of Hugging Face datasets: metadata.csv with a header."""
    write_audio(top, found)
    rows = [{"file_name": f"{u.id}.flac", "transcription": u.text or ""} for u in found]
    write_table(top / "metadata.csv", rows)
    return f"folder:{top}"


def write_table(path: pathlib.Path, rows: list[dict], delimiter: str = ",", **kind) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter, **kind)
        writer.writeheader()
        writer.writerows(rows)


def kaldi(top: pathlib.Path, found: list[Spoken]) -> str:
    write_audio(top / "audio", found)
    write_lines(top / "wav.scp", (f"{u.id} audio/{u.id}.flac" for u in found))
    _kaldi_labels(top, found)
    return f"kaldi:{top}"


def kaldi_segments(top: pathlib.Path, found: list[Spoken]) -> str:
    write_recordings(top / "audio", found)
    speakers = sorted({u.speaker for u in found})
    write_lines(top / "wav.scp", (f"{s} audio/{s}.flac" for s in speakers))
    write_lines(top / "segments", (f"{u.id} {u.speaker} {u.start:g} {u.end:g}" for u in found))
    _kaldi_labels(top, found)
    return f"kaldi:{top}"


def _kaldi_labels(top: pathlib.Path, found: list[Spoken]) -> None:
    write_lines(top / "text", (f"{u.id} {u.text}" for u in labelled(found)))
    write_lines(top / "utt2spk", (f"{u.id} {u.speaker}" for u in found))


def table_csv(top: pathlib.Path, found: list[Spoken]) -> str:
    write_audio(top / "clips", found, ".wav")
    rows = [
        {"id": u.id, "path": f"clips/{u.id}.wav", "speaker_id": u.speaker, "Sentence": u.text or ""}
        for u in found
    ]
    write_table(top / "t.csv", rows)
    return f"table:{top}/t.csv"


def table_tsv(top: pathlib.Path, found: list[Spoken]) -> str:
    """Segments of long recordings, quotes as ordinary characters."""
    write_recordings(top / "long", found)
    header = "wav\tbegin\tend\tspk\tutt_id\ttranscript"
    rows = [
        f"long/{u.speaker}.flac\t{u.start:g}\t{u.end:g}\t{u.speaker}\t{u.id}\t{u.text or ''}"
        for u in found
    ]
    write_lines(top / "t.tsv", [header, *rows])
    return f"table:{top}/t.tsv"


def table_named(top: pathlib.Path, found: list[Spoken]) -> str:
    """Semicolons, Windows' line ends and byte order mark, columns named in the address."""
    write_audio(top / "clips", found)
    rows = [
        {"no": u.id, "who": u.speaker, "said": u.text or "", "where": f"clips/{u.id}.flac"}
        for u in found
    ]
    write_table(top / "t.csv", rows, ";")
    (top / "t.csv").write_bytes(b"\xef\xbb\xbf" + (top / "t.csv").read_bytes())
    return f"table:{top}/t.csv?audio=where&text=said&id=no&speaker=who"


def table_bare(top: pathlib.Path, found: list[Spoken]) -> str:
    """Without a header."""
    write_audio(top, found)
    write_lines(top / "t.tsv", (f"{u.id}.flac\t{u.text or ''}" for u in found))
    return f"table:{top}/t.tsv"


def commonvoice(top: pathlib.Path, found: list[Spoken]) -> str:
    write_audio(top / "clips", found)
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes\tlocale"
    rows = [f"{u.speaker}\t{u.id}.flac\tx\t{u.text or ''}\t2\tnl" for u in found]
    write_lines(top / "train.tsv", [header, *rows])
    return f"commonvoice:{top}/train"


def fairseq(top: pathlib.Path, found: list[Spoken]) -> str:
    write_audio(top / "audio", found)
    frames = (f"{u.id}.flac\t{len(u.samples)}" for u in found)
    write_lines(top / "train.tsv", [str(top / "audio"), *frames])
    write_lines(top / "train.wrd", (u.text or "" for u in found))
    return f"fairseq:{top}/train"


def fairseq_letters(top: pathlib.Path, found: list[Spoken]) -> str:
    uri = fairseq(top, found)
    (top / "train.wrd").unlink()
    spelt = (" ".join((u.text or "").replace(" ", "|")) + " |" * bool(u.text) for u in found)
    write_lines(top / "train.ltr", spelt)
    return uri


# {format: (function that writes it, whether it names speakers)}
FORMATS = {
    "folder of pairs": (folder_of_pairs, False),
    "folder of labels": (folder_of_labels, False),
    "folder with a list": (folder_with_list, False),
    "folder with chapters": (folder_with_chapters, False),
    "folder with a table": (folder_of_imagefolder, False),
    "kaldi": (kaldi, True),
    "kaldi segments": (kaldi_segments, True),
    "table.csv": (table_csv, True),
    "table.tsv of segments": (table_tsv, True),
    "table with named columns": (table_named, True),
    "table without a header": (table_bare, False),
    "commonvoice": (commonvoice, True),
    "fairseq words": (fairseq, False),
    "fairseq letters": (fairseq_letters, False),
}


def plant(path: pathlib.Path, old: str | bytes | None, new: str | bytes | None) -> None:
    """Replace the first `old` in a file by `new`; without `old` the whole file, without `new`, too,
    remove it."""
    old, new = (x.encode() if isinstance(x, str) else x for x in (old, new))
    if new is None:
        path.unlink()
        return
    whole = path.read_bytes() if old is not None else b""
    assert old is None or old in whole
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(new if old is None else whole.replace(old, new, 1))


def answer(uri: str, caplog, root: str = "") -> str:
    """What is reported of a source: a UserError, or else the faults and warnings, one per line."""
    caplog.clear()
    try:
        found = open_source(uri, root)
    except UserError as error:
        return str(error)
    return "\n".join([u.fault for u in found if u.fault] + caplog.messages)


def assert_answered(uri: str, caplog, where: str, complaint: str) -> None:
    """The source is answered by one line, as `assert_line` has it."""
    found = answer(uri, caplog)
    assert "\n" not in found, found
    assert_line(found, where, complaint)


def assert_line(line: str, where: str, complaint: str) -> None:
    """The line begins with a place that ends with `where`, and matches `complaint`."""
    assert re.search(rf"^\S*{re.escape(where)}: .*{complaint}" if where else complaint, line), line
