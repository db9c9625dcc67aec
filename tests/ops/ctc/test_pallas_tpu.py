"""The TPU kernel, interpreted, against the scan: tile boundaries, races, devices, limits.

`test_ctc.py` holds it to the same table of cases as every implementation; here is what only a
kernel can get wrong.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from bljust_jax.ops.ctc import pallas_tpu, scan
from bljust_jax.ops.ctc.pallas_tpu import Tiles
from bljust_jax.ops.ctc.trellis import Recursions, Trellis, softmax_of, trellis_of, valid_frames


def random_trellis(frames, batch, width, seed=0) -> Trellis:
    """Lengths of every kind, and rows with repeats and without labels."""
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(2 * rng.normal(size=(batch, frames, 5)), jnp.float32)
    labels = jnp.asarray(rng.integers(1, 5, (batch, width - 1)), jnp.int32)
    logit_lengths = jnp.asarray(rng.integers(frames // 2, frames + 1, batch), jnp.int32)
    most = min(width - 1, frames // 4)
    label_lengths = jnp.asarray(rng.integers(0, most + 1, batch), jnp.int32)
    return trellis_of(logits, softmax_of(logits), logit_lengths, labels, label_lengths, 0)


def walk(recursions, trellis):
    """log P and the occupancies of real frames, 0 elsewhere."""
    log_prob, states = recursions.forward(trellis, store=True)
    real = valid_frames(trellis.label.shape[0], trellis.logit_lengths).T[..., None]
    return log_prob, jnp.where(real, recursions.occupancy(trellis, states), 0.0)


def kernel(**options) -> Recursions:
    return Recursions(
        partial(pallas_tpu.forward, **options), partial(pallas_tpu.occupancy, **options)
    )


def assert_equals_scan(actual, trellis):
    """The same operations in the same order on states of order one, but for the sums over a row:
    a few units in the last place of log P and of 1."""
    expected = jax.jit(partial(walk, scan.RECURSIONS))(trellis)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(actual[1], expected[1], atol=2e-6)


@pytest.mark.daily("13-11-6-*")
@pytest.mark.parametrize(
    ("frames", "batch", "width", "tiles"),
    [
        (13, 11, 6, Tiles(frames=4, rows=8, lanes=128)),  # all three padded, 2 x 4 blocks
        (12, 8, 128, Tiles(frames=4, rows=8, lanes=128)),  # nothing padded: lane 127 is the blank
        (40, 3, 130, Tiles(frames=16, rows=8, lanes=256)),  # states in two registers
        (3, 2, 1, None),  # no labels at all
    ],
)
def test_equals_the_scan_at_any_tiles(frames, batch, width, tiles):
    trellis = random_trellis(frames, batch, width)
    assert_equals_scan(jax.jit(partial(walk, kernel(tiles=tiles)))(trellis), trellis)


@pytest.mark.slow
def test_neither_races_nor_uninitialised_memory():
    """Two cores take the batch groups in any order; memory that nothing wrote holds NaN."""
    trellis = random_trellis(5, 11, 4)
    pltpu.reset_tpu_interpret_mode_state()
    params = pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", num_cores_or_threads=2
    )
    tiles = Tiles(frames=3, rows=8, lanes=128)
    assert_equals_scan(walk(kernel(tiles=tiles, interpret=params), trellis), trellis)
    assert not interpret_pallas_call.races.races_found  # jax 0.10 reports, 0.12 raises
    pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.daily("in shard_map")
@pytest.mark.parametrize("enclosed", [False, True], ids=["mesh in context", "in shard_map"])
def test_every_device_takes_its_rows(enclosed):
    """On 4 x 2 devices, each with 2 utterances of 16; nothing is gathered."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    trellis = random_trellis(6, 16, 4)
    rows, frames = P(mesh.axis_names), P(None, mesh.axis_names)
    specs = Trellis(frames, frames, rows, rows, rows)
    run = partial(walk, pallas_tpu.RECURSIONS)
    if enclosed:
        run = jax.shard_map(
            run, mesh=mesh, in_specs=(specs,), out_specs=(rows, frames), check_vma=False
        )
    placed = jax.tree.map(
        lambda x, s: jax.device_put(x, jax.NamedSharding(mesh, s)), trellis, specs
    )
    with jax.set_mesh(mesh):
        program = jax.jit(run).lower(placed).compile()
        log_prob, occupancy = program(placed)
    assert log_prob.sharding.spec == rows
    assert occupancy.sharding.spec == frames
    assert "all-gather" not in program.as_text()
    assert_equals_scan(jax.device_get((log_prob, occupancy)), trellis)


def test_value_only_launch_writes_one_number_an_utterance():
    trellis = random_trellis(9, 3, 4)

    def outputs(store):
        run = partial(pallas_tpu.forward, store=store, interpret=True)
        (call,) = (
            e for e in jax.make_jaxpr(run)(trellis).eqns if e.primitive.name == "pallas_call"
        )
        return [v.aval.shape for v in call.outvars]

    assert outputs(store=False) == [(8, 1)]
    assert outputs(store=True) == [(8, 1), (9, 8, 128), (9, 8, 128)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"rows": 4}, "rows a multiple of 8"),
        ({"frames": 0}, "frames must be positive"),
        ({"lanes": 100}, "lanes must be a multiple of 128"),
        ({"lanes": 4224}, "up to 4095 labels, use implementation='scan'"),
        ({"frames": 4096}, "bytes of VMEM"),
    ],
)
def test_tiles_validate_themselves(sizes, message):
    good = {"frames": 16, "rows": 8, "lanes": 128}
    Tiles(**good)
    with pytest.raises(ValueError, match=message):
        Tiles(**good | sizes)


@pytest.mark.parametrize("frames", [0, 1, 100, 1600, 100_000])
@pytest.mark.parametrize("batch", [1, 9, 256])
@pytest.mark.parametrize("width", [1, 201, pallas_tpu.MAX_LABELS + 1])
def test_fitted_tiles_cover_any_shape_with_little_padding(frames, batch, width):
    tiles = Tiles.fit(frames, batch, width)
    assert dataclasses.asdict(tiles)["lanes"] >= width
    blocks = -(-max(frames, 1) // tiles.frames)
    assert blocks * tiles.frames - frames <= max(blocks, 1)
    assert tiles.rows <= -(-batch // 8) * 8


def test_longer_labels_are_refused_with_the_cure():
    with pytest.raises(ValueError, match="implementation='scan'"):
        Tiles.fit(100, 8, pallas_tpu.MAX_LABELS + 2)
