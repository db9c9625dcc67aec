"""Order of batches that a loss reads several times: a cache whose entries are replaced at random.

slimIPL (Likhomanenko, Xu, Kahn, Synnaeve, Collobert, Interspeech 2021, arXiv 2010.11524) draws each
batch from a cache and replaces a drawn one with a probability. Which batch a step reads depends on
no label, so it is a function of seed and number alone, and the audio is read again, not kept.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
    """The batch of a step.

    batch: number in the stream's plan; slot: of the cache, 0 .. size - 1
    fresh: whether it is the first draw of this batch, so that it has no labels yet
    """

    batch: int
    slot: int
    fresh: bool


@dataclasses.dataclass(frozen=True)
class Replay:
    """The draws of `steps` steps.

    size: slots; the first batches of the plan fill them. Each draw takes a slot, uniformly; with
    probability `replace` the next batch of the plan takes the place of the drawn one after it.
    """

    size: int
    replace: float
    steps: int
    seed: int

    def __getitem__(self, n: int) -> Draw:
        """The draw of step n = 0, 1, ..."""
        batches, slots, fresh = self._draws
        return Draw(int(batches[n]), int(slots[n]), bool(fresh[n]))

    @functools.cached_property
    def _draws(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(batch, slot, whether fresh) of each step."""
        rng = np.random.default_rng([self.seed, 0x5EED])
        slots = rng.integers(self.size, size=self.steps)
        replaced = rng.random(self.steps) < self.replace
        held, unseen = np.arange(self.size), np.ones(self.size, bool)
        batches, fresh = np.empty(self.steps, np.int64), np.empty(self.steps, bool)
        following = self.size
        for n, slot in enumerate(slots):
            batches[n], fresh[n] = held[slot], unseen[slot]
            unseen[slot] = replaced[n]
            if replaced[n]:
                held[slot], following = following, following + 1
        return batches, slots, fresh
