"""Shards written by an Apache Beam pipeline: equal bytes, lost workers, other machines."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from bljust_jax import prepare
from bljust_jax.common.errors import UserError
from bljust_jax.data import beam_shards, shard_parts, shard_writing, shards
from bljust_jax.data.sources import open_source
from tests.helpers.segments import RATE, segments

OPTIONS = {"sample_rate": RATE, "shards": 4}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return segments(tmp_path_factory.mktemp("corpus"))


def jobs_here(uri):
    """An executor that calls a worker's function, part by part, the last one first."""

    def execute(parts, folder):
        for part in parts[::-1]:
            job = beam_shards.Job(uri, "", RATE, str(folder), part)
            assert beam_shards.write_part(job) == part.number
            assert beam_shards.write_part(job) == part.number  # a retry

    return execute


def files(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def test_workers_write_the_bytes_of_one_process(corpus, tmp_path):
    """In any order, each part by a worker that opens the source itself."""
    uri = str(corpus / "train.jsonl")
    source = open_source(uri)
    plain = shard_writing.write(source, tmp_path / "plain", "train", **OPTIONS)
    made = shard_writing.write(
        source, tmp_path / "beam", "train", executor=jobs_here(uri), **OPTIONS
    )
    assert files(made.folder) == files(plain.folder)
    assert len(list(pathlib.Path(made.folder).glob("*.array_record-*"))) == 4
    assert shards.verify(made.folder, "train") == made


def test_a_worker_with_another_source_or_without_the_folder(corpus, tmp_path):
    uri = str(corpus / "train.jsonl")
    (part,) = shard_parts.split(open_source(uri)[:3], RATE, 3)
    beam_shards.write_part(beam_shards.Job(uri, "", RATE, str(tmp_path), part))
    other = part._replace(plan="0" * 64)
    with pytest.raises(UserError, match=r"other utterances on this machine; all machines must"):
        beam_shards.write_part(beam_shards.Job(uri, "", RATE, str(tmp_path), other))
    with pytest.raises(UserError, match="does not exist on this machine"):
        beam_shards.write_part(beam_shards.Job(uri, "", RATE, f"{tmp_path}/none", part))


def test_parts_that_are_missing_afterwards(corpus, tmp_path):
    """Workers wrote to a disk of their own."""
    source = open_source(str(corpus / "train.jsonl"))
    with pytest.raises(UserError, match=r"part-00000\.json is missing; all machines must"):
        shard_writing.write(source, tmp_path, "a", executor=lambda parts, work: None, **OPTIONS)
    assert not (tmp_path / "a").exists()


def test_too_much_corrupt_audio_is_refused(corpus, tmp_path):
    lines = (corpus / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) | {"audio_filepath": "x.wav"} for line in lines[:4]]
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row | {"offset": 0}) + "\n" for row in rows))
    uri = str(manifest)
    with pytest.raises(UserError, match=r"m\.jsonl:1: .*1 of 4 utterances are bad"):
        shard_writing.write(open_source(uri), tmp_path, "a", executor=jobs_here(uri), **OPTIONS)
    assert sorted(os.listdir(tmp_path)) == ["m.jsonl", "quarantine-a.jsonl", "x.wav"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--runner", "direct"], "pip install 'bljust_jax[beam]'"),
        (["--beam_options=--direct_num_workers=2"], "--beam_options is given without --runner"),
        (["--runner", "ray"], "--runner"),
    ],
)
def test_mistakes_are_one_line(corpus, tmp_path, monkeypatch, capsys, flags, complaint):
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    out = str(tmp_path / "o")
    assert prepare.main([str(corpus / "train.jsonl"), "--out", out, *flags]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert complaint in told.err
    assert not os.path.exists(out)


# With Apache Beam: `make nightly-beam`

PREPARE = "import sys; from bljust_jax import prepare; sys.exit(prepare.main())"


def command(corpus, out, *flags):
    manifest = str(corpus / "train.jsonl")
    arguments = [manifest, "--out", str(out), "--sample_rate", str(RATE), "--shards", "4"]
    return [sys.executable, "-c", PREPARE, *arguments, *flags]


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain")
    source = open_source(str(corpus / "train.jsonl"))
    return files(shard_writing.write(source, out, "train", **OPTIONS).folder)


@pytest.mark.parametrize(
    "mode", ["--direct_num_workers=2", "--direct_num_workers=1 --direct_running_mode=in_memory"]
)
def test_the_direct_runner_writes_the_same_bytes(corpus, plain, tmp_path, mode):
    pytest.importorskip("apache_beam", reason="make nightly-beam")
    flags = ["--runner", "direct", f"--beam_options={mode}", "--verify"]
    done = subprocess.run(
        command(corpus, tmp_path, *flags), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "train") == plain


SITE = """
import os, signal
if os.environ.get("KILLED"):
    from bljust_jax.data import shard_parts
    write = shard_parts.write
    def write_or_die(part, *rest):
        if part.number == 2 and not os.path.exists(os.environ["KILLED"]):
            open(os.environ["KILLED"], "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(part, *rest)
    shard_parts.write = write_or_die
"""


def test_a_killed_worker_ends_the_command_and_the_next_one_goes_on(corpus, plain, tmp_path):
    """Beam itself would wait for it without end."""
    pytest.importorskip("apache_beam", reason="make nightly-beam")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    paths = [str(tmp_path / "site"), *filter(None, sys.path)]
    where = {"KILLED": str(tmp_path / "killed"), "PYTHONPATH": os.pathsep.join(paths)}
    started = command(corpus, tmp_path / "out", "--runner", "direct")
    options = {"capture_output": True, "text": True, "check": False, "env": os.environ | where}
    killed = subprocess.run(started, timeout=120, **options)
    assert killed.returncode == 2, killed.stderr
    told = [line for line in killed.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "a worker was lost" in told[0]
    assert "run the same command again" in told[0]
    assert (tmp_path / "out" / ".train.incomplete" / "part-00000.json").is_file()
    again = subprocess.run(started, timeout=120, **options)
    assert again.returncode == 0, again.stderr
    assert files(tmp_path / "out" / "train") == plain


@pytest.mark.parametrize(
    ("runner", "options"),
    [
        (
            "flink",
            "--flink_master=localhost:8081 --environment_type=EXTERNAL"
            " --environment_config=localhost:50000",
        ),
        ("spark", "--spark_rest_url=http://localhost:6066"),
        ("dataflow", "--project=my-project --region=europe-west4 --temp_location=gs://bucket/tmp"),
    ],
)
def test_pipelines_of_clusters_can_be_made(corpus, tmp_path, runner, options):
    """They are made here, and run nowhere yet."""
    pytest.importorskip("apache_beam", reason="make nightly-beam")
    made = beam_shards.pipeline_options(runner, options)
    part = shard_parts.Part(0, 0, 1, "")
    pipeline = beam_shards.build([beam_shards.Job("x", "", RATE, str(tmp_path), part)], made)
    names = {t.unique_name for t in pipeline.to_runner_api().components.transforms.values()}
    assert {"parts", "distribute", "write"} <= names
    assert made.get_all_options()["runner"] == beam_shards.RUNNERS[runner]


def test_an_option_that_beam_does_not_know():
    pytest.importorskip("apache_beam", reason="make nightly-beam")
    with pytest.raises(UserError, match="Beam has no option --flink_mastr"):
        beam_shards.pipeline_options("flink", "--flink_mastr=localhost:8081")
