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
    """An endless sequence of draws.

    size: slots; the first batches of the plan fill them. Each draw takes a slot, uniformly; with
    probability `replace` the next batch of the plan takes the place of the drawn one after it.
    """

    size: int
    replace: float
    seed: int

    def __getitem__(self, n: int) -> Draw:
        """The draw of step n = 0, 1, ..."""
        batches, slots, fresh = _first_draws(self, 1 << max(n.bit_length(), 12))
        return Draw(int(batches[n]), int(slots[n]), bool(fresh[n]))


@functools.lru_cache(maxsize=64)
def _first_draws(replay: Replay, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(batch, slot, whether fresh) of the first steps, the same for any number of them."""
    of_slots, of_changes = (np.random.default_rng([replay.seed, part]) for part in range(2))
    slots = of_slots.integers(replay.size, size=steps)
    replaced = of_changes.random(steps) < replay.replace
    held, unseen = np.arange(replay.size), np.ones(replay.size, bool)
    batches, fresh = np.empty(steps, np.int64), np.empty(steps, bool)
    following = replay.size
    for n, slot in enumerate(slots):
        batches[n], fresh[n] = held[slot], unseen[slot]
        unseen[slot] = replaced[n]
        if replaced[n]:
            held[slot], following = following, following + 1
    return batches, slots, fresh
