"""Lengths of audio in hours, minutes or seconds."""

import pytest

from bljust_jax.common.durations import SMALL, in_hours


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (9.84, "9.8 s"),
        (59.9, "59.9 s"),
        (60.0, "1.0 min"),
        (359.0, "6.0 min"),
        (360.0, "0.10 h"),
        (45000.0, "12.50 h"),
    ],
)
def test_the_unit_is_the_largest_with_digits_to_show(seconds, text):
    assert in_hours(seconds) == text
    number, unit = text.split()
    assert float(number) * {"s": 1, "min": 60, "h": 3600}[unit] == pytest.approx(seconds, rel=0.01)


def test_the_form_is_that_of_hours_alone():
    assert in_hours(3_459_240, ".4g") == "960.9 h"
    assert in_hours(3600 * SMALL - 1, ".4g") == "6.0 min"
