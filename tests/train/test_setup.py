"""Training setup: steps without data, the timeline of phases, run metadata, the metric log."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.models import audio_features
from bljust_jax.monitoring import goodput, metrics, trackers
from bljust_jax.monitoring.codebook_collapse import CollapseAlarm
from bljust_jax.monitoring.progress import Progress
from bljust_jax.parallel.mesh import make_mesh, put_batch
from bljust_jax.train import initial_state
from bljust_jax.train.metric_log import MetricLog
from bljust_jax.train.run_meta import Best, RunMeta
from bljust_jax.train.system import build_recipe, jit_train_step, make_system, seed_of
from bljust_jax.train.timeline import Timeline
from tests.helpers.systems import FACTS, build, config_for, make_batch


def lower_step(config, system, phase, batch):
    return jit_train_step(config, system, (phase,)).lower(system.state, batch, seed_of(config))


@pytest.mark.slow
def test_a_step_is_built_and_lowered_without_data():
    """As benchmarks and ahead-of-time compilation do; its state has shapes and shardings alone. The
    program is the same for every seed."""
    config, mesh = config_for("bljust"), make_mesh(4, 2)
    recipe = build_recipe(config, FACTS)
    system = make_system(config, recipe, mesh)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(system.state))
    fsdp = [x for x in jax.tree.leaves(system.shardings) if "fsdp" in x.spec]
    assert fsdp
    phase = next(p for p in recipe.phases if p.name == "joint")
    batch = put_batch({s: make_batch(rows=8) for s in ("labelled", "unlabelled")}, mesh)
    with jax.set_mesh(mesh):
        lowered = lower_step(config, system, phase, batch)
        config.seed = 7
        assert lower_step(config, system, phase, batch).as_text() == lowered.as_text()
    after, _ = lowered.out_info
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, system.state)


def test_a_timeline_gives_the_phase_and_the_streams_of_each_step():
    recipe = build("bljust")
    first, second, *_ = recipe.phases
    phases = (dataclasses.replace(first, steps=3), dataclasses.replace(second, steps=2))
    timeline = Timeline(dataclasses.replace(recipe, phases=phases))
    assert timeline.total == 5
    assert [timeline.phase_at(n).name for n in range(5)] == [first.name] * 3 + [second.name] * 2
    assert [n for n in range(5) if timeline.starts_phase(n)] == [0, 3]
    assert [(s.start, s.length) for s in timeline.segments] == [(0, 3), (3, 2)]
    assert timeline.streams_from(0) == {
        "explore": ("unlabelled",),
        "joint": ("labelled", "unlabelled"),
    }
    assert list(timeline.streams_from(3)) == ["joint"]
    assert timeline.ends == {3: first.name, 5: second.name}
    turns = Timeline(dataclasses.replace(recipe, phases=phases * 3))
    assert turns.ends == {13: first.name, 15: second.name}, "of the last one of each name"


@pytest.mark.parametrize("every", [1, 7, 20, 100])
def test_windows_divide_phases_and_none_is_short(every):
    """From half of `every` to 1.5 times, but the whole of a shorter phase."""
    recipe = build("bljust")
    lengths = (1, 3, 20, 20, 33, 19, 61, 100)
    phases = [dataclasses.replace(recipe.phases[n % 3], steps=k) for n, k in enumerate(lengths)]
    timeline = Timeline(dataclasses.replace(recipe, phases=tuple(phases)))
    ends = [n for n in range(1, timeline.total + 1) if timeline.ends_window(n, every)]
    assert set(np.cumsum(lengths)) <= set(ends)
    starts = np.searchsorted(np.cumsum(lengths), [0, *ends[:-1]], side="right")
    for size, phase in zip(np.diff([0, *ends]), starts, strict=True):
        assert min(every / 2, lengths[phase]) <= size <= min(1.5 * every, lengths[phase])


def test_windows_of_turns_end_at_multiples_and_with_the_last_turn():
    """17 steps of one phase, then 20 turns of 1 and 4: no row per turn."""
    recipe = build("bljust")
    first, second, third = (dataclasses.replace(p, turn=True) for p in recipe.phases)
    turns = [dataclasses.replace(p, steps=n) for p, n in ((second, 1), (third, 4))]
    phases = (dataclasses.replace(first, steps=17, turn=False), *20 * turns)
    timeline = Timeline(dataclasses.replace(recipe, phases=phases))
    ends = [n for n in range(1, timeline.total + 1) if timeline.ends_window(n, 10)]
    assert ends == [10, 17, *range(20, 111, 10), 113, 117]
    assert set(timeline.ends) == {17, 113, 117}


def test_run_metadata_survive_json():
    meta = RunMeta("digest", quarantined=[{"id": "a"}], window={"loss": [1.0, 2.0]})
    assert RunMeta.from_json(json.loads(json.dumps(meta.to_json()))) == meta
    assert meta.update_best([0.5, 0.2], 8)
    assert not meta.update_best([0.5, 0.2], 16)
    assert meta.update_best([0.5, 0.1], 24)
    old = json.loads(json.dumps(meta.to_json()))
    del old["early"]  # of a checkpoint from before there was one
    copy = RunMeta.from_json(old)
    assert copy.best == Best([0.5, 0.1], 24)
    assert set(meta.to_json()) == {
        *("data", "best", "compute", "window", "skipped", "quarantined", "seconds"),
        *("early", "unscored"),
    }


def test_a_window_is_written_after_the_next_step_has_started():
    written, checked = [], []
    clock = goodput.Clock()
    computed = {"compute/audio_hours": 0.0, "compute/encoder_tflop": 0.0}

    class Writer(trackers.MetricWriter):
        def __init__(self):
            pass

        def write(self, step, row):
            written.append((step, row["loss"]))

    progress, alarms = Progress(4, 0, clock, computed, active=False), [CollapseAlarm(0.1, 3, True)]
    log = MetricLog(metrics.Window(), Writer(), progress, clock, alarms, checked.append)
    for step in range(4):
        log.write_pending()
        log.add(step, {"loss": (jnp.float32(step), jnp.float32(1))})
        if step % 2:
            log.end_window(step + 1, "joint", dict(computed))
        assert written == [(2, 0.5)] * (step > 1)
    log.write_pending()
    log.write_pending()
    assert written == [(2, 0.5), (4, 2.5)]
    assert checked == [log.window] * 2


def test_a_recipe_without_steps_is_refused():
    config = config_for("bljust")
    config.phases.update(explore=0.0, joint=0.0, finetune=0.0)
    with pytest.raises(UserError, match="every phase has length 0"):
        build_recipe(config, FACTS)


def test_statistics_read_all_audio_in_one_shape():
    """Rows in their order, padded by silence and rows of length 0; a full batch stays as it is."""
    rng = np.random.default_rng(0)
    shapes = [(5, 3000), (2, 5000), (1, 2000)]
    lengths = [rng.integers(1000, n + 1, rows).astype(np.int32) for rows, n in shapes]
    # loud and soft: moments in float32 cancel where all frames are alike
    louder = [np.geomspace(1, 300, n) * rng.normal(9, 3, (rows, n)) for rows, n in shapes]
    audio = [np.maximum(x, 1).astype(np.int16) for x in louder]
    batches = [{"audio": a, "audio_lengths": n} for a, n in zip(audio, lengths, strict=True)]
    made = list(initial_state.in_one_shape(batches, 2, 5000))
    assert {b["audio"].shape for b in made} == {(2, 5000)}
    assert len(made) == 3 + 1 + 1
    found = [a[:n].tolist() for b in made for a, n in zip(*b.values(), strict=True) if n]
    assert found == [a[:n].tolist() for b in batches for a, n in zip(*b.values(), strict=True)]
    assert all(a.dtype == np.int16 for b in made for a in [b["audio"]])
    np.testing.assert_array_equal(made[3]["audio"], audio[1])
    config = config_for("bljust")
    one, other = (
        jax.tree.leaves(audio_features.feature_statistics(config, given))
        for given in (batches, initial_state.in_one_shape(batches, 2, 5000))
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
