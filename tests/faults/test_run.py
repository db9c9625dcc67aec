"""A run with bad audio, infeasible labels and a full disk; a finished run started again."""

import json
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest
import soundfile

from bljust_jax import main
from bljust_jax.data import synthetic
from bljust_jax.monitoring import metrics
from tests.helpers.corpora import KINDS, damage
from tests.helpers.full_disk import make_config, run_on_full_disk
from tests.helpers.workdirs import rows_without_perf

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The smoke corpus with five bad recordings of 48 to train on and one of 8 to score; one text
    too long for its audio, and recordings at other rates, in stereo and in 24 bits."""
    made = tmp_path_factory.mktemp("faults") / "corpus"
    shutil.copytree(synthetic.make_corpus("tiny"), made)
    rows = [json.loads(line) for line in (made / "train.jsonl").read_text().splitlines()]
    for row, kind in zip(rows, KINDS, strict=False):
        damage(made / row["audio_filepath"], kind)
    rows[5]["text"] = " ".join([rows[5]["text"]] * 5)
    for row, rate, channels in zip(rows[6:], (8000, 44100, 48000), (1, 2, 1), strict=False):
        samples = round(row["duration"] * rate)
        sound = np.random.default_rng(0).uniform(-0.1, 0.1, (samples, channels))
        soundfile.write(made / row["audio_filepath"], sound, rate, subtype="PCM_24")
    (made / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    damage(sorted((made / "dev").glob("*.flac"))[2], "half")
    return made


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `main` on the folder: (exit code, stdout, stderr)."""

    def run(folder, workdir, max_bad_fraction=0.2, changes=()):
        config = make_config(folder, max_bad_fraction, changes)
        monkeypatch.setattr(main, "parse", lambda argv: (config, workdir))
        monkeypatch.setattr(main, "print_devices", lambda jax: None)
        monkeypatch.setattr(sys, "argv", ["main"])
        code = main.main()
        return code, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_bad_audio_and_a_full_disk(folder, command, tmp_path):
    workdir = tmp_path / "run"
    code, out, err = run_on_full_disk(folder, workdir, step=8)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert re.match(r"error: .*checkpoints: a checkpoint could not be", err.splitlines()[-1])
    assert "labelled: 1 of 48 utterances have fewer frames than CTC needs" in err
    assert (workdir / "checkpoints" / "4").is_dir()
    assert not (workdir / "checkpoints" / "8").exists()

    code, out, err = command(folder, workdir)
    assert code == 0, err
    assert "resumed from step 4" in err
    assert not list((workdir / "checkpoints").glob("*tmp*"))
    final = json.loads(out)
    assert final["dev/utterances"] == 7
    assert final["data/quarantined"] == 6
    rows = metrics.read(workdir / "metrics.jsonl")
    counts = [row["data/quarantined"] for row in rows if "data/quarantined" in row]
    assert counts == sorted(counts)
    assert counts[-1] == 6
    assert any(row.get("ctc/infeasible", 0) > 0 for row in rows)
    assert not any(row.get("train/skipped", 0) > 0 for row in rows)
    check_listing(folder, workdir)

    listed, written = (workdir / "quarantine.jsonl").read_text(), rows_without_perf(workdir)
    code, again, err = command(folder, workdir)
    assert (code, json.loads(again)) == (0, final)
    assert f"resumed from step {final['step']}" in err
    assert rows_without_perf(workdir) == written
    assert (workdir / "quarantine.jsonl").read_text() == listed


@pytest.mark.slow
def test_a_run_goes_on_without_the_checkpoint_that_found_no_space(folder, tmp_path):
    """F6 with on_full_disk=warn: the next save succeeds, and the run ends normally."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finals = []
    for workdir, step in ((whole, None), (broken, 8)):
        changes = {"on_full_disk": "warn"}
        code, out, err = run_on_full_disk(folder, workdir, step, until=12, changes=changes)
        assert code == 0, err
        finals.append(json.loads(out))
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if "could not be written" in line]
    assert line.startswith("warning: ")
    assert line.endswith("File too large; the run goes on, the checkpoints before it are whole")
    assert finals[0] == finals[1]
    assert rows_without_perf(broken) == rows_without_perf(whole)
    assert sorted(path.name for path in (broken / "checkpoints").iterdir()) == ["12", "16", "4"]


def check_listing(folder: pathlib.Path, workdir: pathlib.Path) -> None:
    """Every bad recording is listed once, with its line of the manifest and a reason."""
    entries = [json.loads(line) for line in (workdir / "quarantine.jsonl").read_text().splitlines()]
    train = [json.loads(line)["id"] for line in (folder / "train.jsonl").read_text().splitlines()]
    dev = [json.loads(line)["id"] for line in (folder / "dev.jsonl").read_text().splitlines()]
    assert sorted(entry["id"] for entry in entries) == sorted([*train[:5], dev[2]])
    for entry in entries:
        ids, name = (train, "train") if entry["id"] in train else (dev, "dev")
        line = f"{folder}/{name}.jsonl:{ids.index(entry['id']) + 1}"
        assert entry["line"] == line
        assert entry["reason"].startswith(f"{line}: cannot decode {entry['path']}")


def test_too_much_bad_audio_ends_the_run_and_names_it(folder, command, tmp_path):
    code, out, err = command(folder, tmp_path / "run", max_bad_fraction=0.0)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    said = (
        r"error: \S*train\.jsonl:\d: cannot decode .* 1 of 48 utterances of \w+ are bad, more than"
    )
    assert re.match(said, err.splitlines()[-1])
    assert "config.data.max_bad_fraction=0 " in err


@pytest.mark.slow
def test_steps_that_are_not_finite_end_the_run_and_name_what_they_heard(folder, command, tmp_path):
    changes = {"method": "supervised", "lr.supervised.peak": 1e30, "max_skipped": 3}
    code, out, err = command(folder, tmp_path / "run", changes=changes)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    said = "error: 3 steps in a row were not finite, 1 to 3; the last one read "
    said += r"\S+ \(\S+jsonl:\d+\)"
    assert re.match(said, err.splitlines()[-1]), err.splitlines()[-1]
    heard = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert sorted(heard) == ["1", "2", "3"]
    assert all(len(names) == 8 for names in heard.values())
