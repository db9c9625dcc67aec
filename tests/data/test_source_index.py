"""Index of a source: the same utterances, made again when anything that declares them changes."""

import logging
import os
import pathlib
import random
import shutil

import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data import source_index
from bljust_jax.data.sources import open_source
from bljust_jax.data.strings import Coded, Strings
from bljust_jax.data.utterances import Utterances
from tests.helpers import formats
from tests.helpers.corpora import load
from tests.helpers.packed_formats import PACKED

FORMATS = formats.FORMATS | PACKED
INDEXED = [
    name
    for name in FORMATS
    if name.split()[0].split(".")[0] in ("kaldi", "table", "commonvoice", "fairseq", "lhotse")
]


@pytest.fixture(autouse=True)
def few_are_indexed(monkeypatch, tmp_path):
    monkeypatch.setattr(source_index, "LEAST", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def table(tmp_path):
    """A table of 8 utterances, and its URI."""
    uri = formats.table_csv(tmp_path / "made", formats.spoken(8))
    return pathlib.Path(uri.removeprefix("table:")), uri


def opened(uri, caplog, root=""):
    """(utterances, whether they were those of an index)"""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        found = open_source(uri, root)
    return found, any("from its index" in record.getMessage() for record in caplog.records)


def index_of(folder):
    (path,) = pathlib.Path(folder).rglob("*.arrow")
    return path


@pytest.mark.parametrize("name", INDEXED)
def test_an_index_holds_what_the_reader_found(tmp_path, caplog, name):
    uri = FORMATS[name][0](tmp_path / "made", formats.spoken(12))
    first, from_index = opened(uri, caplog)
    assert not from_index
    again, from_index = opened(uri, caplog)
    assert from_index
    assert again == list(first)
    assert again.select(np.arange(3, 7)) == first[3:7]


@pytest.mark.parametrize("name", INDEXED)
def test_any_listed_file_that_changes_is_read_again(tmp_path, caplog, name):
    uri = FORMATS[name][0](tmp_path / "made", formats.spoken(8))
    opened(uri, caplog)
    top = tmp_path / "made"
    texts = [p for p in top.rglob("*") if p.is_file() and p.suffix not in (".arrow", *AUDIO)]
    assert texts
    for path in texts:
        assert opened(uri, caplog)[1]
        time = path.stat().st_mtime_ns + 1
        os.utime(path, ns=(time, time))
        assert not opened(uri, caplog)[1], path


AUDIO = (".flac", ".wav", ".mp3", ".ogg", ".opus")


def test_few_utterances_have_no_index(table, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(source_index, "LEAST", 9)
    opened(table[1], caplog)
    assert not list(tmp_path.rglob("*.arrow"))


def test_a_new_row_is_found(table, caplog):
    path, uri = table
    before, _ = opened(uri, caplog)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[-1].replace("u007", "u999", 1)]) + "\n")
    after, from_index = opened(uri, caplog)
    assert not from_index
    assert len(after) == len(before) + 1


def test_damage_anywhere_is_noticed_and_repaired(table, tmp_path, caplog):
    """300 flipped bits: the index is refused, or the utterances are what they were."""
    wanted, _ = opened(table[1], caplog)
    path, draw = index_of(tmp_path), random.Random(0)
    whole = path.read_bytes()
    stamp = source_index._stamp(table[1], "", [str(table[0])])
    refused = 0
    for _ in range(300):
        content, at = bytearray(whole), draw.randrange(len(whole))
        content[at] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            assert source_index._load(path, stamp, "", [table[0]]) == wanted
        except ValueError:
            refused += 1
    assert refused > 100  # the others are in padding
    for content in (b"", whole[: len(whole) // 2], whole[:-1], b"not Arrow" * 100):
        path.write_bytes(content)
        found, from_index = opened(table[1], caplog)
        assert not from_index
        assert "damaged" in caplog.text
        assert found == wanted
        assert opened(table[1], caplog)[1]


def test_an_index_of_another_version_is_made_again(table, caplog, monkeypatch):
    opened(table[1], caplog)
    monkeypatch.setattr(source_index, "VERSION", source_index.VERSION + 1)
    assert not opened(table[1], caplog)[1]
    assert "another version" in caplog.text


def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(
    table, tmp_path, caplog, monkeypatch
):
    write = source_index._write

    def refuse(found, stamp, path):
        if path.parent == table[0].parent:
            raise PermissionError(13, "Permission denied")
        write(found, stamp, path)

    monkeypatch.setattr(source_index, "_write", refuse)
    opened(table[1], caplog)
    assert "cannot be written: Permission denied" in caplog.text
    assert index_of(tmp_path).is_relative_to(tmp_path / "cache")
    assert opened(table[1], caplog)[1]


def test_each_root_has_an_index_of_its_own(table, tmp_path, caplog):
    opened(table[1], caplog)
    assert not opened(table[1], caplog, str(tmp_path))[1]
    assert opened(table[1], caplog, str(tmp_path))[1]
    with pytest.raises(UserError, match="outside the data root"):
        open_source(table[1], str(tmp_path / "made" / "elsewhere"))


def test_a_folder_that_becomes_a_link_is_looked_at_again(tmp_path, caplog):
    found = formats.spoken(8)
    uri = formats.table_csv(tmp_path / "made", found)
    opened(uri, caplog)
    audio = tmp_path / "made" / "clips"
    outside = tmp_path / "outside"
    shutil.move(audio, outside)
    audio.symlink_to(outside)
    with pytest.raises(UserError, match="outside the data root"):
        open_source(uri)


@pytest.mark.parametrize("change", ["folder", "name"])
def test_an_index_that_names_files_elsewhere_is_refused(table, tmp_path, caplog, change):
    wanted, _ = opened(table[1], caplog)
    columns = dict(wanted.columns)
    if change == "folder":
        columns["folder"] = Coded(columns["folder"].codes, Strings.of(["/etc"]))
    else:
        columns["name"] = Strings.of([f"../../{name}" for name in columns["name"]])
    stamp = source_index._stamp(table[1], "", [str(table[0])])
    source_index._write(Utterances(columns, {}), stamp, index_of(tmp_path))
    found, from_index = opened(table[1], caplog)
    assert not from_index
    assert found == wanted


def test_a_repaired_file_is_read_again(tmp_path, caplog):
    uri = formats.commonvoice(tmp_path / "made", formats.spoken(8))
    clip = next((tmp_path / "made").rglob("*.flac"))
    kept = clip.read_bytes()
    clip.unlink()
    first, _ = opened(uri, caplog)
    assert sum(first.faulty) == 1
    assert opened(uri, caplog)[1]
    clip.write_bytes(kept)
    again, from_index = opened(uri, caplog)
    assert not from_index
    assert not again.faulty.any()


def test_training_from_an_index_has_the_same_bits(tmp_path, caplog):
    uri = formats.table_csv(tmp_path / "made", formats.spoken(40))
    lengths = {"buckets": (0.4, 1.2), "batch_seconds": 6.0, "unlabelled_batch_seconds": 12.0}
    digests, plans = [], []
    for _ in range(2):
        corpus = load(pathlib.Path(), **lengths, train=uri, dev=uri)
        digests.append(corpus.digest())
        plans.append([plan.items(1) for plan in corpus.plans.values()])
    assert digests[0] == digests[1]
    assert plans[0] == plans[1]
