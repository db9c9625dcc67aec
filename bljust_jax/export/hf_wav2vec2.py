"""Convert wav2vec 2.0 to and from transformers: tensor names, shapes, config.json; without torch.

Reads files of `Wav2Vec2ForCTC`, `Wav2Vec2ForPreTraining` and `Wav2Vec2Model`; writes the first two.
Their kernels have the axes reversed: [out, in, taps] and [out, in].
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.export import tensor_table
from bljust_jax.export.tensor_table import SAME, TRANSPOSED, Layout, Row, refuse
from bljust_jax.export.tensors import Tensors
from bljust_jax.models.encoders.wav2vec2 import Wav2Vec2
from bljust_jax.models.norms import EPSILON

# Field of `Wav2Vec2`: (name in config.json, default).
FIELDS = {
    "dim": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "ff_dim": ("intermediate_size", 3072),
    "conv_dim": ("conv_dim", (512,) * 7),
    "conv_kernel": ("conv_kernel", (10, 3, 3, 3, 3, 2, 2)),
    "conv_stride": ("conv_stride", (5, 2, 2, 2, 2, 2, 2)),
    "conv_bias": ("conv_bias", False),
    "feat_norm": ("feat_extract_norm", "group"),
    "stable_layer_norm": ("do_stable_layer_norm", False),
    "pos_kernel": ("num_conv_pos_embeddings", 128),
    "pos_groups": ("num_conv_pos_embedding_groups", 16),
}

# Name in config.json: the only supported value, and default.
FIXED = {
    "model_type": "wav2vec2",
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": EPSILON,
    "add_adapter": False,
    "adapter_attn_dim": None,
    "use_weighted_layer_sum": False,
}

UNUSED = ("activation_dropout", "feat_proj_dropout", "feat_quantizer_dropout", "final_dropout")

# Field of config.wav2vec2 on the quantizer: name in config.json.
QUANTIZER = {
    "groups": "num_codevector_groups",
    "codes": "num_codevectors_per_group",
    "code_dim": "codevector_dim",
    "width": "proj_codevector_dim",
    "negatives": "num_negatives",
    "temperature": "contrastive_logits_temperature",
    "diversity": "diversity_loss_weight",
}

# Our module: theirs; {n} is the block, or the number at the end of our name.
MODULES = {
    "encoder/frontend/conv": "wav2vec2.feature_extractor.conv_layers.{n}.conv",
    "encoder/frontend/norm": "wav2vec2.feature_extractor.conv_layers.{n}.layer_norm",
    "encoder/projection/norm": "wav2vec2.feature_projection.layer_norm",
    "encoder/projection/linear": "wav2vec2.feature_projection.projection",
    "encoder/positions": "wav2vec2.encoder.pos_conv_embed.conv",
    "encoder/norm": "wav2vec2.encoder.layer_norm",
    "encoder/blocks/attention/query": "wav2vec2.encoder.layers.{n}.attention.q_proj",
    "encoder/blocks/attention/key": "wav2vec2.encoder.layers.{n}.attention.k_proj",
    "encoder/blocks/attention/value": "wav2vec2.encoder.layers.{n}.attention.v_proj",
    "encoder/blocks/attention/out": "wav2vec2.encoder.layers.{n}.attention.out_proj",
    "encoder/blocks/attention_norm": "wav2vec2.encoder.layers.{n}.layer_norm",
    "encoder/blocks/up": "wav2vec2.encoder.layers.{n}.feed_forward.intermediate_dense",
    "encoder/blocks/down": "wav2vec2.encoder.layers.{n}.feed_forward.output_dense",
    "encoder/blocks/ff_norm": "wav2vec2.encoder.layers.{n}.final_layer_norm",
    "ctc_head": "lm_head",
    "wav2vec2_head/quantizer/project": "quantizer.weight_proj",
    "wav2vec2_head/project_q": "project_q",
    "wav2vec2_head/project_hid": "project_hid",
}
GAIN, DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "gain": GAIN}
WHOLE = {
    "encoder/masked_embedding": "wav2vec2.masked_spec_embed",
    "encoder/positions/kernel": f"wav2vec2.encoder.pos_conv_embed.conv.{DIRECTION}",
    "wav2vec2_head/quantizer/codevectors": "quantizer.codevectors",
}
MASKED = WHOLE["encoder/masked_embedding"]


def rows(shapes: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of a tree of shapes {"encoder", "ctc_head", "wav2vec2_head"}."""
    return tensor_table.make_rows(shapes, _name, _layout)


def _layout(path: str, shape: tuple[int, ...]) -> Layout:
    if path.endswith("kernel"):
        return TRANSPOSED
    if path.endswith("gain"):
        return Layout(lambda x: x[None, None], lambda x: x[0, 0])
    if path.endswith("codevectors"):
        groups, codes, dim = shape
        there = (1, groups * codes, dim)
        return Layout(lambda x: x.reshape(there), lambda x: x.reshape(shape))
    return SAME


