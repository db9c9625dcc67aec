"""Convert the Conformer to and from transformers' `ParakeetForCTC`, without torch.

Tensor names, layouts, config.json. Their biases that ours lacks are absorbed exactly: the query
bias is added to u and v, the key bias cancels in the softmax, the value bias passes through the
output map into its bias; a scale of the subsampling output multiplies its linear map. Written files
hold zeros for these biases and no scale.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.export import tensor_table
from bljust_jax.export.tensor_table import SAME, Layout, Row
from bljust_jax.export.tensors import Tensors
from bljust_jax.models.encoders.conformer import Conformer

# Field of `Conformer`: (name in their encoder_config, default).
FIELDS = {
    "dim": ("hidden_size", 1024),
    "layers": ("num_hidden_layers", 24),
    "heads": ("num_attention_heads", 8),
    "kernel": ("conv_kernel_size", 9),
    "channels": ("subsampling_conv_channels", 256),
    "subsampling_factor": ("subsampling_factor", 8),
}
# Name in their encoder_config: the only supported value, and default.
FIXED = {"hidden_act": "silu", "subsampling_conv_kernel_size": 3, "subsampling_conv_stride": 2}
UNUSED = ("dropout_positions", "attention_dropout", "activation_dropout", "layerdrop")
# Fields of a Conformer that equals a Parakeet.
KIND = {"subsampling": "parakeet", "norm": "batch", "positions": "relative"}

MODULES = {
    "ctc_head": "ctc_head",
    "encoder/frontend/conv1": "encoder.subsampling.layers.0",
    "encoder/frontend/depthwise2": "encoder.subsampling.layers.2",
    "encoder/frontend/pointwise2": "encoder.subsampling.layers.3",
    "encoder/frontend/depthwise3": "encoder.subsampling.layers.5",
    "encoder/frontend/pointwise3": "encoder.subsampling.layers.6",
    "encoder/frontend/linear": "encoder.subsampling.linear",
} | {
    f"encoder/blocks/{ours}": f"encoder.layers.{{n}}.{theirs}"
    for ours, theirs in {
        "ff1_norm": "norm_feed_forward1",
        "ff1/up": "feed_forward1.linear1",
        "ff1/down": "feed_forward1.linear2",
        "attention_norm": "norm_self_att",
        "attention": "self_attn",
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/position": "self_attn.relative_k_proj",
        "attention/out": "self_attn.o_proj",
        "conv_norm": "norm_conv",
        "conv/pointwise_in": "conv.pointwise_conv1",
        "conv/depthwise": "conv.depthwise_conv",
        "conv/norm": "conv.norm",
        "conv/pointwise_out": "conv.pointwise_conv2",
        "ff2_norm": "norm_feed_forward2",
        "ff2/up": "feed_forward2.linear1",
        "ff2/down": "feed_forward2.linear2",
        "norm": "norm_out",
    }.items()
}
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "content_bias": "bias_u",
    "position_bias": "bias_v",
    "mean": "running_mean",
    "var": "running_var",
}
ABSORBED = ("q_proj.bias", "k_proj.bias", "v_proj.bias")
# Biases absent with attention_bias=False or convolution_bias=False; ours are then 0.
OPTIONAL = (
    re.compile(r"encoder\.layers\.\d+\.(feed_forward\d\.linear\d|self_attn\.o_proj)\.bias"),
    re.compile(r"encoder\.layers\.\d+\.conv\.\w+_conv\d?\.bias"),
)
COUNTER = "conv.norm.num_batches_tracked"


def _pointwise(ones: int) -> Layout:
    """[in, out] to [out, in] and as many axes of length 1."""
    return Layout(lambda w: w.T[(...,) + (None,) * ones], lambda w: w.reshape(w.shape[:2]).T)


CONV = Layout(lambda w: w.transpose(3, 2, 0, 1), lambda w: w.transpose(2, 3, 1, 0))
DEPTHWISE = Layout(lambda w: np.moveaxis(w, -1, 0)[:, None], lambda w: np.moveaxis(w[:, 0], 0, -1))


def _inputs(first: int, second: int) -> Layout:
    """[first * second, out] to [out, second * first]: the inputs are permuted."""

    def turned(w: np.ndarray, outer: int, inner: int) -> np.ndarray:
        return w.reshape(outer, inner, -1).swapaxes(0, 1).reshape(outer * inner, -1)

    return Layout(lambda w: turned(w, first, second).T, lambda w: turned(w.T, second, first))


def _layout(path: str, model: Conformer) -> Layout:
    if not path.endswith("kernel"):
        return SAME
    if path.endswith("frontend/linear/kernel"):  # ours are [bands, C], theirs [C, bands]
        return _inputs(model.n_mels // model.factor, model.channels)
    if path.endswith("position/kernel"):  # ours are all sines, then all cosines; theirs alternate
        return _inputs(2, model.dim // 2)
    if "depthwise" in path:
        return DEPTHWISE
    if path.endswith("conv1/kernel"):
        return CONV
    if "frontend/pointwise" in path:
        return _pointwise(2)
    return _pointwise(1 if "pointwise" in path or "ctc_head" in path else 0)


def rows(shapes: Mapping[str, Any], model: Conformer) -> Iterator[Row]:
    """The rows of a tree of our shapes, running moments beside the scale of the batch norm."""

    def name(path: str, block: int | None) -> str:
        module, _, leaf = path.rpartition("/")
        return f"{MODULES[module].format(n=block)}.{LEAVES[leaf]}"

    return tensor_table.make_rows(shapes, name, lambda path, shape: _layout(path, model))


def _whole(params: Mapping[str, Any], moments: Mapping[str, Any]) -> dict[str, Any]:
    """One tree of parameters and moments, or of their shapes."""
    blocks = params["encoder"]["blocks"]
    conv = blocks["conv"] | {"norm": blocks["conv"]["norm"] | moments}
    return {**params, "encoder": {**params["encoder"], "blocks": blocks | {"conv": conv}}}


def tensors(params: Mapping[str, Any], stats: Mapping[str, Any], model: Conformer) -> Tensors:
    """Float32 tensors of `ParakeetForCTC` from params {"encoder", "ctc_head"} and stats
    {"encoder"}; other heads are not written."""
    kept = {name: params[name] for name in ("encoder", "ctc_head")}
    tree = _whole(kept, stats["encoder"])
    out = tensor_table.to_tensors(rows(jax.tree.map(np.shape, tree), model), tree)
    for n in range(model.layers):
        for name in ABSORBED:
            out[f"encoder.layers.{n}.self_attn.{name}"] = np.zeros(model.dim, np.float32)
        out[f"encoder.layers.{n}.{COUNTER}"] = np.zeros((), np.int64)
    return out


def parameters(
    tensors: Mapping[str, np.ndarray],
    fields: Mapping[str, Any],
    *,
    scale_input: bool = False,
    blank: int = 0,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params {"encoder", "ctc_head"}, stats {"encoder"}) of a file's tensors, float32; float64
    stays.

    Args:
      fields: from `model_fields`.
      scale_input, blank: from `conventions`; class `blank` of the head becomes class 0.

    Raises:
      UserError: a tensor is missing, has another shape than `fields` say, or has no place.
    """
    fields = dict(fields)
    model = Conformer(n_mels=fields.pop("features")["n_mels"], **fields)
    found = {name: _float(t) for name, t in tensors.items() if COUNTER not in name}
    spare = _spare_biases(found, model)
    moments = dict.fromkeys(("mean", "var"), (model.layers, model.dim))
    head = found.get("ctc_head.weight", np.zeros(1)).shape[0]
    shapes = {"encoder": model.shapes(), "ctc_head": {"kernel": (model.dim, head), "bias": (head,)}}
    table = list(rows(_whole(shapes, moments), model))
    for biases in OPTIONAL:
        if not any(map(biases.fullmatch, found)):
            own = {row.name: row.shape for row in table if biases.fullmatch(row.name)}
            found |= {name: np.zeros(shape, np.float32) for name, shape in own.items()}
    tensor_table.check(table, found)
    _absorb(found, spare, model, scale_input)
    tree = tensor_table.to_tree(table, found)
    tree["ctc_head"] = tensor_table.blank_first(tree["ctc_head"], blank)
    norm = tree["encoder"]["blocks"]["conv"]["norm"]
    return tree, {"encoder": {name: norm.pop(name) for name in ("mean", "var")}}


