"""Encoders that do not go with the rest of a config: one line that names the fields."""

import pytest

from bljust_jax import recipes
from bljust_jax.common.errors import UserError
from configs import birq, defaults, manifest, wav2vec2_just
from tests.helpers.systems import FACTS


@pytest.mark.parametrize(
    ("module", "variant", "field", "value", "said"),
    [
        (manifest, "smoke", "encoder", "wav2vec2", "encoder='wav2vec2' does not go with"),
        (manifest, "smoke", "encoder", "cnn_rnn", "only one of them has .*kernel"),
        (wav2vec2_just, "smoke", "encoder", "conformer", "only one of them has .*conv_dim"),
        (manifest, "smoke", "ssl", "wav2vec2", "'conformer' does not: take configs/wav2vec2"),
        (manifest, "smoke", "model.heads", 5, "config.model: dim=48 must be .*heads=5"),
        (manifest, "lstm,smoke", "cpc.context", "causal", "config.cpc.context='causal'.*'chunked'"),
        (manifest, "lstm,smoke", "ctc.context", "causal", "config.ctc.context='causal'.*'full'"),
        (wav2vec2_just, "smoke", "ctc.context", "causal", "config.ctc.context='causal'.*'full'"),
        (manifest, "smoke", "features.n_fft", 64, "config.features.n_fft=64 must be at least"),
    ],
)
def test_what_does_not_fit_is_refused(module, variant, field, value, said):
    config = module.get_config(variant)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=said):
        recipes.load(config.recipe)(config, FACTS)


@pytest.mark.parametrize("variant", [*birq.METHODS, "supervised", "tiny", "overfit"])
def test_birq_has_no_fields_that_it_does_not_read(variant):
    config = birq.get_config(variant)
    assert not {"ssl", "cpc", "penalty", "gradients", "share_forward"} & set(config)
    assert set(config.lr) == {"pretrain", "finetune", "supervised", "heads"}


def test_small_copies_keep_the_network_and_frames_enough_for_characters():
    assert manifest.get_config("gru,smoke").model.kind == "gru"
    assert manifest.get_config("lstm,overfit").model.kind == "lstm"
    for variant in ("parakeet", "parakeet,smoke", "parakeet,overfit"):
        config = manifest.get_config(variant)
        assert config.model.subsampling_factor == config.best_rq.stack == 4
    assert defaults.base().model.subsampling_factor == 0
