"""Audio that a host reads per second: from FLOPs, against a count by hand; the table of docs."""

import pathlib

import pytest

from bljust_jax.benchmarks import reading
from bljust_jax.monitoring import peak_flops
from bljust_jax.train import dry_run, phase_table
from bljust_jax.train.system import build_recipe
from configs import quickstart

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "several_hosts.md"


def test_reading_is_audio_per_step_over_its_time():
    """A step of one stream: batch_seconds of audio in FLOPs / (8 peak utilisation) seconds."""
    config = quickstart.get_config("supervised")
    config.data.update(buckets=(3.0,), batch_seconds=27.0)
    found = reading.estimate(config)
    facts = dry_run.assume(config).facts
    (row,) = phase_table.phase_table(config, build_recipe(config, facts), facts)
    peak = peak_flops.flops([peak_flops.DEVICES["h200"].kind], "float32")
    seconds = row.total / row.steps / (8 * peak * dry_run.UTILISATION[0])
    assert found.phase == "supervised"
    assert found.audio == pytest.approx(27.0 / seconds)
    assert found.gigabytes("WAV") == pytest.approx(found.audio * 2 * 16000 / 1e9)


def test_losses_of_one_stream_read_it_once():
    """wav2vec 2.0 has two losses of one batch; CTC and CPC read a batch each."""
    alone = reading.estimate(quickstart.get_config("supervised")).audio
    joint = quickstart.get_config()
    joint.phases.update(explore=0, finetune=0)
    assert reading.estimate(joint).audio == pytest.approx(alone, rel=0.1)


@pytest.mark.daily("librispeech:S")
@pytest.mark.parametrize("name", reading.CONFIGS)
def test_the_table_of_docs_is_what_is_estimated(name):
    (row,) = reading.rows([name])
    listed = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if row[0] in line]
    assert any([c.strip() for c in line.strip("|").split("|")] == [*row] for line in listed), row
