"""Step number -> phase and data streams: the phases of a recipe as consecutive ranges of steps."""

from __future__ import annotations

import numpy as np

from bljust_jax.bilevel.types import Phase, Recipe
from bljust_jax.data.corpus import Segment


class Timeline:
    """The phases of a recipe in training order.

    segments  per phase its first step, number of steps and the streams that its objectives read
    total     number of steps of the whole run
    ends      {step: phase name}: where the last phase of each name ends; a checkpoint of each is
              kept, to start other runs from (`config.init_from`)
    """

    def __init__(self, recipe: Recipe):
        self._phases, self.segments, self.total = recipe.phases, [], 0
        active = {i: recipe.active(p) for i, p in {id(p): p for p in recipe.phases}.items()}
        read = {i: tuple(sorted({s for o in os for s in o.streams})) for i, os in active.items()}
        for phase in recipe.phases:
            self.segments.append(Segment(self.total, phase.steps, read[id(phase)]))
            self.total += phase.steps
        rows = zip(self._phases, self.segments, strict=True)
        last = {phase.name: s.start + s.length for phase, s in rows}
        self.ends = {step: name for name, step in last.items()}
        self._starts = np.array([s.start for s in self.segments])

    def phase_at(self, step: int) -> Phase:
        """The phase of a step; that of the last step beyond it."""
        return self._phases[self._index(step)]

    def _index(self, step: int) -> int:
        return int(np.searchsorted(self._starts, step, side="right")) - 1

    def starts_phase(self, step: int) -> bool:
        """Whether the step is the first of its phase."""
        return step == 0 or self.phase_at(step - 1) is not self.phase_at(step)

    def ends_window(self, steps: int, every: int) -> bool:
        """Whether a window of metrics ends after `steps` steps: where a phase ends, and at the
        multiples of `every` that are at least every / 2 from both ends of the phase. So no window
        covers two phases, and none is short but in a short phase. In turns (`Phase.turn`): at the
        multiples of `every`, and where the last turn ends."""
        index = self._index(steps - 1)
        segment = self.segments[index]
        if self._phases[index].turn and steps not in self.ends:
            return steps % every == 0
        since, left = steps - segment.start, segment.start + segment.length - steps
        return left == 0 or (steps % every == 0 and 2 * min(since, left) >= every)

    def streams_from(self, start: int) -> dict[str, tuple[str, ...]]:
        """{phase name: streams} of the phases that have steps at or after `start`."""
        return {
            phase.name: segment.streams
            for segment, phase in zip(self.segments, self._phases, strict=True)
            if segment.start + segment.length > start
        }
