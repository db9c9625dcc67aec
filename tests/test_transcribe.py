"""Transcription by a run, and by the command: what it prints, lists of paths, mistakes."""

import io
import json
import os
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

from bljust_jax import transcribe as command
from bljust_jax.data.sources import open_source, read_audio
from bljust_jax.decoding import arpa, kneser_ney
from bljust_jax.inference import decode_split, load, scoring
from bljust_jax.inference.load import load_model
from bljust_jax.inference.subtitles import srt
from bljust_jax.inference.trained_run import load_trained_run
from bljust_jax.inference.transcriber import (
    Failure,
    Transcript,
    WindowOptions,
    Word,
    transcribe,
)
from bljust_jax.parallel.mesh import put_batch
from tests.helpers.fake_recognizer import fake, sound, store
from tests.helpers.runs import save_untrained


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("run"))


# A run


def test_a_run_s_transcripts_are_what_evaluation_recognises(workdir, tmp_path):
    """The same audio as FLAC: batches of other shapes, the same texts; frames are as told."""
    opened = load_trained_run(workdir)
    model = load_model(workdir)
    assert (model.hop, model.sample_rate, model.multiple) == (640, 16000, jax.device_count())
    splits = opened.load_split("dev", "")
    program = jax.jit(decode_split.greedy_decoder(opened.task))
    expected = scoring.score_tasks(
        "dev",
        opened.recipe.tasks,
        splits,
        lambda task, batch: program(opened.weights, put_batch(batch, opened.mesh)),
    ).results[""]
    paths = [
        store(tmp_path / f"{n}.flac", read_audio(u)) for n, u in enumerate(splits.utterances("dev"))
    ]
    found = list(transcribe(model, paths, WindowOptions()))
    assert [f.text for f in found] == [p["hypothesis"].strip() for p in expected.pairs]
    assert any(len(f.words) > 1 for f in found)
    for f in found:
        assert [w.word for w in f.words] == f.text.split()
        times = [t for w in f.words for t in (w.start, w.end)]
        assert times == sorted(times)
        assert 0 <= times[0] <= times[-1] <= f.seconds
        assert all(w.start < w.end for w in f.words)


def test_frames_are_those_of_the_logits(workdir):
    model = load_model(workdir)
    lengths = np.array([0, 399, 400, 1039, 1040, 16000, 60000, 59999], np.int32)
    batch = {"audio": np.zeros((8, 60000), np.int16), "audio_lengths": lengths}
    logits, frames = model.predict(batch)
    assert logits.shape == (8, model.frames(60000), 29)
    assert np.asarray(frames).tolist() == [model.frames(int(n)) for n in lengths]
    for n in (1040, 59999):
        assert model.frames(n + model.hop) == model.frames(n) + 1


# The command


@pytest.fixture
def spoken(workdir, tmp_path, monkeypatch):
    """A folder, to be worked in, with three utterances of the run's kind."""
    monkeypatch.chdir(tmp_path)
    for name, u in zip("abc", open_source("synthetic:tiny/dev"), strict=False):
        store(tmp_path / f"{name}.flac", read_audio(u))
    return workdir


def run(capsys, *flags):
    """(exit code, lines of stdout, of stderr)."""
    code = command.main(list(flags))
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def test_the_command_writes_text_or_json(spoken, capsys):
    model = f"--model={spoken}"
    code, (alone,), (progress,) = run(capsys, model, "a.flac")
    assert code == 0
    assert alone.split()
    assert progress.startswith("transcribed 1 file, ")
    code, several, _ = run(capsys, model, "a.flac", "b.flac")
    assert code == 0
    assert several[0] == f"a.flac\t{alone}"
    assert several[1].startswith("b.flac\t")
    code, lines, _ = run(capsys, model, "a.flac", "--json")
    (found,) = map(json.loads, lines)
    assert list(found) == ["path", "text", "words"]
    assert (found["path"], found["text"]) == ("a.flac", alone)
    assert [list(w) for w in found["words"]] == [["word", "start", "end"]] * len(alone.split())
    code, lines, _ = run(capsys, model, "a.flac", "--srt", "--out=a.srt")
    assert (code, lines) == (0, [])
    written = pathlib.Path("a.srt").read_text(encoding="utf-8")
    assert written == srt([Word(**word) for word in found["words"]])
    assert written.startswith("1\n00:00:0")


