"""Runs that start from another run, from one of its checkpoints, or from what it exports.

The laws hold for each encoder and each format of `export_checkpoint`: arrays come back bit for bit.
"""

import functools
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from bljust_jax import export_checkpoint, recipes
from bljust_jax.bilevel.types import TrainState, Weights
from bljust_jax.checkpoint.manager import Checkpoints
from bljust_jax.common.errors import UserError
from bljust_jax.data import tokenizer_files
from bljust_jax.data.tokenizer import CharTokenizer
from bljust_jax.export import tensors
from bljust_jax.train import init_from
from configs import birq, m2asr
from tests.helpers import runs
from tests.helpers.checkpoints import flip


def lstm(c):
    runs.cnn_rnn(c)
    c.model.kind = "lstm"


def batch_norm(c):
    """A torch folder with running moments."""
    c.model.norm = "batch"


def causal_batch_norm(c):
    """Stored statistics of features, and a head of BEST-RQ with its codebook."""
    runs.causal(c)
    c.update(ssl="best_rq")
    c.best_rq.codes = 6


ONE = {"labelled": runs.CHARACTERS}
EXPORTS = [
    *((change, ()) for change in (runs.plain, runs.causal, batch_norm, runs.cnn_rnn, lstm)),
    *((change, ()) for change in (runs.parakeet, runs.wav2vec2, runs.base)),
    (runs.wav2vec2, ("--pretraining",)),
]


def recipe_of(config, sizes):
    facts = recipes.Facts(sizes, dict.fromkeys((*sizes, "unlabelled"), 1))
    return recipes.load(config.recipe)(config, facts)


@functools.cache
def shapes(config, sizes):
    """(params, frozen, stats) of a config in JSON, {stream: vocabulary size} in a tuple."""
    recipe = recipe_of(ConfigDict(json.loads(config)), dict(sizes))
    return jax.eval_shape(lambda: recipe.init(jax.random.key(0)))


def draw(config, tokenizers, seed):
    """A state of a run whose numbers are of `seed`; EMA and parameters differ."""
    rng = np.random.default_rng(seed)
    sizes = tuple((stream, units.vocab_size) for stream, units in tokenizers.items())
    params, frozen, stats = jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes(config.to_json(), sizes)
    )
    ema = jax.tree.map(lambda x: x + 1, params)
    return TrainState(np.int32(seed), params, {"none": np.zeros(1)}, ema, frozen, stats)


def save_run(folder, config, tokenizers, steps=(3,)):
    """What training leaves of a run with a checkpoint at each of `steps`: {step: its state}. The
    best weights are those of step 0."""
    states = {step: draw(config, tokenizers, step) for step in steps}
    best = draw(config, tokenizers, 0).weights
    folder.mkdir(exist_ok=True)
    tokenizer_files.save(folder, tokenizers)
    checkpoints = Checkpoints(folder, keep=len(steps))
    for step, state in states.items():
        checkpoints.save(step, state, best, {})
    checkpoints.close()
    (folder / "config.json").write_text(config.to_json())
    return best, states


def start(given, config, parts=("encoder",), units=None, **changes):
    """(state, log lines) of a run that starts from `given`; its own numbers are of seed 99."""
    config = config.copy_and_resolve_references()
    config.update(init_from=str(given), init_parts=parts)
    config.update_from_flattened_dict(changes)
    units = units or ONE
    recipe = recipe_of(config, {stream: own.vocab_size for stream, own in units.items()})
    state = fresh(config, units)
    source = init_from.open_source(config, state)
    after, lines = init_from.take(source, config, recipe, units, state)
    assert_equal(after.ema, after.params)
    assert after.opt_state is state.opt_state
    assert after.step is state.step
    return after, lines


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def fresh(config, units=None):
    """The initial state of the runs that `start` begins."""
    like = config.copy_and_resolve_references()
    like.update(init_from="", init_parts=("encoder",))
    return draw(like, units or ONE, 99)


def is_initialised(state, config, part, units=None):
    assert_equal(state.params[part], fresh(config, units).params[part])
    return True


@pytest.mark.daily("plain-*", "wav2vec2-flags6")
@pytest.mark.parametrize(("change", "flags"), EXPORTS)
def test_an_export_gives_back_encoder_head_and_statistics(change, flags, tmp_path):
    config = runs.make_config(change)
    best, _ = save_run(tmp_path / "run", config, ONE)
    out = tmp_path / "out"
    command = [f"--workdir={tmp_path / 'run'}", f"--out={out}", "--unchecked", *flags]
    assert export_checkpoint.main(command) == 0
    head = "wav2vec2_head" if flags else "ctc_head"
    state, lines = start(out, config, ("encoder", head))
    for part in ("encoder", head):
        assert_equal(state.params[part], best.params[part])
    written = {"encoder"} | ({"features"} if config.ctc.context == "causal" else set())
    for name, own in state.stats.items():
        expected = best.stats if name in written else fresh(config).stats
        assert_equal(own, expected[name])
    others = state.params.keys() - {"encoder", head}
    assert {line for line in lines if "not there" in line} == {
        f"init_from: {part} is initialised: not there" for part in others
    }
    assert all(is_initialised(state, config, part) for part in others)
    state, lines = start(out, config)
    assert is_initialised(state, config, head)
    assert f"init_from: {head} is initialised: not in config.init_parts" in lines
    assert f"init_from: not taken: {head}" in lines


