"""What a form of attention is asked to compute, apart from the arrays: facts that limits read."""

from typing import Any, NamedTuple


class Task(NamedTuple):
    """size: width S of a head
    dtype: of queries, keys and values
    biased: scores have an additive bias, such as relative positions
    causal: query i attends keys j <= i only
    reach: it attends keys with |i - j| <= reach only; 0: all
    """

    size: int
    dtype: Any
    biased: bool
    causal: bool = False
    reach: int = 0
