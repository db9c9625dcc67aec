"""Training end to end: every config shrunk, every method, killed and resumed."""

import json
import pathlib
import re
import signal

import numpy as np
import pytest

from bljust_jax import main, recipes
from bljust_jax.common.errors import UserError
from bljust_jax.monitoring import metrics
from bljust_jax.train import loop
from bljust_jax.train.workdir import check_config, config_hash, write_config
from configs import birq, librispeech, m2asr, manifest, quickstart, variants
from tests.helpers.own_warnings import own_messages
from tests.helpers.processes import finish, launch_quickstart, wait_for_step
from tests.helpers.systems import FACTS
from tests.helpers.training_configs import CONFIGS, shorten
from tests.helpers.workdirs import arrays, rows_without_perf

ROOT = pathlib.Path(__file__).resolve().parents[2]


# The others take a method, or a way through the loop, that laws and the table of phases show daily.
DAILY = "quickstart-one_length"


def flops_of_bljust(config):
    """FLOPs of method bljust of a config, and of its largest step: batches of one shape."""
    config = config.copy_and_resolve_references()
    config.method = "bljust"
    recipe = recipes.load(config.recipe)(config, FACTS)
    spent = recipes.step_flops(config, FACTS, recipe.objectives)
    steps = [spent(phase.losses) for phase in recipe.phases for _ in range(phase.steps)]
    return sum(steps), max(steps)


@pytest.mark.daily(DAILY)
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_config_trains(name, tmp_path, capsys, compiled):
    config = shorten(CONFIGS[name]())
    final = loop.run(config, tmp_path)
    rows = metrics.read(tmp_path / "metrics.jsonl")
    method = config.method
    budget, step = flops_of_bljust(config)
    assert abs(1e12 * final["compute/tflop"] - budget) <= step, "equal compute, to one step"
    assert np.isfinite(final["test/wer"])
    assert np.isfinite(final["raw/test/wer"])
    assert final["dev/utterances"] == 8
    assert final["step"] == rows[-1]["step"]
    losses = [r["train/ctc/loss"] for r in rows if "train/ctc/loss" in r]
    # of the outputs at the start, most of it is the number of frames: 12 steps take a quarter;
    # test_old_workdir.py has the values of a trained run, test_healthy_runs.py 600 steps of each
    assert losses[-1] < (0.8 if name == DAILY else 1.0) * losses[0]
    penalties = [r["penalty/1"] for r in rows if "penalty/1" in r]
    if method == "bljust":
        assert penalties[0] < penalties[-1]
        assert any(f"moo/cos/ctc|{config.ssl}" in r for r in rows) == (
            config.gradients == "separate"
        )
    elif method == "weighted_sum":
        assert set(np.round(penalties, 6)) == {round(config.penalty.constant, 6)}
    else:
        assert not penalties
    for made in ("config.json", "tokenizer.json", "run.json", "tb", "samples/test-best.jsonl"):
        assert (tmp_path / made).exists(), made
    assert "encoder TFLOP" in (tmp_path / "report.md").read_text()
    assert {p.name for p in (tmp_path / "plots").iterdir()} >= {"losses.png", "alignment.png"}
    phases = {p["name"] for p in json.loads((tmp_path / "run.json").read_text())["phases"]}
    buckets = len(config.data.buckets)
    programs = sum("train_step" in program for program in compiled)
    shared = method in ("bljust", "weighted_sum") and not config.share_forward
    most = buckets * (1 if shared else len(phases))
    assert programs == max(r.get("perf/compiles", 0) for r in rows) <= most
    assert sum("best_paths" in program for program in compiled) <= buckets
    err = capsys.readouterr().err
    assert "phase" in err
    assert re.search(r"\d training programs?: \d batch shapes? of phases? ", err)
    assert re.search(r"program 1 of \d \(.*\): \d+ s; \d+ MiB of [\d.]+ [GM]iB memory", err)
    assert "resumed" not in err


