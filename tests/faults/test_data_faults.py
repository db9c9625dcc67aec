"""Unusable data: one-line error with file, line and cure, exit code 2, no file (F9 to F19)."""

import json
import re
import sys

import numpy as np
import pytest
import soundfile

from bljust_jax import main
from bljust_jax.data.tokenizer import CharTokenizer
from configs import quickstart
from tests.helpers import corpora
from tests.helpers.corpora import KINDS, PLAIN, RATE, damage, load, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpora.noise(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs `main` with settings of `config.data`: (exit code, stdout, lines of stderr)."""

    def run(workdir=tmp_path / "run", **data):
        config = quickstart.get_config("smoke")
        config.data.update(data)
        config.mesh.data = 1
        monkeypatch.setattr(main, "parse", lambda argv: (config, workdir))
        monkeypatch.setattr(main, "print_devices", lambda jax: None)
        monkeypatch.setattr(sys, "argv", ["main"])
        code = main.main()
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return run


A = '"audio_filepath": "1.flac"'


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", r"m\.jsonl: no utterance found: it is empty"),
        ("\n\n", r"m\.jsonl: no utterance found: it is empty"),
        (f"{{{A}}}\n{{nope", r"m\.jsonl:2: is not JSON: .*write one object a line"),
        ('{"text": "a"}', r'm\.jsonl:1: has no "audio_filepath"; add that field'),
        ('{"audio_filename": "1.flac"}', r'm\.jsonl:1: .* but "audio_filename"; rename'),
        ('{"audio_filepath": "gone.flac"}', r"m\.jsonl:1: no such file: .*gone\.flac.; correct"),
        ('{"audio_filepath": "../x.flac"}', r"m\.jsonl:1: .*outside the data root.*config\.data"),
        (f"{{{A}}}\n{{{A}}}", r"m\.jsonl:2: id '1\.flac' was used before, at .*m\.jsonl:1; ids"),
        (f'{{{A}, "duration": 0}}', r"m\.jsonl:1: duration must be above 0 seconds; leave it out"),
        (f'{{{A}, "duration": -1}}', r"m\.jsonl:1: duration must be a number of seconds, 0 or"),
        (f'{{{A}, "duration": NaN}}', r"m\.jsonl:1: duration must be a number of seconds.*nan"),
        (f'{{{A}, "duration": "2"}}', r"m\.jsonl:1: duration .* without quotes, not '2'"),
        (f'{{{A}, "offset": 9}}', r"m\.jsonl:1: offset 9 s is past the end of .*1\.flac"),
        (f'{{{A}, "text": 3}}', r"m\.jsonl:1: text must be a string, not 3; put it in quotes"),
        (f"{{{A}}}", r"config\.data\.train: no utterance is left to train on: 1 without a text"),
        (f'{{{A}, "text": " "}}', r"no utterance is left to train on: 1 without a text"),
        (f'{{{A}, "text": "ab", "duration": 300}}', r"left to train on: 1 longer than 40 s"),
        (f'{{{A}, "text": "ab", "duration": 0.01}}', r"left to train on: 1 shorter than 0\.1 s"),
        (f'{{{A}, "text": "ab", "duration": 30}}', r"labelled: no utterance is .* longer than 4 s"),
    ],
)
def test_a_manifest_that_cannot_train_is_one_line(folder, command, lines, said, tmp_path):
    (folder / "m.jsonl").write_text(lines + "\n")
    code, out, err = command(train=str(folder / "m.jsonl"), test="")
    assert (code, out) == (2, "")
    (line,) = err
    assert re.match(f"error: .*{said}", line), line
    assert not any(p.suffix != ".jsonl" and p.is_file() for p in tmp_path.rglob("*"))


def test_a_split_without_a_text_or_within_the_limits_cannot_be_scored(folder, command):
    write(folder, "bare", [{"audio_filepath": "1.flac"}])
    code, _, (line,) = command(train=str(folder / "train.jsonl"), dev=str(folder / "bare.jsonl"))
    assert code == 2
    assert re.match(r'error: .*bare\.jsonl:1: no utterance .* text to score; give each its "', line)
    write(folder, "long", [{"audio_filepath": "1.flac", "duration": 300.0, "text": "a"}])
    code, _, (line,) = command(train=str(folder / "train.jsonl"), dev=str(folder / "long.jsonl"))
    assert code == 2
    assert re.match(r"error: config\.data\.dev: .*long\.jsonl: no utterance is left: 1", line)


def test_byte_order_mark_crlf_and_decomposed_letters_are_accepted(folder):
    entries = [
        {"audio_filepath": f"{i}.flac", "text": text} for i, text in enumerate(("e\u0301", "é"))
    ]
    text = "\r\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    (folder / "nfd.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    corpus = load(folder, train=str(folder / "nfd.jsonl"), min_spellable=0.0, **PLAIN)
    assert corpus.tokenizer.symbols == ("é",)


@pytest.mark.parametrize("bare", [False, True])
def test_five_ways_to_lose_a_recording_are_all_noticed(tmp_path, bare):
    """F9; files with an intact header and no given duration fail when they are decoded."""
    rng, entries = np.random.default_rng(0), []
    for i in range(20):
        name = f"{i}.flac"
        soundfile.write(tmp_path / name, rng.integers(-9, 9, RATE).astype(np.int16), RATE)
        entry = {"audio_filepath": name, "duration": 1.0, "text": "a", "id": str(i)}
        entries.append({k: v for k, v in entry.items() if not (bare and k == "duration")})
    for i, kind in enumerate(KINDS):
        damage(tmp_path / f"{i}.flac", kind)
    uri = write(tmp_path, "train", entries)
    corpus = load(tmp_path, dev=uri, max_bad_fraction=0.25, **PLAIN)
    scored = [u.id for _, members in corpus.eval_batches("dev") for u in members]
    assert sorted(scored, key=int) == [str(i) for i in range(5, 20)]
    found = {entry["id"]: entry for entry in corpus.quarantined}
    assert set(found) == set("01234")
    for i, entry in found.items():
        assert entry["line"] == f"{uri}:{int(i) + 1}"
        assert entry["path"].endswith(f"/{i}.flac")
        assert re.search(rf":{int(i) + 1}: .*/{i}\.flac.*; (replace|remove)", entry["reason"])


def test_very_short_and_very_long_utterances_are_left_out_or_cut(tmp_path):
    """F15: they are counted, and batch shapes are those without them."""
    entries = []
    for i, seconds in enumerate((0.01, 0.5, 0.5, 300.0)):
        soundfile.write(tmp_path / f"{i}.wav", np.full(round(seconds * RATE), 99, np.int16), RATE)
        entries.append({"audio_filepath": f"{i}.wav", "text": "a", "speaker": "s"})
    uri = write(tmp_path, "train", entries)
    limits = {"min_seconds": 0.1, "max_seconds": 40.0}
    corpus = load(tmp_path, dev=uri, **PLAIN, **limits, unlabelled_cut=False)
    assert [len(corpus.utterances(s)) for s in ("labelled", "unlabelled", "dev")] == [2, 2, 3]
    summary = "\n".join(corpus.summary())
    for stream in ("labelled", "unlabelled"):
        assert (
            f"{stream}: 1 utterances skipped: shorter than 0.1 s (config.data.min_seconds)"
            in summary
        )
        assert f"{stream}: 1 utterances skipped: longer than 40 s" in summary
    assert "dev: 1 utterances skipped: longer than config.data.max_seconds=40" in summary
    assert {b["audio"].shape[1] for b, _ in corpus.eval_batches("dev")} == {RATE // 2}
    unlimited = load(tmp_path, dev=write(tmp_path, "dev", entries[1:2]), **PLAIN)
    assert [len(unlimited.utterances(s)) for s in ("labelled", "unlabelled")] == [4, 4]
    assert "labelled: 1 utterances skipped: longer than 1.5 s" in "\n".join(unlimited.summary())
    lengths = {b["audio"].shape[1] for b in unlimited.unlabelled_batches(4)}
    assert lengths <= {RATE // 2, 3 * RATE // 2}  # the long one is cropped


def test_characters_outside_the_vocabulary_are_scored_and_named(folder):
    """F10: errors in dev; in training they occur only with a given tokenizer."""
    corpus = load(folder, tokenizer=CharTokenizer(" ab01"))
    summary = "\n".join(corpus.summary())
    assert re.search(r"labelled: \d+ utterances skipped: with unknown characters", summary)
    assert re.search(r"dev: characters without a label: '!' x 1", summary)
    assert corpus.references("dev")[-1] == "ab!"
