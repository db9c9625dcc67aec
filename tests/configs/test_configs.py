"""Variants of configs: their order, and the fields that they switch off."""

import pytest

from bljust_jax import recipes
from bljust_jax.common.errors import UserError
from bljust_jax.data.normalise import make
from bljust_jax.data.published_hours import published_hours
from bljust_jax.models.encoders import conformer
from bljust_jax.train import dry_run
from configs import birq, defaults, librispeech, m2asr, manifest, wav2vec2_just
from tests.helpers import shipped
from tests.helpers.systems import FACTS


@pytest.mark.parametrize("encoder", ["lstm", "parakeet"])
def test_encoder_variants_come_before_size_variants(encoder):
    either = [manifest.get_config(f"digits,{encoder}"), manifest.get_config(f"{encoder},digits")]
    first, second = (config.to_dict() | {"variant": ""} for config in either)
    assert first == second
    assert first["model"] != manifest.get_config("digits").model.to_dict()


@pytest.mark.parametrize("size", ["S", "L"])
def test_fast_is_a_front_end_of_any_size_in_any_order(size):
    """Half to a third of the FLOPs, the same milliseconds for the lower levels; characters, in the
    small copies, have 40 ms per frame."""
    whole, fast = (librispeech.get_config(name) for name in (size, f"{size},fast"))
    other = librispeech.get_config(f"fast,{size}")
    assert fast.to_dict() | {"variant": ""} == other.to_dict() | {"variant": ""}
    models = [conformer.make_model(config) for config in (whole, fast)]
    assert [model.factor for model in models] == [4, 8]
    assert 0.3 < models[1].flops(1598) / models[0].flops(1598) < 0.5
    assert fast.cpc.steps * 8 == whole.cpc.steps * 4
    assert fast.best_rq.stack * fast.best_rq.mask_length == 40
    small = librispeech.get_config(f"{size},fast,smoke")
    assert (conformer.make_model(small).factor, small.best_rq.stack) == (4, 4)


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


def test_recognition_on_covost_is_scored_without_punctuation():
    """Law over all configs: the sentences of Common Voice have punctuation, which is not spoken.
    Training texts and references pass the same steps. Translations keep it, as BLEU counts it."""
    seen = set()
    for module, variant in shipped.names():
        data = shipped.config(module, variant).data
        for name, stream in [*data.streams.items(), ("labelled", data)]:
            if "covost:" in stream.train:
                translation = stream.get("field") == "translation"
                spelled = "Who, me? It's 5 o'clock." if translation else "who me it's 5 o'clock"
                assert make(stream.text.normalise)("Who, me? It's 5 o'clock.") == spelled
                seen.add(name.partition("/")[0])
    assert seen == {"asr", "st", "labelled"}


@pytest.mark.parametrize("variant", ["ami", "yodas"])
def test_birq_reads_both_microphones_of_ami(variant):
    """150 h of training audio: the paper."""
    data = birq.get_config(variant).data
    for split in ("train", "dev", "test"):
        assert [uri.split("/")[-2].rpartition(":")[2] for uri in data[split].split("+")] == [
            "ihm",
            "sdm",
        ]
    assert published_hours(data.train) == pytest.approx(150, rel=0.02)


def test_sources_of_m2asr_have_published_hours():
    """A dry run of its corpora assumes no length of a source."""
    for variant in ("librispeech_aishell", "librispeech_aishell_covost", "covost", "covost_en_x"):
        for stream in shipped.config(m2asr, variant).data.streams.values():
            assert published_hours(stream.train) > 100 or variant == "covost"


def test_an_epoch_of_the_joined_corpora_is_one_pass_of_each():
    """Batches by size, so the streams have equally many."""
    facts = dry_run.assume(shipped.config(m2asr, "librispeech_aishell_covost")).facts
    labelled = [n for name, n in facts.steps_per_epoch.items() if name != "unlabelled"]
    assert len(labelled) == 4
    assert max(labelled) <= 1.001 * min(labelled)
