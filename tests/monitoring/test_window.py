"""The metric window: exact means over steps, values fetched one step late, counts of skips."""

import jax

from bljust_jax.monitoring import metrics


def test_means_are_sums_over_weights_and_survive_a_step_that_is_not_finite():
    window = metrics.Window({"a": [3.0, 1.0]})
    window.add(7, {"a": (1.0, 3.0), "train/skipped": (0.0, 1.0)})
    window.add(8, {"a": (float("nan"), 1.0), "train/skipped": (1.0, 1.0)})
    window.add(9, {"b": (0.0, 0.0), "train/skipped": (1.0, 1.0)})
    totals = window.settle()
    assert totals["a"] == [4.0, 4.0]
    assert (window.skipped, window.longest_skip, window.last_skipped) == (2, 2, 9)
    assert window.means() == {"a": 1.0, "train/skipped": 2 / 3}
    assert totals["a"] == [4.0, 4.0], "what was handed out is a copy"
    assert window.means() == {}


def test_values_stay_on_the_device_and_the_host_is_one_step_ahead(monkeypatch):
    waited, fetched = [], []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.extend(x) or x)
    window = metrics.Window()
    steps = [(n, {"a": (float(n), 1.0)}) for n in range(3)]
    for step_of_means in steps:
        window.add(*step_of_means)
    assert waited == steps[:2]
    assert not fetched
    assert window.means() == {"a": 1.0}
    assert fetched == steps


def test_skips_before_a_resume_count_on_and_a_finite_step_ends_them():
    for skipped, row in ((1.0, (6, 6, 8)), (0.0, (0, 0, -1))):
        window = metrics.Window({}, skipped=5)
        window.add(8, {"train/skipped": (skipped, 1.0)})
        window.settle()
        assert (window.skipped, window.longest_skip, window.last_skipped) == row
