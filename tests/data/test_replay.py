"""The order of a cache against its definition, step by step."""

import itertools
import math

import numpy as np
import pytest

from bljust_jax.data.replay import Replay


def test_each_draw_is_of_the_batch_that_its_slot_holds():
    """A slot keeps its batch until it changes to the next new one; a batch is fresh once."""
    replay = Replay(size=5, replace=0.3, seed=3)
    draws = [replay[n] for n in range(400)]
    held, seen, following = dict(enumerate(range(5))), set(), itertools.count(5)
    for draw in draws:
        if draw.batch != held[draw.slot]:
            # the slot was replaced after an earlier draw of its own
            assert held[draw.slot] in seen
            assert draw.fresh
        assert draw.fresh == (draw.batch not in seen)
        held[draw.slot] = draw.batch
        seen.add(draw.batch)
    first = sorted(seen)
    assert first[:5] == [0, 1, 2, 3, 4]
    # new ones come in the order of the plan; few wait for their first draw
    assert max(seen) - len(seen) < 5
    assert next(following) == 5


def test_rates_of_slots_and_of_fresh_batches():
    steps, size, replace = 40_000, 20, 0.1
    replay = Replay(size, replace, seed=0)
    slots = np.bincount([replay[n].slot for n in range(steps)], minlength=size)
    assert slots == pytest.approx(steps / size, rel=0.1)
    fresh = np.mean([replay[n].fresh for n in range(steps)])
    assert fresh == pytest.approx(replace, abs=4 * math.sqrt(replace / steps))
    # a batch is drawn 1 / replace times, on average
    uses = np.unique([replay[n].batch for n in range(steps)], return_counts=True)[1]
    assert uses.mean() == pytest.approx(1 / replace, rel=0.1)


def test_it_is_a_function_of_seed_and_step():
    one, same, other = (Replay(4, 0.5, seed) for seed in (1, 1, 2))
    assert [one[n] for n in (40, 3)] == [same[n] for n in (40, 3)]
    assert [one[n] for n in range(50)] != [other[n] for n in range(50)]
    late = 3 * 2**12  # beyond the draws that a short run computes
    assert Replay(4, 0.5, 1)[late] == one[late]
    assert Replay(4, 0.5, 1)[7] == one[7]
    always = Replay(1, 1.0, 0)
    assert [always[n] for n in range(10)] == [(n, 0, True) for n in range(10)]
