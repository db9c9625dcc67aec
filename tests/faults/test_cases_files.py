"""File names, folders, locales and streams as other machines have them: right, or one line."""

import codecs
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import soundfile
from matplotlib.figure import Figure

from bljust_jax import evaluate, ngram, report, transcribe
from bljust_jax.bilevel.types import Task
from bljust_jax.common import cli, files
from bljust_jax.common.errors import UserError
from bljust_jax.data import sources, synthetic
from bljust_jax.data.sources import open_source, read_audio
from bljust_jax.export import hf_tokenizer
from bljust_jax.parallel import compile_cache
from bljust_jax.reporting import example, page, plots, utterances
from tests.helpers import corpora

ROOT = pathlib.Path(__file__).resolve().parents[2]
RATE = 16000


def audio(path, samples=RATE, **kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(samples, 99, np.int16), RATE, **kind)


# Names that begin with a dot


def librispeech(top):
    audio(top / "dev" / "84" / "121" / "84-121-0000.flac")
    (top / "dev/84/121/84-121.trans.txt").write_text("84-121-0000 A\n")
    return "librispeech", "dev"


def tedlium(top):
    audio(top / "dev" / "sph" / "Talk.sph", format="NIST", subtype="PCM_16")
    (top / "dev" / "stm").mkdir()
    (top / "dev/stm/Talk.stm").write_text("Talk 1 S 0.0 0.5 <o> a\n")
    return "tedlium", "dev"


def aishell(top):
    audio(top / "wav" / "dev" / "S1" / "BAC1.wav")
    (top / "transcript").mkdir()
    (top / "transcript/aishell_transcript_v0.8.txt").write_text("BAC1 a\n")
    return "aishell", "dev"


@pytest.mark.parametrize("corpus", [librispeech, tedlium, aishell])
def test_files_of_macos_beside_the_corpus_are_passed_over(tmp_path, corpus):
    scheme, split = corpus(tmp_path)
    whole = open_source(f"{scheme}:{tmp_path}/{split}")
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7Mac OS X" + bytes(99))
    assert open_source(f"{scheme}:{tmp_path}/{split}") == whole
    assert len(whole) == 1


# Paths


def test_a_plus_in_a_folder_is_no_separator(tmp_path):
    top = tmp_path / "c++" / "a+b"
    scheme, split = librispeech(top)
    audio(top / "u.wav")
    one = corpora.write(top, "one", [{"audio_filepath": "u.wav", "id": "1"}])
    two = corpora.write(tmp_path, "two", [{"audio_filepath": "c++/a+b/u.wav", "id": "2"}])
    ids = {one: ["1"], two: ["2"], f"{scheme}:{top}/{split}": ["84-121-0000"]}
    for a, found in ids.items():
        assert [u.id for u in open_source(a)] == found
        for b in ids.keys() - {a}:
            assert [u.id for u in open_source(f"{a}+{b}")] == found + ids[b]
    parts = sources._parts
    assert parts(f"{one}+missing.jsonl") == [*one.split("+"), "missing.jsonl"]
    assert parts("librispeech:a+b:c") == ["librispeech:a", "b:c"]
    assert parts("librispeech:a+librispeech:b") == ["librispeech:a", "librispeech:b"]


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("named", ["NFC", "NFD"])
def test_a_name_in_another_normal_form_is_found(tmp_path, on_disk, named):
    name = unicodedata.normalize(on_disk, "caf\u00e9.wav")
    audio(tmp_path / name)
    written = unicodedata.normalize(named, name)
    (u,) = open_source(corpora.write(tmp_path, "m", [{"audio_filepath": written}]))
    assert u.path == str(tmp_path / name)
    assert u.id == written