@pytest.mark.daily("lstm")
@pytest.mark.parametrize("change", [causal_batch_norm, runs.parakeet, runs.wav2vec2, lstm])
def test_a_run_gives_its_best_weights_or_the_averaged_ones_of_a_step(change, tmp_path):
    config = runs.make_config(change)
    best, states = save_run(tmp_path, config, ONE, steps=(3, 5))
    for given, weights in (
        (tmp_path, best),
        (f"{tmp_path}@best", best),
        (f"{tmp_path}@3", states[3].weights),
        (f"{tmp_path}@5", states[5].weights),
    ):
        state, lines = start(given, config, ("all",))
        assert_equal(Weights(state.params, state.stats), weights)
        # what defines the targets of a head comes along
        assert_equal(state.frozen, states[5 if weights is best else weights_step(given)].frozen)
        assert len(lines) == 1
        at = f"step {weights_step(given)}" if weights is not best else "the best weights up to step"
        assert lines[0].startswith(f"init_from {tmp_path}, {at}")
    state, _ = start(f"{tmp_path}@3", config)
    assert_equal(state.params["encoder"], states[3].ema["encoder"])
    assert_equal(state.stats, states[3].stats)
    assert_equal(state.frozen, fresh(config).frozen)


def weights_step(given):
    return int(str(given).rpartition("@")[2])


@pytest.mark.slow
def test_codebooks_come_with_the_head_that_predicts_them(tmp_path):
    config, units = birq.get_config("smoke"), ONE
    _, states = save_run(tmp_path, config, units)
    head = next(k for k in states[3].params if k not in ("encoder", "ctc_head"))
    state, lines = start(tmp_path, config, ("encoder", head))
    assert_equal(state.frozen, states[3].frozen)
    assert lines[1:] == [
        "init_from: ctc_head is initialised: not in config.init_parts",
        "init_from: not taken: ctc_head",
    ]
    wrong = r"birq/anchor/codebook has shape .* there, .* here.*: set the sizes in config\.best_rq$"
    with pytest.raises(UserError, match=wrong):
        start(tmp_path, config, ("encoder", head), **{"best_rq.code_dim": 3})


@pytest.mark.slow
def test_a_run_of_several_tasks_gives_its_heads_by_name(tmp_path):
    """A translation decoder needs the same units, as a CTC head does."""
    config = m2asr.get_config("digits,smoke")
    units = dict.fromkeys(config.data.streams, CharTokenizer(" ab", ()))
    best, _ = save_run(tmp_path, config, units)
    heads = ("asr_en_head", "st_ar-en_head")
    state, lines = start(tmp_path, config, ("encoder", *heads), units)
    for part in ("encoder", *heads):
        assert_equal(state.params[part], best.params[part])
    assert all(
        is_initialised(state, config, part, units)
        for part in state.params.keys() - {"encoder", *heads}
    )
    assert "asr_ar_head" in lines[-1]
    other = {**units, "st/ar-en": CharTokenizer(" ac", ())}
    with pytest.raises(UserError, match=r"st_ar-en_head .*has other units.*=encoder,asr_en_head$"):
        start(tmp_path, config, ("encoder", *heads), other)


@pytest.mark.daily("st/ar-en")
@pytest.mark.parametrize("task", ["asr/en", "st/ar-en"])
def test_the_export_of_a_task_gives_its_head_back_under_its_name(task, tmp_path):
    """To the run of several tasks that it is of, with the same units, and to a run of one; a
    translation by a linear head as recognition."""
    config = m2asr.get_config("digits,linear,smoke")
    units = dict.fromkeys(config.data.streams, CharTokenizer(" ab", ()))
    best, _ = save_run(tmp_path / "run", config, units)
    out, head = tmp_path / "out", f"{task.replace('/', '_')}_head"
    command = [f"--workdir={tmp_path / 'run'}", f"--task={task}", f"--out={out}", "--unchecked"]
    assert export_checkpoint.main(command) == 0
    state, lines = start(out, config, ("encoder", head), units)
    for part in ("encoder", head):
        assert_equal(state.params[part], best.params[part])
    assert f", {head} " in lines[0]
    assert is_initialised(state, config, "asr_ar_head", units)
    other = {**units, task: CharTokenizer(" ac", ())}
    with pytest.raises(UserError, match=rf"{head} of .* has other units than this run"):
        start(out, config, ("encoder", head), other)
    with pytest.raises(UserError, match=r"lacks asr_ar_head, asr_en_head, it has enc"):
        start(out, config, ("encoder", "asr_ar_head", "asr_en_head"), units)
    one = runs.make_config(lambda c: c.update(encoder=config.encoder, model=config.model))
    one.features = config.features
    state, _ = start(out, one, ("encoder", "ctc_head"), {"labelled": CharTokenizer(" ab", ())})
    assert_equal(state.params["ctc_head"], best.params[head])


