"""Every command on every small input of ../shared/cases: right, or one line that names the file.

Daily: those commands that need no jax. The rest is slow: each input is trained on.
"""

import codecs
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from bljust_jax.data.sources import open_source
from bljust_jax.decoding import arpa
from tests.helpers.case_commands import call, call_without_streams, train
from tests.helpers.case_sources import SOURCES
from tests.helpers.runs import base, save, save_untrained

ROOT = pathlib.Path(__file__).resolve().parents[2]


# as outside of tests, where a warning of a library is no error
pytestmark = pytest.mark.filterwarnings("default")
every_source = pytest.mark.parametrize("source", SOURCES, ids=str)


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    """Configs are named by their path in it."""
    monkeypatch.chdir(ROOT)


def uri_of(source, cases):
    return source.uri.replace("{}", str(cases))


# Commands without jax


@every_source
def test_prepare(source, cases, tmp_path):
    uri, out = uri_of(source, cases), tmp_path / "out"
    options = ["--out", out, "--split", "x", "--verify", "--json"]
    if source.bad:
        call("prepare", uri, *options).refused(source.fault)
    else:
        made = call("prepare", uri, *options).right()
        assert (made["utterances"], made["bad"]) == (source.texts, 0)
        assert len(open_source(f"tfds:{out}/x")) == source.texts
    if 0 < source.bad < source.texts:
        made = call("prepare", uri, *options, "--max_bad_fraction=0.9").right()
        assert (made["utterances"], made["bad"]) == (source.texts - source.bad, source.bad)


@every_source
def test_ngram(source, cases, tmp_path):
    options = ["--out", tmp_path / "x.arpa", "--json"]
    found = call("ngram", "--data", uri_of(source, cases), *options)
    if source.texts:
        assert found.right()["sentences"] == source.texts
        assert arpa.Arpa.read(tmp_path / "x.arpa").words()
    else:
        found.refused(source.fault)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text_with_bom/corpus.txt", None),
        ("text_with_bom/model.arpa", "model.arpa:6: the text has the word <unk>"),
        ("damaged_arpa_gz/model.arpa.gz", "model.arpa.gz:1: is not UTF-8"),
        ("not_an_mp3/html.mp3", None),
        ("truncated_wav/trunc.wav", "trunc.wav:1: is not UTF-8"),
        ("missing.txt", "missing.txt"),
    ],
)
def test_ngram_of_a_text(name, words, cases, tmp_path):
    found = call("ngram", "--text", cases / name, "--out", tmp_path / "x.arpa", "--json")
    if words:
        found.refused(words)
    else:
        found.right()
        assert not any("\ufeff" in word for word in arpa.Arpa.read(tmp_path / "x.arpa").words())


@pytest.mark.parametrize("name", ["truncated_wav", "paths/c++", "two_runs_one_workdir", "missing"])
@pytest.mark.parametrize("command", ["report", "evaluate", "export", "transcribe", "train"])
def test_a_folder_that_is_no_run(command, name, cases, tmp_path):
    """Nothing is written beside what is there."""
    folder = cases / name
    before = sorted(cases.rglob("*"))
    options = {
        "report": [folder],
        "evaluate": ["--workdir", folder],
        "export": ["--workdir", folder, "--out", tmp_path / "e"],
        "transcribe": ["--model", folder, cases / "raw_name" / "u1.wav"],
        "train": [f"--config={folder}/config.py"],
    }
    call(command, *options[command]).refused(str(folder))
    assert sorted(cases.rglob("*")) == before


# With a model


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("untrained"))


FILES = {
    "ami_truncated_wav": ([], ["ES2002a/audio/ES2002a.Headset-0.wav ends 9.1 s before"]),
    "antiphase_bigfloat": ([], ["bigfloat.wav has samples up to 20868", "cancel each other"]),
    "flac_unknown_length": ([], []),
    "gsm_not_seekable": ([], []),
    "invisible_characters": ([], []),
    "locale_not_utf8": ([], []),
    "macos_dot_underscore": (["._84-121-0000.flac", "._BAC009S0002W0122.wav", "._TalkA.sph"], []),
    "mp3_no_xing": ([], []),
    "not_an_mp3": (["html.mp3"], []),
    "paths": ([], []),
    "raw_name": (["speech.raw"], []),
    "text_with_bom": ([], []),
    "truncated_wav": (
        [],
        ["trunc.wav ends 1.3 s before", "trunc.ogg", "short_hdr.wav", "stream_0"],
    ),
    "tsv_tab_newline": ([], []),
}
STEPS = 7  # of the supervised method, with as much compute as 2 joint steps and 2 of fine-tuning
SOUNDS = {".wav", ".flac", ".ogg", ".mp3", ".au", ".raw", ".sph"}


