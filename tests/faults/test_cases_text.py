"""Texts, tables and language models as they come from other machines: right, or one line."""

import argparse
import csv
import dataclasses
import json
import re
import shutil
import subprocess
import unicodedata

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax import ngram, transcribe
from bljust_jax.common.errors import UserError
from bljust_jax.data import normalise, shard_writing, shards, summary
from bljust_jax.data.corpus import load_corpus
from bljust_jax.data.listings import tsv_rows
from bljust_jax.data.sources import Utterance, open_source
from bljust_jax.decoding import arpa, kneser_ney
from bljust_jax.train import workdir
from configs import defaults
from tests.helpers import corpora
from tests.helpers.fake_recognizer import fake

# Tables


def covost_corpus(top, sentences):
    """nl_en with a clip per sentence; each is written as it is, without escapes."""
    clips = top / "nl" / "clips"
    clips.mkdir(parents=True)
    rows = ["client_id\tpath\tsentence\tup_votes"]
    listing = ["path\ttranslation\tsplit"]
    for n, sentence in enumerate(sentences):
        soundfile.write(clips / f"{n}.mp3", np.zeros(8000), 16000, format="MP3")
        rows.append(f"s\t{n}.mp3\t{sentence}\t2")
        listing.append(f"{n}.mp3\tone\ttrain")
    (top / "nl" / "validated.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (top / "nl" / "covost_v2.nl_en.tsv").write_text("\n".join(listing) + "\n", encoding="utf-8")
    return f"covost:{top}/nl_en/train"


@pytest.mark.parametrize(
    ("sentence", "line", "fields"),
    [("Een\tzin", 3, 5), ("Twee\nzinnen", 3, 3), ("Drie\\", 3, 3), ("a\r\nb", 3, 3)],
)
def test_a_row_of_another_number_of_fields_is_an_error(tmp_path, sentence, line, fields):
    uri = covost_corpus(tmp_path, ["Goed", sentence])
    said = rf"validated\.tsv:{line}: has {fields} fields where the first line names 4; a text may"
    with pytest.raises(UserError, match=said):
        open_source(uri)
    table = tmp_path / "nl" / "covost_v2.nl_en.tsv"
    table.write_text(table.read_text().replace("\tone\t", f"\t{sentence}\t"), encoding="utf-8")
    with pytest.raises(UserError, match=r"covost_v2\.nl_en\.tsv:\d: has \d fields where .* 3;"):
        open_source(uri)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.text("ab\"'\\ ä", max_size=4), min_size=3, max_size=3), max_size=4))
def test_a_table_is_read_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "t.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(
            file, "excel-tab", quoting=csv.QUOTE_NONE, escapechar="\\", lineterminator="\n"
        )
        writer.writerows([["x", "y", "z"], *rows])
    found = [row for row, _ in tsv_rows(path, ("x", "y", "z"))]
    expected = [dict(zip("xyz", row, strict=True)) for row in rows]
    blank = {"x": "", "y": "", "z": ""}  # lines of white space alone are skipped
    kept = [row for row in expected if "".join(row.values()).strip()]
    assert [row for row in found if row != blank] == kept


# Shards


def test_shards_carry_every_field_of_an_utterance(tmp_path):
    """A new field is stored, or named here as one of a place in a corpus."""
    soundfile.write(tmp_path / "a.wav", np.zeros(8000, np.int16), 16000)
    fields = {field.name for field in dataclasses.fields(Utterance)}
    assert fields - set(shards.LABELS) == {"path", "offset", "duration", "line", "fetch", "fault"}
    u = Utterance(
        **{name: f"the {name}" for name in shards.LABELS},
        **{"path": str(tmp_path / "a.wav"), "offset": 0.125, "duration": 0.25, "line": "m:1"},
    )
    bare = dataclasses.replace(u, id="bare", text=None, translation=None)
    made = shard_writing.write([u, bare], tmp_path / "out", "train")
    stored = open_source(f"tfds:{tmp_path}/out/train")
    for given_, found in zip([u, bare], stored, strict=True):
        for name in (*shards.LABELS, "duration"):
            assert getattr(found, name) == getattr(given_, name), name
    record = shards.Records(made.folder, "train")[0]
    assert {name: record[name].decode() for name in shards.LABELS} == {
        name: f"the {name}" for name in shards.LABELS
    }


def test_an_index_of_an_earlier_version_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000, np.int16), 16000)
    uri = corpora.write(tmp_path, "m", [{"audio_filepath": "a.wav", "text": "a"}])
    made = shard_writing.write(open_source(uri), tmp_path / "out", "train")
    index = shards.index_path(made.folder, "train")
    row = json.loads(index.read_text(encoding="utf-8"))
    old = {k: v for k, v in row.items() if k not in shards.ADDED}
    index.write_text(json.dumps(old) + "\n", encoding="utf-8")
    (u,) = open_source(f"tfds:{tmp_path}/out/train")
    assert (u.id, u.text, u.translation, u.part) == ("a.wav", "a", None, "")
    del old["speaker"]
    index.write_text(json.dumps(old) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"jsonl:1: lacks 'speaker'; prepare"):
        open_source(f"tfds:{tmp_path}/out/train")


