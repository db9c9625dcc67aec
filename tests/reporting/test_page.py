"""Reports: what is drawn is what was logged, what is printed is what was measured, and mistakes are
one line."""

import json
import struct
from itertools import groupby

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax import reporting
from bljust_jax.reporting import plots, run_files
from bljust_jax.reporting.plots import curves, series, speech
from bljust_jax.reporting.plots.style import legible
from bljust_jax.reporting.run_files import read_run_files, training_hours
from bljust_jax.reporting.text import columns, table
from bljust_jax.reporting.utterances import word_errors, worst
from tests.helpers.reported_runs import PAIRS, PHASES, example, make_run, train_rows


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


# Figures


def test_training_hours_are_steps_over_rates():
    """10 steps at 2 a second, twice, then 30 at 0.5: 5 + 5 + 60 s."""
    rows = [{"step": n, "perf/steps_per_s": r} for n, r in ((10, 2.0), (20, 2.0), (50, 0.5))]
    rows.insert(1, {"step": 10, "dev/wer": 1.0})
    assert training_hours(rows) == pytest.approx(70 / 3600, rel=1e-12)


def test_input_wait_is_weighted_by_time():
    """10 steps at 2 per second wait 10 %, the next 10 at 1 per second 40 %: (0.5 + 4) / 15 s."""
    rows = [
        {"step": 10, "perf/steps_per_s": 2.0, "perf/input_wait": 0.1},
        {"step": 15, "dev/wer": 0.5},
        {"step": 20, "perf/steps_per_s": 1.0, "perf/input_wait": 0.4},
    ]
    assert run_files.input_wait(rows) == pytest.approx(0.3)
    assert run_files.input_wait([{"step": 15, "dev/wer": 0.5}]) is None


@settings(max_examples=30, deadline=None)
@given(*[st.lists(st.sampled_from("abc"), min_size=1, max_size=6)] * 2)
def test_word_errors_are_those_of_jiwer(reference, hypothesis):
    reference, hypothesis = " ".join(reference), " ".join(hypothesis)
    scored = jiwer.process_words(reference, hypothesis)
    expected = scored.substitutions + scored.deletions + scored.insertions
    assert word_errors(reference, hypothesis) == expected


def test_worst_utterances_come_first_and_right_ones_not_at_all(run):
    samples = run / "samples" / "dev-best.jsonl"
    assert [(n, pair["id"]) for n, pair in worst(samples, 9)] == [(3, "b"), (1, "c")]
    assert [pair["id"] for _, pair in worst(samples, 1)] == ["b"]


def test_typical_is_the_median_of_those_of_a_fair_length():
    seconds = {"a": 3.0, "b": 3.0, "c": 3.0}  # error rates 0, 1, 1/2
    assert reporting.typical(PAIRS, seconds, lambda text: True) == "c"
    assert (
        reporting.typical(PAIRS, seconds, lambda text: "three" in text) == "a"
    )  # a tie: the first
    assert reporting.typical(PAIRS, seconds | {"b": 4.0}, lambda text: "three" in text) == "b"
    assert reporting.typical(PAIRS, seconds | {"c": 1.9}, lambda text: True) == "a"
    short = {"a": 0.5, "b": 0.5, "c": 7.0}
    assert (
        reporting.typical(PAIRS, short, lambda text: True) == "c"
    )  # none lasts 2 to 6 s: all count
    assert reporting.typical(PAIRS, seconds, lambda text: False) is None
    silent = [{"id": "a", "reference": "", "hypothesis": "x"}]
    assert reporting.typical(silent, seconds, lambda text: True) is None


# Series and what is drawn of them


def test_scores_over_compute_are_interpolated():
    rows = [{"step": 10, "compute/encoder_tflop": 4.0}, {"step": 30, "compute/encoder_tflop": 8.0}]
    rows += [{"step": n, "dev/wer": n / 100} for n in (5, 20, 30)]
    x, y = series.over_compute(rows, "dev/wer")
    np.testing.assert_allclose(x, [2.0, 6.0, 8.0], rtol=1e-12)
    np.testing.assert_allclose(y, [0.05, 0.2, 0.3], rtol=1e-12)


