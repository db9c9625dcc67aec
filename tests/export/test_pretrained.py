"""`config.init_from`: what is taken from a folder, and what is refused with which words."""

import json

import jax
import numpy as np
import pytest

from bljust_jax import export_checkpoint, recipes
from bljust_jax.bilevel.types import TrainState, Weights
from bljust_jax.common.errors import UserError
from bljust_jax.data.tokenizer import CharTokenizer
from bljust_jax.export import tensors
from bljust_jax.train import init_from
from tests.helpers import runs

OTHER = CharTokenizer(" abc", ("lower",))


def exported(folder, change, *flags):
    """A run exported, its config and its weights."""
    config = runs.save(folder, change)
    out = folder / "out"
    assert (
        export_checkpoint.main([f"--workdir={folder}", f"--out={out}", "--unchecked", *flags]) == 0
    )
    return out, config, runs.draw_weights(config)


@pytest.fixture(scope="module")
def parakeet(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("parakeet"), runs.parakeet)


@pytest.fixture(scope="module")
def for_ctc(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("ctc"), runs.wav2vec2)


@pytest.fixture(scope="module")
def for_pretraining(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("pretraining"), runs.wav2vec2, "--pretraining")


def load(path, config, weights, units=runs.CHARACTERS, parts=("all",), **changes):
    """Into a run whose leaves are all 7: (params, stats, log lines)."""
    config = config.copy_and_resolve_references()
    config.update(init_from=str(path), init_parts=parts, **changes)
    facts = recipes.Facts({"labelled": units.vocab_size}, {"labelled": 1, "unlabelled": 1})
    recipe = recipes.load(config.recipe)(config, facts)
    blank = jax.tree.map(lambda x: np.full_like(x, 7), weights)
    state = TrainState(0, blank.params, {}, blank.params, {}, blank.stats)
    source = init_from.open_source(config, state)
    state, lines = init_from.take(source, config, recipe, {"labelled": units}, state)
    assert_equal(state.ema, state.params)
    return state.params, state.stats, lines


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def is_untouched(tree):
    return all((np.asarray(leaf) == 7).all() for leaf in jax.tree.leaves(tree))


def test_a_parakeet_comes_back_bit_for_bit(parakeet):
    out, config, weights = parakeet
    params, stats, lines = load(out, config, weights, parts=("encoder", "ctc_head"))
    for name in ("encoder", "ctc_head"):
        assert_equal(params[name], weights.params[name])
    assert_equal(stats["encoder"], weights.stats["encoder"])
    assert is_untouched([params["cpc_head"], stats["features"]])
    sizes = (sum(x.size for x in jax.tree.leaves(params[k])) for k in ("encoder", "ctc_head"))
    assert lines == [
        f"init_from {out}: parameters: " + "encoder {:,}, ctc_head {:,}".format(*sizes),
        "init_from: cpc_head is initialised: not there",
    ]
    # and once more out of what was read in
    again, _, _ = load(out, config, Weights(params, stats), parts=("encoder", "ctc_head"))
    assert_equal(again, params | {"cpc_head": again["cpc_head"]})


@pytest.mark.slow
def test_a_pretrained_wav2vec2_brings_its_quantizer(for_pretraining):
    out, config, weights = for_pretraining
    params, _, lines = load(out, config, weights, parts=("encoder", "wav2vec2_head"))
    for name in ("encoder", "wav2vec2_head"):
        assert_equal(params[name], weights.params[name])
    assert is_untouched(params["ctc_head"])
    assert ", wav2vec2_head " in lines[0]
    assert lines[1:] == ["init_from: ctc_head is initialised: not there"]


def test_a_ctc_model_has_no_quantizer(for_ctc):
    out, config, weights = for_ctc
    with pytest.raises(UserError, match="Wav2Vec2ForCTC and Wav2Vec2Model files hold no quantizer"):
        load(out, config, weights)
    with pytest.raises(UserError, match=r"--config\.init_parts=encoder$"):
        load(out, config, weights, parts=("encoder", "wav2vec2_head"))
    params, _, _ = load(out, config, weights, method="supervised")
    assert_equal(params["encoder"], weights.params["encoder"])
    assert_equal(params["ctc_head"], weights.params["ctc_head"])
    assert is_untouched(params["wav2vec2_head"])


def test_a_ctc_head_of_other_units_is_refused_and_starts_fresh_unless_named(parakeet):
    out, config, weights = parakeet
    with pytest.raises(UserError, match=r"other units than this run.*init_parts=encoder$"):
        load(out, config, weights, OTHER, parts=("encoder", "ctc_head"))
    params, _, lines = load(out, config, weights, OTHER, parts=("encoder",))
    assert is_untouched(params["ctc_head"])
    assert lines[1:] == [
        "init_from: cpc_head is initialised: not there",
        "init_from: ctc_head is initialised: not in config.init_parts",
        "init_from: not taken: ctc_head",
    ]


def test_a_run_of_several_tasks_takes_the_encoder_alone(parakeet):
    out, config, weights = parakeet
    heads = {"encoder": weights.params["encoder"], "asr_en_head": weights.params["ctc_head"]}
    params, _, lines = load(out, config, weights._replace(params=heads), parts=("encoder",))
    assert_equal(params["encoder"], weights.params["encoder"])
    assert is_untouched(params["asr_en_head"])
    assert "init_from: asr_en_head is initialised: not there" in lines


def test_a_file_alone_is_read_by_the_config(for_pretraining, tmp_path):
    out, config, weights = for_pretraining
    path = tmp_path / "weights.safetensors"
    path.write_bytes((out / "model.safetensors").read_bytes())
    params, _, _ = load(path, config, weights, parts=("encoder", "wav2vec2_head"))
    assert_equal(params["encoder"], weights.params["encoder"])


