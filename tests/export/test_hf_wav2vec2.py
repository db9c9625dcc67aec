"""The table between our wav2vec 2.0 and the tensors and config.json of transformers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.export import hf_wav2vec2 as table
from bljust_jax.models.encoders.wav2vec2 import SIZES, Wav2Vec2

MODEL = Wav2Vec2(
    dim=8,
    layers=2,
    heads=2,
    ff_dim=12,
    conv_dim=(4, 6),
    conv_kernel=(5, 2),
    conv_stride=(5, 2),
    conv_bias=True,
    feat_norm="layer",
    stable_layer_norm=True,
    pos_kernel=6,
    pos_groups=2,
)
PLAIN = dataclasses.replace(MODEL, conv_bias=False, feat_norm="group")
HEADS = {
    "ctc_head": {"kernel": (8, 5), "bias": (5,)},
    "wav2vec2_head": {
        "quantizer": {"codevectors": (2, 3, 4), "project": {"kernel": (6, 6), "bias": (6,)}},
        "project_q": {"kernel": (8, 7), "bias": (7,)},
        "project_hid": {"kernel": (8, 7), "bias": (7,)},
    },
}


def fields(model=MODEL):
    return {name: getattr(model, name) for name in table.FIELDS}


@functools.cache
def params(head="ctc_head", model=MODEL):
    """Random arrays of every shape."""
    draw = np.random.default_rng(0)
    shapes = {"encoder": model.shapes(), head: HEADS[head]}
    return jax.tree.map(
        lambda shape: draw.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def file(head="ctc_head", model=MODEL):
    return table.tensors(params(head, model), ctc=head == "ctc_head")


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_tensor_of_a_block_and_the_rest_is_named():
    names = set(file("ctc_head", PLAIN))
    block = {
        f"wav2vec2.encoder.layers.1.{module}.{leaf}"
        for module in (
            *(f"attention.{m}_proj" for m in ("q", "k", "v", "out")),
            *("layer_norm", "final_layer_norm"),
            *("feed_forward.intermediate_dense", "feed_forward.output_dense"),
        )
        for leaf in ("weight", "bias")
    }
    rest = {
        "wav2vec2.masked_spec_embed",
        "wav2vec2.feature_extractor.conv_layers.0.conv.weight",
        "wav2vec2.feature_extractor.conv_layers.0.layer_norm.weight",
        "wav2vec2.feature_extractor.conv_layers.0.layer_norm.bias",
        "wav2vec2.feature_extractor.conv_layers.1.conv.weight",
        "wav2vec2.feature_projection.layer_norm.weight",
        "wav2vec2.feature_projection.layer_norm.bias",
        "wav2vec2.feature_projection.projection.weight",
        "wav2vec2.feature_projection.projection.bias",
        "wav2vec2.encoder.pos_conv_embed.conv.bias",
        "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        "wav2vec2.encoder.layer_norm.weight",
        "wav2vec2.encoder.layer_norm.bias",
        "lm_head.weight",
        "lm_head.bias",
    }
    assert names == block | {name.replace("layers.1", "layers.0") for name in block} | rest
    assert "wav2vec2.feature_extractor.conv_layers.1.layer_norm.bias" in file()
    heads = {name for name in file("wav2vec2_head") if not name.startswith("wav2vec2.")}
    assert heads == {
        "quantizer.codevectors",
        *(
            f"{module}.{leaf}"
            for module in ("quantizer.weight_proj", "project_q", "project_hid")
            for leaf in ("weight", "bias")
        ),
    }


def test_values_are_where_theirs_are():
    ours, theirs = params()["encoder"], file()
    up = theirs["wav2vec2.encoder.layers.1.feed_forward.intermediate_dense.weight"]
    assert up.shape == (12, 8)
    assert up[11, 3] == ours["blocks"]["up"]["kernel"][1, 3, 11]
    conv = theirs["wav2vec2.feature_extractor.conv_layers.1.conv.weight"]
    assert conv.shape == (6, 4, 2)
    assert conv[5, 3, 1] == ours["frontend"]["conv1"]["kernel"][1, 3, 5]
    prefix = "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight"
    assert theirs[f"{prefix}.original0"].shape == (1, 1, 6)
    assert theirs[f"{prefix}.original1"].shape == (8, 4, 6)
    assert theirs[f"{prefix}.original1"][7, 2, 5] == ours["positions"]["kernel"][5, 2, 7]
    assert all(t.dtype == np.float32 and t.flags.c_contiguous for t in theirs.values())


@pytest.mark.parametrize("head", HEADS)
def test_out_and_in_again_is_bit_equal(head):
    assert_same(table.parameters(file(head), fields()), params(head))


def test_a_file_without_prefix_or_heads_and_with_old_names_is_read():
    bare = {
        name.removeprefix("wav2vec2.")
        .replace("parametrizations.weight.original0", "weight_g")
        .replace("parametrizations.weight.original1", "weight_v"): value
        for name, value in file().items()
        if not name.startswith("lm_head")
    }
    assert_same(table.parameters(bare, fields()), {"encoder": params()["encoder"]})


def test_half_precision_is_read_as_float32():
    half = {name: value.astype(np.float16) for name, value in file().items()}
    read = table.parameters(half, fields())
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(read))


def test_a_file_trained_without_masks_has_no_embedding():
    tensors = file()
    del tensors[table.MASKED]
    read = table.parameters(tensors, fields())
    assert set(params()["encoder"]) - set(read["encoder"]) == {"masked_embedding"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("wav2vec2.encoder.layer_norm.bias"), "lack .*encoder.layer_norm.bias"),
        (lambda t: t.pop("lm_head.weight"), "lack lm_head.weight"),
        (lambda t: t.update({"adapter.x": np.ones(1)}), "without a place .*: adapter.x"),
        (lambda t: t.update({"lm_head.bias": np.ones(4)}), r"lm_head.bias has shape \(4,\)"),
        (
            lambda t: t.update({"wav2vec2.encoder.pos_conv_embed.conv.weight_g": np.ones(1)}),
            "twice",
        ),
        (lambda t: [t.pop(name) for name in list(t) if "layers.1." in name], "and 15 more"),
    ],
)
def test_other_tensors_than_the_models_are_the_users_error(change, message):
    tensors = file()
    change(tensors)
    with pytest.raises(UserError, match=message):
        table.parameters(tensors, fields())


def test_half_a_quantiser_is_the_users_error():
    tensors = file("wav2vec2_head")
    del tensors["project_q.weight"]
    with pytest.raises(UserError, match=r"lack project_q\.weight"):
        table.parameters(tensors, fields())


def test_a_config_of_other_depth_is_the_users_error():
    with pytest.raises(UserError, match=r"without a place .*layers\.1\."):
        table.parameters(file(), fields() | {"layers": 1})


@pytest.mark.parametrize("size", SIZES)
def test_config_json_says_the_fields(size):
    model = Wav2Vec2(**SIZES[size], dropout=0.1, layerdrop=0.05)
    config = table.hf_config(model, 32)
    assert table.model_fields(config) == fields(model)
    assert config["architectures"] == ["Wav2Vec2ForCTC"]
    assert (config["vocab_size"], config["pad_token_id"]) == (32, 0)
    assert (config["hidden_dropout"], config["layerdrop"]) == (0.1, 0.05)
    assert config["mask_time_prob"] > 0
    facts = {"groups": 2, "codes": 320, "code_dim": 256, "width": 128, "mask_prob": 0.65}
    config = table.hf_config(model, 32, facts)
    assert config["architectures"] == ["Wav2Vec2ForPreTraining"]
    assert config["num_codevectors_per_group"] == 320
    assert config["proj_codevector_dim"] == 128


def test_a_silent_config_is_the_base_model():
    base = Wav2Vec2(**SIZES["base"])
    assert table.model_fields({"model_type": "wav2vec2"}) == fields(base)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_type", "hubert"),
        ("hidden_act", "relu"),
        ("feat_extract_activation", "relu"),
        ("layer_norm_eps", 1e-6),
        ("add_adapter", True),
        ("adapter_attn_dim", 16),
    ],
)
def test_a_model_that_ours_is_not_is_the_users_error(name, value):
    with pytest.raises(UserError, match=f"config.json: {name}={value!r} is not supported"):
        table.model_fields({"model_type": "wav2vec2", name: value})