# The commit of the code


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_a_checkout_only(tmp_path, monkeypatch):
    def git(*words, cwd=tmp_path):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *words], cwd=cwd, check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "notes.txt").write_text("x")
    git("add", "-A")
    git("commit", "-qm", "theirs")
    package = tmp_path / ".venv" / "site" / "bljust_jax"
    beside = tmp_path / "bljust_jax"
    for folder in (package, beside):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        assert workdir.git_id(folder) == ""
    git("add", "-A")
    git("commit", "-qm", "vendored")
    assert workdir.git_id(package) == ""  # theirs, even if they track it
    assert re.fullmatch("[0-9a-f]{7,}", workdir.git_id(beside))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert re.fullmatch("[0-9a-f]{7,}", workdir.git_id(beside))
    (beside / "__init__.py").write_text("changed")
    assert workdir.git_id(beside).endswith("-dirty")


def test_without_git_the_commit_is_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert workdir.git_id() == ""
    (tmp_path / "git").write_text("no program")
    assert workdir.git_id() == ""


# Invisible characters

HIDDEN = "\u200b\ufeff\u200f\u200e\u00ad\u0007\u2060\u202a\u034f\u3164\ufe0f\U000e0041\u200d\u200c"


def spell(text, *steps):
    return normalise.make(steps or defaults.data().text.normalise)(text)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_invisible_characters_are_removed_by_default(hidden):
    assert spell(f"w{hidden}e call{hidden} it", "invisible") == "we call it"
    assert spell(f"{hidden}We{hidden}", *defaults.data().text.normalise) == "we"
    assert spell(hidden) == ""
    assert defaults.stream("a", field="translation").text.normalise == ("invisible",)
    assert hidden in spell(f"w{hidden}e", "lower")


@pytest.mark.parametrize(
    "text",
    [
        "\u0645\u06cc\u200c\u0631\u0648\u0645",  # Persian, with a non-joiner
        "\u0915\u094d\u200d\u0937",  # Devanagari, with a joiner
        "\u0600\u0661",  # an Arabic number sign
        "caf\u00e9 \u4f60\u597d \U0001f600",
    ],
)
def test_characters_that_leave_a_mark_stay(text):
    assert spell(text, "invisible") == unicodedata.normalize("NFC", text)


def test_white_space_stays_a_space():
    assert spell("a\tb\u2028c\u0085d\x1ce\u3000f", "invisible") == "a b c d e f"


def test_hidden_labels_and_letters_of_another_alphabet_are_named():
    lines = summary.doubtful_labels(("a", "\u200b", "\u0430", "b"), ["b\u0430b b", "bb b\u0430b"])
    assert lines == [
        "labels that cannot be seen: U+200B ZERO WIDTH SPACE;"
        " add invisible to data.text.normalise to remove them",
        "letters of another alphabet than their word: U+0430 CYRILLIC SMALL LETTER A x 2"
        " as in 'b\u0430b'",
    ]
    assert (
        summary.doubtful_labels("abc\u0430\u03b1\u4f60", ["abc \u0430\u0430 \u4f60a \u03b1"]) == []
    )


def test_the_start_of_a_run_names_them(tmp_path):
    entries = []
    for i, text in enumerate(["we\u200bb", "w\u0435b", "web"]):
        soundfile.write(tmp_path / f"{i}.wav", np.full(4000, 9, np.int16), 8000)
        entries.append({"audio_filepath": f"{i}.wav", "text": text, "id": str(i)})
    uri = corpora.write(tmp_path, "train", entries)
    made = corpora.load(tmp_path, dev=uri, **corpora.PLAIN)
    assert made.tokenizer.symbols == ("b", "e", "w", "\u0435")
    log = "\n".join(made.summary())
    assert "letters of another alphabet than their word: U+0435 CYRILLIC SMALL LETTER IE" in log
    assert "cannot be seen" not in log
    edited = corpora.settings(tmp_path, dev=uri, **corpora.PLAIN)
    edited.text.normalise = ("lower", "punctuation")

    assert "U+200B ZERO WIDTH SPACE; add invisible" in "\n".join(
        load_corpus(edited, seed=0).summary()
    )


# Language models


def model(path, texts):
    arpa.write(path, kneser_ney.estimate([text.split() for text in texts], 2).orders)
    return path


