"""The parts of a step whose compile time is measured: which they are, and what is timed."""

import jax
import pytest

from bljust_jax import bench
from bljust_jax.benchmarks import compile as subject
from bljust_jax.benchmarks.step import Shape, make_batch
from bljust_jax.bilevel.types import TrainState
from bljust_jax.parallel.mesh import make_mesh
from bljust_jax.train.system import make_system
from tests.helpers import systems

PARTS = [
    *("log-mel", "front end", "front end, 1 block", "encoder", "loss ctc", "loss cpc"),
    *("all gradients", "optimizer, EMA", "step"),
]


def made(name="bljust"):
    """{part: its function and arguments} of a small system's joint step, not compiled."""
    config = systems.config_for(name)
    recipe = systems.build(name)
    system = make_system(config, recipe, make_mesh(data=1))
    phases = tuple(p for p in recipe.phases if p.name == "joint")
    streams = sorted({s for o in recipe.active(phases[0]) for s in o.streams})
    batch = make_batch(Shape(4, 1, 16, 2))["labelled"]
    batch = subject.abstract(dict.fromkeys(streams, batch), system)
    with jax.set_mesh(system.mesh):
        makers = subject.makers(config, system, phases, batch)
        return system, {part: make() for part, make in makers.items()}


@pytest.mark.slow
def test_each_part_has_the_shapes_of_the_step():
    """Gradients of the whole encoder; gradients and optimizer together are the step."""
    system, parts = made()
    assert list(parts) == PARTS
    state = system.state
    with jax.set_mesh(system.mesh):
        found = {name: jax.eval_shape(*_flat(part)) for name, part in parts.items()}

    def shapes(tree):
        return jax.tree.map(lambda x: x.shape, tree)

    for name in ("front end", "front end, 1 block", "encoder"):
        assert shapes(found[name]) == shapes(state.params["encoder"])
    assert shapes(found["loss ctc"][0]) == shapes({"ctc_head": state.params["ctc_head"]})
    assert found["loss ctc"][1].shape == parts["loss ctc"].args[1].shape
    grads, *_ = found["all gradients"]
    assert shapes(grads) == shapes(parts["optimizer, EMA"].args[1])
    assert isinstance(found["optimizer, EMA"], TrainState)
    assert shapes(found["optimizer, EMA"]) == shapes(found["step"][0]) == shapes(state)


def _flat(part):
    return part.jitted, *part.args


@pytest.mark.slow
def test_a_part_per_loss_that_takes_encoded_audio():
    """M2ASR: recognition and CPC; a decoder's loss encodes its audio itself."""
    _, parts = made("m2asr")
    losses = [name for name in parts if name.startswith("loss ")]
    assert losses == ["loss asr/ar", "loss asr/en", "loss cpc"]


def test_trace_lowering_and_compiling_are_timed_apart():
    """By a clock that moves one second in the first, ten in the second and 100 in the third."""
    now = [0.0]

    class Stage:
        def __init__(self, seconds):
            self.seconds = seconds

        def advance(self, *args):
            assert args == ((3,) if self.seconds == 1 else ())
            now[0] += self.seconds
            return Stage(10 * self.seconds)

        trace = lower = compile = advance

    cost = subject.cost_of(subject.Part(Stage(1.0), (3,)), clock=lambda: now[0])
    assert cost == (1.0, 10.0, 100.0)


@pytest.mark.slow
def test_the_mean_of_rounds(monkeypatch):
    """The first program, which starts the compiler, is not counted."""
    system, _ = made()
    seconds = iter([1000.0, 1.0, 2.0, 3.0, 6.0])

    def cost_of(part):
        return subject.Cost(0.0, 1.0, next(seconds))

    parts = dict.fromkeys(("a", "b"), lambda: None)
    monkeypatch.setattr(subject, "cost_of", cost_of)
    monkeypatch.setattr(subject, "makers", lambda *_: parts)
    lines = []
    found = subject.costs(None, system, (), {}, 2, lines.append)
    assert found["a"] == {"trace": 0.0, "lower": 1.0, "compile": 2.0}
    assert found["b"]["compile"] == 4.0
    assert len(lines) == 4
    table = subject.describe(found)
    assert table[1].split() == ["a", "0.0", "1.0", "2.0"]


def test_the_command_knows_it():
    assert "compile" in bench.SUBJECTS
    assert set(subject.SHAPES) == {"cpu", "gpu", "tpu"}
