"""How far a pass in bfloat16 may be from the one in float32."""

import numpy as np

ROUNDING = 2.0**-9  # root-mean-square error of a rounding to 8 bits: 0.42 of the largest, 2^-8
LARGEST = 8  # times the root mean square: of some thousand values whose sizes differ


def assert_close_in_bfloat16(out, expected, roundings: int) -> None:
    """Outputs of `roundings` operations in a row, relative to their root mean square.

    Errors of operations are independent, so their squares add: the error is ROUNDING
    sqrt(roundings) at most, as norms and residual sums keep the size of what they pass on. It is
    not 0, or nothing was rounded.
    """
    error, size = np.asarray(out) - np.asarray(expected), np.sqrt(np.mean(np.square(expected)))
    bound = ROUNDING * np.sqrt(roundings) * size
    assert 0 < np.sqrt(np.mean(np.square(error))) <= bound
    assert np.abs(error).max() <= LARGEST * bound