@pytest.mark.slow
def test_what_a_run_cannot_give_is_refused_in_one_line(tmp_path):
    config = runs.make_config(runs.plain)
    save_run(tmp_path / "run", config, ONE, steps=(3, 5))
    run = tmp_path / "run"
    for given, parts, changes, words in (
        (f"{run}@4", ("encoder",), {}, "has no checkpoint 4: there are 3, 5"),
        (run, ("encoder", "ctc_hed"), {}, "no part 'ctc_hed', did you mean 'ctc_head'"),
        (tmp_path / "gone", ("encoder",), {}, "gone does not exist: give the workdir of a run"),
        (run, ("encoder",), {"model.dim": 24}, "here model.dim=24; give --config.model.dim=48"),
        (
            run,
            ("encoder",),
            {"features.hop": 80, "data.sample_rate": 8000},
            "give --config.data.sample_rate=16000 --config.features.hop=160",
        ),
        (run, ("encoder",), {"model.positions": "rope"}, "give --config.model.positions=relative"),
        (run, ("all",), {"cpc.width": 7}, ": set the sizes in config.cpc"),
        (
            run,
            ("all",),
            {"ssl": "best_rq"},
            "lacks best_rq_head, it has encoder, cpc_head, ctc_head; or",
        ),
        (run, ("all",), {"units": 1}, "ctc_head of"),
    ):
        units = {"labelled": CharTokenizer(" abc", ())} if changes.pop("units", 0) else None
        with pytest.raises(UserError) as error:
            start(given, config, parts, units, **changes)
        assert words in str(error.value)
        assert str(error.value).startswith("config.init_")
        assert "\n" not in str(error.value)
    changed = {"window": 8}, {"dropout": 0.3}, {"subsampling_factor": 4}, {"attention": "xla"}
    for ((name, value),) in map(dict.items, changed):
        start(run, config, **{f"model.{name}": value})


def test_another_encoder_is_named(tmp_path):
    save_run(tmp_path, runs.make_config(runs.plain), ONE)
    with pytest.raises(UserError, match=r"it needs config\.encoder=conformer, not cnn_rnn$"):
        start(tmp_path, runs.make_config(lstm))


@pytest.mark.slow
def test_damage_is_named(tmp_path):
    """A changed bit of a checkpoint, a run without one, a torch folder that was cut short."""
    config, units = runs.make_config(runs.plain), ONE
    save_run(tmp_path / "run", config, units, steps=(3, 5))
    run, out = tmp_path / "run", tmp_path / "out"
    assert export_checkpoint.main([f"--workdir={run}", f"--out={out}", "--unchecked"]) == 0
    state = run / "checkpoints" / "3" / "state"
    flip(max((p for p in state.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size), 99)
    with pytest.raises(UserError, match=r"checkpoints/3 is damaged: state/.* was changed or cut"):
        start(f"{run}@3", config)
    start(f"{run}@5", config)
    about = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({k: about[k] for k in ("model_type", "encoder")}))
    with pytest.raises(UserError, match=r"config\.json is damaged: KeyError\('sample_rate'\); ex"):
        start(out, config)
    (out / "config.json").write_text(json.dumps(about))
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors is no safetensors file, or damaged"):
        start(out, config)
    (run / "config.json").write_text('{"recipe": "bljust", "encoder": "conformer"}')
    with pytest.raises(UserError, match=r"config\.json is damaged: KeyError\('data'\); restore it"):
        start(run, config)
    (run / "config.json").write_text("[]")
    with pytest.raises(UserError, match="is damaged: it holds no JSON object"):
        start(run, config)


@pytest.mark.slow
def test_tensors_that_a_torch_folder_lacks_or_has_too_many(tmp_path):
    config, units = runs.make_config(batch_norm), ONE
    save_run(tmp_path / "run", config, units)
    out = tmp_path / "out"
    command = [f"--workdir={tmp_path / 'run'}", f"--out={out}", "--unchecked"]
    assert export_checkpoint.main(command) == 0
    whole = tensors.read(out)
    moment = "encoder.blocks.1.conv.norm.running_mean"
    for changed, words in (
        ({k: v for k, v in whole.items() if k != moment}, f"lack {moment}"),
        (whole | {"adapter.weight": np.zeros(2, np.float32)}, "a place in this model: adapter."),
        (whole | {moment: np.zeros(3, np.float32)}, r"running_mean has shape (3,), the config say"),
    ):
        tensors.write(out / "model.safetensors", changed)
        with pytest.raises(UserError) as error:
            start(out, config)
        assert words in str(error.value)
