"""CTC recursions as two Pallas kernels for TPU (Mosaic), one launch per direction.

The same forward variables, renormalisation and occupancies as the two scans of `scan`, over the
lattice of `trellis`; a scan costs one loop iteration of the whole chip per frame, a kernel keeps
the states in registers. Utterances lie on sublanes and label positions on lanes:

    grid      (B / rows, T / frames): batch groups are independent, time runs in order
    emission  [T, B, W] log-probabilities; label u in lane u < U, the blank in lane U = W - 1, where
              both recursions have a dead label state
    carry     blank[u] and label[u] of the group, in VMEM scratch from one block of frames to the
              next, in registers within a block
    label[u-1], label[u+1]  a roll by one lane: label states at and after lane U are dead

Labels are gathered before the kernel (Mosaic has no gather over a large vocabulary) and occupancies
multiplied with one-hot rows after it. The compiler cannot partition a Mosaic call, so the batch is
split over the mesh in context (`over_batch`).
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from bljust_jax.ops.ctc.trellis import NEG, Recursions, Trellis, log_add
from bljust_jax.parallel.batch_map import over_batch

LANES, SUBLANES = 128, 8  # of one vector register of 4-byte numbers
MAX_LABELS = 4095  # per utterance; with more, nearly all of each frame would be spills
VMEM_LIMIT = 12 * 2**20  # bytes; the compiler's own limit is 16 MiB on the smallest generation
_ROWS, _FRAMES = 0, 1  # batch axis of [B, ...] and of [T, B, ...]
_TRELLIS = Trellis(_FRAMES, _FRAMES, _ROWS, _ROWS, _ROWS)


@dataclass(frozen=True)
class Tiles:
    """The block of one grid step: `frames` x `rows` utterances x `lanes` label positions.

    Raises ValueError for a block that does not fit into registers or VMEM.
    """

    frames: int
    rows: int
    lanes: int
    itemsize: int = 4

    def __post_init__(self):
        if self.frames < 1 or self.rows < 1 or self.rows % SUBLANES:
            raise ValueError(f"{self}: frames must be positive, rows a multiple of {SUBLANES}")
        if self.lanes < 1 or self.lanes % LANES:
            raise ValueError(f"{self}: lanes must be a multiple of {LANES}")
        if self.lanes > MAX_LABELS + 1:
            raise ValueError(
                f"{self.lanes} lanes: the TPU kernel supports utterances of up to {MAX_LABELS} "
                "labels, use implementation='scan'"
            )
        if self.vmem_bytes > VMEM_LIMIT:
            raise ValueError(f"{self}: {self.vmem_bytes} bytes of VMEM, {VMEM_LIMIT} at most")

    @property
    def vmem_bytes(self) -> int:
        """VMEM of the backward kernel, the larger one: two buffers each of emissions, two forward
        variables and occupancies, two of the repeat mask, two carried states, per-row columns."""
        state = self.rows * self.lanes * self.itemsize
        return (2 * 4 * self.frames + 2 + 2) * state + 8 * self.rows * LANES * self.itemsize

    @classmethod
    def fit(cls, frames: int, batch: int, width: int, itemsize: int = 4) -> "Tiles":
        """Tiles for [T, B, W]: four registers per state if the batch is large enough, which is
        independent work to hide the latency of exp, log and the maximum over lanes (compiled for
        v5e, the loops do not spill; with eight registers they do); then as many frames as fit into
        half the VMEM, in blocks of equal size."""
        lanes = _round_up(width, LANES)
        rows = max(SUBLANES, 4 * LANES * SUBLANES // lanes // SUBLANES * SUBLANES)
        rows = min(rows, _round_up(batch, SUBLANES))
        most = max(1, VMEM_LIMIT // 2 // (8 * rows * lanes * itemsize))
        blocks = pl.cdiv(max(frames, 1), most)
        return cls(pl.cdiv(max(frames, 1), blocks), rows, lanes, itemsize)


def supports(labels: int, dtype: Any) -> bool:
    """True for a number of labels and a dtype of logits that the kernel accepts."""
    return labels <= MAX_LABELS and dtype != jnp.float64


def forward(
    trellis: Trellis, *, store: bool, tiles: Tiles | None = None, interpret: Any = None
) -> tuple[Array, Any]:
    """log P(labels | logits) [B], and the forward variables for `occupancy` if `store`.

    tiles      of the launch on one device; None: `Tiles.fit`
    interpret  None: compiled where the program runs on TPU, interpreted elsewhere; or an
               argument of `pallas_call`

    The variables are two arrays [T', B', W'] padded to the tiles. Raises ValueError for more label
    positions than the kernel supports.
    """
    run = functools.partial(_forward, store=store, tiles=tiles, interpret=interpret)
    return over_batch(run, (_TRELLIS,), (_ROWS, _FRAMES))(trellis)


def occupancy(
    trellis: Trellis, alphas: Any, *, tiles: Tiles | None = None, interpret: Any = None
) -> Array:
    """P(label u is emitted at t | labels, logits), [T, B, W]; P(blank) in the last column.

    `alphas`: from `forward(trellis, store=True)` with the same `tiles`. Padded frames are
    undefined.
    """
    run = functools.partial(_occupancy, tiles=tiles, interpret=interpret)
    return over_batch(run, (_TRELLIS, _FRAMES), _FRAMES)(trellis, alphas)


RECURSIONS = Recursions(forward, occupancy)

# Around the kernels


def _forward(trellis, *, store: bool, tiles, interpret):
    tiles, operands, (_, rows, width) = _operands(trellis, tiles)
    time, batch, _ = operands[0].shape
    block, row, column = _specs(tiles, lambda t: t)
    state = jax.ShapeDtypeStruct(operands[0].shape, operands[0].dtype)
    log_prob, *alphas = _call(
        functools.partial(_forward_kernel, last=width - 1),
        tiles,
        (time, batch),
        in_specs=[block, row, column, column],
        out_specs=[column] + [block] * (2 * store),
        out_shape=[jax.ShapeDtypeStruct((batch, 1), state.dtype)] + [state] * (2 * store),
        scratch_shapes=_scratch(tiles, state.dtype, states=2, columns=2),
        cost_estimate=_cost(state, arrays=1 + 2 * store, transcendentals=4, flops=16),
        interpret=interpret,
    )(*operands)
    return log_prob[:rows, 0], tuple(alphas) if store else None


def _occupancy(trellis, alphas, *, tiles, interpret):
    tiles, operands, (frames, rows, width) = _operands(trellis, tiles)
    time, batch, _ = operands[0].shape
    last_block = time // tiles.frames - 1
    block, row, column = _specs(tiles, lambda t: last_block - t)
    state = jax.ShapeDtypeStruct(operands[0].shape, operands[0].dtype)
    occupancies = _call(
        functools.partial(_backward_kernel, last=width - 1),
        tiles,
        (time, batch),
        in_specs=[block, row, column, column, block, block],
        out_specs=block,
        out_shape=state,
        scratch_shapes=_scratch(tiles, state.dtype, states=2, columns=0),
        cost_estimate=_cost(state, arrays=4, transcendentals=5, flops=24),
        input_output_aliases={4: 0},  # a block of alphas is read before its occupancies are written
        interpret=interpret,
    )(*operands, *alphas)
    return occupancies[:frames, :rows, :width]


def _round_up(n: int, multiple: int) -> int:
    return max(1, pl.cdiv(n, multiple)) * multiple


def _operands(trellis, tiles):
    """(tiles, padded kernel inputs, (T, B, W)). Padded utterances have no frames."""
    time, batch, width = trellis.label.shape
    tiles = tiles or Tiles.fit(time, batch, width, trellis.label.dtype.itemsize)
    pad_time = (0, _round_up(time, tiles.frames) - time)
    pad_batch = (0, _round_up(batch, tiles.rows) - batch)
    pad_width = (0, tiles.lanes - width)
    emission = jnp.concatenate([trellis.label[..., :-1], trellis.blank], axis=2)
    emission = jnp.pad(emission, (pad_time, pad_batch, pad_width), constant_values=NEG)
    repeat = jnp.pad(trellis.repeat.astype(jnp.int32), (pad_batch, pad_width))
    lengths = (trellis.logit_lengths, trellis.label_lengths)
    columns = (jnp.pad(n.astype(jnp.int32), pad_batch)[:, None] for n in lengths)
    return tiles, (emission, repeat, *columns), (time, batch, width)


def _specs(tiles: Tiles, block_of):
    """Block specs of [T, B, W], [B, W] and [B, 1] arrays; `block_of(t)` orders the blocks of
    frames."""
    return (
        pl.BlockSpec((tiles.frames, tiles.rows, tiles.lanes), lambda b, t: (block_of(t), b, 0)),
        pl.BlockSpec((tiles.rows, tiles.lanes), lambda b, t: (b, 0)),
        pl.BlockSpec((tiles.rows, 1), lambda b, t: (b, 0)),
    )


def _scratch(tiles: Tiles, dtype, states: int, columns: int):
    column = pltpu.VMEM((tiles.rows, 1), dtype)
    return [pltpu.VMEM((tiles.rows, tiles.lanes), dtype)] * states + [column] * columns


def _cost(state, *, arrays: int, transcendentals: int, flops: int) -> pl.CostEstimate:
    """Cost of `arrays` arrays [T, B, W] in HBM, with operations counted per element of one."""
    return pl.CostEstimate(
        flops=flops * state.size,
        transcendentals=transcendentals * state.size,
        bytes_accessed=arrays * state.size * state.dtype.itemsize,
    )


def _call(kernel, tiles: Tiles, sizes, *, interpret, **specs):
    """The launch over (batch groups, blocks of frames)."""
    time, batch = sizes
    launch = functools.partial(
        pl.pallas_call,
        kernel,
        grid=(batch // tiles.rows, time // tiles.frames),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        **specs,
    )
    if interpret is not None:
        return launch(interpret=interpret)
    return functools.partial(
        lax.platform_dependent, tpu=launch(interpret=False), default=launch(interpret=True)
    )


# Inside the kernels: every array is [rows, lanes] or [rows, 1]


def _peak(blank, label):
    return jnp.max(jnp.maximum(blank, label), axis=1, keepdims=True)


def _renormalise(blank, label):
    """States divided by the largest of their utterance, and its logarithm."""
    peak = jnp.maximum(_peak(blank, label), NEG)
    return jnp.maximum(blank - peak, NEG), jnp.maximum(label - peak, NEG), peak


def _lane(ref):
    return lax.broadcasted_iota(jnp.int32, ref.shape[-2:], 1)


def _emissions(frame, lane, last: int):
    """(blank [rows, 1], label [rows, lanes]); lane `last` of a frame is the blank."""
    return frame[:, last : last + 1], jnp.where(lane < last, frame, NEG)


def _forward_kernel(emission, repeat, lengths, label_lengths, log_prob, *refs, last: int):
    *alphas, blank_ref, label_ref, total_ref, lost_ref = refs
    carry_refs = (blank_ref, label_ref, total_ref, lost_ref)
    frames = emission.shape[0]
    lane = _lane(emission)
    block = pl.program_id(1)

    @pl.when(block == 0)
    def start():
        blank_ref[...] = jnp.where(lane == 0, 0.0, NEG).astype(blank_ref.dtype)
        label_ref[...] = jnp.full_like(label_ref, NEG)
        total_ref[...] = jnp.zeros_like(total_ref)
        lost_ref[...] = jnp.zeros_like(lost_ref)

    is_repeat = repeat[...] != 0
    remaining = lengths[...] - block * frames

    def step(i, carry):
        blank, label, total, lost = carry
        emit_blank, emit_label = _emissions(emission[i], lane, last)
        enter = log_add(blank, pltpu.roll(label, 1, axis=1))
        stay_or_enter = log_add(label, jnp.where(is_repeat, blank, enter))
        new_blank, new_label, peak = _renormalise(emit_blank + enter, emit_label + stay_or_enter)
        term = peak - lost
        new_total = total + term
        new = (new_blank, new_label, new_total, (new_total - total) - term)
        kept = tuple(jnp.where(i < remaining, n, o) for n, o in zip(new, carry, strict=True))
        for ref, value in zip(alphas, kept, strict=False):
            ref[i] = value
        return kept

    carry = lax.fori_loop(0, frames, step, tuple(ref[...] for ref in carry_refs))
    for ref, value in zip(carry_refs, carry, strict=True):
        ref[...] = value

    @pl.when(block == pl.num_programs(1) - 1)
    def end():
        blank, label, total, lost = carry
        count = label_lengths[...]
        ends = log_add(
            jnp.max(jnp.where(lane == count, blank, NEG), axis=1, keepdims=True),
            jnp.max(jnp.where(lane == count - 1, label, NEG), axis=1, keepdims=True),
        )
        log_prob[...] = (total - lost) + ends


def _backward_kernel(
    emission, repeat, lengths, label_lengths, alpha_blank, alpha_label, at_labels, *refs, last: int
):
    blank_ref, label_ref = refs
    frames, _, lanes = emission.shape
    lane = _lane(emission)
    block = pl.num_programs(1) - 1 - pl.program_id(1)

    @pl.when(pl.program_id(1) == 0)
    def start():
        count = label_lengths[...]
        blank_ref[...] = jnp.where(lane == count, 0.0, NEG).astype(blank_ref.dtype)
        label_ref[...] = jnp.where(lane == count - 1, 0.0, NEG).astype(label_ref.dtype)

    is_repeat = repeat[...] != 0
    remaining = lengths[...] - block * frames

    def step(n, carry):
        blank, label = carry
        i = frames - 1 - n
        at_blank, at_label = alpha_blank[i] + blank, alpha_label[i] + label
        peak = _peak(at_blank, at_label)
        at_label = jnp.exp(at_label - peak)
        at_blank = jnp.sum(jnp.exp(at_blank - peak), axis=1, keepdims=True)
        mass = at_blank + jnp.sum(at_label, axis=1, keepdims=True)
        at_labels[i] = jnp.where(lane == last, at_blank, at_label) / mass

        emit_blank, emit_label = _emissions(emission[i], lane, last)
        to_blank, to_label = emit_blank + blank, emit_label + label
        leave = log_add(to_blank, to_label)
        after = pltpu.roll(jnp.where(is_repeat, to_blank, leave), lanes - 1, axis=1)
        after = jnp.where(lane < last, after, NEG)
        new = _renormalise(leave, log_add(to_label, after))[:2]
        return tuple(jnp.where(i < remaining, n, o) for n, o in zip(new, carry, strict=True))

    blank, label = lax.fori_loop(0, frames, step, (blank_ref[...], label_ref[...]))
    blank_ref[...] = blank
    label_ref[...] = label
