"""Names and layouts of `ParakeetForCTC`, without torch: round trips, absorbed biases, refusals."""

import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from bljust_jax.common.errors import UserError
from bljust_jax.export import hf_parakeet
from bljust_jax.models.encoders.conformer import Conformer

MODEL = Conformer(
    dim=12, layers=2, heads=3, kernel=5, n_mels=16, channels=6, ff_mult=2,
    subsampling="parakeet", norm="batch",
)  # fmt: skip
FEATURES = {"frontend": "nemo", "n_mels": 16}


@pytest.fixture(scope="module")
def trees():
    """(params, stats) in which every number is another one."""
    params, stats = jax.jit(MODEL.init)(jax.random.key(0))
    params = {"encoder": params, "ctc_head": {"kernel": np.zeros((12, 7)), "bias": np.zeros(7)}}
    draw = np.random.default_rng(0)
    normal = lambda leaf: draw.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(normal, (params, {"encoder": stats}))


@pytest.fixture
def hf():
    return hf_parakeet.hf_config(MODEL, 7, FEATURES)


def read(tensors, hf):
    return hf_parakeet.parameters(
        tensors, hf_parakeet.model_fields(hf), **hf_parakeet.conventions(hf)
    )


def equal(a, b):
    def check(a, b):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a, b)

    jax.tree.map(check, a, b)


@pytest.mark.slow
def test_what_is_written_reads_back_bit_for_bit(trees, hf):
    tensors = hf_parakeet.tensors(*trees, MODEL)
    assert all(t.flags["C_CONTIGUOUS"] for t in tensors.values())
    equal(read(tensors, hf), trees)


def test_config_json_gives_the_model_back(hf):
    fields = hf_parakeet.model_fields(hf)
    assert fields.pop("features") == FEATURES
    assert Conformer(n_mels=16, **fields) == Conformer(**MODEL.__dict__ | {"subsampling_factor": 8})
    assert hf_parakeet.conventions(hf) == {"scale_input": False, "blank": 0}


def test_other_heads_stay_and_the_counter_is_an_integer(trees):
    params, stats = trees
    tensors = hf_parakeet.tensors(params | {"cpc_head": {"kernel": np.ones(3)}}, stats, MODEL)
    assert {n.split(".")[0] for n in tensors} == {"encoder", "ctc_head"}
    counters = [t for n, t in tensors.items() if n.endswith("num_batches_tracked")]
    assert [(t.dtype, t.shape) for t in counters] == [(np.dtype(np.int64), ())] * 2


def foreign(trees):
    """A file of theirs with biases that ours lacks, a scaled input and the blank in the middle."""
    tensors, draw = hf_parakeet.tensors(*trees, MODEL), np.random.default_rng(1)
    for name in tensors:
        if re.search(r"[qkv]_proj\.bias", name):
            tensors[name] = draw.normal(size=12).astype(np.float32)
    return tensors


def test_reading_what_was_read_and_written_changes_no_bit(trees, hf):
    theirs = hf | {"pad_token_id": 3}
    theirs["encoder_config"] = hf["encoder_config"] | {"scale_input": True}
    first = read(foreign(trees), theirs)
    equal(read(hf_parakeet.tensors(*first, MODEL), hf), first)


def attention_of(tensors, x):
    """Scores and output of block 0 by their formulas in float64, without positions' projection."""
    t = {n.split("self_attn.")[1]: np.float64(v) for n, v in tensors.items() if "0.self_attn" in n}
    q, k, v = (x @ t[f"{n}_proj.weight"].T + t[f"{n}_proj.bias"] for n in "qkv")
    heads = lambda a: a.reshape(len(x), 3, 4)  # noqa: E731
    positions = np.random.default_rng(2).normal(size=(5, 3, 4))
    content = np.einsum("qhs,khs->hqk", heads(q) + t["bias_u"], heads(k))
    scores = content + np.einsum("qhs,khs->hqk", heads(q) + t["bias_v"], positions)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    context = np.einsum("hqk,khs->qhs", weights, heads(v)).reshape(len(x), 12)
    return context @ t["o_proj.weight"].T + t["o_proj.bias"]


def test_absorbed_biases_change_nothing(trees, hf):
    tensors, x = foreign(trees), np.random.default_rng(3).normal(size=(5, 12))
    ours = hf_parakeet.tensors(*read(tensors, hf), MODEL)
    assert not any(np.any(t) for n, t in ours.items() if n.endswith(hf_parakeet.ABSORBED))
    # The sums are rounded to float32 once.
    np.testing.assert_allclose(attention_of(ours, x), attention_of(tensors, x), atol=1e-5)


