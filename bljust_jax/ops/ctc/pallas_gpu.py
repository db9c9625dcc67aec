"""CTC recursions as a Pallas kernel for NVIDIA GPUs (Mosaic GPU), both directions in one launch.

The recursion of `one_scan`, forward and backward variables side by side, with the loop over time
inside the kernel: a scan costs several launches per frame, a block of threads a few barriers.

    grid      (D, B): one warpgroup (128 threads) processes the real frames of one utterance in one
              direction
    states    blank[u] and label[u] before each frame, in registers: lanes / 128 of each per thread
    label[u-1]  label states are written to shared memory and read one position shifted: one round
              trip and one maximum over the block are the only communication per frame
    emissions  prefetched from device memory into registers, `frames` frames ahead

XLA gathers labels before the kernel and computes occupancies after it; the kernel writes 2 T D B
lanes numbers. Without atomics, equal inputs give equal bits. Arithmetic is float32.

The Triton back end is deprecated for jax 0.12, has no shift by one lane and needs a round trip
through memory too. Warp shuffles would need inline code that the interpreter cannot run. Measured
on an H200 with jax 0.11.2 (results/README.md): ten times as fast as `one_scan`, which replaces it
for float64, labels longer than `Tiles` supports, and other GPUs.
"""

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

THREADS = 128  # per warpgroup
REGISTERS = 160  # per thread, for values that live through a frame; the device has 255
SINCE = (0, 11, 2)  # the first jax version that the kernel has been run with
MAX_LABELS = REGISTERS // 7 * THREADS - 1  # one frame ahead: 7 registers per position


@dataclass(frozen=True)
class Tiles:
    """Size of one block: `lanes` label positions, and emissions `frames` frames ahead.

    Raises ValueError for a block that does not fit into registers.
    """

    lanes: int
    frames: int = 4

    def __post_init__(self):
        if self.frames < 1 or self.lanes < 1 or self.lanes % THREADS:
            raise ValueError(f"{self}: frames must be positive, lanes a multiple of {THREADS}")
        if self.registers > REGISTERS:
            raise ValueError(
                f"{self}: {self.registers} registers per thread for labels [B, {self.lanes - 1}], "
                f"{REGISTERS} at most: use implementation='one_scan'"
            )

    @property
    def registers(self) -> int:
        """Per thread: two states, the repeat mask, two sums, and emissions now and ahead."""
        return self.lanes // THREADS * (5 + 2 * self.frames)

    @classmethod
    def fit(cls, width: int) -> "Tiles":
        """Tiles for [T, B, W]: as many frames ahead as fit into registers, at most four."""
        lanes = pl.cdiv(width, THREADS) * THREADS
        each = lanes // THREADS
        return cls(lanes, max(1, min(4, (REGISTERS // each - 5) // 2)))


def supports(labels: int, dtype: Any) -> bool:
    """True for labels and logits that the kernel accepts, on a device and with a jax version that
    it has been run with."""
    capability = getattr(jax.devices()[0], "compute_capability", None)
    measured = capability == "9.0" and jax.__version_info__ >= SINCE
    return measured and labels <= MAX_LABELS and dtype != jnp.float64


def forward(trellis: Trellis, *, store: bool, interpret: Any = None) -> tuple[Array, Any]:
    """log P(labels | logits) [B], and if `store` the input of `occupancy`.

    interpret  None: the kernel where the program runs on CUDA and the same recursion by `lax.scan`
               elsewhere (interpreted kernels have effects that a platform switch cannot contain);
               or an argument of `plgpu.kernel`: False, or `plgpu.InterpretGPUParams()`

    Raises ValueError for other types than float32 and for more label positions than `Tiles`
    supports.
    """
    if trellis.label.dtype != jnp.float32:
        raise ValueError(f"{trellis.label.dtype} logits: the kernel is float32, use 'one_scan'")
    run = functools.partial(_forward, store=store, interpret=interpret)
    return over_batch(run, (_BATCH,), (0, 2))(trellis)


def occupancy(trellis: Trellis, states: Any) -> Array:
    """P(label u is emitted at t | labels, logits), [T, B, W]; P(blank) in the last column.

    Undefined in padded frames, which the kernel does not visit.
    """
    last = trellis.label.shape[2] - 1
    posterior = one_scan.occupancy(_on_lanes(trellis)[0], states)
    return jnp.concatenate([posterior[..., :last], posterior[..., -1:]], axis=2)


RECURSIONS = Recursions(forward, occupancy)
_BATCH = Trellis(blank=1, label=1, repeat=0, logit_lengths=0, label_lengths=0)  # its batch axes


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
    """The lattice padded with dead label positions to a multiple of a warpgroup."""
    width = trellis.label.shape[2]
    tiles = Tiles.fit(width)
    more = (0, tiles.lanes - width)
    label = jnp.pad(trellis.label, ((0, 0), (0, 0), more), constant_values=NEG)
    return trellis._replace(label=label, repeat=jnp.pad(trellis.repeat, ((0, 0), more))), tiles


def walk_by_kernel(walk: Walk, *, tiles: Tiles, store: bool, interpret: Any = False):
    """`walk_by_scan` in one launch; `states` are undefined in padded frames."""
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
    """One utterance in one direction: arrays are [lanes], the rest scalars."""
    *states, shared = refs
    here = (lax.axis_index("way"), lax.axis_index("utterance"))
    begin, end = first[here], stop[here]
    last = emit_label.shape[0] - 1
    is_repeat = repeat[here] != 0
    shared[pl.ds(0, THREADS)] = jnp.full((THREADS,), NEG, jnp.float32)

    def emissions(time):
        time = jnp.minimum(time, last)
        return emit_blank[(time, *here)], emit_label[(time, *here)]

    def previous(label):
        """label[u-1], read from shared memory that starts with NEG."""
        shared[pl.ds(THREADS, tiles.lanes)] = label
        return shared[pl.ds(THREADS - 1, tiles.lanes)]

    def step(time, emission, carry):
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
            carry = step(time + i, emission, carry)
        return carry, ahead

    zero = jnp.float32(0.0)
    carry = (start[here], start[here], zero, zero, zero)
    now = tuple(emissions(begin + i) for i in range(tiles.frames))
    blocks = lax.div(end - begin, tiles.frames)
    carry, _ = lax.fori_loop(0, blocks, block, (carry, now))
    rest = begin + blocks * tiles.frames
    carry = lax.fori_loop(rest, end, lambda t, c: step(t, emissions(t), c), carry)
    blank, _, _, total, lost = carry
    arrived[here] = blank + (total - lost)
