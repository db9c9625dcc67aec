"""Paired intervals over runs and speakers: closed forms, scipy, coverage of known differences."""

import numpy as np
import pytest
from scipy import special, stats

from bljust_jax.reporting import bootstrap

WORDS = np.array([90.0, 110, 100, 80, 120, 100])


def errors(rng, words, runs, mean=-0.03, run=0.02, speaker=0.02, rest=0.02):
    """[R, S] differences of errors with effects of runs, speakers and both."""
    shape = runs, len(words)
    rates = mean + run * rng.standard_normal((runs, 1)) + rest * rng.standard_normal(shape)
    return (rates + speaker * rng.standard_normal((1, len(words)))) * words


def counts(rng, shape, number):
    return [rng.multinomial(n, np.full(n, 1 / n), size=number) for n in shape]


def test_the_variance_of_the_replicates_is_its_closed_form_in_a_balanced_design():
    """Var(D*) = mean a^2 / R + mean b^2 / S + mean c^2 / (R S), with effects a of runs, b of
    speakers and c of both, of equal numbers of words."""
    rng = np.random.default_rng(0)
    words = np.full(6, 100.0)
    more = errors(rng, words, 4)
    found = bootstrap.replicates(more, words, *counts(rng, more.shape, 200_000))
    z = more / 100
    a, b = z.mean(1) - z.mean(), z.mean(0) - z.mean()
    c = z - z.mean() - a[:, None] - b
    expected = (a**2).mean() / 4 + (b**2).mean() / 6 + (c**2).mean() / 24
    assert found.var() == pytest.approx(expected, rel=0.02)
    assert found.mean() == pytest.approx(z.mean(), abs=5 * found.std() / 200_000**0.5)


def test_the_standard_error_is_that_of_the_variance_components():
    """Balanced: se^2 = (MS_runs + MS_speakers - MS_rest) / (R S), unbiased for
    run^2 / R + speaker^2 / S + rest^2 / (R S)."""
    rng = np.random.default_rng(1)
    words = np.full(8, 100.0)
    made = [errors(rng, words, 5, run=0.03) / 100 for _ in range(4000)]
    variances = [bootstrap.standard_error(z)[0] ** 2 for z in made]
    expected = 0.03**2 / 5 + 0.02**2 / 8 + 0.02**2 / 40
    assert np.mean(variances) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("shape", [(1, 6), (6, 1)])
def test_with_one_run_or_speaker_it_is_the_error_of_a_mean(shape):
    z = np.random.default_rng(2).standard_normal(shape)
    found, freedom = bootstrap.standard_error(z)
    assert found == pytest.approx(stats.sem(z.ravel()))
    assert freedom == 5
    interval = bootstrap.paired_interval(z * 100, np.full(shape[1], 100.0))
    plain = stats.t.interval(0.95, 5, loc=z.mean(), scale=found)
    assert interval.high - interval.low == pytest.approx(plain[1] - plain[0], rel=0.1)


def test_replicates_are_those_of_scipy_on_the_same_resamples():
    """One run: scipy.stats.bootstrap of the paired ratio, given the same random numbers."""
    more = errors(np.random.default_rng(3), WORDS, 1)

    def rate(errors, words, axis):
        return errors.sum(axis) / words.sum(axis)

    given = {"paired": True, "vectorized": True, "n_resamples": 500, "method": "percentile"}
    found = stats.bootstrap((more[0], WORDS), rate, rng=np.random.default_rng(4), **given)
    drawn = np.random.default_rng(4).integers(0, 6, (500, 6))
    times = np.stack([np.bincount(row, minlength=6) for row in drawn])
    ours = bootstrap.replicates(more, WORDS, np.ones((500, 1)), times)
    np.testing.assert_allclose(np.sort(ours), np.sort(found.bootstrap_distribution), rtol=1e-12)
    ends = np.quantile(ours, [0.025, 0.975])
    np.testing.assert_allclose(ends, found.confidence_interval, rtol=1e-12)


def test_effects_average_to_the_difference_and_equal_rates_in_a_balanced_design():
    more = errors(np.random.default_rng(5), WORDS, 3)
    assert bootstrap.effects(more, WORDS).mean() == pytest.approx(more.sum() / (3 * WORDS.sum()))
    words = np.full(6, 100.0)
    np.testing.assert_allclose(bootstrap.effects(more, words), more / 100)


def test_equal_runs_have_an_interval_of_0_and_single_ones_none():
    found = bootstrap.paired_interval(np.zeros((3, 6)), WORDS)
    assert (found.value, found.low, found.high, found.distinguishable) == (0.0, 0.0, 0.0, False)
    single = bootstrap.paired_interval(np.ones((1, 1)), np.array([10.0]))
    assert (single.value, single.high, single.distinguishable) == (0.1, np.inf, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "speakers", "run", "speaker"),
    [
        (3, 6, 0.03, 0.03),
        (3, 6, 0.0, 0.03),
        (3, 6, 0.03, 0.0),
        (5, 6, 0.02, 0.02),
        (5, 20, 0.02, 0.02),
    ],
)
def test_intervals_cover_a_known_difference_as_often_as_stated(runs, speakers, run, speaker):
    """95 % to 2 points, of 3000 simulated comparisons each."""
    rng, hit, number = np.random.default_rng(6), 0, 3000
    words = rng.integers(80, 120, speakers).astype(float)
    for _ in range(number):
        found = bootstrap.paired_interval(errors(rng, words, runs, run=run, speaker=speaker), words)
        hit += found.low <= -0.03 <= found.high
    assert hit / number == pytest.approx(0.95, abs=0.02)


def test_intervals_cover_a_known_difference_with_the_closed_form():
    """The same law for the t interval of the closed form, in one vectorised pass over designs."""
    rng, hit, number = np.random.default_rng(7), 0, 2000
    for _ in range(number):
        z = errors(rng, np.ones(6), 5)
        error, freedom = bootstrap.standard_error(z)
        hit += abs(z.mean() + 0.03) <= special.stdtrit(freedom, 0.975) * error
    assert hit / number == pytest.approx(0.95, abs=0.02)