def test_scale_and_blank_are_absorbed(trees, hf):
    tensors = hf_parakeet.tensors(*trees, MODEL)
    fields = hf_parakeet.model_fields(hf)
    params, _ = hf_parakeet.parameters(tensors, fields, scale_input=True, blank=3)
    linear, own = params["encoder"]["frontend"]["linear"], trees[0]["encoder"]["frontend"]["linear"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b * 12**0.5, rtol=1e-6), linear, own)
    head = trees[0]["ctc_head"]["kernel"]
    np.testing.assert_array_equal(params["ctc_head"]["kernel"], head[:, [3, 0, 1, 2, 4, 5, 6]])


def test_biases_that_are_switched_off_are_zero(trees, hf):
    bare = {n: t for n, t in hf_parakeet.tensors(*trees, MODEL).items() if not optional(n)}
    params, _ = read(bare, hf)
    blocks, whole = params["encoder"]["blocks"], trees[0]["encoder"]["blocks"]
    for module, name in (
        ("ff1", "up"),
        ("ff2", "down"),
        ("attention", "out"),
        ("conv", "depthwise"),
    ):
        assert not np.any(blocks[module][name]["bias"])
    np.testing.assert_array_equal(blocks["conv"]["norm"]["bias"], whole["conv"]["norm"]["bias"])


def optional(name):
    parts = (r"feed_forward\d\.linear\d", r"self_attn\.\w_proj", r"conv\.\w+_conv\d?")
    return re.search(rf"({'|'.join(parts)})\.bias", name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layers.0.norm_out.weight": None}, "lack encoder.layers.0.norm_out.weight"),
        ({"encoder.layers.1.conv.norm.bias": None}, "lack encoder.layers.1.conv.norm.bias"),
        ({"encoder.layers.1.self_attn.o_proj.bias": None}, "lack .*o_proj.bias"),
        ({"ctc_head.weight": None}, "lack ctc_head.weight"),
        ({"decoder.embed.weight": np.ones(3)}, "without a place in this model: decoder.embed"),
        ({"encoder.layers.2.norm_out.weight": np.ones(12)}, "without a place"),
        ({"encoder.layers.0.norm_out.weight": np.ones(13)}, r"has shape \(13,\).* \(12,\)"),
        ({"encoder.layers.0.self_attn.q_proj.bias": np.ones(4)}, r"q_proj.bias has shape \(4,\)"),
        (
            {"encoder.layers.0.conv.depthwise_conv.weight": np.ones((12, 1, 7))},
            r"has shape \(12, 1, 7\), the config says \(12, 1, 5\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(trees, hf, change, message):
    tensors = hf_parakeet.tensors(*trees, MODEL) | change
    with pytest.raises(UserError, match=message):
        read({n: t for n, t in tensors.items() if t is not None}, hf)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported, only 'silu'"),
        ({"subsampling_conv_stride": 3}, "subsampling_conv_stride=3"),
        ({"intermediate_size": 25}, "intermediate_size=25 must be a multiple of hidden_size=12"),
    ],
)
def test_models_that_ours_is_not_are_refused(hf, change, message):
    hf["encoder_config"] |= change
    with pytest.raises(UserError, match=message):
        hf_parakeet.model_fields(hf)


def test_transducers_are_refused(hf):
    with pytest.raises(UserError, match="model_type='parakeet_tdt'"):
        hf_parakeet.model_fields(hf | {"model_type": "parakeet_tdt"})


def test_a_silent_file_is_the_published_model():
    fields = hf_parakeet.model_fields({"encoder_config": {}})
    assert (fields["dim"], fields["layers"], fields["ff_mult"]) == (1024, 24, 4)
    assert hf_parakeet.conventions({}) == {"scale_input": True, "blank": 1024}


def run_config(**changes):
    fields = {k: v for k, v in MODEL.__dict__.items() if k != "n_mels"}
    config = ConfigDict(
        {"encoder": "conformer", "features": FEATURES, "model": fields, "ctc": {"context": "full"}}
    )
    config.update_from_flattened_dict(changes)
    return config


def test_a_run_fits_or_says_why_not():
    assert hf_parakeet.fits(run_config()) == []
    assert hf_parakeet.fits(run_config(encoder="wav2vec2")) == ["encoder wav2vec2"]
    changes = {
        "features.frontend": "log_mel", "features.n_mels": 20, "model.subsampling": "conv2d",
        "model.subsampling_factor": 8, "model.norm": "layer", "model.window": 8,
        "model.positions": "rope", "ctc.context": "causal",
    }  # fmt: skip
    assert hf_parakeet.fits(run_config(**changes)) == [
        "features.frontend log_mel, not nemo",
        "model.subsampling conv2d, not parakeet",
        "model.norm layer, not batch",
        "model.window 8, not 0",
        "model.positions rope, not relative",
        "ctc.context causal, not full",
        "features.n_mels 20, no multiple of 8",
    ]
