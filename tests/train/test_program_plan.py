"""The programs of a run: their number, the shapes that phases share, and the order of need."""

import dataclasses
import types

import pytest

from bljust_jax import recipes
from bljust_jax.data.corpus import Corpus
from bljust_jax.train.program_plan import ProgramPlan
from bljust_jax.train.timeline import Timeline
from configs import birq, librispeech, quickstart
from tests.helpers.systems import FACTS, build


class Buckets(Corpus):
    """Plans of `sizes` = {stream: number of buckets}, of which those in `used` occur, in turn."""

    def __init__(self, sizes, used=None):
        used = used or {}
        self.plans = {s: types.SimpleNamespace(buckets=tuple(range(n))) for s, n in sizes.items()}
        self._used = {s: used.get(s, list(range(n))) for s, n in sizes.items()}

    def _leader(self, streams):
        return "labelled" if "labelled" in streams else "unlabelled"

    def buckets_in_use(self, streams):
        return self._used[self._leader(streams)]

    def step_buckets(self, streams, k):
        leader = self._leader(streams)
        return {s: 0 if s != leader and len(self.plans[s].buckets) == 1 else k for s in streams}

    def draws(self, segments, step):
        segment = next(s for s in segments if s.start <= step < s.start + s.length)
        used = self.buckets_in_use(segment.streams)
        k = used[(step - segment.start) // 2 % len(used)]
        return {s: (n, step) for s, n in self.step_buckets(segment.streams, k).items()}


def plan(sizes, used=None, steps=(4, 6, 4), recipe=None):
    recipe = recipe or build("bljust")
    phases = tuple(
        dataclasses.replace(p, steps=n) for p, n in zip(recipe.phases, steps, strict=False)
    )
    recipe = dataclasses.replace(recipe, phases=phases)
    timeline = Timeline(recipe)
    return ProgramPlan(recipe, timeline, Buckets(sizes, used))


def buckets(programs):
    return [tuple(dict(p.buckets).values()) for p in programs]


@pytest.mark.parametrize(
    ("module", "most"), [(librispeech, 6), (quickstart, 3)], ids=["librispeech", "quickstart"]
)
def test_shipped_configs_have_few_programs(module, most):
    config = module.get_config()
    recipe = recipes.load(config.recipe)(config, FACTS)
    labelled = len(config.data.buckets)
    sizes = {"labelled": labelled, "unlabelled": len(config.data.unlabelled_buckets) or labelled}
    made = ProgramPlan(recipe, Timeline(recipe), Buckets(sizes))
    assert len(made.programs) == labelled <= most


@pytest.mark.parametrize(
    ("sizes", "used", "want"),
    [
        ({"labelled": 3, "unlabelled": 3}, {}, [(0, 0), (1, 1), (2, 2)]),
        ({"labelled": 3, "unlabelled": 1}, {}, [(0, 0), (1, 0), (2, 0)]),
        # audio without labels in a bucket that no labelled batch is of: one program more
        ({"labelled": 3, "unlabelled": 3}, {"labelled": [0, 1]}, [(0, 0), (1, 1), (2, 2)]),
        ({"labelled": 2, "unlabelled": 2}, {"unlabelled": [1]}, [(0, 0), (1, 1)]),
        # more buckets without labels than with them
        ({"labelled": 1, "unlabelled": 2}, {"labelled": [0]}, [(0, 0), (0, 1)]),
    ],
)
def test_phases_of_fewer_streams_use_the_programs_of_those_with_more(sizes, used, want):
    assert buckets(plan(sizes, used).programs) == want


def test_phases_without_a_common_objective_have_their_own_programs():
    config = birq.get_config("smoke")
    recipe = recipes.load(config.recipe)(config, FACTS)
    made = plan({"labelled": 2, "unlabelled": 2}, recipe=recipe, steps=(4, 4))
    assert [p.phases for p in made.programs] == [("pretrain",)] * 2 + [("finetune",)] * 2
    assert [p.buckets for p in made.programs[::2]] == [(("unlabelled", 0),), (("labelled", 0),)]
    assert made.describe() == (
        "4 training programs: 2 batch shapes of phase pretrain; 2 batch shapes of phase finetune"
    )


def test_programs_are_compiled_in_the_order_in_which_steps_need_them():
    made = plan({"labelled": 2, "unlabelled": 2}, {"unlabelled": [1], "labelled": [0, 1]})
    first, second = made.programs  # buckets 0 and 1
    assert made.first_steps(0) == {second: 0, first: 4}
    assert list(made.first_steps(0)) == [second, first]
    assert made.first_steps(10) == {first: 10, second: 12}
    assert made.first_steps(13) == {second: 13}, "the other is not needed any more"
    assert made.first_steps(14) == {}
    assert made.largest("explore") == second


def test_a_program_beyond_the_steps_looked_up_is_compiled_too(monkeypatch):
    monkeypatch.setattr("bljust_jax.train.program_plan.SIMULATED", 2)
    made = plan({"labelled": 3, "unlabelled": 3})
    found = made.first_steps(0)
    assert set(found) == set(made.programs)
    assert found[made.programs[0]] == 0
    assert min(found[p] for p in made.programs[1:]) >= 2


def test_the_number_of_programs_is_explained():
    assert plan({"labelled": 2, "unlabelled": 2}).describe() == (
        "2 training programs: 2 batch shapes of phases explore, joint, finetune, which share one "
        "per shape"
    )
