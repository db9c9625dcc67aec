"""Shrunken configs of every method, spread over every shipped config file."""

from ml_collections import ConfigDict

from configs import librispeech, manifest, quickstart, tedlium, wav2vec2_just
from tests.helpers.processes import SHORT


def shorten(config: ConfigDict) -> ConfigDict:
    config.phases.update(**SHORT)
    config.phases.turn = 2
    config.penalty.slope = 0.05
    if "explore" in config.lr:  # a share of so few steps would be none
        config.lr.explore.update(warmup=10.0, warmup_unit="step")
    config.update(eval_every=8, save_every=8, log_every=2, compile_cache="")
    config.mesh.data = 1
    return config


def share_forward(config: ConfigDict) -> ConfigDict:
    config.update(share_forward=True, gradients="fused")
    config.ctc.context = "causal"
    config.specaugment.update(freq_masks=0, time_masks=0)
    return config


def one_length(config: ConfigDict) -> ConfigDict:
    config.data.buckets = config.data.buckets[-1:]
    return config


# every method, spread over every config
CONFIGS = {
    "quickstart-shared": lambda: share_forward(quickstart.get_config("smoke")),
    "quickstart-bljust": lambda: quickstart.get_config("smoke"),
    "quickstart-one_length": lambda: one_length(quickstart.get_config("smoke")),
    "quickstart-alternating": lambda: quickstart.get_config("smoke,alternating"),
    "quickstart-weighted_sum": lambda: quickstart.get_config("smoke,weighted_sum"),
    "librispeech-weighted_sum": lambda: librispeech.get_config("M,chunked,weighted_sum,smoke"),
    "tedlium-bljust": lambda: tedlium.get_config("tenth,smoke"),
    "librispeech-best_rq": lambda: librispeech.get_config("S,best_rq,smoke"),
    "librispeech-lstm": lambda: librispeech.get_config("lstm,smoke"),
    "wav2vec2_just-ft": lambda: wav2vec2_just.get_config("nl,ft,smoke"),
    "manifest-ptft": lambda: manifest.get_config("digits,ptft,smoke"),
    "manifest-supervised": lambda: manifest.get_config("sentences,supervised,smoke"),
}
M2ASR_CONFIG = "m2asr"  # its presets are trained by tests/recipes/test_m2asr_train.py
