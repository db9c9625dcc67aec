"""Goodput: every second of a run has one kind, over all restarts; peak FLOP/s of devices."""

import re

import pytest

from bljust_jax.monitoring import goodput, peak_flops
from bljust_jax.monitoring.progress import Progress


@pytest.fixture
def wait(monkeypatch):
    """wait(seconds) makes the clock go on."""
    now = [100.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def run(clock, wait):
    """12 s of start, 20 of compiling, and two steps: 30 s, of which 4 are a wait for input and 6
    another compiling, and 8 of evaluation."""
    wait(10)
    with clock.on("compile"):
        wait(20)
    wait(2)
    clock.turn("step")
    for _ in range(2):
        with clock.on("input"):
            wait(2)
        wait(10)
    with clock.on("compile"):
        wait(6)
    with clock.on("evaluate"):
        wait(8)


def test_all_time_is_of_one_kind(wait):
    clock = goodput.Clock(began=95.0)
    run(clock, wait)
    spent = {"start": 17.0, "compile": 26.0, "step": 20.0, "input": 4.0, "evaluate": 8.0}
    assert clock.seconds() == dict.fromkeys(goodput.KINDS, 0.0) | spent
    assert clock.wall == clock.age == 75.0
    shares = clock.shares()
    assert shares["perf/goodput"] == pytest.approx(20 / 75)
    assert sum(v for k, v in shares.items() if k != goodput.WALL) == pytest.approx(1.0)


def test_what_fails_is_paid_for_too(wait):
    clock = goodput.Clock()

    def fail():
        with clock.on("save"):
            wait(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    wait(1)
    assert (clock.seconds()["save"], clock.seconds()["start"]) == (3.0, 1.0)


def test_work_after_the_last_save_is_lost(wait):
    """Saved after 75 s, dead some time after the row of 100 s; then dead again after that of 130
    s, without a save; in the end the same 75 s were saved."""
    first = goodput.Clock(began=95.0)
    run(first, wait)
    saved = first.seconds()
    second = goodput.Clock()
    second.resume(saved, [{"step": 3}, {"step": 4, goodput.WALL: 100.0}])
    assert (second.seconds()["lost"], second.wall) == (25.0, 100.0)
    wait(5)
    assert (second.seconds()["start"], second.age) == (22.0, 5.0)
    third = goodput.Clock()
    third.resume(saved, [{"step": 4, goodput.WALL: 130.0}])
    assert third.seconds()["lost"] == 55.0
    orderly = goodput.Clock()
    orderly.resume(saved, [])
    assert orderly.seconds() == saved


def test_the_line_of_the_end():
    shares = {f"perf/share/{kind}": 0.0 for kind in goodput.KINDS[1:]}
    shares |= {"perf/goodput": 0.832, "perf/share/compile": 0.1, "perf/share/lost": 0.068}
    assert goodput.describe(shares | {goodput.WALL: 751.0}) == (
        "goodput 83 %: step 83, input 0, compile 10, save 0, evaluate 0, start 0, lost 7 (of 12:31)"
    )
    assert goodput.in_minutes(3600.4) == "1:00:00"


def test_rates_are_of_steps_and_waits_for_input(wait):
    """Two steps of 30 TFLOP and 36 s of audio in 24 s, on devices of 5 TFLOP/s together."""
    clock = goodput.Clock()
    before = {"compute/audio_hours": 1.0, "compute/encoder_tflop": 7.0}
    shown = Progress(9, 5, clock, before, peak=5e12, active=False)
    run(clock, wait)
    after = {"compute/audio_hours": 1.01, "compute/encoder_tflop": 37.0}
    rates = shown.rates(7, after, waited=4.0)
    expected = {"steps_per_s": 2 / 24, "audio_s_per_s": 36 / 24, "input_wait": 4 / 24}
    assert rates == pytest.approx(
        {f"perf/{k}": v for k, v in expected.items()} | {"perf/mfu": 0.25}
    )
    unknown = Progress(9, 5, clock, before, active=False)
    assert "perf/mfu" not in unknown.rates(7, after, waited=4.0)


def test_progress_is_a_line_per_interval_without_a_terminal(wait, capsys):
    """Four of eight steps in 12 s."""
    clock = goodput.Clock()
    shown = Progress(8, 0, clock, {"compute/audio_hours": 0.0, "compute/encoder_tflop": 0.0})
    run(clock, wait)
    row = {"train/ctc/loss": 2.5, "train/cpc/loss": 3.25, "penalty/1": 0.1, "dev/wer": 1.0}
    row |= {"perf/steps_per_s": 0.5, "perf/audio_s_per_s": 13.0}
    shown.show(4, "joint", row)
    (line,) = capsys.readouterr().err.splitlines()
    start = "4/8 joint ctc 2.500 cpc 3.250 penalty 0.100  0.5 steps/s 13 s audio/s  "
    assert line.startswith(start)
    assert re.search(r"  (\d+:)?\d+:\d\d left$", line)


def test_peaks_are_known_or_left_out():
    h200 = peak_flops.FLOPS["NVIDIA H200"]["bfloat16"]
    assert peak_flops.flops(["NVIDIA H200"] * 8, "bfloat16") == 8 * h200 == 8 * 989e12
    assert peak_flops.flops(["TPU v5 lite"], "bfloat16") == 197e12
    assert peak_flops.flops(["TPU v5"], "bfloat16") == 459e12
    assert peak_flops.flops(["TPU v4"], "float32") is None
    assert peak_flops.flops(["NVIDIA H200", "cpu"], "bfloat16") is None
    assert peak_flops.flops(["NVIDIA H100 PCIe"], "bfloat16") is None, "it has less than others"
