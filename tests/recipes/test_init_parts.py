"""Heads that come from another run: the encoder's learning rate, the end of the temperature."""

import pytest

from bljust_jax import recipes
from bljust_jax.objectives import is_pretrained
from configs import wav2vec2_just
from tests.helpers.systems import CONFIGS, FACTS, build, config_for


def start_from(config, *parts):
    config.update(init_from="runs/first", init_parts=parts)
    return recipes.load(config.recipe)(config, FACTS)


def rates(recipe, at=5):
    """{(phase, group): learning rate} at step `at` of each phase, over that of the encoder."""
    return {
        (p.name, group): float(rate(at)) / float(p.lr["encoder"](at))
        for p in recipe.phases
        for group, rate in p.lr.items()
        if float(p.lr["encoder"](at))
    }


@pytest.mark.daily("bljust", "wav2vec2_just", "birq", "m2asr")
@pytest.mark.parametrize("name", CONFIGS)
def test_the_multiplier_of_heads_acts_on_new_ones_alone(name):
    def config():
        c = config_for(name)
        c.lr.heads = 10.0
        return c

    heads = {g for p in build(name).phases for g in p.lr} - {"encoder"}
    taken = sorted(heads)[0]
    for parts, ours in (
        ((), ()),
        (("encoder",), ()),
        (("encoder", taken), (taken,)),
        (("all",), heads),
    ):
        found = rates(start_from(config(), *parts))
        assert {group for _, group in found} == heads | {"encoder"}
        for (_, group), times in found.items():
            assert times == pytest.approx(1 if group in (*ours, "encoder") else 10)
    found = rates(recipes.load(config().recipe)(config(), FACTS))
    assert {group for (_, group), times in found.items() if times == pytest.approx(10)} == heads


def test_a_pretrained_quantizer_keeps_its_rate_and_its_last_temperature():
    """As shipped: rates of 3e-5 for encoder and quantizer, 3e-4 for the new CTC head."""

    def joint(config):
        recipe = recipes.load(config.recipe)(config, FACTS)
        lower = next(o for o in recipe.objectives if o.name == "wav2vec2")
        phase = next(p for p in recipe.phases if p.name == "joint")
        return lower, {group: float(rate(0)) for group, rate in phase.lr.items()}

    config = wav2vec2_just.get_config("nl")
    config.lr.joint.warmup = 0  # to have the peak at once
    lower, lr = joint(config)
    assert (lower.tau_start, lower.tau_end) == (2.0, 0.1)
    assert lr["wav2vec2_head"] == pytest.approx(3e-4)
    config.init_from = "xls-r"
    lower, lr = joint(config)
    assert (lower.tau_start, lower.tau_end) == (0.1, 0.1)
    assert lr["encoder"] == lr["wav2vec2_head"] == pytest.approx(3e-5)
    assert lr["ctc_head"] == pytest.approx(3e-4)
    config.init_parts = ("encoder",)
    lower, lr = joint(config)
    assert (lower.tau_start, lr["wav2vec2_head"]) == (2.0, pytest.approx(3e-4))


def test_parts_count_only_with_a_run_to_start_from():
    config = wav2vec2_just.get_config("tiny")
    assert not is_pretrained(config, "encoder")
    config.init_from = "run"
    assert is_pretrained(config, "encoder")
    assert is_pretrained(config, "wav2vec2_head")
    assert not is_pretrained(config, "ctc_head")
    config.init_parts = ("all",)
    assert all(is_pretrained(config, part) for part in ("encoder", "ctc_head"))