def _float(tensor: np.ndarray) -> np.ndarray:
    return np.asarray(tensor, np.promote_types(tensor.dtype, np.float32))


def _spare_biases(found: Tensors, model: Conformer) -> dict[str, Tensors]:
    """Removes the biases that ours lacks from `found`: {prefix of the block: {name: bias}}."""
    spare: dict[str, Tensors] = {}
    for n in range(model.layers):
        prefix = f"encoder.layers.{n}.self_attn."
        own = {b: found.pop(prefix + b) for b in ABSORBED if prefix + b in found}
        for name, bias in own.items():
            if bias.shape != (model.dim,):
                raise UserError(
                    f"{prefix}{name} has shape {bias.shape}, the config says {(model.dim,)}"
                )
        spare[prefix] = own
    return spare


def _absorb(found: Tensors, spare: dict[str, Tensors], model: Conformer, scale_input: bool) -> None:
    """Folds the spare biases and the scale into the tensors of `found`; sums in float64."""

    def replace(name: str, value: np.ndarray) -> None:
        found[name] = value.astype(found[name].dtype)

    for prefix, biases in spare.items():
        query, value = (biases.get(name, np.zeros(1)).astype(np.float64) for name in ABSORBED[::2])
        if query.any():
            for name in ("bias_u", "bias_v"):
                own = found[prefix + name]
                replace(prefix + name, own + query.reshape(own.shape))
        if value.any():
            out = found[prefix + "o_proj.weight"].astype(np.float64) @ value
            replace(prefix + "o_proj.bias", found[prefix + "o_proj.bias"] + out)
    if scale_input:
        for name in ("weight", "bias"):
            name = f"encoder.subsampling.linear.{name}"
            replace(name, found[name] * np.sqrt(np.float64(model.dim)))


