"""Real recordings with one planted fault per kind of finding of the data doctor."""

import json
import pathlib

import numpy as np
import soundfile
import soxr

from bljust_jax.data.sources import open_source, read_audio

RATE = 16000
TRAIN, DEV = 60, 15  # utterances of the clean corpus


def clean(speech: pathlib.Path, folder: pathlib.Path) -> tuple[list[dict], list[dict]]:
    """Copy utterances of ../shared/speech/en into FLAC files of a folder; the entries of train,
    with one more utterance for a fault at the end, and of dev."""
    train = open_source(str(speech / "en" / "train.jsonl"))[:: 3371 // TRAIN][: TRAIN + 1]
    known = set("".join(u.text for u in train[:-1]))
    dev = [u for u in open_source(str(speech / "en" / "dev.jsonl"))[::7] if known >= set(u.text)]
    made = []
    for part in (train, dev[:DEV]):
        entries = []
        for u in part:
            soundfile.write(folder / f"{u.id}.flac", read_audio(u), RATE)
            entry = {"audio_filepath": f"{u.id}.flac", "duration": u.duration, "text": u.text}
            entries.append(entry | {"speaker": u.speaker, "lang": "en", "id": u.id})
        made.append(entries)
    return tuple(made)


class Planted:
    """A fault in the last entry of `train`, or, if `split` is dev, in an entry added to dev."""

    def __init__(self, folder, train, dev, kind):
        self.folder, self.train, self.dev = folder, train, dev
        self.kind, self.split = kind, "train"
        self.spare = train[-1] | {"id": f"planted {kind}"}
        audio, _ = soundfile.read(folder / self.spare["audio_filepath"], dtype="float32")
        FAULTS[kind](self, audio)

    def save(self, audio, rate=RATE, subtype="PCM_16"):
        """Write a file of the spare utterance's own; its path."""
        path = self.folder / f"{self.kind.replace(' ', '_')}.wav"
        soundfile.write(path, audio, rate, subtype=subtype)
        self.spare |= {"audio_filepath": path.name}
        return path

    def in_dev(self, **changes):
        """The spare utterance, with a speaker of its own, belongs to dev."""
        self.split = "dev"
        self.spare |= {"speaker": "unseen", **changes}


def undecodable(p, audio):
    p.save(audio).write_bytes(b"<html>not found</html>" * 99)


def empty(p, audio):
    p.save(audio[:0])
    del p.spare["duration"]


def not_finite(p, audio):
    audio = audio.copy()
    audio[500:520] = np.nan
    p.save(audio, subtype="FLOAT")


def header_length(p, audio):
    path = p.save(audio)
    path.write_bytes(path.read_bytes()[: -2 * RATE])


def duration(p, audio):
    p.spare["duration"] += 1.0


def silent(p, audio):
    p.save(1e-4 * np.random.default_rng(0).standard_normal(audio.size))


def clipped(p, audio):
    p.save(np.clip(0.5 * audio / np.sort(np.abs(audio))[-audio.size // 50], -0.5, 0.5))


def offset(p, audio):
    p.save(np.clip(audio + 0.03, -1, 1))


def sample_rate(p, audio):
    p.save(soxr.resample(audio, RATE, 8000), 8000)


def channels(p, audio):
    p.save(np.stack([audio, np.roll(audio, RATE // 3)], axis=1))


def speaking_rate(p, audio):
    p.spare["text"] = " ".join(e["text"] for e in p.train)[: round(45 * p.spare["duration"])]


def infeasible(p, audio):
    p.spare["text"] = ("tensor of parades " * 99)[: round(26 * p.spare["duration"])].strip()


def vocabulary(p, audio):
    p.in_dev(text="die straße is long")


def scripts(p, audio):
    p.spare["text"] = "привет как дела"


def look_alikes(p, audio):
    p.spare["text"] = "he went to the b\u0430nk of the river"


def case(p, audio):
    p.spare["text"] = p.spare["text"].capitalize()


def punctuation(p, audio):
    p.spare["text"] += "."


def digits(p, audio):
    p.spare["text"] = "call room 215 before the evening"


def invisible(p, audio):
    p.spare["text"] += "\u200b"


def marks(p, audio):
    p.spare["text"] += " <unk>"


def duplicate_id(p, audio):
    p.spare["id"] = p.train[3]["id"]


def duplicate_audio(p, audio):
    copied, _ = soundfile.read(p.folder / p.train[5]["audio_filepath"], dtype="float32")
    p.save(copied)
    p.spare |= {"duration": p.train[5]["duration"]}


def duplicate_text(p, audio):
    p.spare["text"] = next(e["text"] for e in p.train if len(e["text"].split()) > 4)


def audio_overlap(p, audio):
    duplicate_audio(p, audio)
    p.in_dev()


def speaker_overlap(p, audio):
    p.in_dev(speaker=p.train[7]["speaker"])


def text_overlap(p, audio):
    p.in_dev(text=next(e["text"] for e in p.train if len(e["text"].split()) > 4))


def languages(p, audio):
    p.spare["lang"] = "nl"


FAULTS = {
    "undecodable": undecodable,
    "empty": empty,
    "not finite": not_finite,
    "header length": header_length,
    "duration": duration,
    "silent": silent,
    "clipped": clipped,
    "offset": offset,
    "sample rate": sample_rate,
    "channels": channels,
    "speaking rate": speaking_rate,
    "infeasible": infeasible,
    "vocabulary": vocabulary,
    "scripts": scripts,
    "look-alikes": look_alikes,
    "case": case,
    "punctuation": punctuation,
    "digits": digits,
    "invisible": invisible,
    "marks": marks,
    "duplicate id": duplicate_id,
    "duplicate audio": duplicate_audio,
    "duplicate text": duplicate_text,
    "audio overlap": audio_overlap,
    "speaker overlap": speaker_overlap,
    "text overlap": text_overlap,
    "languages": languages,
}


def write(path: pathlib.Path, entries: list[dict]) -> str:
    """A manifest; its path."""
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)
