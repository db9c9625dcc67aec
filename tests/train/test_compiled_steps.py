"""Compiled steps: one per phase and batch shape, memory in the log, out of memory as one line."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bljust_jax.bilevel.types import TrainState
from bljust_jax.common.errors import UserError
from bljust_jax.monitoring import goodput
from bljust_jax.train import compiled_steps

MIB = 2**20
BATCH = {
    "unlabelled": {"audio": np.zeros((2, 16000), np.int16)},
    "labelled": {"audio": np.zeros((8, 64000), np.int16)},
}
STATE = TrainState(1, {}, {}, {}, {}, {})
WHAT = r"\(joint, labelled 8 x 64000, unlabelled 2 x 16000 samples\)"


class Step:
    """A jitted step whose program takes `temporaries` bytes, and which may fail."""

    def __init__(self, temporaries=0, compiling=None, running=None):
        self.temporaries, self.compiling, self.running = temporaries, compiling, running
        self.compiled = 0

    def lower(self, state, batch):
        return self

    def compile(self):
        fail(self.compiling)
        self.compiled += 1
        return self

    def memory_analysis(self):
        return types.SimpleNamespace(
            argument_size_in_bytes=7 * MIB,
            output_size_in_bytes=5 * MIB,
            alias_size_in_bytes=4 * MIB,
            temp_size_in_bytes=self.temporaries,
        )

    def __call__(self, state, batch):
        fail(self.running)
        return state._replace(step=state.step + 1), {}


def fail(message):
    if message:
        raise jax.errors.JaxRuntimeError(message)


def make(step, said=None):
    said = [] if said is None else said
    return compiled_steps.CompiledSteps({"joint": step}, 3, said.append, goodput.Clock())


def test_a_program_is_compiled_once_a_shape_and_said_aloud(monkeypatch):
    monkeypatch.setattr(compiled_steps, "device_memory", lambda: 2**31)
    said, step = [], Step(300 * MIB)
    made = make(step, said)
    state, _ = made.run("joint", STATE, BATCH)
    state, means = made.run("joint", state, BATCH)
    assert (state.step, means) == (3, {})
    assert (len(made), step.compiled) == (1, 1)
    wider = {**BATCH, "labelled": {"audio": np.zeros((4, 128000), np.int16)}}
    made.compile("joint", STATE, wider)
    assert (len(made), step.compiled) == (2, 2)
    first, cost, second, _ = said
    assert first == (
        "compiling program 1 of 3: joint, labelled 8 x 64000, unlabelled 2 x 16000 samples"
    )
    assert second.startswith("compiling program 2 of 3: joint, labelled 4 x 128000")
    assert cost == "  0 s; 308 MiB of 2.0 GiB memory"  # 7 + 5 - 4 + 300


def test_a_program_larger_than_the_device_is_refused_before_it_runs(monkeypatch):
    monkeypatch.setattr(compiled_steps, "device_memory", lambda: 307 * MIB)
    made = make(Step(300 * MIB, running="not reached"))
    said = f"a batch needs 308 MiB of 307 MiB device memory {WHAT}: lower config.data.batch_seconds"
    with pytest.raises(UserError, match=said):
        made.run("joint", STATE, BATCH)
    assert len(made) == 0


@pytest.mark.parametrize("when", ["compiling", "running"])
def test_out_of_memory_comes_with_its_cure(when):
    made = make(Step(**{when: "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"}))
    said = rf"does not fit the device {WHAT}: lower config.data.batch_seconds or set .*remat=full"
    with pytest.raises(UserError, match=said):
        made.run("joint", STATE, BATCH)


@pytest.mark.parametrize("when", ["compiling", "running"])
def test_other_errors_of_the_device_stay_what_they_are(when):
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        make(Step(**{when: "INTERNAL: a bug"})).run("joint", STATE, BATCH)


def test_memory_counts_a_donated_argument_once_and_a_device_s_share():
    """256 Ki float32 = 1 MiB, in and out; 1/8 of it a device where eight share it."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def need(spec, **donate):
        x = jax.ShapeDtypeStruct((1 << 18,), jnp.float32, sharding=NamedSharding(mesh, spec))
        return compiled_steps.memory_needed(jax.jit(lambda x: x + 1, **donate).lower(x).compile())

    assert need(P()) == 2 * MIB
    assert need(P(), donate_argnums=0) == MIB
    assert need(P("data"), donate_argnums=0) == MIB // 8


def test_memory_of_a_cpu_device_is_its_share_of_the_machine():
    machine = compiled_steps.os.sysconf("SC_PHYS_PAGES") * compiled_steps.os.sysconf("SC_PAGE_SIZE")
    assert compiled_steps.device_memory() == machine // jax.local_device_count()
