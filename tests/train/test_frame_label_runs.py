"""Runs with the losses hubert and data2vec: labels by `prepare`, resumed bit for bit."""

import signal

import numpy as np
import pytest

from bljust_jax import prepare
from bljust_jax.common.errors import UserError
from bljust_jax.monitoring import metrics
from bljust_jax.parallel import preemption
from bljust_jax.train import loop
from tests.helpers import corpora
from tests.helpers.systems import choose_loss, config_for
from tests.helpers.workdirs import arrays, rows_without_perf


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tones, and labels of their frames by `prepare --labels`."""
    made = corpora.tones(tmp_path_factory.mktemp("tones"))
    given = [str(made / "train.jsonl"), "--out", str(made / "all.km")]
    assert prepare.main([*given, "--labels", "log_mel", "--classes", "4"]) == 0
    return made


def config_of(loss, folder, classes=4):
    config = choose_loss(config_for("bljust"), loss)
    config.data = corpora.settings(folder, buckets=(0.5,), **corpora.PLAIN | {"join": (1, 1)})
    config.data.frame_labels = str(folder / "all.km")
    if loss == "hubert":
        config = config.copy_and_resolve_references()
        config.hubert = {"classes": classes, "mask_seconds": 0.08}
    config.phases.update(unit="step", explore=4, joint=4, finetune=2)
    config.update(eval_every=2, save_every=3, log_every=1, compile_cache="")
    return config


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["hubert", "data2vec"])
def test_stopped_and_resumed_equals_unbroken(loss, folder, tmp_path, monkeypatch):
    """Stopped in the joint phase: all arrays, the teacher's too, and all rows are the same."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    loop.run(config_of(loss, folder), whole)
    requested = preemption.StopSignals.requested

    def stop_at(self, step):
        if step == 5:
            signal.raise_signal(signal.SIGTERM)
        return requested(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(preemption.StopSignals, "requested", stop_at)
        assert loop.run(config_of(loss, folder), broken) is None
    assert loop.run(config_of(loss, folder), broken) is not None
    assert rows_without_perf(broken) == rows_without_perf(whole)
    assert arrays(broken) == arrays(whole)
    rows = metrics.read(whole / "metrics.jsonl")
    (first, *_), losses = [r for r in rows if f"dev/{loss}/loss" in r], f"train/{loss}/loss"
    assert np.isfinite(first[f"dev/{loss}/loss"])
    assert len([row for row in rows if losses in row]) == 8


def test_labels_beyond_the_classes_are_refused_before_training(folder, tmp_path):
    with pytest.raises(UserError, match=r"all\.km:\d+: label 3 is none of the 3 of config\.hubert"):
        loop.run(config_of("hubert", folder, classes=3), tmp_path)