def test_a_pause_breaks_the_line():
    """Logged at 10, 20, 30 and again at 80, 90: no line from 30 to 80."""
    rows = [{"step": n, "train/a/loss": float(n)} for n in (10, 20, 30, 80, 90)]
    x, y = series.over_steps(rows, "train/a/loss")
    np.testing.assert_array_equal(x, [10, 20, 30, 80, 80, 90])
    np.testing.assert_array_equal(y, [10, 20, 30, np.nan, 80, 90])


def test_bands_end_where_the_run_stands_and_narrow_ones_are_put_together():
    spans = [plots.Span("a", 0, 50), plots.Span("b", 50, 50)]
    assert series.bands(spans, 100) == [("a", 0, 50), ("b", 50, 100)]
    assert series.bands(spans, 60) == [("a", 0, 50), ("b", 50, 60)]
    assert series.bands(spans, 50) == [("a", 0, 50)]
    turns = [plots.Span("ab"[n % 2], 5 * n, 5) for n in range(8)] + [plots.Span("c", 40, 60)]
    assert series.bands(turns, 100) == [("a + b, 8 turns", 0, 40), ("c", 40, 100)]


def panels(figure):
    """{axis label: {line name: [y]}} of a figure."""
    return {
        axes.get_ylabel(): {
            line.get_label(): line.get_ydata().tolist()
            for line in axes.get_lines()
            if not line.get_label().startswith("_")
        }
        for axes in figure.axes
    }


def test_panels_hold_what_was_logged_under_its_name():
    spans = [plots.Span(p["name"], p["start"], p["steps"]) for p in PHASES]
    losses, gradients, schedules = (
        panels(curves.CURVES[name][0](train_rows(), spans))
        for name in ("losses", "gradients", "schedules")
    )
    after = range(50, 101, 10)
    assert losses == {
        "cpc loss (nats)": {"cpc": [4.0 - n / 100 for n in range(10, 101, 10)]},
        "ctc loss (nats)": {"ctc": [300.0 / n for n in after]},
    }
    assert set(gradients["norm"]) == {"cpc", "ctc"}
    assert gradients["cosine"] == {"ctc|cpc": [0.25] * 6}
    assert schedules["penalty"] == {"level 1": [n / 1000 for n in after]}
    assert schedules["learning rate"] == {"encoder": [1e-3] * 10}


def test_what_was_not_logged_is_absent():
    """A supervised run has neither penalty nor cosine, and no codebook."""
    rows = [
        {k: v for k, v in row.items() if "pen" not in k and "moo" not in k} for row in train_rows()
    ]
    assert list(panels(curves.CURVES["schedules"][0](rows, []))) == ["learning rate"]
    assert curves.CURVES["gradients"][0](rows, []) is None
    assert curves.CURVES["codebooks"][0](rows, []) is None
    assert curves.CURVES["scores"][0]([{"step": 1}], []) is None


def test_names_with_slashes_parts_of_dev_and_codebooks_are_found():
    rows = [
        {"step": n, "train/st/en-fr/loss": 1.0, "codebook/anchor/perplexity": 9.0}
        | {"dev/wer": 0.5, "dev/digits_en/wer": 0.25, "dev/bleu": 30.0}
        for n in (1, 2)
    ]
    assert list(series.matching(rows, r"train/(.+)/loss")) == ["st/en-fr"]
    assert "perplexity (codes)" in panels(curves.CURVES["codebooks"][0](rows, []))
    scores = curves.CURVES["scores"][0](rows, [])
    left, right, bleu = (scores.axes[n] for n in (0, 1, 2))
    assert [line.get_ydata()[-1] for line in right.get_lines()] == [50.0, 25.0]  # in per cent
    assert [line.get_label() for line in left.get_lines()] == ["dev  50.0%", "dev/digits_en  25.0%"]
    assert (left.get_ylabel(), bleu.get_ylabel()) == ("dev WER (%)", "dev BLEU")
    assert bleu.get_lines()[0].get_ydata()[-1] == 30.0