@pytest.mark.slow  # daily: a step of its two levels, tests/recipes/test_birq.py
def test_birq_trains_and_tells_of_its_codebooks(tmp_path):
    config = birq.get_config("smoke")
    config.phases.update(pretrain=6, finetune=6)
    config.update(eval_every=6, save_every=6, log_every=3, compile_cache="")
    config.mesh.data = 1
    final = loop.run(config, tmp_path)
    rows = metrics.read(tmp_path / "metrics.jsonl")
    assert final["compute/updates/anchor"] == final["compute/updates/enhanced"] == 6
    assert final["compute/updates/ctc"] == 6
    assert np.isfinite(final["test/wer"])
    (one, two) = [r for r in rows if "train/enhanced/loss" in r]
    for name in ("anchor", "enhanced"):
        assert 1 < one[f"codebook/{name}/perplexity"] <= config.best_rq.codes
        assert 0 < two[f"codebook/{name}/share"] <= 1
    assert 0 <= one["birq/agreement"] <= 1
    assert (tmp_path / "plots" / "codebooks.png").exists()


@pytest.mark.slow
def test_explore_every_epoch_interleaves_without_restarting_the_penalty(tmp_path):
    config = shorten(quickstart.get_config("smoke"))
    config.phases.update(explore=4, joint=8, explore_when="every_epoch")
    config.data.labelled_fraction = 0.5
    config.log_every = 1
    loop.run(config, tmp_path)
    rows = [r for r in metrics.read(tmp_path / "metrics.jsonl") if "train/skipped" in r]
    kinds = [
        "joint" if "penalty/1" in r else "cpc" if "train/cpc/loss" in r else "ctc" for r in rows
    ]
    assert kinds.index("joint") < len(kinds) - 1 - kinds[::-1].index("cpc"), "exploration returns"
    penalties = [r["penalty/1"] for r in rows if "penalty/1" in r]
    np.testing.assert_allclose(penalties, [min(0.05 * k, 0.3) for k in range(8)], atol=1e-6)


# Killed and resumed, in processes of their own


