"""Variants of configs: their order, and what they must switch off."""

import pytest

from bljust_jax import recipes
from bljust_jax.common.errors import UserError
from configs import defaults, manifest, wav2vec2_just
from tests.helpers.systems import FACTS


@pytest.mark.parametrize("encoder", ["lstm", "parakeet"])
def test_an_encoder_comes_before_the_sizes_that_are_of_it(encoder):
    either = [manifest.get_config(f"digits,{encoder}"), manifest.get_config(f"{encoder},digits")]
    first, second = (config.to_dict() | {"variant": ""} for config in either)
    assert first == second
    assert first["model"] != manifest.get_config("digits").model.to_dict()


def test_nothing_is_masked_where_eight_utterances_are_learned_by_heart():
    config = wav2vec2_just.get_config("overfit")
    assert (config.mask.time_prob, config.mask.channel_prob) == (0.0, 0.0)
    assert (config.specaugment.freq_masks, config.specaugment.time_masks) == (0, 0)


def test_batch_norm_without_a_pass_that_measures_it_is_refused():
    config = manifest.get_config("parakeet,smoke")
    config.ctc.context = "causal"
    with pytest.raises(UserError, match=r'config.model.norm="batch": its moments'):
        recipes.load(config.recipe)(config, FACTS)


def test_translations_keep_their_capitals_and_transcripts_do_not():
    """BLEU counts them; a recogniser cannot hear them."""
    assert defaults.stream("x.jsonl").text.normalise == ("lower",)
    assert defaults.stream("x.jsonl", field="translation").text.normalise == ()
    lower = defaults.stream("x.jsonl", field="translation", normalise=("lower",))
    assert lower.text.normalise == ("lower",)