def test_on_a_terminal_the_line_stays_in_place_and_makes_room(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line = command.Progress("runs/x")
    line.add_audio(90.0)
    line.add_file(Transcript("a.wav", "", [], 0.5))
    line.add_file(Failure("b.wav", "cannot read b.wav"))
    line.close()
    screen = [""]
    for part in re.split(r"([\r\n])", capsys.readouterr().err):
        if part == "\n":
            screen.append("")
        elif part != "\r":
            screen[-1] = part + screen[-1][len(part) :]
    assert [x.rstrip() for x in screen[:2]] == [
        *("a.wav: no words in 0.50 s", "error: cannot read b.wav")
    ]
    assert re.fullmatch(r"transcribed 2 files, 90\.0 s of audio in .*, by runs/x *", screen[2])
    assert screen[3:] == [""]


def test_bad_files_do_not_stop_the_others(spoken, capsys):
    flags = ["a.flac", "none.wav", "b.flac", "--out=found.txt", f"--model={spoken}"]
    code, out, err = run(capsys, *flags)
    assert (code, out) == (2, [])
    lines = pathlib.Path("found.txt").read_text(encoding="utf-8").splitlines()
    assert [x.split("\t")[0] for x in lines] == ["a.flac", "b.flac"]
    assert err[0] == "error: cannot read none.wav: No such file or directory"
    assert err[-1] == "error: 1 of 3 files could not be read, see above"
    code, out, err = run(capsys, "none.wav", f"--model={spoken}")
    assert (code, out, err) == (2, [], ["error: cannot read none.wav: No such file or directory"])


def test_paths_come_from_lists_whatever_their_bytes(spoken, capsys, monkeypatch):
    strange = os.fsdecode(b"caf\xe9.flac")
    os.rename("c.flac", strange)
    with open("list", "wb") as file:
        file.write(b"b.flac\r\n\n" + os.fsencode(strange))
    stdin = io.TextIOWrapper(io.BytesIO(b"b.flac\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    flags = ["-", "a.flac", "--list=list", "--out=found", f"--model={spoken}"]
    assert run(capsys, *flags)[0] == 0
    with open("found", "rb") as file:
        names = [line.split(b"\t")[0] for line in file]
    assert names == [b"b.flac", b"a.flac", b"b.flac", b"caf\xe9.flac"]


def test_a_search_with_a_language_model(spoken, capsys):
    """`--beta` is added a word: a model whose words cost or earn that much hears fewer or more."""
    arpa.write(pathlib.Path("lm.arpa"), kneser_ney.estimate([["one", "two"]], 2).orders)
    flags = [f"--model={spoken}", "a.flac", "--lm=lm.arpa", "--alpha=0", "--beam=4"]
    few, many = (run(capsys, *flags, f"--beta={beta}")[1][0].split() for beta in (-9, 9))
    assert len(few) < len(many)


def test_an_exported_folder_is_opened_by_its_own_reader(tmp_path, monkeypatch, capsys):
    def reader(folder):
        return fake()[0]._replace(name=str(folder))

    monkeypatch.setattr(load, "exported_recognizer", reader)
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    path = store(tmp_path / "a.wav", sound((0, "_a_b ccc")))
    assert run(capsys, f"--model={tmp_path}", path)[:2] == (0, ["ab c"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "name the audio files"),
        (["a", "--window=0"], "--window 0"),
        (["a", "b", "--srt"], "--srt writes the subtitles of one file"),
        (["a", "--srt", "--json"], "--srt writes the subtitles of one file"),
        (["a", "--overlap=nan"], "--overlap nan"),
        (["a", "--overlap=8"], "--window 30 must be at least 4 times --overlap 8"),
        (["a", "--overlap=0.01"], "--overlap 0.01 must be a frame, 0.04 s"),
        (["a", "--batch_seconds=x"], "--batch_seconds"),
        (["a", "--beam=0"], "--beam 0"),
        (["a", "--lm=none.arpa"], "none.arpa"),
        (["a", "--lm=CAPITALS.arpa", "--lm_over=units"], "lists 0 of the 28 units"),
        (["--list=none.txt"], "none.txt"),
        (["a", "--model=."], "holds no config.json: give --model"),
        (["a", "--out=none/out.txt"], "none/out.txt"),
    ],
)
def test_mistakes_are_one_line(flags, words, spoken, capsys):
    arpa.write(pathlib.Path("CAPITALS.arpa"), kneser_ney.estimate([["ONE", "TWO"]], 2).orders)
    code, out, err = run(capsys, f"--model={spoken}", *flags)
    assert (code, out) == (2, [])
    (line,) = [x for x in err if x.startswith("error: ")]
    assert words in line
