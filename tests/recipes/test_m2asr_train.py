"""Every preset of configs/m2asr.py, shrunk, through the whole loop."""

import numpy as np
import pytest

from bljust_jax.monitoring import metrics
from bljust_jax.train import loop
from configs import m2asr

LEVELS = {"vs": 0, "vc": 1, "vm_uas": 2, "vm_usa": 2, "joint": 1, "two_stage": 0}


@pytest.mark.slow
@pytest.mark.parametrize("method", m2asr.METHODS)
def test_preset_trains(method, tmp_path):
    """At equal compute: each loss takes as many gradients whatever the preset; weights lie on the
    simplex, penalties rise, and every task is scored."""
    config = m2asr.get_config(f"digits,{method},smoke")
    config.phases.update(explore=2.0, joint=6.0, finetune=4.0)
    config.update(eval_every=12, save_every=6, log_every=2, compile_cache="")
    config.mesh.data = 1
    final = loop.run(config, tmp_path)
    rows = metrics.read(tmp_path / "metrics.jsonl")
    tasks = tuple(config.data.streams)
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
    assert bool(weighed) == (method not in ("joint", "two_stage"))
    for row in weighed:
        assert row["moo/weight/asr/ar"] + row["moo/weight/asr/en"] <= 1 + 1e-5
    pictures = {p.name for p in (tmp_path / "plots").iterdir()}
    assert ("weights.png" in pictures) == ("cosines.png" in pictures) == bool(weighed)
