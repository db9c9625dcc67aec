"""The questions that a report answers in words, and intervals of differences between runs."""

import json

import numpy as np
import pytest

from bljust_jax.reporting import answers, comparison
from bljust_jax.reporting.bootstrap import DRAWS, difference, errors_of
from bljust_jax.reporting.run_files import read_run_files
from tests.helpers.reported_runs import PAIRS, make_run, train_rows


def scored(*values, blanks=0.5, every=10):
    """Rows of evaluations of dev."""
    return [
        {"step": every * n, "dev/wer": v, "dev/cer": v / 2, "dev/blank_share": blanks}
        for n, v in enumerate(values, 1)
    ]


def read(folder, rows, **options):
    return read_run_files(make_run(folder, rows=rows, **options))


def test_the_course_is_told_with_the_numbers_that_were_logged(tmp_path):
    run = read(tmp_path / "run", [*train_rows(40), *scored(0.9, 0.5, 0.4, 0.3, 0.35)])
    assert answers.is_learning(run) == (
        "On dev, WER 90.00 % at step 10 became 35.00 % at step 50; the best, 30.00 %, is of step"
        " 40. Over the last quarter: worse by 5.00 points. 50% of the frames of dev are blank."
        " Training losses, first and last log window: cpc 3.9 to 3.6."
    )
    assert run.losses == ["cpc"]
    lines = answers.answers(run)
    assert [line.split("**")[1] for line in lines] == [
        "Is it learning?",
        "Does method `bljust` help?",
        "What next?",
    ]
    assert "Train method `ptft`" in lines[1]


@pytest.mark.parametrize(
    ("heard", "said", "advice"),
    [
        (0.25, "have WER 25.00 %: dev is 15.00 points worse.", "Dev has not improved since"),
        (0.01, "have WER 1.00 %: dev is 39.00 points worse.", "The training data are learned by"),
        (0.45, "have WER 45.00 %: dev is 5.00 points better.", "Dev has not improved since"),
    ],
)
def test_the_gap_to_training_data_is_told_and_advised_on(heard, said, advice, tmp_path):
    rows = scored(0.9, 0.3, 0.35, 0.4, 0.4)
    rows[-1]["train_sample/wer"] = heard
    for row in (rows[0], rows[-1]):
        row |= {
            "train/ctc/loss": 2.0,
            "dev/ctc/loss": 30 / row["step"],
            "train_sample/ctc/loss": 0.5,
        }
    run = read(tmp_path / "run", rows)
    assert f" At step 50, utterances of the training data {said}" in answers.is_learning(run)
    assert answers.is_learning(run).endswith(
        "Training losses, first and last log window: ctc 2 to 2. On dev, first and last: ctc 3 to"
        " 0.6. On these utterances of the training data: ctc 0.5 to 0.5."
    )
    assert answers.what_next(run).startswith(advice)


def test_longer_training_is_not_advised_once_the_training_data_are_learned(tmp_path):
    rows = scored(0.9, 0.8, 0.7, 0.65, 0.6)
    rows[-1]["train_sample/wer"] = 0.0
    assert answers.what_next(read(tmp_path / "run", rows)).startswith(
        "The training data are learned by heart (0.00 % on a sample of them) and dev is not:"
    )


@pytest.mark.parametrize(
    ("values", "blanks", "advice"),
    [
        ((0.9, 0.7, 0.6, 0.5, 0.4), 0.5, "The best score is of step 50 of 50: it may fall further"),
        ((0.9, 0.3, 0.4, 0.5, 0.6), 0.5, "Dev has not improved since step 20 of 50: end earlier"),
        ((1.0, 1.0, 1.0, 1.0, 1.0), 0.999, "Nearly all frames are blank"),
        ((0.9, 0.0, 0.0, 0.0, 0.0), 0.5, "Dev has no errors left"),
        ((0.9, 0.3, 0.3, 0.3, 0.3), 0.5, "Try a language model"),
    ],
)
def test_advice_follows_from_the_course(values, blanks, advice, tmp_path):
    run = read(tmp_path / "run", scored(*values, blanks=blanks))
    assert answers.what_next(run).startswith(advice)
    unfinished = read(tmp_path / "now", scored(*values, blanks=blanks), finished=False)
    if "blank" not in advice:
        assert answers.what_next(unfinished) == "The run is not finished."


def test_a_run_with_one_evaluation_has_no_trend(tmp_path):
    run = read(tmp_path / "run", scored(0.5))
    assert "scored less than twice" in answers.is_learning(run)
    assert len(answers.answers(run)) == 2


# Differences


def utterances(errors, units=10):
    return {str(n): (e, units) for n, e in enumerate(errors)}


def test_equal_runs_do_not_differ_and_a_constant_difference_has_no_width():
    one = utterances([1, 0, 2])
    same = difference(one, dict(reversed(one.items())))
    assert (same[:3], same.units, same.distinguishable) == ((0.0, 0.0, 0.0), 30, False)
    worse = difference(one, utterances([2, 1, 3]))
    assert worse[:3] == pytest.approx((0.1, 0.1, 0.1))
    assert worse.distinguishable
    assert difference(one, {"other": (0, 3)}) is None
    assert difference(one, {**one, "other": (9, 9)}) == same, "common utterances alone"


def test_the_interval_is_that_of_the_normal_law_and_changes_sign_with_the_order():
    """400 utterances of 10 words; quantiles of 2,000 draws are within 4 of their own standard
    errors, sqrt(p (1 - p) / n) / density(q), of those of the normal law."""
    rng = np.random.default_rng(3)
    one, two = (utterances(rng.integers(*ends, 400).tolist()) for ends in ((1, 3), (0, 4)))
    found, back = difference(one, two), difference(two, one)
    assert back.value == -found.value
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low), abs=1e-12)
    more = np.array([two[n][0] - one[n][0] for n in one])
    error = more.std() / 10 / 400**0.5
    slack = 4 * (0.025 * 0.975 / DRAWS) ** 0.5 / 0.0584 * error
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=slack)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=slack)


def test_a_comparison_tells_which_runs_differ(tmp_path):
    rows = [*train_rows(), *scored(0.9, 0.5)]
    runs = [read(tmp_path / name, rows) for name in ("base", "same", "better")]
    right = [{**pair, "hypothesis": pair["reference"]} for pair in PAIRS * 40]
    for n, pair in enumerate(right):
        pair["id"] = str(n)
    wrong = [{**pair, "hypothesis": f"{pair['hypothesis']} x"} for pair in right]
    for name, pairs in (("base", wrong), ("same", wrong), ("better", right)):
        text = "".join(json.dumps(pair) + "\n" for pair in pairs)
        (tmp_path / name / "samples" / "dev-best.jsonl").write_text(text)
    assert errors_of(tmp_path / "base" / "samples" / "dev-best.jsonl", "words")["0"] == (1, 3)
    lines, path = comparison.write(runs, tmp_path / "out")
    same, better = (line for line in lines if line.startswith("- "))
    assert same == (
        "- same against base: not distinguishable with 320 words: WER on dev differs by +0.00"
        " points (95 % interval +0.00 to +0.00)"
    )
    assert better.startswith("- better against base: WER on dev differs by -37.50 points (95 % ")
    assert better in path.read_text()
    assert errors_of(tmp_path / "none", "words") == {}