def test_a_tilde_is_the_home_folder_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    audio(tmp_path / "u.wav")
    corpora.write(tmp_path, "m", [{"audio_filepath": "u.wav", "text": "a b"}])
    librispeech(tmp_path / "LS")
    for uri in ("~/m.jsonl", "manifest:~/m.jsonl", "librispeech:~/LS/dev"):
        assert len(open_source(uri)) == 1
    assert len(open_source("librispeech:LS/dev", "~")) == 1
    assert ngram.main(["--data", "~/m.jsonl", "--out=~/new/x.arpa"]) == 0
    assert (tmp_path / "new" / "x.arpa").is_file()
    args = transcribe.parser().parse_args(["--model=~/run", "--out=~/y", "--list=~/z"])
    assert (args.model, args.out) == (tmp_path / "run", tmp_path / "y")
    assert report.parser().parse_args(["~/a", "~/b"]).runs == [tmp_path / "a", tmp_path / "b"]
    (tmp_path / "z").write_bytes(codecs.BOM_UTF8 + b"a.wav\r\n\nb.wav")
    assert list(transcribe.paths_of(args)) == ["a.wav", "b.wav"]
    code = "import sys; from bljust_jax import main; print(main.parse(sys.argv)[1])"
    given = ["--config=configs/quickstart.py:smoke", "--workdir=~/w"]
    done = subprocess.run([sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True)
    assert done.stdout.decode().strip() == str(tmp_path / "w"), done.stderr
    assert not (tmp_path / "~").exists()


def test_without_a_home_folder_caches_are_elsewhere_or_off(tmp_path, monkeypatch, caplog):
    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    assert synthetic.cache_folder().is_absolute()
    updates = []
    monkeypatch.setattr(compile_cache.jax.config, "update", lambda *pair: updates.append(pair))
    compile_cache.enable_compile_cache("~/.cache/x")
    assert (updates, "no cache of compiled programs: ~/.cache/x" in caplog.text) == ([], True)
    for call in (lambda: open_source("~/m.jsonl"), lambda: files.expand_user("~nobody-here/x")):
        with pytest.raises(UserError, match="home folder of the user is unknown; set HOME"):
            call()
    assert list(tmp_path.iterdir()) == []


# Locales and streams

WRITES = """
import os, sys
from bljust_jax.common import cli, console
def body():
    print("caf\\u00e9 \\u4f60", os.fsdecode(b"\\xff"))
    console.log("\\u4f60")
    return 0
sys.exit(cli.run_to_exit_code(body))
"""
LOCALES = [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
LOCALES += [{"PYTHONIOENCODING": "latin-1"}]


@pytest.mark.parametrize("locale", LOCALES)
def test_output_is_utf8_whatever_the_locale_is(locale):
    done = subprocess.run(
        [sys.executable, "-c", WRITES], cwd=ROOT, env={**os.environ, **locale}, capture_output=True
    )
    assert done.stdout == "caf\u00e9 \u4f60 ".encode() + b"\xff\n"
    assert (done.returncode, done.stderr) == (0, "\u4f60\n".encode())


@pytest.mark.parametrize(
    ("encoding", "expected"), [("latin-1", b"\xe9\\u4f60\xff"), ("ascii", b"\\xe9\\u4f60\xff")]
)
def test_a_terminal_gets_what_it_can_show(encoding, expected, monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Terminal(raw, encoding=encoding))
    assert cli.run_to_exit_code(lambda: print("\u00e9\u4f60" + os.fsdecode(b"\xff"), end="")) == 0
    assert raw.getvalue() == expected


READS = """
import sys
from bljust_jax.data.sources import open_source, read_audio, write_json_lines
from bljust_jax.common import cli
import pathlib
def body():
    (u,) = open_source(sys.argv[1])
    write_json_lines(pathlib.Path(sys.argv[1]).with_name("out"), [{"text": u.text, "path": u.path}])
    print(len(read_audio(u)), u.text)
sys.exit(cli.run_to_exit_code(body))
"""


def test_names_and_texts_are_read_in_a_locale_that_lacks_them(tmp_path):
    audio(tmp_path / "caf\u00e9.wav")
    line = json.dumps({"audio_filepath": "caf\u00e9.wav", "text": "\u4f60"}, ensure_ascii=False)
    (tmp_path / "m.jsonl").write_text(line, encoding="utf-8")
    command = [sys.executable, "-c", READS, str(tmp_path / "m.jsonl")]
    env = {**os.environ, **LOCALES[0]}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True)
    assert (done.returncode, done.stdout) == (0, f"{RATE} \u4f60\n".encode()), done.stderr
    written = json.loads((tmp_path / "out").read_text(encoding="utf-8"))
    assert written == {"text": "\u4f60", "path": str(tmp_path / "caf\u00e9.wav")}


class Gone(io.StringIO):
    """A pipe whose reader is gone: fails until its descriptor is another."""

    def __init__(self, descriptor):
        super().__init__()
        self.descriptor, self.failures = descriptor, 0

    def flush(self):
        if not self.failures:
            self.failures += 1
            raise BrokenPipeError(32, "Broken pipe")

    def fileno(self):
        return self.descriptor


def test_an_interrupt_through_a_pipe_exits_130(monkeypatch):
    """Ctrl-C ends the reader as well; what is printed meanwhile fails."""

    def interrupted():
        try:
            raise KeyboardInterrupt
        finally:
            saved.append(True)

    saved = []
    with open(os.devnull, "wb") as null:
        monkeypatch.setattr(sys, "stdout", Gone(null.fileno()))
        assert cli.run_to_exit_code(interrupted, "interrupted; run again") == cli.INTERRUPTED
        assert (saved, sys.stdout.failures) == ([True], 1)
        monkeypatch.setattr(sys, "stdout", Gone(null.fileno()))
        with pytest.raises(SystemExit, match=str(cli.READER_GONE)):
            cli.run_to_exit_code(lambda: print("text"))


# Accelerators


@pytest.mark.daily("cuda")
@pytest.mark.parametrize("platform", ["cuda", "gpuu"])
def test_an_accelerator_that_is_missing_is_one_line(platform):
    code = "import sys; from bljust_jax.common import cli; import jax;"
    code += "sys.exit(cli.run_to_exit_code(lambda: jax.devices() and 0))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        **{"cwd": ROOT, "env": {**os.environ, "JAX_PLATFORMS": platform}},
        **{"capture_output": True, "text": True, "check": False},
    )
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert last.startswith(f"error: JAX_PLATFORMS={platform}: jax cannot use it (")
    assert "or unset JAX_PLATFORMS" in last