def test_without_an_embedding_of_masked_frames_it_starts_fresh(for_pretraining, tmp_path):
    out, config, weights = for_pretraining
    found = tensors.read(out)
    del found["wav2vec2.masked_spec_embed"]
    tensors.write(tmp_path / "model.safetensors", found)
    params, _, lines = load(tmp_path, config, weights, parts=("encoder",))
    assert is_untouched(params["encoder"]["masked_embedding"])
    assert any("embedding of masked frames" in line for line in lines)


# Refusals


def test_the_flags_that_give_the_shape_are_named(parakeet, for_ctc):
    out, config, weights = parakeet
    other = config.copy_and_resolve_references()
    other.model.update(dim=96, norm="layer")
    other.features.n_mels = 80
    with pytest.raises(UserError) as error:
        load(out, other, weights)
    assert str(error.value).endswith(
        "give --config.model.dim=48 --config.model.norm=batch --config.features.n_mels=40"
    )
    with pytest.raises(UserError, match=r"needs config\.encoder=wav2vec2, not conformer"):
        load(for_ctc[0], config, weights)
    slower = config.copy_and_resolve_references()
    slower.data.sample_rate = 8000
    with pytest.raises(UserError, match=r"give --config\.data\.sample_rate=16000$"):
        load(out, slower, weights)
    tuples = for_ctc[1].copy_and_resolve_references()
    tuples.model.conv_dim = (32,) * 7
    with pytest.raises(UserError, match=r"--config\.model\.conv_dim='\(16, 16, 16, 16, 16"):
        load(for_ctc[0], tuples, for_ctc[2])


def test_waveforms_must_be_normalised_as_there(for_ctc):
    out, config, weights = for_ctc
    config = config.copy_and_resolve_references()
    config.model.normalise = not config.model.normalise
    with pytest.raises(UserError, match=r"give --config.model.normalise=(True|False)$"):
        load(out, config, weights)


def test_a_head_of_another_size(for_pretraining):
    out, config, weights = for_pretraining
    head = weights.params["wav2vec2_head"]
    head = {**head, "project_q": {"kernel": np.zeros((8, 9)), "bias": np.zeros(9)}}
    other = weights._replace(params={**weights.params, "wav2vec2_head": head})
    wrong = (
        r"wav2vec2_head/project_q/bias has shape \(12,\) there, \(9,\) here, and 1 more differ: "
        r"set the sizes in config\.wav2vec2$"
    )
    with pytest.raises(UserError, match=wrong):
        load(out, config, other, parts=("encoder", "wav2vec2_head"))


def test_missing_and_unexpected_tensors(for_ctc, tmp_path):
    out, config, weights = for_ctc
    (tmp_path / "config.json").write_bytes((out / "config.json").read_bytes())
    found = tensors.read(out)
    tensors.write(tmp_path / "model.safetensors", found | {"adapter.weight": np.zeros(2)})
    with pytest.raises(UserError, match=r"without a place in this model: adapter\.weight"):
        load(tmp_path, config, weights)
    del found["wav2vec2.encoder.layer_norm.bias"]
    tensors.write(tmp_path / "model.safetensors", found)
    with pytest.raises(UserError, match=r"lacks? wav2vec2\.encoder\.layer_norm\.bias"):
        load(tmp_path, config, weights)


def test_folders_that_are_no_model(parakeet, tmp_path):
    out, config, weights = parakeet
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load(tmp_path, config, weights)
    with pytest.raises(UserError, match=r"there is no checkpoint 'last': give .*@STEP or @best"):
        load(f"{tmp_path}@last", config, weights)
    with pytest.raises(UserError, match=r"is no run, which alone has checkpoints: leave out @best"):
        load(f"{out}@best", config, weights)
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(UserError, match="'whisper' is none of wav2vec2, parakeet_ctc"):
        load(tmp_path, config, weights)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path, config, weights)
    (tmp_path / "config.json").write_bytes((out / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        load(tmp_path, config, weights)
    (tmp_path / "model.safetensors").write_bytes(b"\x07" * 40)
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path, config, weights)
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "other.safetensors", config, weights)


# Files


def test_shards_are_joined_and_stay_in_their_folder(tmp_path):
    tensors.write(tmp_path / "one.safetensors", {"a": np.ones(2, np.float32)})
    tensors.write(tmp_path / "two.safetensors", {"b": np.zeros((), np.int64)})
    index = tmp_path / tensors.INDEX
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    found = tensors.read(tmp_path)
    assert (found["a"].tolist(), found["b"].shape) == ([1, 1], ())
    index.write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}))
    with pytest.raises(UserError, match="outside its folder"):
        tensors.read(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "three.safetensors"}}))
    with pytest.raises(UserError, match=r"three\.safetensors is missing"):
        tensors.read(tmp_path)


def test_half_precision_becomes_float32(tmp_path):
    """bfloat16 is the upper half of a float32."""
    values = np.array([1.0, -2.5, 0.0], np.float32)
    halves = {"a": ("BF16", (values.view(np.uint32) >> 16).astype(np.uint16))}
    halves |= {"b": ("F16", values.astype(np.float16))}
    header, data = {}, b""
    for name, (dtype, array) in halves.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": [3], "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path = tmp_path / "half.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    found = tensors.read(path)
    for name in "ab":
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values)


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"is a pickle.*config\.init_from_pickle=True"):
        tensors.read(tmp_path)