def test_the_sample_of_training_utterances_is_drawn_beside_dev():
    rows = [{"step": n, "dev/wer": 0.5, "train_sample/wer": 0.5 / n} for n in (1, 2)]
    left, right = curves.CURVES["scores"][0](rows, []).axes[:2]
    assert left.get_ylabel() == "WER (%)"
    assert [line.get_label() for line in right.get_lines()] == ["dev  50.0%", "train_sample  25.0%"]


# One utterance


def test_boxes_lie_on_the_alignment():
    axes = speech.SPEECH["alignment"][0](example()).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["a", "space", "b", "blank"]
    boxes = [(box.get_x(), box.get_y() + 0.5, box.get_width()) for box in axes.patches]
    # start, row and duration of "a", the space and "b": frames of 40 ms
    np.testing.assert_allclose(boxes, [(0, 0, 0.08), (0.08, 1, 0.04), (0.12, 2, 0.04)], atol=1e-12)
    image = axes.images[0].get_array()
    assert image.shape == (4, 5)
    assert image[2, 0] == pytest.approx(1.0, abs=1e-6)  # the model hears "b" in the first frame


def test_words_stand_where_they_are_heard_and_wrong_ones_stand_out():
    below = speech.SPEECH["spectrogram"][0](example()).axes[1]
    found = {(t.get_text(), t.get_fontweight(), *map(float, t.get_position())) for t in below.texts}
    times = {(text, weight, round(x, 9)) for text, weight, x, _ in found}
    # reference: a in frames 0-1, b in 3; hypothesis: b in 0 and b in 3
    assert times == {("a", "normal", 0.04), ("b", "normal", 0.14), ("b", "normal", 0.02)}
    wrong = example() | {"labels": np.array([2, 1, 2])}
    below = speech.SPEECH["spectrogram"][0](wrong).axes[1]
    assert {(t.get_text(), t.get_fontweight()) for t in below.texts} == {
        *(("a", "normal"), ("b", "bold")),
    }


def test_augmentation_is_shown_on_one_scale():
    assert speech.SPEECH["augmentation"][0](example()) is None  # a run without it
    mel = np.linspace(-5, 5, 30 * 8).reshape(30, 8).astype(np.float16)
    shown = {"augmented": mel, "masked": mel[::-1], "steps": np.array("noise, volume")}
    figure = speech.SPEECH["augmentation"][0](example() | shown)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in panels] == [
        *("as recorded", "augmented", "augmented and masked"),
    ]
    assert len({axes.images[0].get_clim() for axes in panels}) == 1
    assert panels[-1].get_xlim() == (0.0, pytest.approx(0.3))
    assert "noise, volume" in figure.get_suptitle()


def test_words_are_parted_by_spaces_and_by_the_mark_of_pieces():
    letters = [("a", 0, 1), ("b", 1, 2), (" ", 2, 4), ("c", 5, 6)]
    assert speech.timed(letters, 0.5) == [("ab", 0.0, 1.0), ("c", 2.5, 3.0)]
    pieces = [("\u2581a", 0, 1), ("b", 3, 4), ("\u2581c", 4, 5), ("\u2581", 6, 7), ("d", 8, 9)]
    assert speech.timed(pieces, 1.0) == [("ab", 0, 4), ("c", 4, 5), ("d", 8, 9)]
    assert speech.timed([], 1.0) == []


def test_text_without_a_glyph_is_a_box_and_dollars_are_no_mathematics():
    assert legible("\u4e2d a") == "\u25a1 a"
    assert legible("إلغاء") == "إلغاء"
    assert legible("$5$") == r"\$5\$"


# The page


