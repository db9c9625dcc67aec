"""The training step on eight devices equals that of one, with the expected collectives."""

import collections
import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import group_of_parameters
from bljust_jax.common import trees
from bljust_jax.common.errors import UserError
from bljust_jax.parallel.batch_map import over_batch
from bljust_jax.parallel.mesh import batch_devices, make_mesh, put_batch, state_sharding
from bljust_jax.parallel.rules import STACKED, spec
from tests.helpers import toy
from tests.helpers.systems import (
    CONFIGS,
    all_streams,
    assert_close_leaf_by_leaf,
    begin,
    one_phase,
    undisturbed,
)

ROWS = 8


@functools.cache
def run(name, phase, data=1, fsdp=1, tensor=1):
    """(what a step of SGD of rate 1 took from the parameters, mean losses, the state before it, the
    compiled program). phase: its name; "joint" is the first of several levels."""
    recipe, phase = one_phase(undisturbed(name), phase)
    optimizer = toy.sgd(recipe.combiner, 1.0)
    mesh = make_mesh(data, fsdp, tensor)
    state = begin(recipe, optimizer)
    groups = group_of_parameters(state.params, recipe.groups)
    placed = state_sharding(state, mesh)
    train_step = step.make_train_step(recipe, (phase,), optimizer, groups, 0)
    with jax.set_mesh(mesh):
        state = jax.device_put(state, placed)
        batch = put_batch(all_streams(recipe, ROWS), mesh)
        program = jax.jit(train_step, out_shardings=(placed, None)).lower(state, batch).compile()
        after, means = program(state, batch)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params)
    losses = {k: float(s) / float(w) for k, (s, w) in means.items() if k.endswith("/loss")}
    return moved, losses, state, program


def collectives(text):
    """{kind: [shape, ...]} of the results of a program's collectives."""
    found = collections.defaultdict(list)
    text = re.sub(r"/\*.*?\*/", "", text)
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    for results, kind in re.findall(rf"= (\(?[^=]*?\)?) ({kinds})(?:-start)?\(", text):
        for dims in re.findall(r"\w+\[([\d,]*)\]", results):
            found[kind].append(tuple(int(d) for d in dims.split(",") if d))
    return found


def dims(shape):
    return tuple(sorted(n for n in shape if n > 1))


def gatherable(state, tensor):
    """Shapes of parameters and codebooks as they are used: one of stacked blocks, split along
    `tensor` alone."""
    found = set()
    for name, leaf in trees.named_leaves((state.params, state.frozen)):
        shape = list(leaf.shape)
        for axis, split in enumerate(spec(name, leaf.shape, 1, tensor)):
            shape[axis] //= tensor if split else 1
        found.add(dims(shape[1:] if STACKED.search(name) else shape))
    return found


@pytest.mark.daily("bljust-finetune")
@pytest.mark.parametrize(
    ("name", "phase"), [("bljust", "finetune"), *((name, "joint") for name in CONFIGS)]
)
def test_two_by_two_by_two_devices_give_the_step_of_one(name, phase):
    """config.mesh = {data: 2, fsdp: 2, tensor: 2}."""
    moved, losses, *_ = run(name, phase)
    others, same, state, program = run(name, phase, 2, 2, 2)
    for loss in losses:
        assert same[loss] == pytest.approx(losses[loss], rel=1e-5)
    assert_close_leaf_by_leaf(moved, others, 1e-5)
    leaves = jax.tree.leaves((state.params, state.ema))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert held < 0.6 * sum(leaf.nbytes for leaf in leaves)
    found = collectives(program.as_text())
    assert found.keys() == {"all-gather", "all-reduce"}, "nothing is moved but sums and parameters"
    assert {dims(shape) for shape in found["all-gather"]} <= gatherable(state, tensor=2)
    if any("tensor" in str(leaf.sharding.spec) for leaf in leaves):
        sums = [shape for shape in found["all-reduce"] if shape[:1] == (2,) and len(shape) == 3]
        assert sums, "over heads and feed-forward units, along tensor, of two rows a device"