def _name(path: str, block: int | None) -> str:
    if path in WHOLE:
        return WHOLE[path]
    module, _, leaf = path.rpartition("/")
    number = module[len(module.rstrip("0123456789")) :]
    n = number if block is None else block
    return f"{MODULES[module.removesuffix(number)].format(n=n)}.{LEAVES[leaf]}"


def tensors(params: Mapping[str, Any], *, ctc: bool) -> Tensors:
    """Float32 tensors of `Wav2Vec2ForCTC`, from params["ctc_head"], or of `Wav2Vec2ForPreTraining`,
    from params["wav2vec2_head"], with params["encoder"]."""
    parts = {name: params[name] for name in ("encoder", "ctc_head" if ctc else "wav2vec2_head")}
    return tensor_table.to_tensors(rows(jax.tree.map(np.shape, parts)), parts)


def parameters(tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Float32 {"encoder"} of a file's tensors, and "ctc_head" and "wav2vec2_head" if present.

    Names may lack the prefix "wav2vec2." (`Wav2Vec2Model`) and be of either weight norm, `weight_g`
    and `weight_v` or `parametrizations`. A file of a model trained without masks has no
    `masked_spec_embed`: "masked_embedding" is then absent from the encoder.

    Args:
      fields: of `Wav2Vec2`, from `model_fields`.

    Raises:
      UserError: a tensor is missing, has another shape than `fields` say, or has no place.
    """
    found = _renamed(tensors)
    shapes = {"encoder": Wav2Vec2(**fields).shapes()} | _head_shapes(found)
    if MASKED not in found:
        del shapes["encoder"]["masked_embedding"]
    table = list(rows(shapes))
    tensor_table.check(table, found)
    return tensor_table.to_tree(table, found)


def _renamed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Float32 tensors by the names of `rows`."""
    encoder = ("feature_extractor.", "feature_projection.", "encoder.", "masked_spec_embed")
    found = {}
    for name, value in tensors.items():
        new = f"wav2vec2.{name}" if name.startswith(encoder) else name
        for old, leaf in ((".weight_g", GAIN), (".weight_v", DIRECTION)):
            if new.endswith(old):
                new = f"{new.removesuffix(old)}.{leaf}"
        if new in found:
            raise UserError(f"the weights have {new} twice, under an old and a new name")
        found[new] = np.asarray(value, np.float32)
    return found


def _head_shapes(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our shapes of the heads in a file."""

    def linear(name: str) -> dict[str, tuple[int, ...]]:
        if f"{name}.weight" not in found:
            refuse("lack", {f"{name}.weight"})
        inputs_last = np.shape(found[f"{name}.weight"])
        return {"kernel": inputs_last[::-1], "bias": inputs_last[:1]}

    shapes: dict[str, Any] = {}
    if any(name.startswith("lm_head.") for name in found):
        shapes["ctc_head"] = linear("lm_head")
    if "quantizer.codevectors" in found:
        _, entries, size = np.shape(found["quantizer.codevectors"])
        project_q = linear("project_q")
        groups = project_q["kernel"][0] // size
        shapes["wav2vec2_head"] = {
            "quantizer": {
                "codevectors": (groups, entries // groups, size),
                "project": linear("quantizer.weight_proj"),
            },
            "project_q": project_q,
            "project_hid": linear("project_hid"),
        }
    return shapes


def model_fields(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Wav2Vec2` in a config.json: shapes and norms, nothing of training.

    Raises UserError for an unsupported model: another activation, adapters.
    """
    tensor_table.check_fixed(hf, FIXED)
    read = tensor_table.read_fields(hf, FIELDS)
    return {k: tuple(v) if isinstance(v, list) else v for k, v in read.items()}


def hf_config(
    model: Wav2Vec2, vocab_size: int, head: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """config.json of `Wav2Vec2ForCTC` or, with `head`, the fields of a quantizer (config.wav2vec2:
    groups, codes, code_dim, width, negatives, temperature, diversity), of `Wav2Vec2ForPreTraining`.

    Blank and padding are 0. Masks are on: without them transformers has no tensor for the mask
    embedding. Fine-tuning in transformers uses them; inference does not.
    """
    config = dict(FIXED)
    for field, (name, _) in FIELDS.items():
        value = getattr(model, field)
        config[name] = list(value) if isinstance(value, tuple) else value
    if head is not None:
        config |= {name: head[fact] for fact, name in QUANTIZER.items() if fact in head}
    return config | {
        "architectures": ["Wav2Vec2ForCTC" if head is None else "Wav2Vec2ForPreTraining"],
        "num_feat_extract_layers": len(model.conv_dim),
        "hidden_dropout": model.dropout,
        "attention_dropout": model.dropout,
        **dict.fromkeys(UNUSED, 0.0),
        "layerdrop": model.layerdrop,
        "apply_spec_augment": True,
        "mask_time_prob": 0.05,
        "mask_time_length": 10,
        "mask_feature_prob": 0.0,
        "mask_feature_length": 10,
        "ctc_loss_reduction": "mean",
        "ctc_zero_infinity": True,
        "vocab_size": vocab_size,
        "pad_token_id": 0,
        **dict.fromkeys(("bos_token_id", "eos_token_id")),
    }
