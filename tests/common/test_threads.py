"""Functions applied by threads: order of the results, bound of the items read ahead, errors."""

import threading
import time

import pytest

from bljust_jax.common import threads, timeout


@pytest.mark.parametrize("count", [0, 3, 20])
def test_results_are_in_order_and_few_items_are_read_ahead(count):
    taken = []

    def items():
        for n in range(count):
            taken.append(n)
            yield n

    found = []
    for value in threads.in_order(lambda n: n * n, items(), threads=3, ahead=4):
        assert len(taken) <= len(found) + 4
        found.append(value)
    assert found == [n * n for n in range(count)]


def test_an_error_is_raised_in_place_of_its_result():
    results = threads.in_order(lambda n: 1 // n, (2, 1, 0, 1), threads=2, ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_late_result_is_unreachable_and_nobody_waits_for_it():
    until, began = threading.Event(), []
    results = threads.in_order(
        lambda n: began.append(n) or (n == 1 and until.wait(9)),
        range(9),
        threads=1,
        ahead=5,
        seconds=0.2,
        message=lambda: "the disk does not answer",
    )
    assert next(results) is False
    with pytest.raises(timeout.Unreachable, match="the disk does not answer"):
        next(results)
    assert timeout.has_pending_calls()
    until.set()
    while timeout.has_pending_calls():
        time.sleep(0.01)
    assert began == [0, 1]  # those that waited were dropped


def test_an_error_named_timeout_is_the_functions_own():
    """As of a socket: it came in time."""

    def fail(n):
        raise TimeoutError("of the network folder")

    results = threads.in_order(fail, range(1), threads=1, ahead=1, seconds=60.0)
    with pytest.raises(TimeoutError, match="of the network folder"):
        next(results)
    assert not timeout.has_pending_calls()


def test_results_that_are_there_start_no_thread(monkeypatch):
    """A thread per result would wait for a core beside a step that uses all of them."""
    ready = threading.Barrier(2)
    results = threads.in_order(
        lambda n: ready.wait(60) if n == 3 else n, range(4), threads=1, ahead=4, seconds=60.0
    )
    assert next(results) == 0
    ready.wait(60)
    monkeypatch.setattr(threading.Thread, "start", None)
    assert [next(results), next(results)] == [1, 2]
