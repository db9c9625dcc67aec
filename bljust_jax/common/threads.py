"""Apply a function to items by threads, in order, with a bounded number of results ahead."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def in_order(
    function: Callable[[Any], Any], items: Iterable[Any], *, threads: int, ahead: int
) -> Iterator[Any]:
    """function(item) for each item, in order; at most `ahead` items are read and computed before
    their result is taken."""
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) == ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