def test_the_reader_of_collectives_sees_tuples():
    text = """
      %a = f32[2,3]{1,0} all-gather(%x), channel_id=1
      %b = (f32[4]{0}, /*index=1*/s32[]) all-reduce(%y, %z), channel_id=2
      %c = (f32[1], f32[8]) all-gather-start(%x)
      %d = f32[9] add(%all-reduce.1, %x)
    """
    found = collectives(text)
    assert found == {"all-gather": [(2, 3), (1,), (8,)], "all-reduce": [(4,), ()]}


@pytest.mark.parametrize(
    ("name", "shape", "want"),
    [
        ("params/encoder/blocks/ff1/up/kernel", (4, 16, 64), P(None, "fsdp", "tensor")),
        ("opt_state/1/mu/encoder/blocks/ff1/up/bias", (4, 64), P(None, "tensor")),
        ("ema/encoder/blocks/ff1/down/kernel", (4, 64, 16), P(None, "tensor", "fsdp")),
        ("encoder/blocks/attention/content_bias", (4, 2, 8), P(None, "tensor", None)),
        ("encoder/blocks/attention/out/bias", (4, 16), P()),
        ("encoder/blocks/conv/pointwise_in/kernel", (4, 16, 32), P(None, None, "fsdp")),
        ("st_head/blocks/cross_attention/key/kernel", (1, 16, 16), P(None, "fsdp", "tensor")),
        ("frozen/best_rq/codebook", (1, 64, 16), P(None, "fsdp", None)),
        ("encoder/blocks/conv/depthwise/kernel", (2, 5, 3), P()),  # nothing divides
        ("opt_state/0/levels/asr/lam", (2,), P()),
        ("stats/features/mean", (80,), P()),
        ("step", (), P()),
    ],
)
def test_the_table(name, shape, want):
    assert spec(name, shape, fsdp=2, tensor=2) == want
    assert spec(name, shape, fsdp=1) == P()


def test_heads_that_cannot_be_split_are_named():
    with pytest.raises(UserError, match=r"tensor=4 does not divide axis 1 of .*content_bias"):
        spec("encoder/blocks/attention/content_bias", (4, 2, 8), fsdp=1, tensor=4)


def test_meshes():
    mesh = make_mesh(fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"dcn": 1, "data": 2, "fsdp": 2, "tensor": 2}
    assert batch_devices(mesh) == 4
    assert dict(make_mesh(dcn=2).shape)["data"] == 4
    for wrong, said in [
        ({"data": 9}, "data=9.*8 found"),
        ({"fsdp": 3, "data": 3}, "8 found"),
        ({"fsdp": 0}, "at least 1"),
        ({"tensor": 3}, "must divide the 8 devices of a host"),
    ]:
        with pytest.raises(UserError, match=said):
            make_mesh(**wrong)


def test_slices_lie_along_dcn(monkeypatch):
    """Neighbours along `dcn` are of different slices, all others of one."""

    @dataclasses.dataclass(frozen=True)
    class Chip:
        id: int
        slice_index: int
        process_index: int = 0
        platform: str = "cpu"
        device_kind: str = "cpu"

    chips = [Chip(n, n // 4) for n in range(8)]
    monkeypatch.setattr(jax, "devices", lambda *_: chips)
    with pytest.raises(UserError, match="2 slices: set it to 2"):
        make_mesh()
    placed = make_mesh(dcn=2, fsdp=2).devices
    assert placed.shape == (2, 2, 2, 1)
    for n in (0, 1):
        assert {chip.slice_index for chip in placed[n].flat} == {n}


def test_a_kernel_has_its_rows_whatever_the_axes():
    """`over_batch` splits rows over all axes but `tensor`, whose devices compute the same."""
    x = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    seen = []

    def function(rows):
        seen.append(rows.shape)
        return rows * 2

    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        call = jax.jit(over_batch(function, (0,), 0))
        np.testing.assert_array_equal(call(put_batch(x, mesh)), 2 * x)
    assert set(seen) == {(2, 3)}
