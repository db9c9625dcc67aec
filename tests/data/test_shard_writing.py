"""Writing ArrayRecord shards: corrupt audio, killed runs that go on, two writers, full disks."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data import shard_writing, shards
from bljust_jax.data.sources import open_source
from tests.helpers.segments import RATE, assert_same, segments


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return segments(tmp_path_factory.mktemp("corpus"))


def test_bad_audio_is_listed_and_skipped(tmp_path, corpus):
    utterances = list(open_source(str(corpus / "train.jsonl")))
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    utterances[5] = dataclasses.replace(utterances[5], path=str(broken))
    utterances[7] = dataclasses.replace(utterances[7], fault="m.jsonl:8: no header")
    with pytest.raises(UserError, match=r"2 of 24 utterances .* --max_bad_fraction=0\.05"):
        shard_writing.write(utterances, tmp_path, "a", sample_rate=RATE, max_bad_fraction=0.05)
    assert sorted(os.listdir(tmp_path)) == ["broken.wav", "quarantine-a.jsonl"]
    summary = shard_writing.write(utterances, tmp_path, "a", sample_rate=RATE, max_bad_fraction=0.1)
    assert (summary.utterances, summary.bad) == (22, 2)
    listed = (tmp_path / "quarantine-a.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in listed.splitlines()]
    assert [row["id"] for row in rows] == ["ü/5", "ü/7"]
    assert "cannot decode" in rows[0]["reason"]
    assert rows[1]["reason"] == "m.jsonl:8: no header"
    found = open_source(f"tfds:{tmp_path}/a")
    assert_same(utterances[:5] + [utterances[6]] + utterances[8:], found, RATE)


def test_nothing_decodable_is_refused(tmp_path, corpus):
    bad = dataclasses.replace(open_source(str(corpus / "train.jsonl"))[0], path="/none.wav")
    with pytest.raises(UserError, match="none of 1 utterances"):
        shard_writing.write([bad], tmp_path, "a", max_bad_fraction=1.0)
    assert os.listdir(tmp_path) == ["quarantine-a.jsonl"]


def test_finished_shards_are_not_overwritten(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="exists already"):
        shard_writing.write([], tmp_path, "train")


@pytest.mark.parametrize("split", ["", "a/b", "..", ".x", "all", "a b"])
def test_split_names_are_plain(tmp_path, split):
    with pytest.raises(UserError, match="must be of letters"):
        shard_writing.write([], tmp_path, split)


KILLED = """
import os, signal, sys
from bljust_jax.data import shard_writing, sources
last = int(sys.argv[3])
kill = lambda done, total, seconds: done == last and os.kill(os.getpid(), signal.SIGKILL)
options = {"sample_rate": 8000, "shards": 4, "max_bad_fraction": 0.5, "progress": kill}
shard_writing.write(sources.open_source(sys.argv[1]), sys.argv[2], "train", **options)
"""


def kill_at(manifest, out, last):
    command = [sys.executable, "-c", KILLED, manifest, str(out), str(last)]
    killed = subprocess.run(command, check=False)
    assert killed.returncode == -signal.SIGKILL


def go_on(manifest, out, **changes):
    """(summary, utterances done at each call of progress) of the call that was killed."""
    done = []
    options = {"sample_rate": RATE, "shards": 4, "max_bad_fraction": 0.5} | changes
    progress = {"progress": lambda *now: done.append(now)}
    utterances = open_source(manifest)
    return shard_writing.write(utterances, out, "train", **options, **progress), done


def test_a_killed_run_leaves_no_finished_folder(tmp_path, corpus):
    """And goes on after its last finished shard: here six utterances in each."""
    manifest, out = str(corpus / "train.jsonl"), tmp_path / "out"
    kill_at(manifest, out, 20)
    assert os.listdir(out) == [".train.incomplete"]
    with pytest.raises(UserError, match="no dataset_info"):
        open_source(f"tfds:{out}/train")
    summary, done = go_on(manifest, out)
    assert [n for n, *_ in done] == list(range(19, 25))
    assert done[-1][2] == pytest.approx(summary.seconds)
    assert os.listdir(out) == ["train"]
    go_on(manifest, tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")
    assert_same(open_source(manifest), open_source(f"tfds:{out}/train"), RATE)
    assert shards.verify(summary.folder, "train") == summary


def files(out):
    """{name: bytes} of all that is written."""
    return {path.name: path.read_bytes() for path in (out / "train").iterdir()}


def test_corrupt_audio_before_and_after_a_kill(tmp_path, corpus):
    """Is listed once, wherever it stands beside the end of a shard."""
    lines = (corpus / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    for n in (0, 7, 8, 9, 23):  # the first shard ends with 5
        rows[n] |= {"audio_filepath": "x.wav", "offset": 0}
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a.flac", "b.opus"):
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    kill_at(str(manifest), tmp_path / "out", 14)
    summary, done = go_on(str(manifest), tmp_path / "out")
    assert done[0][0] == 13
    assert (summary.utterances, summary.bad) == (19, 5)
    listed = (tmp_path / "out" / "quarantine-train.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["id"] for line in listed.splitlines()] == [
        rows[n]["id"] for n in (0, 7, 8, 9, 23)
    ]
    assert shards.verify(summary.folder, "train") == dataclasses.replace(summary, bad=0)
    go_on(str(manifest), tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.daily("*0", "*2")
@pytest.mark.parametrize(
    "change",
    [
        lambda rows, shard: rows.write_text(rows.read_text().replace('"plan": "', '"plan": "0')),
        lambda rows, shard: rows.write_text(rows.read_text()[:-9]),
        lambda rows, shard: shard.write_bytes(shard.read_bytes()[:-1]),
        lambda rows, shard: rows.write_text('{"plan": "x"}'),
        lambda rows, shard: rows.write_text(
            json.dumps(json.loads(rows.read_text()) | {"rows": []})
        ),
        lambda rows, shard: shard.unlink(),
    ],
)
def test_what_cannot_be_gone_on_with_is_written_again(tmp_path, corpus, change):
    """Another plan, or a damaged file of a finished shard: that shard alone."""
    out = tmp_path / "out"
    kill_at(str(corpus / "train.jsonl"), out, 20)
    work = out / ".train.incomplete"
    change(work / "part-00001.json", work / "part-00001.array_record")
    summary, done = go_on(str(corpus / "train.jsonl"), out)
    assert [n for n, *_ in done] == list(range(13, 25))  # 12 of 24 were kept
    assert shards.verify(summary.folder, "train") == summary


def test_another_rate_is_another_plan(tmp_path, corpus):
    kill_at(str(corpus / "train.jsonl"), tmp_path, 20)
    _, done = go_on(str(corpus / "train.jsonl"), tmp_path, sample_rate=16000)
    assert done[0][0] == 1


def test_an_interruption_leaves_what_is_there(tmp_path, corpus):
    def interrupt(done, total, seconds):
        if done == 20:
            raise KeyboardInterrupt

    manifest = str(corpus / "train.jsonl")
    options = {"sample_rate": RATE, "shards": 4, "max_bad_fraction": 0.5, "progress": interrupt}
    with pytest.raises(KeyboardInterrupt):
        shard_writing.write(open_source(manifest), tmp_path, "train", **options)
    _, done = go_on(manifest, tmp_path)
    assert done[0][0] == 19


def test_a_shard_of_corrupt_audio_alone_is_left_out(tmp_path, corpus):
    utterances = open_source(str(corpus / "train.jsonl"))[:6]
    bad = [dataclasses.replace(u, fault="x.jsonl:1: empty") for u in utterances[2:4]]
    mixed = [*utterances[:2], *bad, *utterances[4:]]
    options = {"sample_rate": RATE, "shards": 3, "max_bad_fraction": 0.5}
    summary = shard_writing.write(mixed, tmp_path, "a", **options)
    assert (summary.utterances, summary.bad) == (4, 2)
    assert len(list((tmp_path / "a").glob("*.array_record-*"))) == 2
    assert_same([*utterances[:2], *utterances[4:]], open_source(f"tfds:{tmp_path}/a"), RATE)
    assert shards.verify(summary.folder, "a") == dataclasses.replace(summary, bad=0)


def test_two_writers_do_not_mix(tmp_path, corpus):
    utterances = open_source(str(corpus / "train.jsonl"))[:2]

    def again(done, total, seconds):
        with pytest.raises(UserError, match="another process is writing there"):
            shard_writing.write(utterances, tmp_path, "a", sample_rate=RATE)

    shard_writing.write(utterances, tmp_path, "a", sample_rate=RATE, progress=again)
    assert os.listdir(tmp_path) == ["a"]
    assert_same(utterances, open_source(f"tfds:{tmp_path}/a"), RATE)


def test_a_full_disk_is_an_os_error_of_one_line(tmp_path, corpus):
    """A limit on file size stands for a full disk: writes fail in the same way."""
    utterances = open_source(str(corpus / "train.jsonl"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            shard_writing.write(utterances, tmp_path, "a", sample_rate=RATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []
