"""Histograms of the data doctor's page: bars count the values, labels stay inside the picture."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from bljust_jax.reporting.doctor import histogram


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", ["gamma", "one value", "wide"])
def test_bars_count_the_values(kind, log):
    rng = np.random.default_rng(0)
    values = {
        "gamma": rng.gamma(3.0, 2.0, 500),
        "one value": np.full(7, 3.0),
        "wide": 10.0 ** rng.uniform(-4, 3, 500),
    }[kind]
    marked = values > np.quantile(values, 0.99)
    drawn = ElementTree.fromstring(histogram.svg(values, marked, "a & b, seconds", log=log))
    found = [re.search(r": (\d+) utterances, (\d+)", t.text) for t in drawn.iter("title")]
    assert sum(int(match[1]) for match in found) == len(values)
    assert sum(int(match[2]) for match in found) == marked.sum()
    for bar in drawn.iter("rect"):
        x, y, width, height = (float(bar.get(key)) for key in ("x", "y", "width", "height"))
        assert x + 0.01 >= histogram.LEFT
        assert x + width <= histogram.WIDTH - histogram.RIGHT
        assert height >= histogram.LEAST
        assert y + 0.01 >= histogram.TOP
        if bar.get("fill") == histogram.BLUE:
            assert y + height == pytest.approx(histogram.HEIGHT - histogram.BOTTOM, abs=0.02)
    texts = [t.text for t in drawn.iter("text")]
    assert {"a & b, seconds", "utterances"} <= set(texts)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.0, 7.0), (0.0, 1234.0), (-81.3, -2.0), (1.7, 17.1)]
)
def test_ticks_are_few_and_round(low, high):
    found = histogram.ticks(low, high)
    assert 2 <= len(found) <= histogram.TICKS
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
    step = found[1] - found[0]
    assert f"{step:.0e}"[0] in "125"
    np.testing.assert_allclose(np.diff(found), step)
