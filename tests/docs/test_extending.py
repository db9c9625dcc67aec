"""The examples of docs/extending.md work: a loss, an encoder and a dataset, a file each."""

import jax
import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

from bljust_jax import objectives, recipes
from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import group_of_parameters
from bljust_jax.common.errors import UserError
from bljust_jax.data import readers
from bljust_jax.data.sources import open_source
from bljust_jax.models import encoders
from tests.helpers import systems, toy
from tests.helpers.documents import ROOT, blocks

LOSS, ENCODER, DATASET = blocks((ROOT / "docs" / "extending.md").read_text(), "python")


def train(config, phase_name, steps=10):
    """Losses of `steps` steps of plain SGD on one batch."""
    recipe = recipes.load(config.recipe)(config, systems.FACTS)
    phase = next(p for p in recipe.phases if p.name == phase_name)
    optimizer = toy.sgd(recipe.combiner, 0.05)
    state = systems.begin(recipe, optimizer)
    groups = group_of_parameters(state.params, recipe.groups)
    run = jax.jit(step.make_train_step(recipe, (phase,), optimizer, groups, 0))
    found = []
    for _ in range(steps):
        state, means = run(state, systems.two_streams())
        found.append({k: float(s) / float(w) for k, (s, w) in means.items() if k.endswith("/loss")})
    return found


def test_a_loss_of_one_file_trains(add_module):
    add_module(objectives, "apc", LOSS)
    config = systems.config_for("bljust")
    config.ssl = "apc"
    rows = [row["train/apc/loss"] for row in train(config, "explore")]
    assert np.all(np.isfinite(rows))
    assert rows[-1] < rows[0]


def test_a_loss_of_one_file_brings_its_fields(add_module):
    """Their defaults, and what a config sets."""
    add_module(objectives, "apc", LOSS)
    config = systems.config_for("bljust")
    encoder = encoders.load(config.encoder)(config)
    build = objectives.load("apc")
    assert build(config, encoder).ahead == 3
    config.apc = ConfigDict({"ahead": 5})
    assert build(config, encoder).ahead == 5


def test_an_encoder_of_one_file_trains(add_module):
    add_module(encoders, "frame_mlp", ENCODER)
    config = systems.config_for("bljust")
    config.encoder = "frame_mlp"
    with config.unlocked():
        config.model = ConfigDict({"dim": 16})
    rows = train(config, "joint")
    assert np.all(np.isfinite([list(row.values()) for row in rows]))
    assert rows[-1]["train/ctc/loss"] < rows[0]["train/ctc/loss"]


def test_a_dataset_of_one_file_is_read(add_module, tmp_path):
    add_module(readers, "recordings", DATASET)
    (tmp_path / "recordings").mkdir()
    for name in "ab":
        soundfile.write(tmp_path / "recordings" / f"{name}.wav", np.zeros(8000, np.int16), 16000)
    (tmp_path / "recordings" / "a.txt").write_text("one two\n")
    found = open_source(f"recordings:{tmp_path / 'recordings'}")
    assert [(u.id, u.text, u.duration) for u in found] == [("a", "one two", 0.5), ("b", None, 0.5)]
    with pytest.raises(UserError, match="no such folder"):
        open_source(f"recordings:{tmp_path / 'absent'}")
