"""Every preset of configs/m2asr.py, shrunk, through the whole loop."""

import shutil

import numpy as np
import pytest

from bljust_jax.monitoring import metrics
from bljust_jax.train import loop
from configs import m2asr
from tests.helpers import miniature

LEVELS = {"vs": 0, "vc": 1, "vm_uas": 2, "vm_usa": 2, "joint": 1, "two_stage": 0, "supervised": 0}


def shrink(config):
    """Utterances of 1.2 s, as the synthetic ones are, in two narrow blocks."""
    miniature.shorten(config)
    miniature.shrink_model(config)


@pytest.mark.slow
@pytest.mark.parametrize("method", m2asr.METHODS)
def test_preset_trains(method, tmp_path):
    """At equal compute: each loss takes as many gradients whatever the preset; weights lie on the
    simplex, penalties rise, and every task is scored."""
    config = m2asr.get_config(f"digits,{method},smoke")
    shrink(config)
    config.phases.update(explore=2.0, joint=6.0, finetune=4.0)
    config.update(eval_every=12, save_every=6, log_every=2, compile_cache="")
    config.mesh.data = 1
    final = loop.run(config, tmp_path)
    rows = metrics.read(tmp_path / "metrics.jsonl")
    tasks = tuple(config.data.streams)
    if method == "supervised":  # more gradients of the labelled losses for the same FLOPs
        assert "compute/updates/cpc" not in final
        assert all(10 < final[f"compute/updates/{task}"] < 13 for task in tasks)
    else:
        assert all(final[f"compute/updates/{task}"] == 10 for task in tasks)
        assert final["compute/updates/cpc"] == 8
    for task in tasks:
        measure = config.data.streams[task].measure
        assert np.isfinite(final[f"dev/{task}/{measure}"])
        assert (tmp_path / "samples" / f"dev-{task.replace('/', '_')}-best.jsonl").exists()
    for n in range(1, LEVELS[method] + 1):
        penalties = [r[f"penalty/{n}"] for r in rows if f"penalty/{n}" in r]
        assert penalties
        assert penalties == sorted(penalties)
    weighed = [r for r in rows if "moo/weight/asr/ar" in r]
    assert bool(weighed) == (method not in ("joint", "two_stage", "supervised"))
    for row in weighed:
        assert row["moo/weight/asr/ar"] + row["moo/weight/asr/en"] <= 1 + 1e-5
    pictures = {p.name for p in (tmp_path / "plots").iterdir()}
    assert ("weights.png" in pictures) == ("cosines.png" in pictures) == bool(weighed)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["librispeech_aishell_covost,linear", "covost_en_x"])
def test_a_joined_corpus_trains_and_goes_on_bit_for_bit(variant, tmp_path):
    """All its streams are scored, and a run whose last checkpoints are gone ends with the same
    parameters: in the supervised phase and in the joint one."""
    config = m2asr.get_config(f"{variant},smoke")
    shrink(config)
    config.phases.update(explore=0.0, supervised=4.0, joint=6.0, finetune=0.0)
    config.update(eval_every=20, save_every=2, keep=9, log_every=2, compile_cache="")
    config.mesh.data = 1
    final = loop.run(config, tmp_path)
    for name, stream in config.data.streams.items():
        assert np.isfinite(final[f"test/{name}/{stream.measure}"])
    rows = metrics.read(tmp_path / "metrics.jsonl")
    assert [r["train/asr/en/loss"] for r in rows if r["step"] == 4]
    for kept in (8, 2):
        for folder in (tmp_path / "checkpoints").iterdir():
            if folder.name.isdecimal() and int(folder.name) > kept:
                shutil.rmtree(folder)
        again = loop.run(config, tmp_path)
        assert again["params_digest"] == final["params_digest"]
