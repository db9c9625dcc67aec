"""A small run's checkpoints, and what happens to files."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax.bilevel.types import TrainState
from bljust_jax.checkpoint.manager import Checkpoints
from bljust_jax.common.trees import digest


def make_state(step):
    """A state of 600 numbers that are of `step`; no parameter is split evenly by its first axis."""
    rng = np.random.default_rng(step)
    params = {"w": jnp.asarray(rng.normal(size=(3, 8, 16)), jnp.float32)}
    params["b"] = jnp.asarray(rng.normal(size=(16,)), jnp.bfloat16)
    moments = jax.tree.map(jnp.square, params)
    stats = {"seen": jnp.asarray(step, jnp.int32)}
    return TrainState(jnp.asarray(step, jnp.int32), params, moments, params, {}, stats)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@contextlib.contextmanager
def opened(workdir, **policy):
    with contextlib.closing(Checkpoints(workdir, **{"keep": 3, **policy})) as found:
        yield found


def save(workdir, *steps, **policy):
    """Saves the state of each step as a run would, and what it heard up to then."""
    with opened(workdir, **policy) as checkpoints:
        for step in steps:
            state = make_state(step)
            checkpoints.save(step, state, state.weights, {"heard": [step]})


def restore(workdir):
    with opened(workdir) as checkpoints:
        return checkpoints.restore_newest(abstract(make_state(0)))


def assert_whole(restored, step):
    """All that was saved at `step`, bit for bit."""
    assert restored.step == step
    assert restored.meta == {"heard": [step]}
    state = make_state(step)
    pairs = jax.tree.map(lambda x, y: (np.asarray(x), np.asarray(y)), restored.state, state)
    for ours, theirs in jax.tree.leaves(pairs, is_leaf=lambda x: type(x) is tuple):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes()
    assert digest(restored.best) == digest(state.weights)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in files(folder)}


def flip(path, bit):
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
