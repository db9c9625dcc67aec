"""BiRQ's labels at the shipped sharpness, shrunk, through the whole loop."""

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.monitoring import metrics
from bljust_jax.train import loop
from configs import birq


def small(**fields):
    """600 self-supervised steps of the smallest encoder at the published sizes' sharpness, weights
    and temperature; a rate 20 times theirs makes up for the number of steps."""
    config = birq.get_config("smoke")
    config.phases.update(pretrain=600, finetune=0)
    config.best_rq.codes = 256
    config.data.update(unlabelled_batch_seconds=16.0)
    config.update(eval_every=1000, save_every=1000, log_every=20, compile_cache="")
    config.mesh.data = 1
    # a batch has about 26 masked frames, so one code is 4 % of the most: the default share, 5 %,
    # would be 1.3 codes
    config.collapse.share = 0.25
    config.birq.update(**fields)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("label_gradient", [True, False])
def test_labels_keep_a_quarter_of_the_anchors_perplexity(label_gradient, tmp_path):
    config = small(label_gradient=label_gradient)
    assert config.birq.sharpness == birq.get_config().birq.sharpness
    loop.run(config, tmp_path)
    rows = [r for r in metrics.read(tmp_path / "metrics.jsonl") if "train/enhanced/loss" in r]
    assert rows[-1]["step"] == 600
    for row in rows:
        enhanced, anchor = (row[f"codebook/{n}/perplexity"] for n in ("enhanced", "anchor"))
        assert enhanced > anchor / 4


@pytest.mark.slow
def test_without_the_entropy_of_the_mean_label_they_collapse_and_the_run_ends(tmp_path):
    """The published equations, and the alarm that is on by default."""
    with pytest.raises(UserError, match="codebook enhanced collapses"):
        loop.run(small(label_entropy=0.0), tmp_path)
