"""What the benchmark reports is what was measured: timing, ratios, errors, keys, the command."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from bljust_jax import bench as command
from bljust_jax.benchmarks import ctc, input, step, torch_peer
from bljust_jax.benchmarks.interleave import MIB, MIN_SECONDS, interleave, ratios, table
from bljust_jax.common import cli
from bljust_jax.common.errors import UserError
from bljust_jax.models.encoders import conformer
from bljust_jax.ops.log_mel import frame_count

MICRO = ctc.Shape(2, 12, 3, 5)


def quiet(line):
    assert isinstance(line, str)


class Clock:
    """Time that passes only where a run says so."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def run(self, name, seconds):
        steps = iter(seconds)

        def call():
            self.calls.append(name)
            self.now += next(steps)

        return call


def test_rounds_alternate_and_warm_up_is_not_counted():
    clock = Clock()
    runs = {"a": clock.run("a", [90, 9, 2, 1, 4]), "b": clock.run("b", [50, 5, 8, 6, 7])}
    times = interleave(runs, 3, quiet, clock)
    assert clock.calls == ["a", "a", "b", "b", *["a", "b"] * 3]
    assert times == {"a": {"min_s": 1, "median_s": 2}, "b": {"min_s": 6, "median_s": 7}}


def test_short_runs_are_repeated_and_reported_a_call():
    clock = Clock()
    runs = {"a": clock.run("a", [1.0] + [MIN_SECONDS / 4] * 9)}
    times = interleave(runs, 2, quiet, clock)
    assert len(clock.calls) == 2 + 2 * 4
    assert times["a"]["min_s"] == pytest.approx(MIN_SECONDS / 4)
    with pytest.raises(ValueError, match="rounds=0"):
        interleave(runs, 0, quiet, clock)


def test_ratios_are_of_sums_by_minima_and_medians():
    times = {
        "joint": {"min_s": 3.0, "median_s": 9.0},
        "one": {"min_s": 2.0, "median_s": 4.0},
        "two": {"min_s": 4.0, "median_s": 2.0},
    }
    assert ratios(times, ["joint"], ["one", "two"]) == {"min": 0.5, "median": 1.5}


def test_a_table_is_aligned_and_marks_what_is_absent():
    text = table([{"": "a", "s": 1.23456, "n": None}, {"": "long", "s": 2e-9, "n": "7 M"}])
    assert text.splitlines() == ["          s    n", "a      1.23    -", "long  2e-09  7 M"]


def test_optax_and_ours_agree_with_float64_on_padded_rows():
    """The peer is called rightly: lengths, not paddings; a wrong call is off by whole nats."""
    task = ctc.make_task(MICRO)._replace(
        logit_lengths=np.array([12, 9], np.int32), label_lengths=np.array([3, 2], np.int32)
    )
    expected = ctc.exact(task)
    assert expected[0].dtype == expected[1].dtype == np.float64
    assert not np.any(expected[1][1, 9:])
    for loss in (ctc.optax_loss, ctc.ctc_loss):
        found = ctc.errors(ctc.jax_contender(loss, task), expected)
        assert found["loss_error"] < 1e-6  # float32 rounding of a loss of some 10 nats
        assert found["gradient_error"] < 1e-5


def test_errors_are_the_largest_ones():
    expected = np.array([2.0, 4.0]), np.zeros((2, 3, 4))
    gradient = np.zeros((2, 3, 4))
    gradient[1, 2, 3] = -0.5
    found = ctc.errors(ctc.Contender(lambda: (np.array([2.0, 5.0]), gradient), None), expected)
    assert found == {"loss_error": 0.25, "gradient_error": 0.5}


def test_auto_is_set_against_each_peer():
    row = {"median_s": 1.0}
    rows = {
        "auto": row | {"min_s": 2.0, "temporary_mib": 1.0},
        "scan": row | {"min_s": 1.0, "temporary_mib": 3.0},
        "optax": row | {"min_s": 6.0, "temporary_mib": 4.0},
        "torch": row | {"min_s": 8.0, "temporary_mib": None},
    }
    found = ctc.compare(rows, ("auto", "scan"))
    assert {peer: r["min"] for peer, r in found["times_faster"].items()} == {"optax": 3, "torch": 4}
    assert found["memory_over_optax"] == 0.25


