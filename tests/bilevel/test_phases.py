"""Phase tables of every method: lengths, level weights and learning rates."""

import pytest

from bljust_jax import recipes
from bljust_jax.bilevel import phases
from bljust_jax.common.errors import UserError
from bljust_jax.train.system import build_recipe
from configs import defaults, m2asr, quickstart
from tests.helpers.systems import FACTS

EPOCHS = {"labelled": 4, "unlabelled": 8}
HEADS = ("ctc_head", "cpc_head")
JOINT = (("ctc",), ("cpc",))
LEVELS = {"joint": JOINT, **dict.fromkeys(("explore", "pretrain", "turn_ssl"), (("cpc",),))}
LEVELS |= dict.fromkeys(("finetune", "supervised", "turn_ctc"), (("ctc",),))
TURNS = [("turn_ssl", 2), ("turn_ctc", 2)]
ENDS = ("explore", 4), ("finetune", 5)


def config(**changes):
    """Phases of 4, 8 and 5 steps: 25 encoder gradients; `changes` are of the fields of phases, or
    of others by their path."""
    c = defaults.base()
    c.phases.update(unit="step", explore=4, joint=8, finetune=5, turn=2)
    c.penalty.update(per="step", start=0.1, slope=0.05, cap=0.22, constant=0.7)
    paths = {
        name if name in c or "." in name else f"phases.{name}": v for name, v in changes.items()
    }
    c.update_from_flattened_dict(paths)
    return c


def make(costs=(1, 1, 2), **changes):
    """costs: FLOPs of a step with ctc, with cpc, with both."""
    c = config(**changes)
    both = 1 if c.share_forward else costs[2]
    flops = {frozenset({"ctc"}): costs[0], frozenset({"cpc"}): costs[1]}
    flops[frozenset({"ctc", "cpc"})] = both
    return phases.make_phases(c, EPOCHS, ("ctc",), "cpc", HEADS, flops.get)


def lengths(made):
    return [(phase.name, phase.steps) for phase in made]


def one_of(name, **changes):
    return next(phase for phase in make(**changes) if phase.name == name)


@pytest.mark.parametrize(
    ("changes", "table"),
    [
        ({}, [ENDS[0], ("joint", 8), ENDS[1]]),
        ({"method": "weighted_sum"}, [ENDS[0], ("joint", 8), ENDS[1]]),
        ({"method": "supervised"}, [("supervised", 25)]),
        ({"method": "ptft"}, [("pretrain", 12), ("supervised", 13)]),
        ({"method": "alternating"}, [ENDS[0], *4 * TURNS, ENDS[1]]),
        ({"explore": 0, "finetune": 0}, [("joint", 8)]),
        # two labelled epochs, and so two rounds
        ({"explore_when": "every_epoch"}, [*2 * [("explore", 2), ("joint", 4)], ENDS[1]]),
        ({"explore_when": "every_epoch", "joint": 2}, [ENDS[0], ("joint", 2), ENDS[1]]),
        # one forward pass a joint step: 17 encoder gradients
        ({"method": "supervised", "share_forward": True}, [("supervised", 17)]),
        # an epoch of exploration is a pass over the unlabelled audio, which may be the labelled
        (
            {"unit": "epoch", "explore": 1.5, "joint": 3, "finetune": 0.5},
            [("explore", 12), ("joint", 12), ("finetune", 2)],
        ),
        (
            {"unit": "epoch", "explore": 1.5, "joint": 3, "finetune": 0.5, "share_forward": True},
            [("explore", 6), ("joint", 12), ("finetune", 2)],
        ),
    ],
)
def test_lengths_and_losses(changes, table):
    made = make(**changes)
    assert lengths(made) == table
    assert [phase.levels for phase in made] == [LEVELS[name] for name, _ in table]
    assert all(phase.dynamic_levels == {} and phase.inner == {} for phase in made)


@pytest.mark.parametrize(
    ("method", "table"),
    [
        # 4 steps of 3, 8 of 4, 5 of 1: 49
        ("supervised", [("supervised", 49)]),
        ("ptft", [("pretrain", 8), ("supervised", 25)]),
        ("alternating", [("explore", 4), *4 * TURNS, ("finetune", 5)]),
    ],
)
def test_a_lower_loss_of_three_times_the_flops_has_fewer_steps(method, table):
    assert lengths(make(costs=(1, 3, 4), method=method)) == table