def search(path, over="words"):
    args = argparse.Namespace(lm=str(path), lm_over=over, alpha=0.5, beta=1.0, beam=None)
    return transcribe.make_search(args, fake()[0])


def test_transcribe_refuses_a_model_of_another_case_or_script(tmp_path):
    assert search(model(tmp_path / "lower.arpa", ["a bad cab", "a dab"])) is not None
    mixed = ["a bad cab", "A BAD CAB", "DAB", "\u0434\u0430", "CAD"]
    assert search(model(tmp_path / "mixed.arpa", mixed)) is not None
    for name, texts in (("upper", ["A BAD CAB"]), ("other", ["\u0434\u0430 \u043d\u0435\u0442"])):
        said = rf"{name}\.arpa: 0 of its \d words can be spelt with the units.*\(upper or lower"
        with pytest.raises(UserError, match=said):
            search(model(tmp_path / f"{name}.arpa", texts))


def test_a_damaged_gz_is_one_line_wherever_it_is_damaged(tmp_path):
    texts = [f"w{i} v{i % 7} u{i % 11}" for i in range(200)]
    path = model(tmp_path / "x.arpa.gz", texts)
    whole = path.read_bytes()
    for at in np.random.default_rng(0).integers(40, len(whole), 40).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"x\.arpa\.gz:\d+: [^\n]+; expected an ARPA"):
            arpa.Arpa.read(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"x\.arpa\.gz:\d+: cannot be read"):
        arpa.Arpa.read(path)


NBSP = ["\\data\\", "ngram 1=4", "ngram 2=1", "", "\\1-grams:", "-1 <s> 0", "-1 </s>"]
NBSP += [
    "-1\ta\u00a0b\t-0.5",
    "-1  c\u3000\t0 ",
    "",
    "\\2-grams:",
    "-0.5 a\u00a0b c\u3000",
    "\\end\\",
]


def test_fields_of_a_model_are_parted_by_ascii_blanks_alone(tmp_path):
    path = tmp_path / "x.arpa"
    path.write_text("\n".join(NBSP) + "\n", encoding="utf-8")
    lm = arpa.Arpa.read(path)
    assert lm.words() == ["a\u00a0b", "c\u3000"]
    state = lm.score(lm.start(), "a\u00a0b")[1]
    assert lm.score(state, "c\u3000")[0] == pytest.approx(-0.5 * arpa.LN10)


def test_a_byte_order_mark_is_no_part_of_a_text_or_a_model(tmp_path):
    (tmp_path / "corpus.txt").write_bytes(b"\xef\xbb\xbf" + "we call\r\nwe\u2028it\n".encode())
    out = tmp_path / "x.arpa"
    assert ngram.main(["--text", str(tmp_path / "corpus.txt"), "--out", str(out)]) == 0
    lm = arpa.Arpa.read(out)
    assert sorted(lm.words()) == ["call", "it", "we"]
    out.write_bytes(b"\xef\xbb\xbf" + out.read_bytes())
    assert arpa.Arpa.read(out).words() == lm.words()
    (tmp_path / "latin.txt").write_bytes(b"a\n\xe9\n")
    with pytest.raises(UserError, match=r"latin\.txt:2: is not UTF-8"):
        list(ngram.read_texts(argparse.Namespace(data="", text=tmp_path / "latin.txt")))


@pytest.mark.parametrize("mark", ["<unk>", "<s>", "</s>"])
def test_a_mark_of_language_models_in_a_text_is_named_with_its_line(tmp_path, mark, capsys):
    (tmp_path / "corpus.txt").write_text(f"we call\nwe {mark.upper()} it\n")
    soundfile.write(tmp_path / "u.wav", np.zeros(8000, np.int16), 8000)
    texts = ("a", f"b {mark}")
    entries = [{"audio_filepath": "u.wav", "id": t, "text": t} for t in texts]
    uri = corpora.write(tmp_path, "m", entries)
    for given_, place in (
        (["--text", str(tmp_path / "corpus.txt")], "corpus.txt:2"),
        (["--data", uri], "m.jsonl:2"),
    ):
        assert ngram.main([*given_, "--out", str(tmp_path / "x.arpa")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{place}: the text has the word {mark}, a mark of language models; rem" in line
    assert not (tmp_path / "x.arpa").exists()


def test_marks_within_texts_that_become_labels_are_named():
    """Angle brackets and square brackets in which a single word stands."""
    texts = ["we <unk> it <unk>", "[Noise] a", "a < b > c", "[two words]", "(laughs)"]
    symbols = sorted(set("".join(texts)))
    (line,) = summary.doubtful_labels(symbols, texts)
    assert line == (
        "marks in the texts: <unk> x 2, [Noise] x 1; their characters are labels:"
        " remove them from the texts, or the utterances"
    )
    assert summary.doubtful_labels(sorted(set(symbols) - set("<[")), texts) == []
