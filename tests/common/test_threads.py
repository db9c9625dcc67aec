"""Functions applied by threads: order of the results, bound of the items read ahead, errors."""

import pytest

from bljust_jax.common import threads


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