def test_another_error_of_a_program_is_no_mistake_of_the_user():
    def body():
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        cli.run_to_exit_code(body)


# Vocabularies of transformers


@pytest.mark.parametrize(
    ("content", "blank", "words"),
    [
        ({"<pad>": "0", "|": "1"}, 0, r"the id of '<pad>' is '0'; write a number, 0 or above"),
        (["<pad>", "|"], 0, "is no JSON object of tokens and their ids"),
        ({}, 0, r"no token has the id 0, pad_token_id in config\.json"),
        ({"<pad>": 0, "a": 1}, 32, "no token has the id 32, pad_token_id"),
        ({"<pad>": 0, "a": -1}, 0, "the id of 'a' is -1"),
        ({"<pad>": 0, "a": True}, 0, "the id of 'a' is True"),
        ({"<pad>": 0, "a": 10**12}, 0, "the id of 'a' is 1000000000000"),
    ],
)
def test_a_vocabulary_of_odd_shape_is_one_line(tmp_path, content, blank, words):
    (tmp_path / "vocab.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"vocab\.json: {words}"):
        hf_tokenizer.read(tmp_path, blank)


def test_a_vocabulary_with_a_byte_order_mark_is_read(tmp_path):
    text = json.dumps({"<pad>": 0, "|": 1, "a": 2})
    (tmp_path / "vocab.json").write_bytes(codecs.BOM_UTF8 + text.encode())
    assert hf_tokenizer.read(tmp_path, 0).tokens == ("<pad>", "|", "a")


# Folders that cannot be written, lines within ids


def test_evaluate_finds_out_before_decoding_that_it_cannot_write(tmp_path, monkeypatch):
    (tmp_path / "samples").write_text("a file")

    class Run:
        task = Task("", "labelled", "wer", "ctc_head")

        def select_task(self, name):
            return self

    monkeypatch.setattr(evaluate, "load_trained_run", lambda workdir: Run())
    args = evaluate.parser().parse_args(["--workdir", str(tmp_path)])
    with pytest.raises(UserError, match=r"cannot write \S+beam\.jsonl: .*; name a file with --out"):
        evaluate.evaluate(args, print)


def test_ids_may_hold_line_separators(tmp_path):
    pairs = [{"id": f"a{c}b", "reference": f"x{c}", "hypothesis": "y"} for c in "\u2028\u0085\x0b"]
    sources.write_json_lines(tmp_path / "s.jsonl", pairs)
    found = utterances.worst(tmp_path / "s.jsonl", 9)
    assert sorted(pair["id"] for _, pair in found) == sorted(pair["id"] for pair in pairs)


def test_damaged_lines_are_left_out_with_a_warning(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}{"a": 3}\n[1]\n\n{"a": "\xff"}\n{"a": 4}\n\0\0\0\0{"a"')
    assert files.read_json_lines(path) == [{"a": 1}, {"a": 4}]
    assert f"{path}: 4 damaged lines left out, the first is line 2" in caplog.text
    path.write_bytes(b"\0" * 99)
    with pytest.raises(ValueError, match="no line is a JSON object"):
        files.read_json_lines(path)
    assert utterances.worst(path, 9) == []
    assert "its utterances are not shown" in caplog.text


def write_text(path, old):
    files.write_text(path, "old" if old else "new")


def write_example(path, old):
    example.write(path, {"id": np.array("old" if old else "new")})


def write_picture(path, old):
    figure = Figure((1.0 + old, 1.0), dpi=10)
    assert plots._save(figure, path)


@pytest.mark.parametrize("write", [write_text, write_example, write_picture])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, write):
    path = tmp_path / "x.png"
    write(path, True)
    old = path.read_bytes()
    write(path, False)
    assert path.read_bytes() != old
    write(path, True)
    monkeypatch.setattr(os, "fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(path, False)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.png", old)]


def test_a_damaged_example_is_one_line_wherever_it_is_damaged(tmp_path):
    path, draw = tmp_path / "example.npz", np.random.default_rng(0)
    example.write(path, {"id": np.array("u"), "log_mel": draw.standard_normal((20, 8))})
    whole, lines = path.read_bytes(), []
    damaged = [whole[:at] for at in (0, 1, 30, len(whole) // 2, len(whole) - 1)] + [bytes(512)]
    flips = draw.integers(0, len(whole), 200).tolist()
    damaged += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in flips]
    for content in damaged:
        path.write_bytes(content)
        try:
            page.read_example(path)
        except UserError as error:
            lines.append(str(error))
    assert len(lines) > 100
    said = re.compile(r"\S+example\.npz is damaged \([^\n]+\); run .*")
    assert all(map(said.fullmatch, lines))


def test_reading_audio_needs_no_locale(tmp_path):
    audio(tmp_path / "\u4f60.wav")
    (u,) = open_source(corpora.write(tmp_path, "m", [{"audio_filepath": "\u4f60.wav"}]))
    assert len(read_audio(u)) == RATE