def test_a_lower_loss_that_computes_nothing_is_refused():
    with pytest.raises(UserError, match=r"encodes nothing in batches of config.data.buckets"):
        make(costs=(1, 0, 1), method="ptft")


@pytest.mark.parametrize(
    ("changes", "penalties"),
    [
        ({}, [0.1, 0.15, 0.2, 0.22, 0.22]),
        ({"penalty.start": 0.0}, [0.0, 0.05, 0.1, 0.15, 0.2]),
        # an epoch has four steps; its fractions count
        ({"penalty.per": "epoch"}, [0.1, 0.1125, 0.125, 0.1375, 0.15]),
        ({"method": "weighted_sum"}, [0.7] * 5),
    ],
)
def test_the_penalty_rises_with_the_steps_of_its_phase(changes, penalties):
    joint = one_of("joint", **changes)
    for k, penalty in enumerate(penalties):
        upper, lower = joint.weights(k)
        assert upper == 1
        assert float(lower) == pytest.approx(penalty, abs=1e-6)


def test_a_penalty_rises_within_a_joint_phase_shorter_than_an_epoch():
    short = {"penalty.per": "epoch", "penalty.start": 0.0, "penalty.slope": 0.2, "joint": 3}
    phases.check_penalties(make(**short))
    assert float(one_of("joint", **short).weights(2)[1]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"penalty.start": 0.0, "penalty.slope": 0.0},
        {"penalty.start": 0.0, "penalty.cap": 0.0},
        {"penalty.start": 0.0, "joint": 1},
        {"method": "weighted_sum", "penalty.constant": 0.0},
    ],
)
def test_a_penalty_that_stays_0_is_refused(changes):
    with pytest.raises(UserError, match=r"weight of cpc stays 0 in all . steps of phase joint"):
        phases.check_penalties(make(**changes))


def test_a_penalty_that_stays_0_is_refused_before_training_and_not_when_a_run_is_read():
    config = quickstart.get_config("smoke")
    config.penalty.slope = 0.0
    recipes.load(config.recipe)(config, FACTS)
    with pytest.raises(UserError, match=r"config.penalty: the weight of cpc stays 0"):
        build_recipe(config, FACTS)
    config = m2asr.get_config("digits,smoke,vm_uas")
    config.task_penalty.update(start=0.0, slope=0.0)

    with pytest.raises(UserError, match=r"the weight of st/ar-en.st/en-ar stays 0"):
        build_recipe(config, FACTS)


def test_phases_of_one_level_weigh_it_1():
    for method in ("bljust", "ptft", "alternating"):
        for phase in make(method=method):
            if phase.name != "joint":
                assert [phase.weights(k) for k in (0, 3)] == [(1.0,)] * 2


@pytest.mark.parametrize("name", ["joint", "turn_ctc"])
def test_rates_fall_over_all_stretches_of_a_name_and_heads_have_their_own(name):
    """Two stretches of four steps, or four of two: eight in all, two of them rising to 0.01."""
    method = "bljust" if name == "joint" else "alternating"
    changes = {"method": method, "explore_when": "every_epoch", "lr.heads": 3.0}
    rate = defaults.schedule("linear", 0.01, 2, "reset")
    made = [p for p in make(**changes, **{f"lr.{name}": rate}) if p.name == name]
    assert len(made) == {"joint": 2, "turn_ctc": 4}[name]
    for phase in made:
        assert phase.moments == "reset"
        assert set(phase.lr) == {"encoder", *HEADS}
        for k, share in {0: 0.5, 1: 1.0, 2: 1.0, 5: 0.5, 7: 1 / 6, 8: 0.0}.items():
            assert float(phase.lr["encoder"](k)) == pytest.approx(0.01 * share, abs=1e-8)
            for head in HEADS:
                assert float(phase.lr[head](k)) == pytest.approx(0.03 * share, abs=1e-8)


def test_fine_tuning_after_pre_training_has_a_rate_of_its_own():
    own, other = (defaults.schedule("constant", peak, 0) for peak in (0.3, 0.1))
    rates = {"lr.ptft_supervised": own, "lr.supervised": other}
    assert one_of("supervised", method="ptft", **rates).lr["encoder"](2) == 0.3
    assert one_of("supervised", method="supervised", **rates).lr["encoder"](2) == 0.1
    before = config(method="ptft", **{"lr.supervised": other})  # a run older than the field
    del before.lr.ptft_supervised
    made = phases.make_phases(before, EPOCHS, ("ctc",), "cpc", HEADS, lambda losses: len(losses))
    assert made[-1].lr["encoder"](2) == 0.1