# daily: the same in one process, tests/train/test_loop.py; a save killed, tests/faults/test_kill.py
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # orbax warns of restoring without a target
def test_killed_and_resumed_equals_unbroken(tmp_path):
    """SIGTERM, then kill -9 between two saves, then run again: parameters, optimizer state and all
    metrics but perf/* are those of an unbroken run, bit for bit."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    first = launch_quickstart(whole)
    code, out, err = finish(first)
    assert code == 0, err
    last_line = json.loads(out.splitlines()[-1])

    process = launch_quickstart(broken)
    wait_for_step(process, broken, 3)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 75, err
    assert not out

    at = 11
    process = launch_quickstart(broken)
    wait_for_step(process, broken, at)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL, "it was gone before it could be killed"

    code, out, err = finish(launch_quickstart(broken))
    assert code == 0, err
    assert "resumed from step" in err
    assert json.loads(out.splitlines()[-1]) == last_line, f"killed at step {at}"
    assert rows_without_perf(broken) == rows_without_perf(whole), f"killed at step {at}"
    assert arrays(broken) == arrays(whole), f"killed at step {at}"
    for name in ("dev-best.jsonl", "test-best.jsonl"):
        pair = [(w / "samples" / name).read_bytes() for w in (whole, broken)]
        assert pair[0] == pair[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("phases.unit", "steps"),
        ("lr.joint.shape", "cosin"),
        ("gradients", "fuse"),
        ("cpc.context", "full"),
        ("penalty.start", 2.0),
        ("cpc.temperature", 0.0),
        ("recipe", "bljsut"),
        ("log_every", 0),
        ("keep_every", 12),
        ("on_full_disk", "ignore"),
        ("data.dev", ""),
    ],
)
def test_wrong_fields_are_named(field, value, tmp_path):
    config = shorten(quickstart.get_config("smoke"))
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=field.split(".")[-1]):
        loop.run(config, tmp_path)


def test_a_workdir_of_another_config_is_refused_with_the_difference(tmp_path, caplog):
    config = shorten(quickstart.get_config("smoke"))
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    config.seed = 7
    config.data.num_threads += 1
    with pytest.raises(UserError, match=r"\(seed 0 -> 7\).* --allow_config_change"):
        loop.run(config, tmp_path)
    check_config(config, tmp_path, allow_change=True)
    (line,) = own_messages(caplog)
    assert line.endswith("another config (seed 0 -> 7); training resumes with the new one")


def test_a_config_has_a_hash_of_what_changes_a_number():
    config = shorten(quickstart.get_config("smoke"))
    before = config_hash(config)
    assert re.fullmatch("[0-9a-f]{12}", before)
    config.update(keep=7, save_minutes=3.0)
    assert config_hash(config) == before
    config.seed = 7
    assert config_hash(config) != before


def test_a_workdir_goes_on_with_the_text_model_that_its_run_learned(tmp_path):
    config = shorten(quickstart.get_config("smoke"))
    config.data.text.sha256 = "learned"
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    for given in ("", "learned"):
        config.data.text.sha256 = given
        check_config(config, tmp_path)
    config.data.text.sha256 = "another"
    with pytest.raises(UserError, match=r"\(data.text.sha256 'learned' -> 'another'\)"):
        check_config(config, tmp_path)


def test_a_workdir_goes_on_with_the_lengths_that_its_run_chose(tmp_path):
    """`data.num_buckets` replaces data.buckets in config.json, and those of streams."""
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    for config, stream in ((quickstart.get_config("smoke"), ""), (m2asr.get_config(), "asr/en")):
        config.data.num_buckets = 2
        name = stream or "labelled"
        write_config(config, tmp_path, {}, {name: (1.5, 3.5)})
        saved = json.loads((tmp_path / "config.json").read_text())["data"]
        assert saved["streams"].get(stream, saved)["buckets"] == [1.5, 3.5]
        check_config(config, tmp_path)
        config.data.num_buckets = 0
        with pytest.raises(UserError, match="buckets"):
            check_config(config, tmp_path)
        config.data.num_buckets = 2
        config.data.batch_seconds = 1.0
        with pytest.raises(UserError, match=r"\(data.batch_seconds .* -> 1.0\)"):
            check_config(config, tmp_path)


def test_the_text_models_of_streams_go_on_too(tmp_path):
    config = m2asr.get_config("smoke")
    text = config.data.streams["asr/en"].text
    text.sha256 = "learned"
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    for given in ("", "learned"):
        text.sha256 = given
        check_config(config, tmp_path)
    config.data.streams["asr/zh"].measure = "wer"
    with pytest.raises(UserError, match=r"\(data.streams.asr/zh.measure 'cer' -> 'wer'\)"):
        check_config(config, tmp_path)


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections loads configs by it
def test_the_default_workdir_is_named_after_config_and_variants():
    config, workdir = main.parse(["main", f"--config={ROOT}/configs/quickstart.py:ptft,smoke"])
    assert workdir == pathlib.Path("runs/quickstart-ptft-smoke")
    assert config.method == "ptft"


def test_every_config_takes_smoke_and_overfit():
    for module in (quickstart, manifest, librispeech):
        for variant in ("smoke", "overfit"):
            config = module.get_config(variant)
            assert config.data.train.startswith("synthetic:")
        config = module.get_config("smoke")
        total = config.phases.explore + config.phases.joint + config.phases.finetune
        assert total // config.save_every >= 8
        assert config.keep == 3
    with pytest.raises(ValueError, match="did you mean 'overfit'"):
        quickstart.get_config("overfitt")
    assert set(variants.METHODS) <= set(variants.COMMON)
