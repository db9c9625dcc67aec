"""Damage audio and text files at random and read them, in a process of limited memory.

python -m tests.helpers.fuzz audio|texts EXAMPLES FOLDER: the last line on stdout counts outcomes.
"""

import collections
import json
import os
import pathlib
import resource
import signal
import sys
import warnings

import numpy as np
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bljust_jax.checkpoint import saved_config
from bljust_jax.common.errors import UserError
from bljust_jax.common.files import read_json_lines
from bljust_jax.data import containers
from bljust_jax.data.sources import open_source, read_audio
from bljust_jax.data.tokenizer import CharTokenizer, load_tokenizer
from bljust_jax.decoding import arpa
from bljust_jax.export import hf_tokenizer
from bljust_jax.inference import audio_files

RATE, SECONDS = 8000, 1.5
MEMORY = 2 << 30  # bytes, of the process as a whole
PATIENCE = 20  # seconds per example: more is a hang
# Formats whose files hold no length, or more than one kind of it that cannot be told from the other
WITHOUT_LENGTH = ("IRCAM", "PAF", "PVF", "XI", "SD2", "MP3", "HTK")
CLOCK = {"suppress_health_check": list(HealthCheck), "deadline": None, "database": None}


def originals(folder: pathlib.Path) -> list[tuple[str, bytes]]:
    """(format, file) of each format and codec that libsndfile writes."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, round(SECONDS * RATE)).astype(np.float32)
    made = []
    for container in sorted(soundfile.available_formats()):
        for codec in sorted(soundfile.available_subtypes(container)):
            path = folder / f"o.{container.lower()}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    soundfile.write(path, noise, RATE, format=container, subtype=codec)
                if container != "RAW" and len(read_audio(whole(path), RATE)):
                    made.append((container, path.read_bytes()))
            except (soundfile.SoundFileError, UserError):
                continue  # libsndfile does not write this pair, or does not read it
    return made


def whole(path: pathlib.Path):
    """The utterance of a manifest of one file."""
    line = json.dumps({"audio_filepath": path.name, "text": "a", "id": path.name})
    (path.parent / "m.jsonl").write_text(line + "\n", encoding="utf-8")
    (u,) = open_source(str(path.parent / "m.jsonl"))
    return u


def require_line(error: UserError) -> None:
    if "\n" in str(error):
        raise AssertionError(f"not one line: {error}")


damages = st.tuples(
    st.sampled_from(["cut", "flip", "both", "zeros"]),
    st.floats(0.02, 0.9),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), min_size=1, max_size=3),
    st.booleans(),
)


def damaged(content: bytes, damage) -> bytes:
    kind, share, flips, in_header = damage
    data = bytearray(content)
    if kind in ("flip", "both"):
        for place, bit in flips:
            data[place % min(len(data), 64 if in_header else len(data))] ^= 1 << bit
    if kind == "zeros":
        start = round(share * len(data))
        data[start : start + 512] = bytes(len(data[start : start + 512]))
    return bytes(data[: round(share * len(data))] if kind in ("cut", "both") else data)


def check_audio(folder: pathlib.Path, examples: int) -> collections.Counter:
    files, counts, number = originals(folder), collections.Counter(), iter(range(1 << 30))
    assert len({container for container, _ in files}) > 18

    @settings(max_examples=examples, derandomize=True, **CLOCK)
    @given(st.sampled_from(files), damages)
    def check(original, damage):
        signal.alarm(PATIENCE)
        container, content = original
        path = folder / f"{next(number)}.{container.lower()}"  # decoded files are kept by name
        path.write_bytes(damaged(content, damage))
        try:
            u = whole(path)
            assert "\n" not in u.fault
            if u.fault:
                counts["fault"] += 1
            else:
                assert len(read_audio(u, RATE)) <= round(u.duration * RATE)
                counts["read"] += 1
                if damage[0] == "cut" and container not in WITHOUT_LENGTH:
                    whole_length = containers.length(str(path))
                    raise AssertionError(f"{container} cut to {damage[1]:.0%}: {whole_length}")
        except UserError as error:
            require_line(error)
            counts["error"] += 1
        try:
            audio_files.read(str(path), RATE)
            counts["transcribed"] += 1
        except UserError as error:
            require_line(error)
        path.unlink()

    check()
    return counts


ARPA = ["\\data\\", "ngram 1=4", "ngram 2=2", "", "\\1-grams:", "-1\t<s>\t-0.5", "-1\t</s>"]
ARPA += ["-1\ta\t-0.5", "-2\tb", "", "\\2-grams:", "-0.1\t<s> a", "-0.2\ta b", "", "\\end\\"]
XML = '<nite:root xmlns:nite="http://x/">{}</nite:root>'
WORD = '<w nite:id="ES2002a.A.words0" starttime="0.1" endtime="0.3">caf&#233;</w>'
SEGMENT = '<segment nite:id="s" transcriber_start="0.0" transcriber_end="0.9"><nite:child '
SEGMENT += 'href="ES2002a.A.words.xml#id(ES2002a.A.words0)"/></segment>'
MEETING = '<meeting observation="ES2002a"><speaker nxt_agent="A" global_name="M" channel="0"/>'


def corpora(top: pathlib.Path) -> list[tuple[pathlib.Path, object]]:
    """(file, function that reads it) of each kind of text file, all valid."""

    def audio(name, **kind):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(top / name, np.full(RATE, 99, np.int16), RATE, **kind)

    def text(name, lines):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return top / name

    audio("a.wav")
    entries = [{"audio_filepath": "a.wav", "id": str(i), "text": "caf\u00e9"} for i in range(3)]
    entries[1] |= {"duration": 0.5, "offset": 0.25, "translation": "x", "speaker": "s"}
    manifest = text("f.jsonl", [json.dumps(e, ensure_ascii=False) for e in entries])
    audio("TED/dev/sph/T.wav")
    stm = text("TED/dev/stm/T.stm", [";; c", "T 1 S 0.0 0.5 <o> caf\u00e9", "T A S 0.5 1.0 b"])
    audio("CV/nl/clips/c.mp3", format="MP3")
    tsv = text("CV/nl/validated.tsv", ["client_id\tpath\tsentence\tn", "s\tc.mp3\tcaf\u00e9\t1"])
    pairs = text("CV/nl/covost_v2.nl_en.tsv", ["path\ttranslation\tsplit", "c.mp3\tx\ttrain"])
    audio("AMI/ES2002a/audio/ES2002a.Headset-0.wav")
    words = text("AMI/words/ES2002a.A.words.xml", [XML.format(WORD)])
    segments = text("AMI/segments/ES2002a.A.segments.xml", [XML.format(SEGMENT)])
    meetings = text("AMI/corpusResources/meetings.xml", [XML.format(MEETING + "</meeting>")])
    CharTokenizer(" ab\u00e9", ("lower",)).save(top)
    vocabulary = text("HF/vocab.json", [json.dumps({"<pad>": 0, "|": 1, "caf\u00e9": 2})])
    config = text("config.json", [json.dumps({"a": {"b": 1}, "data": {"text": {}}})])
    rows = text("metrics.jsonl", [json.dumps({"step": 1, "x": 0.5}), json.dumps({"step": 2})])
    ami, covost = f"ami:{top}/AMI/ihm/train", f"covost:{top}/CV/nl_en/train"
    return [
        (manifest, lambda: open_source(str(manifest))),
        (stm, lambda: open_source(f"tedlium:{top}/TED/dev")),
        (tsv, lambda: open_source(covost)),
        (pairs, lambda: open_source(covost)),
        *((path, lambda: open_source(ami)) for path in (words, segments, meetings)),
        (text("x.arpa", ARPA), lambda: arpa.Arpa.read(top / "x.arpa")),
        (vocabulary, lambda: hf_tokenizer.read(top / "HF", 0)),
        (config, lambda: saved_config.read_config(config)),
        (top / "tokenizer.json", lambda: load_tokenizer(top)),
        (rows, lambda: read_rows(rows)),
    ]


def read_rows(path: pathlib.Path) -> list[dict]:
    try:
        return read_json_lines(path)
    except ValueError as error:  # none is whole
        raise UserError(str(error)) from error


INSERTED = [b"\0", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b"\xff", b"\\", b'"', b"}", b"[" * 999]
INSERTED += [
    b"9" * 400,
    b"-",
    b"nan",
    b"1e999",
    b" ",
    "\u2028\u00a0\u200b".encode(),
    b"<!DOCTYPE a>",
]


def check_texts(folder: pathlib.Path, examples: int) -> collections.Counter:
    kinds, counts = corpora(folder), collections.Counter()
    for _, read in kinds:
        read()
    edits = st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(["cut", "flip", "insert", "drop", "repeat"]))
        | st.tuples(st.floats(0, 1), st.sampled_from(INSERTED)),
        min_size=1,
        max_size=4,
    )

    @settings(max_examples=examples, derandomize=True, **CLOCK)
    @given(st.integers(0, len(kinds) - 1), edits)
    def check(kind, edits):
        signal.alarm(PATIENCE)
        path, read = kinds[kind]
        content = data = path.read_bytes()
        for share, edit in edits:
            at = round(share * len(data))
            if edit == "cut":
                data = data[:at]
            elif edit == "flip":
                data = data[:at] + bytes(b ^ 4 for b in data[at : at + 1]) + data[at + 1 :]
            elif edit == "drop":
                data = data[:at] + data[at + 9 :]
            elif edit == "repeat":
                data = data[: at + 30] + data[at:]
            elif isinstance(edit, bytes):
                data = data[:at] + edit + data[at:]
        path.write_bytes(data)
        try:
            read()
            counts["read"] += 1
        except UserError as error:
            require_line(error)
            counts["error"] += 1
        finally:
            path.write_bytes(content)

    check()
    return counts


def main(what: str, examples: str, folder: str) -> None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limit))
    os.chdir(folder)
    check = {"audio": check_audio, "texts": check_texts}[what]
    print(json.dumps(check(pathlib.Path(folder), int(examples))))


if __name__ == "__main__":
    main(*sys.argv[1:])