def test_each_phase_has_its_own_rate():
    for n, name in enumerate(LEVELS):
        methods = {"supervised": "supervised", "pretrain": "ptft"}
        method = methods.get(name, "alternating" if name.startswith("turn") else "bljust")
        rate = defaults.schedule("constant", 0.1 + n, 0)
        phase = one_of(name, method=method, **{f"lr.{name}": rate})
        assert float(phase.lr["encoder"](3)) == pytest.approx(0.1 + n, rel=1e-6)
        assert phase.moments == "keep"


def make_pseudo(method, budget, costs, **fields):
    """costs: FLOPs of a step with ctc, with pseudo-labels, with both."""
    c = config(method=method)
    c.pseudo_label = {"start": 0.4, "weight": 0.6, **fields}
    losses = "ctc", "pseudo_label"
    flops = {frozenset({name}): costs[n] for n, name in enumerate(losses)}
    flops[frozenset(losses)] = costs[2]
    return phases.make_phases(c, EPOCHS, losses[:1], losses[1], ("ctc_head",), flops.get, budget)


def test_pseudo_labels_follow_a_supervised_start_in_the_flops_of_the_run():
    """0.4 of 100 FLOPs on labels at 1 per step, the rest at 2.5; a constant weight, one rate."""
    made = make_pseudo("mpl", 100, (1, 1.5, 2.5))
    assert lengths(made) == [("supervised", 40), ("joint", 24)]
    assert [p.levels for p in made] == [(("ctc",),), (("ctc",), ("pseudo_label",))]
    assert [made[1].weights(k) for k in (0, 23)] == [(1.0, 0.6)] * 2
    rates = defaults.base().lr
    assert [p.lr["encoder"].peak for p in made] == [rates.supervised.peak, rates.pseudo.peak]
    # without a share of its own, that of the method
    assert lengths(make_pseudo("mpl", 100, (1, 1.5, 2.5), start=0.0))[0] == ("supervised", 50)


def test_slimipl_takes_turns_and_noisy_student_rounds():
    """0.4 of 100 FLOPs on labels; turns of 1 + 4 x 1.5; two rounds of 12 at 2.5."""
    made = make_pseudo("slimipl", 100, (1, 1.5, 2.5), ratio=4)
    turns = [("turn_ctc", 1), ("turn_pseudo", 4)]
    assert lengths(made) == [("supervised", 40), *9 * turns]
    assert [p.levels for p in made[1:3]] == [(("ctc",),), (("pseudo_label",),)]
    assert [p.turn for p in made[:3]] == [False, True, True]
    assert not any(p.anew for p in made)
    assert made[-1].lr["encoder"].steps == 36, "one schedule over all turns"
    made = make_pseudo("noisy_student", 100, (1, 1.5, 2.5), rounds=2)
    assert lengths(made) == [("supervised", 40), ("round_1", 12), ("round_2", 12)]
    assert [p.anew for p in made] == [False, True, True]
    assert [p.weights(0) for p in made] == [(1.0,), (1.0, 0.6), (1.0, 0.6)]
    peak = defaults.base().lr.supervised.peak
    assert {p.lr["encoder"].peak for p in made} == {peak}, "each from scratch"


def test_masked_cpc_and_ctc_alternate_step_by_step():
    flops = {frozenset({"ctc"}): 1, frozenset({"cpc"}): 3, frozenset({"ctc", "cpc"}): 4}
    about = config(method="masked_cpc_ctc"), EPOCHS, ("ctc",), "cpc", HEADS, flops.get
    made = phases.make_phases(*about, 40)
    assert lengths(made) == 10 * [("turn_ssl", 1), ("turn_ctc", 1)]
    assert all(p.turn for p in made)
    assert made[0].lr["encoder"].peak == defaults.base().lr.masked_cpc.peak


def test_the_budget_is_that_of_method_bljust():
    flops = {frozenset({"ctc"}): 1, frozenset({"cpc"}): 3, frozenset({"ctc", "cpc"}): 4}
    assert phases.bljust_flops(config(), EPOCHS, ("ctc",), "cpc", flops.get) == 49