@pytest.mark.slow
@pytest.mark.parametrize("case", FILES)
def test_transcribe(case, cases, untrained, caplog):
    paths = sorted(path for path in (cases / case).rglob("*") if path.suffix in SOUNDS)
    bad, warned = FILES[case]
    found = call("transcribe", "--model", untrained, "--json", *paths, cases / "raw_name/u1.wav")
    texts = [json.loads(line) for line in found.out.splitlines()]
    assert len(texts) == len(paths) + 1 - len(bad)
    assert all(words in caplog.text for words in warned)
    assert {row["path"] for row in texts}.isdisjoint(str(p) for p in paths if p.name in bad)
    if bad:
        lines = [line for line in found.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == len(bad) + 1
        for name in bad:
            assert sum(name in line for line in lines) == 1
            call("transcribe", "--model", untrained, *(p for p in paths if p.name == name)).refused(
                name
            )
    else:
        assert found.code == 0
    assert "Traceback" not in found.err


OTHERS = "lists 0 of the 8 words of the references"
MODELS = [
    ("text_with_bom/model.arpa", ("", OTHERS)),
    ("damaged_arpa_gz/nbsp.arpa", ("0 of its 1 words can be spelt", OTHERS)),
    ("damaged_arpa_gz/model.arpa.gz", "expected an ARPA"),
    ("lm_wrong_case/upper.arpa", "upper or lower case"),
    ("text_with_bom/corpus.txt", "corpus.txt"),
    ("not_an_mp3/html.mp3", "html.mp3"),
    ("truncated_wav/trunc.wav", "trunc.wav"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), MODELS)
def test_language_models(name, words, cases, untrained):
    audio, uri = cases / "raw_name" / "u1.wav", cases / "prepare_drops_translation" / "train.jsonl"
    transcribe = ["transcribe", "--model", untrained, audio]
    evaluate = ["evaluate", "--workdir", untrained, "--data", uri, "--json"]
    pairs = zip(
        (transcribe, evaluate), [words] * 2 if isinstance(words, str) else words, strict=True
    )
    for command, line in pairs:
        found = call(*command, "--lm", cases / name, "--beam", "4")
        if line:
            found.refused(name.rpartition("/")[2], line)
        else:
            found.right()


@pytest.mark.slow
@every_source
def test_evaluate(source, cases, untrained):
    uri = uri_of(source, cases)
    found = call("evaluate", "--workdir", untrained, "--data", uri, "--json")
    if source.bad:
        found.refused(source.fault)
    else:
        assert found.right()["best_path"]["dev/utterances"] == source.texts


@pytest.mark.slow
@every_source
def test_train_report_export(source, cases, tmp_path, caplog):
    """Training goes on without the unusable recordings, which is a field of its config."""
    run = tmp_path / "run"
    found = call(*train(run, uri_of(source, cases)))
    if source.bad >= source.texts:  # the last of several is named
        several = f"{source.bad} of {source.texts} utterances of labelled are bad"
        found.refused(several if source.texts > 1 else source.fault)
        return
    final = found.right()
    assert (final["step"], final["data/quarantined"]) == (STEPS, source.bad)
    assert final["dev/utterances"] == source.texts - source.bad
    assert source.fault in found.err + caplog.text
    call("report", run).right()
    call("export", "--workdir", run, "--out", tmp_path / "e", "--unchecked").right()
    call("evaluate", "--workdir", run, "--beam", "2").right()
    assert call(*train(run, uri_of(source, cases))).right() == final


# Exports and runs with damaged files


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A wav2vec 2.0 as transformers stores it."""
    run, out = (tmp_path_factory.mktemp(name) for name in ("run", "export"))
    save(run, base)
    call("export", "--workdir", run, "--out", out / "m", "--unchecked").right()
    return out / "m"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vocab.list.json", "vocab.str_ids.json", "added_tokens.json"])
def test_vocabularies(name, cases, exported, tmp_path):
    model = shutil.copytree(exported, tmp_path / "m")
    shutil.copy(cases / "hf_vocab" / name, model / "vocab.json")
    call("transcribe", "--model", model, cases / "raw_name" / "u1.wav").refused("vocab.json")
    shutil.copytree(exported, model, dirs_exist_ok=True)
    call("transcribe", "--model", model, cases / "raw_name" / "u1.wav").right()


@pytest.fixture(scope="module")
def trained(cases, tmp_path_factory):
    """A run of four steps, and its final metrics."""
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        run = tmp_path_factory.mktemp("trained") / "run"
        return run, call(*train(run, cases / "locale_not_utf8" / "train.jsonl")).right()
    finally:
        os.chdir(before)


def damages(cases):
    """(file of a run, content) of what two runs at once, or a loss of power, leave."""
    folder = cases / "two_runs_one_workdir"
    yield "metrics.jsonl", (folder / "metrics.interleaved.jsonl").read_bytes()
    yield "metrics.jsonl", (folder / "metrics.nul_tail.jsonl").read_bytes()
    for name in ("metrics.jsonl", "config.json", "run.json", "tokenizer.json", "example.npz"):
        yield name, b""
        yield name, bytes(512)
    yield "samples/dev-best.jsonl", bytes(512)
    yield "samples/dev-best.jsonl", codecs.BOM_UTF8 + b'{"id": 1'


@pytest.mark.slow
@pytest.mark.parametrize("number", range(14))
def test_damaged_files_of_a_run(number, cases, trained, tmp_path):
    """The checkpoint is whole: training goes on from it, or one line names the file; so do the
    other commands."""
    name, content = list(damages(cases))[number]
    run = shutil.copytree(trained[0], tmp_path / "run")
    needed = {"config.json": {"report", "evaluate", "export"}}
    needed["tokenizer.json"] = {"train", "evaluate", "export"}
    # the same training command writes these anew, as their line says
    needed |= {"run.json": {"report"}, "example.npz": {"report"}}
    if content.strip(b"\0") == b"" and content:
        needed["metrics.jsonl"] = {"report"}
    commands = {
        "report": ["report", run],
        "evaluate": ["evaluate", "--workdir", run, "--beam", "2"],
        "export": ["export", "--workdir", run, "--out", tmp_path / "e", "--unchecked"],
        "train": train(run, cases / "locale_not_utf8" / "train.jsonl"),
    }
    for command, argv in commands.items():
        (run / name).write_bytes(content)
        found = call(*argv)
        if command in needed.get(name, ()):
            found.refused(name)
        else:
            final = found.right()
            assert command != "train" or final == trained[1]


# Environments


def command_lines(cases, folder):
    """Each command on texts that no 8-bit locale can write."""
    uri, run = cases / "locale_not_utf8" / "train.jsonl", folder / "run"
    audio = cases / "locale_not_utf8" / "u0.wav"
    return [
        ["prepare", uri, "--out", folder / "shards", "--verify"],
        ["ngram", "--data", uri, "--out", folder / "x.arpa"],
        train(run, uri),
        ["report", run],
        ["evaluate", "--workdir", run, "--lm", folder / "x.arpa", "--beam", "2"],
        ["transcribe", "--model", run, audio],
        ["transcribe", "--model", run, "--json", "--out", folder / "y", audio, audio],
        ["export", "--workdir", run, "--out", folder / "e", "--unchecked"],
    ]


@pytest.mark.slow
def test_commands_without_git_and_without_a_home_folder(cases, tmp_path, monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for argv in command_lines(cases, tmp_path):
        call(*argv).right()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["git"] == ""
    uri = cases / "locale_not_utf8" / "train.jsonl"
    for argv in (
        ["prepare", uri, "--out=~/s"],
        ["ngram", "--data", uri, "--out=~/x.arpa"],
        train("~/run", uri),
        ["report", "~/run"],
        ["transcribe", "--model=~/run", uri],
        ["evaluate", "--workdir=~/run"],
        ["export", "--workdir=~/run", "--out=~/e"],
    ):
        call(*argv).refused("~/", "set HOME")
    assert not (ROOT / "~").exists()


@pytest.mark.slow
def test_commands_without_standard_streams(cases, tmp_path):
    for argv in command_lines(cases, tmp_path):
        assert call_without_streams(*argv) == 0, argv
    assert len((tmp_path / "y").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["C", "de_DE.ISO-8859-1"])
def test_commands_in_a_locale_that_lacks_the_texts(locale, cases, tmp_path):
    lines = [[str(word) for word in argv] for argv in command_lines(cases, tmp_path)]
    env = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if locale != "C":
        env["PYTHONIOENCODING"] = "latin-1"
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.case_commands", json.dumps(lines)],
        **{"cwd": ROOT, "env": env, "capture_output": True, "check": False},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0] * len(lines), done.stderr
    assert "w\u0151 call it b\u0151ar" in done.stderr.decode("utf-8")
    assert b"Traceback" not in done.stderr
