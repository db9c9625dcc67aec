"""Programs of a run: the phases and batch shapes that each compiled training step serves.

One program serves the phases of a group (`bilevel/shared_phases.py`) for one batch shape. A phase
that reads fewer streams than its group uses the programs of a phase that reads more, with empty
rows for the other streams, so that there are as many programs as bucket indices.
"""

from collections.abc import Mapping
from typing import NamedTuple

from bljust_jax.bilevel.shared_phases import group_phases
from bljust_jax.bilevel.types import Recipe
from bljust_jax.data.corpus import Corpus
from bljust_jax.train.timeline import Timeline

SIMULATED = 200  # steps of each phase whose batch shapes are looked up in the plan


class StepProgram(NamedTuple):
    """A training step for one batch shape.

    phases: names of those that it serves; buckets: (stream, bucket) of its batch, sorted by stream
    """

    phases: tuple[str, ...]
    buckets: tuple[tuple[str, int], ...]


class ProgramPlan:
    """The training programs of a recipe on a corpus.

    groups: {names: phases} that share programs; programs: all of them, by group and bucket
    streams: {phase: the streams that it reads}
    """

    def __init__(self, recipe: Recipe, timeline: Timeline, corpus: Corpus):
        self._timeline, self._corpus = timeline, corpus
        self.groups = {tuple(p.name for p in group): group for group in group_phases(recipe)}
        self.streams = timeline.streams_from(0)
        self._of_group = {names: self._shapes(names) for names in self.groups}
        self.programs = tuple(p for made in self._of_group.values() for p in made)

    def _shapes(self, names: tuple[str, ...]) -> list[StepProgram]:
        """The programs of a group: first the batches of phases that read most streams."""
        needed = sorted({stream for name in names for stream in self.streams[name]})
        made: list[StepProgram] = []
        for name in sorted(names, key=lambda name: -len(self.streams[name])):
            streams = self.streams[name]
            for k in self._corpus.buckets_in_use(streams):
                own = self._corpus.step_buckets(streams, k)
                if _first_match(made, own) is None:
                    last = {s: len(self._corpus.plans[s].buckets) - 1 for s in needed}
                    buckets = {s: own.get(s, min(k, last[s])) for s in needed}
                    made.append(StepProgram(names, tuple(buckets.items())))
        return made

    def find(self, phase: str, buckets: Mapping[str, int]) -> StepProgram:
        """The program of a step of `phase` on these buckets of the streams that it reads."""
        names = next(names for names in self.groups if phase in names)
        found = _first_match(self._of_group[names], buckets)
        assert found is not None, f"no program of phase {phase} for buckets {dict(buckets)}"
        return found

    def largest(self, phase: str) -> StepProgram:
        """The program of the largest batch of a phase."""
        streams = self.streams[phase]
        last = self._corpus.buckets_in_use(streams)[-1]
        return self.find(phase, self._corpus.step_buckets(streams, last))

    def first_steps(self, start: int) -> dict[StepProgram, int]:
        """{program: first step at or after `start` that needs it}, in this order.

        The first `SIMULATED` steps of each phase are looked up; a program that none of them needs
        but a later one may need counts as needed right after them.
        """
        found: dict[StepProgram, int] = {}
        left = dict.fromkeys(self.streams, SIMULATED)
        cut: dict[str, int] = {}
        segments = self._timeline.segments
        for segment in segments:
            phase = self._timeline.phase_at(segment.start).name
            first, end = max(start, segment.start), segment.start + segment.length
            stop = min(end, first + left[phase])
            for now in range(first, stop):
                buckets = {s: k for s, (k, _) in self._corpus.draws(segments, now).items()}
                found.setdefault(self.find(phase, buckets), now)
            left[phase] -= max(stop - first, 0)
            if first < end and stop < end:
                cut.setdefault(phase, max(stop, first))
        for phase, now in cut.items():
            for k in self._corpus.buckets_in_use(self.streams[phase]):
                buckets = self._corpus.step_buckets(self.streams[phase], k)
                found.setdefault(self.find(phase, buckets), now)
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def describe(self) -> str:
        """6 training programs: 6 batch shapes of phases explore, joint, finetune, which share one
        per shape."""
        parts = []
        for names, made in self._of_group.items():
            listed = ", ".join(names)
            shapes = f"{len(made)} batch shape{'s' if len(made) > 1 else ''}"
            if len(names) > 1:
                parts.append(f"{shapes} of phases {listed}, which share one per shape")
            else:
                parts.append(f"{shapes} of phase {listed}")
        n = len(self.programs)
        return f"{n} training program{'s' if n > 1 else ''}: {'; '.join(parts)}"


def _first_match(programs: list[StepProgram], buckets: Mapping[str, int]) -> StepProgram | None:
    """The first program with these buckets."""
    wanted = set(buckets.items())
    return next((p for p in programs if wanted <= set(p.buckets)), None)
