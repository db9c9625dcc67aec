"""Write a run as a folder for `transformers`, if one of its classes fits."""

import pathlib
from collections.abc import Mapping
from typing import Any

from bljust_jax.common.errors import UserError
from bljust_jax.export import hf_parakeet, hf_tokenizer, hf_wav2vec2
from bljust_jax.export.hf_tokenizer import write_json
from bljust_jax.export.tensors import SINGLE, write
from bljust_jax.models.encoders import conformer as conformer_encoder
from bljust_jax.models.encoders import wav2vec2 as wav2vec2_encoder

PREEMPHASIS = 0.97  # of NeMo's features


def architecture(config: Any, *, pretraining: bool = False) -> tuple[str, list[str]]:
    """(the class of transformers that fits a run, the reasons why none does); one is empty.

    Raises UserError for `pretraining` with a run that has no wav2vec 2.0 loss.
    """
    ssl = config.get("ssl", "none")
    if pretraining and (config.encoder != "wav2vec2" or ssl != "wav2vec2"):
        raise UserError(
            "--pretraining writes Wav2Vec2ForPreTraining: it needs a run with encoder wav2vec2 and "
            f"ssl wav2vec2, this one has {config.encoder} and {ssl}"
        )
    if config.encoder == "wav2vec2":
        return "Wav2Vec2ForPreTraining" if pretraining else "Wav2Vec2ForCTC", []
    if config.encoder != "conformer":
        return "", [f"encoder {config.encoder}"]
    reasons = hf_parakeet.fits(config)
    return ("", reasons) if reasons else ("ParakeetForCTC", [])


def write_folder(
    folder: pathlib.Path, name: str, config: Any, units: Any, params: Mapping, stats: Mapping
) -> None:
    """Write all files of class `name` and of `pipeline` into a folder; `units`: the tokenizer."""
    if name == "ParakeetForCTC":
        model = conformer_encoder.make_model(config)
        about = hf_parakeet.hf_config(model, units.vocab_size, config.features.to_dict())
        arrays = hf_parakeet.tensors(params, stats, model)
        preprocessor = {
            "feature_size": config.features.n_mels,
            "hop_length": config.features.hop,
            "n_fft": config.features.n_fft,
            "win_length": config.features.window,
            "preemphasis": PREEMPHASIS,
            "return_attention_mask": True,
        }
    else:
        model = wav2vec2_encoder.make_model(config)
        ctc = name == "Wav2Vec2ForCTC"
        about = hf_wav2vec2.hf_config(
            model, units.vocab_size, None if ctc else dict(config.wav2vec2)
        )
        arrays = hf_wav2vec2.tensors(params, ctc=ctc)
        preprocessor = {
            "feature_size": 1,
            "do_normalize": bool(config.model.normalise),
            "return_attention_mask": padding_is_harmless(model.feat_norm),
        }
    write(folder / SINGLE, arrays)
    write_json(folder / "config.json", about)
    kind = name.removesuffix("ForCTC").removesuffix("ForPreTraining")
    preprocessor |= {
        "feature_extractor_type": f"{kind}FeatureExtractor",
        "processor_class": f"{kind}Processor",
        "sampling_rate": config.data.sample_rate,
        "padding_side": "right",
        "padding_value": 0.0,
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    if name != "Wav2Vec2ForPreTraining":
        hf_tokenizer.write(units, folder, words=name == "Wav2Vec2ForCTC")


def padding_is_harmless(feat_norm: str) -> bool:
    """Whether padding changes no logit: the group norm of transformers counts padded samples."""
    return feat_norm == "layer"
