"""Batches that a step reads: arithmetic on its number, from the plans of the streams."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.data.batch_plan import Plan
from bljust_jax.data.replay import Replay
from bljust_jax.data.streams import UNLABELLED

MIX_STEPS = 2000  # steps that `StepDraws.mix` looks at


class Segment(NamedTuple):
    """Steps start..start + length - 1, and the names of the streams that they read."""

    start: int
    length: int
    streams: tuple[str, ...]


class _Positions(NamedTuple):
    """Segments in order of their starts, and for each its driver and the number of steps with that
    driver before it: runs with turns have thousands of segments."""

    segments: Sequence[Segment]
    starts: np.ndarray
    drivers: list[str]
    before: np.ndarray

    @classmethod
    def of(cls, segments: Sequence[Segment], driver: Callable[..., str]) -> "_Positions":
        found = {streams: driver(streams) for streams in {s.streams for s in segments}}
        drivers = [found[s.streams] for s in segments]
        before, counts = np.empty(len(segments), np.int64), Counter()
        for i, segment in enumerate(segments):
            before[i] = counts[drivers[i]]
            counts[drivers[i]] += segment.length
        return cls(segments, np.array([s.start for s in segments]), drivers, before)


class StepDraws:
    """Positions of steps in the plans of a corpus.

    plans: {stream: Plan}; streams: the labelled ones, by name; replay: order of the unlabelled
    batches of steps without labelled ones, None for that of the plan.
    """

    plans: dict[str, Plan]
    streams: Mapping[str, Any]
    replay: Replay | None
    _positions: _Positions | None = None  # of the segments last seen

    def driver(self, needed: Sequence[str]) -> str:
        """The stream whose plan decides the bucket of a step that reads the streams `needed`.

        It is the labelled one with the most batches per epoch, the first by name of several, or
        else the unlabelled one.
        """
        labelled = [name for name in self.streams if name in needed]
        batches = {name: self.plans[name].batches_per_epoch for name in labelled}
        return max(labelled, key=lambda name: batches[name], default=UNLABELLED)

    def draws(self, segments: Sequence[Segment], step: int) -> dict[str, tuple[int, int]]:
        """{stream: (bucket, batch number within the bucket)} of a step.

        The step takes the driver's n-th batch, n the number of earlier steps with this driver.
        Every other stream takes its own batches of the driver's bucket, by the driver's count, or
        batch n if it has one bucket. With `replay` the unlabelled stream as driver takes the batch
        of the n-th draw.
        """
        leader, n, needed = self._count(segments, step)
        if self.replay and leader == UNLABELLED:
            n = self.replay[n].batch
        return self._draws(leader, n, needed)

    def _count(self, segments: Sequence[Segment], step: int) -> tuple[str, int, tuple[str, ...]]:
        """(driver of a step, number of earlier steps with this driver, streams)."""
        positions = self._positions
        if positions is None or positions.segments is not segments:
            positions = self._positions = _Positions.of(segments, self.driver)
        i = int(np.searchsorted(positions.starts, step, side="right")) - 1
        if i < 0 or step >= segments[i].start + segments[i].length:
            raise ValueError(f"step {step} is in no segment")
        n = int(positions.before[i]) + step - segments[i].start
        return positions.drivers[i], n, segments[i].streams

    def _draws(self, leader: str, n: int, needed: Sequence[str]) -> dict[str, tuple[int, int]]:
        """`draws` of the driver's n-th batch."""
        k = self.plans[leader].bucket_of(n)
        m = self.plans[leader].count(k, n)
        return {s: (0, n) if self._has_one_bucket(s, leader) else (k, m) for s in needed}

    def _has_one_bucket(self, stream: str, leader: str) -> bool:
        """Whether a stream has a single bucket, used with every bucket of the leader."""
        return stream != leader and len(self.plans[stream].buckets) == 1

    def buckets_in_use(self, needed: Sequence[str]) -> list[int]:
        """Buckets of the steps that read these streams, the largest last."""
        counts = self.plans[self.driver(needed)].counts
        return [k for k, count in enumerate(counts) if count]

    def step_buckets(self, needed: Sequence[str], k: int) -> dict[str, int]:
        """{stream: bucket} of a step that reads these streams, in the driver's bucket k."""
        leader = self.driver(needed)
        return {s: 0 if self._has_one_bucket(s, leader) else k for s in needed}

    def shape_at(self, segments: Sequence[Segment], step: int) -> dict[str, tuple[int, float]]:
        """{stream: (rows, seconds per row)} of a step, padding included; reads no audio."""
        return self._shape(self.draws(segments, step))

    def _shape(self, draws: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, float]]:
        buckets = {s: self.plans[s].buckets[k] for s, (k, _) in draws.items()}
        return {stream: (b.batch_size, b.seconds) for stream, b in buckets.items()}

    def mix(self, needed: Sequence[str]) -> list[tuple[float, dict[str, tuple[int, float]]]]:
        """(share of the steps, {stream: (rows, seconds per row)}) of the batch shapes of steps that
        read these streams: those of an epoch of the driver, of `MIX_STEPS` of its steps if it has
        more. Reads no audio."""
        leader = self.driver(needed)
        epoch = self.plans[leader].batches_per_epoch
        steps = np.unique(np.linspace(0, epoch - 1, min(epoch, MIX_STEPS), dtype=np.int64))
        shapes = [self._shape(self._draws(leader, int(step), needed)) for step in steps]
        counts = Counter(tuple(sorted(shape.items())) for shape in shapes)
        return [(count / len(shapes), dict(shape)) for shape, count in counts.items()]
