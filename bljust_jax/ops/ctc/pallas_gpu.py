"""CTC's recursions as one Pallas kernel for NVIDIA GPUs (Mosaic GPU), one launch for both ways.

The walk of `ctc_one_scan`, forward and backward variables side by side, with its loop over time
inside the kernel: a scan pays several launches a frame, a block of threads a few barriers.

    grid      (D, B): one warpgroup (128 threads) walks one utterance in one direction, from its
              first real frame to its last and no further
    states    blank[u] and label[u] before each frame, in registers: lanes / 128 of each a thread
    label[u-1]  label states go to shared memory and come back one position on: one round trip and
              one maximum over the block are all that threads tell each other in a frame
    emissions  read from device memory `frames` frames ahead, into registers

Labels are gathered before the kernel and occupancies formed after it by XLA; what the kernel writes
is 2 T D B lanes numbers. There are no atomics: equal inputs give equal bits. Arithmetic is float32.

Why this back end: the Triton one announces its removal in jax 0.12, has no move by one lane, and
needs a global or shared round trip all the same. Why this form: a warp's shuffles would need
inline code that the interpreter cannot run. Run on an H200 with jax 0.11.2 (results/README.md):
ten times as fast as `ctc_one_scan`, which serves where the kernel cannot: float64, labels longer
than `Tiles` holds, other makes of GPU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from bljust_jax.ops.ctc import one_scan
from bljust_jax.ops.ctc.one_scan import Walk, log_prob_of, walk_by_scan, walk_of
from bljust_jax.ops.ctc.trellis import NEG, Recursions, Trellis, log_add
from bljust_jax.parallel.batch_map import over_batch

THREADS = 128  # of a warpgroup, which acts as one
REGISTERS = 160  # of a thread, for numbers that live through a frame; the device has 255
SINCE = (0, 11, 2)  # the first jax that it has been run with
MAX_LABELS = REGISTERS // 7 * THREADS - 1  # one frame ahead: 7 registers a position


@dataclass(frozen=True)
class Tiles:
    """What one block holds: `lanes` label positions, and emissions of `frames` frames ahead.

    Raises ValueError for a block that registers cannot hold.
    """

    lanes: int
    frames: int = 4

    def __post_init__(self):
        if self.frames < 1 or self.lanes < 1 or self.lanes % THREADS:
            raise ValueError(f"{self}: frames must be positive, lanes a multiple of {THREADS}")
        if self.registers > REGISTERS:
            raise ValueError(
                f"{self}: {self.registers} registers a thread for labels [B, {self.lanes - 1}], "
                f"{REGISTERS} at most: use implementation='one_scan'"
            )

    @property
    def registers(self) -> int:
        """A thread's: two states, the repeat mask, two sums, and emissions now and ahead."""
        return self.lanes // THREADS * (5 + 2 * self.frames)

    @classmethod
    def fit(cls, width: int) -> Tiles:
        """Tiles for [T, B, W]: as many frames ahead as registers hold, four at most."""
        lanes = pl.cdiv(width, THREADS) * THREADS
        each = lanes // THREADS
        return cls(lanes, max(1, min(4, (REGISTERS // each - 5) // 2)))


def measured_here() -> bool:
    """Whether the first device and this jax are such as the kernel has been run on."""
    capability = getattr(jax.devices()[0], "compute_capability", None)
    return capability == "9.0" and jax.__version_info__ >= SINCE


def forward(trellis: Trellis, *, store: bool, interpret: Any = None) -> tuple[Array, Any]:
    """log P(labels | logits) [B], and what `occupancy` reads if `store`.

    interpret  None: the kernel where the program runs on CUDA and the same walk by `lax.scan`
               elsewhere (interpreted kernels have effects that a platform switch cannot hold); or
               what `plgpu.kernel` takes: False, or `plgpu.InterpretGPUParams()`

    Raises ValueError for other than float32 and for more label positions than `Tiles` holds.
    """
    if trellis.label.dtype != jnp.float32:
        raise ValueError(f"{trellis.label.dtype} logits: the kernel is float32, use 'one_scan'")
    run = functools.partial(_forward, store=store, interpret=interpret)
    return over_batch(run, (_BATCH,), (0, 2))(trellis)


def occupancy(trellis: Trellis, states: Any) -> Array:
    """P(label u is emitted at t | labels, logits), [T, B, W]; the last column is the blank's.

    Meaningful in real frames only: the kernel does not visit others.
    """
    last = trellis.label.shape[2] - 1
    posterior = one_scan.occupancy(_on_lanes(trellis)[0], states)
    return jnp.concatenate([posterior[..., :last], posterior[..., -1:]], axis=2)


RECURSIONS = Recursions(forward, occupancy)
_BATCH = Trellis(blank=1, label=1, repeat=0, logit_lengths=0, label_lengths=0)  # its axis


def _forward(trellis, *, store: bool, interpret):
    trellis, tiles = _on_lanes(trellis)
    walk = walk_of(trellis, backward=store)
    kernel = functools.partial(walk_by_kernel, tiles=tiles, store=store)
    if interpret is None:
        scan = functools.partial(walk_by_scan, store=store)
        arrived, states = lax.platform_dependent(walk, cuda=kernel, default=scan)
    else:
        arrived, states = kernel(walk, interpret=interpret)
    return log_prob_of(trellis, arrived), states


def _on_lanes(trellis: Trellis) -> tuple[Trellis, Tiles]:
    """The lattice with dead label positions up to a multiple of a warpgroup."""
    width = trellis.label.shape[2]
    tiles = Tiles.fit(width)
    more = (0, tiles.lanes - width)
    label = jnp.pad(trellis.label, ((0, 0), (0, 0), more), constant_values=NEG)
    return trellis._replace(label=label, repeat=jnp.pad(trellis.repeat, ((0, 0), more))), tiles


def walk_by_kernel(walk: Walk, *, tiles: Tiles, store: bool, interpret: Any = False):
    """`walk_by_scan` in one launch; `states` hold anything in frames that are padding."""
    frames, ways, batch, lanes = walk.label.shape
    arrived = jax.ShapeDtypeStruct((ways, batch, lanes), jnp.float32)
    states = jax.ShapeDtypeStruct((frames, ways, batch, lanes), jnp.float32)
    arrived, *states = plgpu.kernel(
        functools.partial(_kernel, tiles=tiles),
        out_type=[arrived] + [states] * (2 * store),
        scratch_types=[plgpu.SMEM((THREADS + lanes,), jnp.float32)],
        grid=(ways, batch),
        grid_names=("way", "utterance"),
        interpret=interpret,
    )(
        walk.blank[..., 0],
        walk.label,
        walk.start,
        walk.repeat.astype(jnp.int32),
        walk.first.astype(jnp.int32),
        walk.stop.astype(jnp.int32),
    )
    return arrived, tuple(states) if store else None


def _kernel(emit_blank, emit_label, start, repeat, first, stop, arrived, *refs, tiles: Tiles):
    """One utterance in one direction: arrays are [lanes], the rest are numbers."""
    *states, shelf = refs
    here = (lax.axis_index("way"), lax.axis_index("utterance"))
    begin, end = first[here], stop[here]
    last = emit_label.shape[0] - 1
    is_repeat = repeat[here] != 0
    shelf[pl.ds(0, THREADS)] = jnp.full((THREADS,), NEG, jnp.float32)

    def emissions(time):
        time = jnp.minimum(time, last)
        return emit_blank[(time, *here)], emit_label[(time, *here)]

    def previous(label):
        """label[u-1], from the shelf that starts with NEG."""
        shelf[pl.ds(THREADS, tiles.lanes)] = label
        return shelf[pl.ds(THREADS - 1, tiles.lanes)]

    def turn(time, emission, carry):
        blank, label, peak, total, lost = carry
        for ref, state in zip(states, (blank, label), strict=False):
            ref[(time, *here)] = state
        blank, label = emission[0] + (blank - peak), emission[1] + (label - peak)
        enter = log_add(blank, previous(label))
        stay_or_enter = log_add(label, jnp.where(is_repeat, blank, enter))
        term = peak - lost
        new_total = total + term
        new_peak = jnp.max(jnp.maximum(enter, stay_or_enter))
        return enter, stay_or_enter, new_peak, new_total, (new_total - total) - term

    def block(n, carry):
        carry, now = carry
        time = begin + n * tiles.frames
        ahead = tuple(emissions(time + tiles.frames + i) for i in range(tiles.frames))
        for i, emission in enumerate(now):
            carry = turn(time + i, emission, carry)
        return carry, ahead

    zero = jnp.float32(0.0)
    carry = (start[here], start[here], zero, zero, zero)
    now = tuple(emissions(begin + i) for i in range(tiles.frames))
    blocks = lax.div(end - begin, tiles.frames)
    carry, _ = lax.fori_loop(0, blocks, block, (carry, now))
    rest = begin + blocks * tiles.frames
    carry = lax.fori_loop(rest, end, lambda t, c: turn(t, emissions(t), c), carry)
    blank, _, _, total, lost = carry
    arrived[here] = blank + (total - lost)