def test_the_command_prints_tables_and_writes_json(tmp_path, capsys):
    arguments = ["ctc", "--shapes", ",".join(map(str, MICRO)), "--rounds", "1"]
    assert command.main([*arguments, "--json", str(tmp_path)]) == cli.DONE
    printed = capsys.readouterr()
    assert "CTC value and gradient, 2 x 12 frames, 3 labels, 5 classes" in printed.out
    assert all(len(line) <= 100 for line in printed.out.splitlines())
    assert "round 1 of 1" in printed.err
    (path,) = tmp_path.iterdir()
    results = json.loads(path.read_text())
    assert path.name == f"{results['machine']['device']}.json"
    assert results["machine"]["packages"]["jax"] == jax.__version__
    (case,) = results["ctc"]["shapes"]
    peers = {"optax"} if torch_peer.absent("torch") else {"optax", "torch"}
    assert set(case["rows"]) == {"auto", "scan", "one_scan"} | peers
    assert set(case["times_faster"]) == peers
    assert case["notes"] == [note for note in [torch_peer.absent("torch")] if note]
    for row in case["rows"].values():
        assert 0 < row["min_s"] <= row["median_s"]
        assert row["gradient_error"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ctx"], "invalid choice: 'ctx'"),
        (["ctc", "--shapes", "1,2,3"], "'1,2,3' is not four numbers"),
        (["ctc", "--shapes", "2,8,12,5"], "--shapes 2,8,12,5: want FRAMES >= 2 LABELS"),
        (["step", "--shapes", "2,8,18,5"], "dim=18"),
        (["ctc", "step", "--shapes", "2,8,4,5"], "name one of them"),
        (["ctc", "--rounds", "0"], "--rounds 0"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    assert command.main(arguments) == cli.USER_ERROR
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    assert end.value.code == 0
    assert "--rounds" in capsys.readouterr().out


@pytest.mark.slow
def test_it_runs_where_the_data_layer_is_absent():
    """ctc needs no flax either."""
    data = ["grain", "tensorflow_datasets", "soundfile", "soxr", "sentencepiece"]
    rest = ["jiwer", "sacrebleu", "tensorboardX", "orbax", "matplotlib"]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({data + rest + ['flax']}))\n"
        "import bljust_jax.bench, bljust_jax.benchmarks.ctc\n"
        "del sys.modules['flax']\n"
        "import bljust_jax.benchmarks.step\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=pathlib.Path(command.__file__).parents[1]
    )


def program(seconds, temporaries=0, skipped=0.0):
    metrics = {"train/skipped": (skipped, 1.0)}
    return step.Program(lambda: metrics, temporaries, 100, 4e9, 7), {
        "min_s": seconds,
        "median_s": 2 * seconds,
    }


def test_flops_a_second_and_a_skipped_step():
    fine, times = program(2.0, temporaries=3 * MIB)
    row = step.report({"ours": fine}, {"ours": times}, "float32")["ours"]
    assert row["gflop_per_s"] == 2.0
    assert row["temporary_mib"] == 3.0
    assert row["mfu"] is None  # no peak is known of a CPU
    assert row["gflop_per_cpu_s"] > 0
    assert row["product_share"] > 0
    broken, times = program(2.0, skipped=1.0)
    with pytest.raises(RuntimeError, match="not finite"):
        step.report({"ours": broken}, {"ours": times}, "float32")


def test_hours_for_an_epoch_follow_from_the_audio_per_second():
    """64 rows of 16 s in two streams per 0.374 s, on one H200: 960 h of audio in 0.175 h."""
    made = program(0.374)[0]._replace(audio=2 * 64 * 16.0, bytes=8.83e11)
    row = step.report({"ours": made}, {"ours": program(0.374)[1]}, "float32")["ours"]
    assert row["audio_s_per_s"] == pytest.approx(5476, rel=1e-3)
    assert row["epoch_hours"] == pytest.approx(0.1753, rel=1e-3)
    assert row["gb"] == pytest.approx(883)


