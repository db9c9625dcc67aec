"""Tables of comparisons: equal compute, paired differences, plain answers."""

import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.comparison import grid as grids
from bljust_jax.comparison import table
from bljust_jax.reporting.bootstrap import Interval
from tests.helpers import comparisons

RUNS = grids.runs(comparisons.grid("."), {})


def row(run, errors, words=10, tflop=0.002):
    """Errors per speaker, one utterance each."""
    entries = {f"u{n}": [f"s{n}", words, e, 5 * words, e] for n, e in enumerate(errors)}
    wer = sum(errors) / (words * len(errors))
    made = {"name": run.name, "wer": wer, "cer": wer / 5, "tflop": tflop, "budget": run.tflop}
    return made | {"utterances": entries, "updates": {"ctc": 4}, "audio_hours": 1, "wall_s": 60}


def rows(errors):
    """{(method, draw): errors per speaker} as rows by name."""
    return {run.name: row(run, errors[run.method, run.draw]) for run in RUNS}


ERRORS = {
    **{("supervised", 0): [4, 5, 6], ("supervised", 1): [5, 5, 6]},
    **{("bljust", 0): [2, 4, 4], ("bljust", 1): [4, 3, 4]},
}


def test_differences_are_paired_by_draw_and_speaker():
    (summaries,) = table.summarise(comparisons.grid("."), RUNS, rows(ERRORS)).values()
    supervised, bljust = summaries
    assert supervised.differences == {}
    found = bljust.differences["supervised"]
    assert found.value == pytest.approx((21 - 31) / 60)
    assert (found.runs, found.speakers) == (2, 3)
    assert bljust.wers == {(0, 0): pytest.approx(10 / 30), (1, 0): pytest.approx(11 / 30)}
    assert bljust.spread == pytest.approx(np.std([10 / 30, 11 / 30], ddof=1))


def test_seeds_of_a_draw_are_averaged_before_draws_are_resampled():
    grid = comparisons.grid(".", seeds=(0, 1))
    runs = grids.runs(grid, {})
    first = {(r.draw, r.seed): row(r, [5, 5, 5]) for r in runs if r.method == "supervised"}
    second = {
        (r.draw, r.seed): row(r, [3 + 2 * r.seed, 4, 5]) for r in runs if r.method != "supervised"
    }
    found = table.difference(first, second)
    assert (found.runs, found.value) == (2, pytest.approx(-(2 + 1 + 0 + 0 + 1 + 0) / 2 / 30))
    one = {k: v for k, v in second.items() if k[0] == 0}
    assert table.difference(first, one).runs == 2  # its seeds


def test_a_run_of_other_compute_is_refused():
    off = rows(ERRORS)
    name = RUNS[1].name
    off[name] |= {"tflop": 0.00205}
    with pytest.raises(UserError, match=rf"{name} used 0.00205 TFLOP, \+2.5% of its budget"):
        table.summarise(comparisons.grid("."), RUNS, off)
    off[name] |= {"tflop": 0.00203}
    found = table.summarise(comparisons.grid("."), RUNS, off)
    (setting,) = found
    assert "to 1.50%; beyond 2% a run is refused" in table.compute_line(setting, found[setting])


def test_rows_of_other_utterances_are_not_paired():
    odd = rows(ERRORS)
    odd[RUNS[2].name]["utterances"]["u0"][1] = 11
    with pytest.raises(UserError, match="were scored on other utterances"):
        table.summarise(comparisons.grid("."), RUNS, odd)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((-0.031, -0.05, -0.012), "a against b: -3.1 points [-5.0, -1.2], better"),
        ((0.02, 0.01, 0.03), "a against b: +2.0 points [+1.0, +3.0], worse"),
        ((-0.01, -0.03, 0.01), "a against b: -1.0 points [-3.0, +1.0], no answer yet"),
        ((-0.01, -np.inf, np.inf), "a against b: -1.0 points, one run and one speaker give no"),
    ],
)
def test_answers_are_plain(interval, text):
    found = table.answer("a", "b", Interval(*interval, 0.01, 3, 6))
    assert found.startswith(text)


def test_the_table_has_the_best_first_and_what_was_spent():
    found = table.summarise(comparisons.grid("."), RUNS, rows(ERRORS))
    lines = table.lines(comparisons.grid("."), found, len(RUNS))
    body = [line for line in lines if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in body] == ["method", "bljust", "supervised"]
    cells = [cell.strip() for cell in body[1].split("|")[2:]]
    assert cells[:4] == ["2", "35.0", "2.4", "7.0"]
    assert cells[5:9] == ["0.002", "1.00", "4", "1.0"]
    assert "- bljust against supervised: -16.7 points" in "\n".join(lines)
    listed = table.as_json(found)
    assert listed[1]["wers"] == {"draw0-seed0": 10 / 30, "draw1-seed0": 11 / 30}