def model_fields(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Conformer` in a config.json, and {"features": {"frontend", "n_mels"}}.

    Raises UserError for an unsupported model: a transducer, another activation or expansion.
    """
    kind = hf.get("model_type", "parakeet_ctc")
    if kind != "parakeet_ctc":
        raise UserError(f"config.json: model_type={kind!r} is not supported, only 'parakeet_ctc'")
    encoder = hf.get("encoder_config") or {}
    tensor_table.check_fixed(encoder, FIXED)
    fields = tensor_table.read_fields(encoder, FIELDS)
    inner = encoder.get("intermediate_size", 4096)
    if inner % fields["dim"]:
        raise UserError(
            f"config.json: intermediate_size={inner} must be a multiple of "
            f"hidden_size={fields['dim']}"
        )
    features = {"frontend": "nemo", "n_mels": encoder.get("num_mel_bins", 80)}
    return fields | KIND | {"ff_mult": inner // fields["dim"], "features": features}


def conventions(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The other arguments of `parameters` from a config.json: {"scale_input", "blank"}."""
    encoder = hf.get("encoder_config") or {}
    return {"scale_input": encoder.get("scale_input", True), "blank": hf.get("pad_token_id", 1024)}


def hf_config(model: Conformer, vocab_size: int, features: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of `ParakeetForCTC`. Blank and padding are 0; `features` is config.features."""
    encoder = {name: getattr(model, field) for field, (name, _) in FIELDS.items()}
    encoder |= FIXED | {
        "model_type": "parakeet_encoder",
        "subsampling_factor": model.factor,
        "intermediate_size": model.ff_mult * model.dim,
        "num_mel_bins": features["n_mels"],
        "attention_bias": True,
        "convolution_bias": True,
        "scale_input": False,
        "dropout": model.dropout,
        **dict.fromkeys(UNUSED, 0.0),
        "max_position_embeddings": 100_000,  # not a table size; longer audio is refused
    }
    return {
        "architectures": ["ParakeetForCTC"],
        "model_type": "parakeet_ctc",
        "vocab_size": vocab_size,
        "pad_token_id": 0,
        "ctc_loss_reduction": "mean",
        "ctc_zero_infinity": True,
        "encoder_config": encoder,
    }


def fits(config: Any) -> list[str]:
    """The reasons why a run cannot be written as `ParakeetForCTC`; [] if it can."""
    if config.encoder != "conformer":
        return [f"encoder {config.encoder}"]
    model = Conformer(n_mels=config.features.n_mels, **config.model.to_dict())
    wanted = (
        ("features.frontend", config.features.get("frontend", "log_mel"), "nemo"),
        ("model.subsampling", model.subsampling, "parakeet"),
        ("model.norm", model.norm, "batch"),
        ("model.window", model.window, 0),
        ("model.positions", model.positions, "relative"),
        ("ctc.context", config.ctc.context, "full"),
    )
    reasons = [f"{name} {value}, not {known}" for name, value, known in wanted if value != known]
    if model.n_mels % model.factor:
        reasons.append(f"features.n_mels {model.n_mels}, no multiple of {model.factor}")
    return reasons
