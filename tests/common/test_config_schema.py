"""Numbers that cannot work are refused by the name of their field; all configs pass."""

import pytest

from bljust_jax.common import config_schema
from bljust_jax.common.errors import UserError
from configs import birq, common, librispeech, m2asr, manifest, quickstart, tedlium, wav2vec2_just

CONFIGS = (
    *((module, "") for module in (librispeech, manifest, quickstart, tedlium)),
    *((manifest, name) for name in (*common.COMMON, "lstm,smoke", "gru,overfit", "lstm,digits")),
    *((birq, name) for name in birq.VARIANTS),
    *((m2asr, name) for name in (*m2asr.VARIANTS, "digits,smoke", "covost,overfit")),
    *((wav2vec2_just, name) for name in (*wav2vec2_just.VARIANTS, "smoke", "overfit")),
)


@pytest.mark.parametrize(("module", "variant"), CONFIGS)
def test_what_is_shipped_is_in_range(module, variant):
    config_schema.check(module.get_config(variant))


@pytest.mark.parametrize(
    ("module", "field", "value", "said"),
    [
        (manifest, "model.heads", 0, "config.model.heads=0 must be 1 or above"),
        (manifest, "lr.joint.peak", -1.0, "config.lr.joint.peak=-1.0 must be 0 or above"),
        (manifest, "lr.heads", 0.0, "config.lr.heads=0.0 must be above 0"),
        (manifest, "ema_decay", 2.0, "config.ema_decay=2.0 must be 0 or above, and below 1"),
        (manifest, "penalty.slope", float("nan"), "config.penalty.slope=nan must be 0 or above"),
        (wav2vec2_just, "wav2vec2.mask_prob", 2.0, "mask_prob=2.0 must be above 0 and at most 1"),
        (wav2vec2_just, "wav2vec2.codes", 0, "config.wav2vec2.codes=0 must be 1 or above"),
        (wav2vec2_just, "mask.time_prob", 3.0, "config.mask.time_prob=3.0 must be from 0 to 1"),
        (wav2vec2_just, "model.conv_stride", (2, 0), "must be whole numbers of 1 or above"),
        (m2asr, "moo.every", 0, "config.moo.every=0 must be 1 or above"),
        (m2asr, "moo.threshold", 1.5, "config.moo.threshold=1.5 must lie from -1 to 1"),
        (birq, "birq.tau_end", 0.0, "config.birq.tau_end=0.0 must be above 0"),
    ],
)
def test_a_number_out_of_range_is_named(module, field, value, said):
    config = module.get_config()
    group, _, last = field.rpartition(".")
    node = config
    for key in filter(None, group.split(".")):
        node = node[key]
    node[last] = value
    with pytest.raises(UserError) as refused:
        config_schema.check(config)
    assert said in str(refused.value)


def test_each_rule_is_of_a_field_that_some_config_has():
    configs = [module.get_config(variant) for module, variant in CONFIGS]
    for _, _, groups in config_schema.RULES:
        for path, fields in groups.items():
            found = [g for config in configs for _, g in config_schema._groups(config, path)]
            assert all(any(field in group for group in found) for field in fields), path
