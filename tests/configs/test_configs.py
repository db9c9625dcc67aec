"""Variants of configs: their order, and the fields that they switch off."""

import pytest

from bljust_jax import recipes
from bljust_jax.common.errors import UserError
from configs import defaults, manifest, wav2vec2_just
from tests.helpers.systems import FACTS


@pytest.mark.parametrize("encoder", ["lstm", "parakeet"])
def test_encoder_variants_come_before_size_variants(encoder):
    either = [manifest.get_config(f"digits,{encoder}"), manifest.get_config(f"{encoder},digits")]
    first, second = (config.to_dict() | {"variant": ""} for config in either)
    assert first == second
    assert first["model"] != manifest.get_config("digits").model.to_dict()


def test_the_variant_overfit_masks_nothing():
    config = wav2vec2_just.get_config("overfit")
    assert (config.mask.time_prob, config.mask.channel_prob) == (0.0, 0.0)
    assert (config.specaugment.freq_masks, config.specaugment.time_masks) == (0, 0)


def test_batch_norm_without_a_full_context_pass_is_refused():
    config = manifest.get_config("parakeet,smoke")
    config.ctc.context = "causal"
    with pytest.raises(UserError, match=r'config.model.norm="batch": its moments'):
        recipes.load(config.recipe)(config, FACTS)


def test_translations_keep_their_capitals_and_transcripts_do_not():
    """BLEU counts capitals; transcripts have none."""
    assert defaults.stream("x.jsonl").text.normalise == ("invisible", "lower")
    assert defaults.stream("x.jsonl", field="translation").text.normalise == ("invisible",)
    lower = defaults.stream("x.jsonl", field="translation", normalise=("lower",))
    assert lower.text.normalise == ("lower",)
