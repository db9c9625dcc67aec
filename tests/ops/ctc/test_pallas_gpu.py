"""The one-scan form and the GPU kernel: against the two scans, interpreted, lowered for CUDA, and
on a GPU where there is one.

`test_ctc.py` holds both to the same table of cases as every implementation; here is what only a
walk of two directions, or a kernel, can get wrong.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AxisType

from bljust_jax.ops import ctc
from bljust_jax.ops.ctc import one_scan, pallas_gpu, scan
from bljust_jax.ops.ctc.one_scan import walk_by_scan, walk_of
from bljust_jax.ops.ctc.pallas_gpu import Tiles, walk_by_kernel
from bljust_jax.ops.ctc.trellis import (
    Recursions,
    Trellis,
    compensated_sum,
    softmax_of,
    trellis_of,
    valid_frames,
)

SCAN, ONE_SCAN = scan.RECURSIONS, one_scan.RECURSIONS
KERNEL = pallas_gpu.RECURSIONS


def random_batch(frames, batch, labels, classes=5, seed=0, dtype=np.float32):
    """Feasible utterances of all lengths with many repeats; the first is full, the second has no
    label."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(batch, frames, classes))
    logit_lengths = rng.integers(frames // 2, frames + 1, batch)
    label_lengths = rng.integers(0, min(labels, frames // 4) + 1, batch)
    logit_lengths[0], label_lengths[0] = frames, min(labels, frames // 2)
    label_lengths[1:2] = 0
    ids = rng.integers(1, classes, (batch, labels))
    return (
        jnp.asarray(logits, dtype),
        jnp.asarray(logit_lengths, jnp.int32),
        jnp.asarray(ids, jnp.int32),
        jnp.asarray(label_lengths, jnp.int32),
    )


def lattice(*args, **kwargs) -> Trellis:
    logits, *rest = random_batch(*args, **kwargs)
    return trellis_of(logits, softmax_of(logits), *rest, 0)


def outcome(recursions: Recursions, trellis: Trellis):
    """log P, and the occupancies of real frames (0 elsewhere)."""
    log_prob, states = recursions.forward(trellis, store=True)
    real = valid_frames(trellis.label.shape[0], trellis.logit_lengths).T[..., None]
    return log_prob, jnp.where(real, recursions.occupancy(trellis, states), 0.0)


def run(recursions, trellis):
    return jax.tree.map(np.asarray, jax.jit(functools.partial(outcome, recursions))(trellis))


@pytest.mark.daily("pallas_gpu")
@pytest.mark.parametrize("recursions", [ONE_SCAN, KERNEL], ids=["one_scan", "pallas_gpu"])
def test_equals_the_two_scans(recursions):
    """On a CPU the kernel's module walks by scan, over its padded lanes."""
    trellis = lattice(frames=23, batch=6, labels=7)
    expected = run(SCAN, trellis)
    actual = run(recursions, trellis)
    # Other roundings of states of order ten: a few units in the last place of log P and of 1.
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(actual[1], expected[1], atol=5e-6)
    value = jax.jit(lambda t: recursions.forward(t, store=False)[0])(trellis)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6, atol=1e-6)


def test_one_scan_is_the_same_mathematics():
    """Two algorithms that share no step after the lattice agree to the digits of float64."""
    with jax.enable_x64(True):
        trellis = lattice(frames=23, batch=6, labels=7, dtype=np.float64)
        expected, actual = run(SCAN, trellis), run(ONE_SCAN, trellis)
        np.testing.assert_allclose(actual[0], expected[0], rtol=1e-13)
        np.testing.assert_allclose(actual[1], expected[1], atol=1e-12)


@pytest.mark.slow
def test_one_scan_is_accurate_over_long_utterances():
    """1600 frames of untrained logits: float32 against float64 within the issue's 5e-4."""
    shape = {"frames": 1600, "batch": 2, "labels": 60, "classes": 40}
    log_prob, occupancy = run(ONE_SCAN, lattice(**shape))
    with jax.enable_x64(True):
        reference, expected = run(ONE_SCAN, lattice(**shape, dtype=np.float64))
    np.testing.assert_allclose(occupancy, expected, atol=5e-4)
    # The logits, too, are rounded: 1600 independent errors of 6e-8 * 5 each, against sums of 4000.
    np.testing.assert_allclose(log_prob, reference, rtol=2e-7)


def test_one_scan_walks_time_once():
    trellis = lattice(frames=9, batch=2, labels=3)
    jaxpr = str(jax.make_jaxpr(functools.partial(outcome, ONE_SCAN))(trellis))
    assert jaxpr.count("scan[") == 1


def test_compensated_sum_adds_what_rounding_takes():
    cancelling = jnp.asarray([[1e8], [1.0], [-1e8], [3.0]], jnp.float32)
    assert compensated_sum(cancelling) == 4.0
    peaks = np.random.default_rng(0).normal(-7, 3, (40000, 2)).astype(np.float32)
    exact = np.float32([math.fsum(column.tolist()) for column in peaks.T])
    np.testing.assert_array_equal(jax.jit(compensated_sum)(peaks), exact)


@pytest.mark.slow
def test_states_of_the_unwritten_do_not_matter():
    """Frames that the kernel does not visit hold anything, and reach no real frame."""
    trellis = lattice(frames=11, batch=3, labels=4)
    _, states = jax.jit(functools.partial(ONE_SCAN.forward, store=True))(trellis)
    walk = walk_of(trellis, backward=True)
    time = np.arange(11)[:, None, None]
    visited = (time >= walk.first[None]) & (time < walk.stop[None])
    poisoned = jax.tree.map(lambda s: jnp.where(visited[..., None], s, jnp.nan), states)
    occupancy = jax.jit(ONE_SCAN.occupancy)
    expected, actual = occupancy(trellis, states), occupancy(trellis, poisoned)
    real = np.asarray(valid_frames(11, trellis.logit_lengths)).T
    np.testing.assert_array_equal(np.asarray(actual)[real], np.asarray(expected)[real])
    assert not np.asarray(visited).all()


# The kernel, interpreted


@pytest.fixture
def interpreter():
    if not hasattr(plgpu, "InterpretGPUParams"):
        pytest.skip(f"jax {jax.__version__} cannot interpret GPU kernels")
    return plgpu.InterpretGPUParams(detect_races=True)


@pytest.mark.parametrize(
    ("labels", "frames_ahead"),
    [(4, 4), (130, 2)],  # one and two numbers per thread; 11 frames end within a block of either
)
def test_the_kernel_walks_as_the_scan_does(interpreter, labels, frames_ahead):
    trellis, tiles = pallas_gpu._on_lanes(lattice(frames=11, batch=2, labels=labels))
    trellis = trellis._replace(logit_lengths=jnp.asarray([11, 7], jnp.int32))
    tiles = Tiles(tiles.lanes, frames_ahead)
    walk = walk_of(trellis, backward=True)
    kernel = functools.partial(walk_by_kernel, tiles=tiles, store=True, interpret=interpreter)
    arrived, states = jax.tree.map(np.asarray, jax.jit(kernel)(walk))
    expected = jax.tree.map(np.asarray, jax.jit(functools.partial(walk_by_scan, store=True))(walk))
    # The same operations in the same order but for the sum of peaks.
    np.testing.assert_allclose(arrived, expected[0], rtol=1e-6, atol=1e-5)
    time = np.arange(11)[:, None, None]
    visited = (time >= walk.first[None]) & (time < walk.stop[None])
    for state, reference in zip(states, expected[1], strict=True):
        np.testing.assert_allclose(state[visited], reference[visited], rtol=1e-6, atol=1e-5)
        assert np.isnan(state[~visited]).all(), "the kernel wrote a padded frame"


def test_the_kernel_of_a_value_stores_no_states(interpreter):
    """And an utterance without frames, whose only path is the empty one, has probability 1."""
    trellis = lattice(frames=5, batch=2, labels=2)
    trellis = trellis._replace(logit_lengths=jnp.asarray([5, 0], jnp.int32))
    forward = functools.partial(pallas_gpu.forward, store=False, interpret=interpreter)
    log_prob, states = jax.jit(forward)(trellis)
    assert states is None
    expected, _ = SCAN.forward(trellis, store=False)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6)
    assert log_prob[1] == 0.0


# Limits, and what the compiler for CUDA is given


def test_tiles_validate_themselves():
    assert Tiles.fit(1) == Tiles(128, 4)
    assert Tiles.fit(129) == Tiles(256, 4)
    assert Tiles.fit(2048).frames < 4
    with pytest.raises(ValueError, match="multiple of 128"):
        Tiles(100)
    with pytest.raises(ValueError, match="frames must be positive"):
        Tiles(128, 0)
    with pytest.raises(ValueError, match="use implementation='one_scan'"):
        Tiles.fit(5000)


def test_the_kernel_is_float32():
    with jax.enable_x64(True), pytest.raises(ValueError, match="use 'one_scan'"):
        KERNEL.forward(lattice(frames=5, batch=2, labels=2, dtype=np.float64), store=False)


def typical(frames=1600, batch=32, width=201) -> Trellis:
    """The shapes of the benchmark."""
    shapes = ((frames, batch, 1), (frames, batch, width), (batch, width), (batch,), (batch,))
    dtypes = (jnp.float32, jnp.float32, bool, jnp.int32, jnp.int32)
    return Trellis(*map(jax.ShapeDtypeStruct, shapes, dtypes))


def for_cuda(function, *args) -> str:
    return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def test_one_launch_for_cuda():
    """No GPU and no CUDA library is needed to lower: one kernel, and no loop around it."""
    for text in (
        for_cuda(functools.partial(outcome, KERNEL), typical()),
        for_cuda(functools.partial(KERNEL.forward, store=False), typical()),
    ):
        assert text.count("custom_call @mosaic_gpu") == 1
        assert "stablehlo.while" not in text


@pytest.mark.slow
def test_each_device_walks_its_own_utterances():
    """The compiler cannot split the call, so on a mesh the batch is split before it."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    trellis = lattice(frames=9, batch=8, labels=3)
    expected = run(KERNEL, trellis)
    with jax.set_mesh(mesh):
        actual = run(KERNEL, trellis)
        text = for_cuda(functools.partial(outcome, KERNEL), typical())
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6)  # another program's sums over a row
    assert "tensor<1600x2x4x256xf32>" in text  # [T, D, B / 8, lanes]
    assert "tensor<1600x2x32x256xf32>" not in text.split("@mosaic_gpu")[1].split("\n")[0]


class Device(NamedTuple):
    compute_capability: str


@pytest.mark.parametrize(
    ("capability", "version", "labels", "dtype", "expected"),
    [
        ("9.0", (0, 11, 2), 200, jnp.float32, KERNEL),
        ("9.0", (0, 12, 0), pallas_gpu.MAX_LABELS, jnp.bfloat16, KERNEL),
        ("9.0", (0, 12, 0), pallas_gpu.MAX_LABELS + 1, jnp.float32, ONE_SCAN),
        ("9.0", (0, 12, 0), 200, jnp.float64, ONE_SCAN),
        ("9.0", (0, 10, 2), 200, jnp.float32, ONE_SCAN),
        ("8.0", (0, 12, 0), 200, jnp.float32, ONE_SCAN),
    ],
)
def test_auto_takes_the_kernel_where_it_has_been_run(
    monkeypatch, capability, version, labels, dtype, expected
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Device(capability)])
    monkeypatch.setattr(jax, "__version_info__", version)
    logits = jax.ShapeDtypeStruct((2, 8, 30), dtype)
    assert ctc._recursions("auto", logits, jax.ShapeDtypeStruct((2, labels), jnp.int32)) is expected


def test_the_kernel_holds_as_many_labels_as_it_says():
    assert Tiles.fit(pallas_gpu.MAX_LABELS + 1).frames == 1
    with pytest.raises(ValueError, match="one_scan"):
        Tiles.fit(pallas_gpu.MAX_LABELS + 2)


# On a GPU


@pytest.fixture
def gpu():
    if jax.default_backend() != "gpu":
        pytest.skip("no NVIDIA GPU")


def value_and_grad(recursions, batch):
    def loss(logits, *rest):
        losses = ctc._loss(recursions, 0, logits, *rest)
        return losses.sum(), losses

    (_, losses), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(*batch)
    return np.asarray(losses), np.asarray(gradient, np.float64)


@pytest.mark.gpu
@pytest.mark.parametrize("recursions", [ONE_SCAN, KERNEL], ids=["one_scan", "pallas_gpu"])
@pytest.mark.parametrize(
    ("frames", "batch", "labels", "classes"),
    [(1600, 4, 200, 1000), (400, 8, 50, 32), (150, 3, 600, 40), (1, 2, 1, 4)],
)
def test_on_the_device_against_float64(gpu, recursions, frames, batch, labels, classes):
    args = random_batch(frames, batch, labels, classes)
    losses, gradient = value_and_grad(recursions, args)
    with jax.enable_x64(True):
        wide = (jnp.asarray(np.asarray(args[0], np.float64)), *args[1:])
        expected_losses, expected = value_and_grad(SCAN, wide)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gradient, expected, atol=5e-4)
    real = np.asarray(valid_frames(frames, args[1]))
    np.testing.assert_allclose(gradient.sum(-1)[real], 0.0, atol=5e-6)  # K roundings of a softmax


@pytest.mark.gpu
def test_on_the_device_equal_inputs_give_equal_bits(gpu):
    args = random_batch(1600, 32, 200, 1000)
    first = value_and_grad(KERNEL, args)
    for _ in range(3):
        for a, b in zip(value_and_grad(KERNEL, args), first, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.gpu
def test_on_the_device_no_digit_is_lost_to_tensor_cores(gpu):
    """optax picks label log-probabilities by a product at the default precision, which TF32 would
    round to 11 bits; ours may not depend on the default, and may not be worse than optax at its
    most precise."""
    args = random_batch(400, 8, 50, 1000)
    with jax.enable_x64(True):
        wide = (jnp.asarray(np.asarray(args[0], np.float64)), *args[1:])
        exact, _ = value_and_grad(SCAN, wide)

    def optax_error():
        pads = [1.0 - valid_frames(n, lengths) for n, lengths in ((400, args[1]), (50, args[3]))]
        losses = optax.ctc_loss(args[0], pads[0], args[2], pads[1])
        return np.abs(np.asarray(losses) / exact - 1).max()

    errors = {"optax, default": optax_error()}
    with jax.default_matmul_precision("highest"):
        errors["optax, highest"] = optax_error()
        ours, gradient = value_and_grad(KERNEL, args)
    with jax.default_matmul_precision("bfloat16"):
        default, default_gradient = value_and_grad(KERNEL, args)
    errors["ours"] = np.abs(ours / exact - 1).max()
    print("largest relative error of the loss:", errors)
    np.testing.assert_array_equal(ours, default)
    np.testing.assert_array_equal(gradient, default_gradient)
    assert errors["ours"] <= max(errors["optax, highest"], 1e-6)