def test_report_of_a_run(run):
    assert reporting.write(run) == run / "report.md"
    text = (run / "report.md").read_text()
    assert text.startswith("# run: bljust, method bljust, seed 3\n")
    lines = text.splitlines()
    tables = [list(g) for is_table, g in groupby(lines, lambda x: x.startswith("|")) if is_table]
    assert all(len({columns(line) for line in lines}) == 1 for lines in tables)  # they line up
    rows = {row[0]: row[1:] for row in map(cells, lines) if len(row) > 1}
    assert rows["dev"] == ["50.00 %", "25.00 %", "3", "8"]
    assert rows["dev/clean"] == ["12.50 %", "", "", ""]
    assert rows["encoder TFLOP"] == ["2"]  # at the last step: 100 / 50
    assert rows["ctc updates"] == ["60"]
    assert rows["training hours"] == ["0.01389"]  # 100 steps at 2 a second
    assert rows["joint"] == ["1", "60", "ctc > cpc"]
    assert rows["command"] == ["python -m it"]
    assert rows["jax"] == ["1.2.3"]
    assert rows["3"] == ["b", "reference", "one two three"]  # the worst utterance
    assert "**unfinished" not in text
    expected = ["losses", "scores", "gradients", "schedules", "alignment", "spectrogram"]
    assert [line for line in lines if line.startswith("![")] == [
        f"![{name}.png](plots/{name}.png)" for name in expected
    ]
    for name in expected:
        data = (run / "plots" / f"{name}.png").read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">I", data[16:20]) == (1000,), name
        assert len(data) < 150_000, name


@pytest.mark.slow
def test_raw_and_averaged_parameters_are_scored_side_by_side(run):
    raw = {"raw/dev/wer": 0.75, "raw/dev/cer": 0.5, "raw/dev/words": 8}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    final = json.loads(lines[-1]) | raw
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(final)]) + "\n")
    reporting.write(run)
    page_rows = map(cells, (run / "report.md").read_text().splitlines())
    rows = {row[0]: row[1:] for row in page_rows if len(row) > 1}
    assert rows["dev"] == ["50.00 %", "25.00 %", "3", "8"]
    assert rows["dev, raw"] == ["75.00 %", "50.00 %", "", "8"]
    assert "dev/clean, raw" not in rows
    assert read_run_files(run).scores["dev/wer"] == 0.5


def test_columns_of_wide_and_combining_characters():
    assert [columns(text) for text in ("abc", "中文", "e\u0301", "إلغاء")] == [3, 4, 1, 5]
    lines = table(("a", "b"), [("中", 1), ("x|y", 2.5)])
    assert lines == ["| a   | b   |", "|-----|-----|", "| 中  | 1   |", "| x/y | 2.5 |"]


@pytest.mark.slow
def test_made_again_it_is_the_same(run):
    reporting.write(run)
    files = [run / "report.md", *(run / "plots").iterdir()]
    before = {path: path.read_bytes() for path in files}
    reporting.write(run)
    assert {path: path.read_bytes() for path in files} == before


def test_unfinished_run_says_so(tmp_path):
    """Without a final row: the last scores logged; no phases, example or samples are needed."""
    rows = [*train_rows(last=70), {"step": 70, "data/quarantined": 2}]
    text = reporting.write(make_run(tmp_path / "run", finished=False, rows=rows)).read_text()
    assert ["utterances in quarantine", "2"] in [cells(line) for line in text.splitlines()]
    assert "**unfinished, 70 steps so far**" in text
    assert "| dev   | 100.00 % | 50.00 % |" in text
    assert "## Phases" not in text


def test_run_that_has_only_begun(tmp_path):
    folder = make_run(tmp_path / "run", finished=False, rows=[])
    assert "**unfinished, 0 steps so far**" in reporting.write(folder).read_text()
    assert not (folder / "plots").exists()


def test_a_line_cut_short_is_left_out(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "tra')
    assert read_run_files(run).step == 100