def test_a_peer_that_cannot_run_has_a_line(monkeypatch):
    monkeypatch.setattr(torch_peer.importlib.util, "find_spec", lambda name: None)
    config = step.make_config(step.Shape(2, 1, 16, 1), "float32", method="supervised")
    for name, other in (("torch compiled", "transformers"), ("speechbrain", "speechbrain")):
        reason = step.make_peer(name, config, {})
        assert reason == f"peer absent: torch, {other} not installed"
    monkeypatch.setattr(torch_peer.shutil, "which", lambda name: None)
    assert "needs a C++ compiler" in torch_peer.no_compiler("torch compiled")
    assert not torch_peer.no_compiler("torch")


def test_mfu_is_of_the_devices_peak(monkeypatch):
    monkeypatch.setattr(
        jax, "devices", lambda: [type("Device", (), {"device_kind": "NVIDIA H200"})]
    )
    fine, times = program(2.0)
    row = step.report({"ours": fine}, {"ours": times}, "bfloat16")["ours"]
    assert row["mfu"] == pytest.approx(2e9 / 989e12)


def test_the_memory_of_two_objectives_leaves_gradient_trees_out():
    """(500 - 2 x 100) over max(300 - 100, 250 - 100)."""
    made = [program(1.0, temporaries)[0] for temporaries in (500, 300, 250)]
    assert step.memory_ratio(*made) == 1.5


def test_joint_and_shared_are_set_against_their_own_singles(monkeypatch):
    """Each program says what it is, and takes 1, 2, 3, ... s in the order of its making."""
    asked, made = [], iter(range(1, 9))

    def compile_step(config, phase, batch, say):
        asked.append((phase, config.ctc.context, config.share_forward))
        return program(0.0, 1000 * next(made))[0]

    monkeypatch.setattr(step, "compile_step", compile_step)
    monkeypatch.setattr(
        step,
        "interleave",
        lambda runs, n, say: {
            name: {"min_s": float(k), "median_s": 1.0} for k, name in enumerate(runs, start=1)
        },
    )
    result = step.bilevel(step.Shape(1, 1, 16, 1), "float32", 3, quiet)
    assert asked == [
        ("joint", "full", False),
        ("joint", "causal", True),
        ("explore", "full", False),
        ("finetune", "full", False),
        ("finetune", "causal", False),
    ]
    assert result["joint_over_singles"]["min"] == 1 / (3 + 4)
    assert result["shared_over_singles"]["min"] == 2 / (3 + 5)
    assert result["joint_memory_over_single"] == (1000 - 200) / (4000 - 100)
    at = {"shape": step.Shape(1, 1, 16, 1)._asdict(), "dtype": "float32", "bilevel": result}
    at["supervised"] = {"rows": {"ours": result["rows"]["joint"]}, "notes": ["peer absent: torch"]}
    lines = "\n".join(step.describe(at)).splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert "peer absent: torch" in lines
    assert any(line.startswith("time of joint / (explore + finetune): 0.143") for line in lines)


@pytest.mark.slow
def test_a_compiled_step_trains():
    """The program is a real step: its state moves on, its cost is the recipe's."""
    shape = step.Shape(2, 1, 16, 1)
    config = step.make_config(shape, "float32", method="supervised", model__subsampling="parakeet")
    made = step.compile_step(config, "supervised", step.make_batch(shape), quiet)
    first, *_, last = (made.run()["train/ctc/loss"][0] for _ in range(8))
    assert float(last) < float(first)
    assert made.gradients == 4 * made.parameters
    forward = conformer.make_model(config).flops(frame_count(16000))
    assert made.flops == 3 * 2 * forward


def test_decoding_counts_real_audio(tmp_path):
    pytest.importorskip("grain")
    uri = input.write_corpus(tmp_path, files=3, seconds=1.0)
    config = input.make_config(uri)
    config.data.update(buckets=(2.0,), batch_seconds=6.0)
    found = input.decode(config, number=2)
    assert found["hours"] == pytest.approx(2 * 3 * 1.0 / 3600)  # 3 rows of 1 s, padded to 2
    assert found["hours_per_s"] == pytest.approx(found["hours"] / found["seconds"])


def test_an_unusable_shape_is_the_users_error():
    with pytest.raises(UserError, match="FRAMES >= 2 LABELS"):
        ctc.make_task(ctc.Shape(1, 5, 3, 4))
