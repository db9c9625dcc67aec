"""Apply a function to items by threads, in order, with a bounded number of results ahead."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bljust_jax.common import timeout


def in_order(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    threads: int,
    ahead: int,
    seconds: float | int | None = None,
    message: Callable[[], str] = lambda: "",
) -> Iterator[Any]:
    """function(item) for each item, in order; at most `ahead` items are read and computed before
    their result is taken.

    With `seconds`, a result that takes longer raises `timeout.Unreachable(message())`. Items that
    wait are dropped when the iterator is closed.
    """
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) == ahead:
                yield timeout.result(pending.popleft(), seconds, message)
        while pending:
            yield timeout.result(pending.popleft(), seconds, message)
    finally:
        pool.shutdown(wait=seconds is None, cancel_futures=True)
