"""The codebook collapse alarm logs a collapse once, and may end the run."""

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.monitoring.codebook_collapse import CollapseAlarm


def row(share, name="anchor"):
    return {f"codebook/{name}/share": share, f"codebook/{name}/perplexity": 3.0, "step": 1}


def heard(alarm, shares):
    return [len(alarm(row(share))) for share in shares]


def test_it_sounds_after_so_many_rows_on_end_and_once():
    alarm = CollapseAlarm(0.05, 3, stop=False)
    assert heard(alarm, [0.5, 0.04, 0.04, 0.06, 0.04, 0.04, 0.04, 0.04]) == [0] * 6 + [1, 0]
    assert "codebook anchor has recovered: 50.0%" in alarm(row(0.5))[0]
    assert heard(alarm, [0.5, 0.01, 0.01, 0.01]) == [0, 0, 0, 1]


def test_each_codebook_is_counted_apart_and_its_maximum_is_not_its_size():
    alarm = CollapseAlarm(0.05, 2, stop=False)
    assert alarm(row(0.01) | row(0.9, "enhanced")) == []
    (line,) = alarm(row(0.01) | row(0.04, "enhanced"))
    assert line.startswith("codebook anchor collapses: its perplexity has been under 5% of its max")
    assert alarm({"step": 3, "train/ctc/loss": 1.0}) == []


def test_it_may_end_the_run():
    alarm = CollapseAlarm(0.05, 1, stop=True)
    assert alarm(row(0.06)) == []
    with pytest.raises(UserError, match="codebook anchor collapses"):
        alarm(row(0.049))


def test_a_constant_target_is_named():
    """Of a loss whose targets are normalised: their standard deviation falls towards 0."""
    alarm = CollapseAlarm(0.05, 2, stop=False)
    rows = [
        {"data2vec/target_std": std, "data2vec/prediction_std": 0.0} for std in (0.4, 0.04, 0.04)
    ]
    assert [alarm(row) for row in rows[:2]] == [[], []]
    (line,) = alarm(rows[2])
    assert line.startswith("the target of data2vec collapses: its standard deviation has been")
    assert "config.data2vec.tau_start" in line
