"""Tasks over two threads, results in order.

What checkpoints are made of (SHA-256, copies, ``read`` and ``write``) releases the interpreter's
lock, so that two threads use two cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

WORKERS = 2  # each holds one part in memory
Result = TypeVar("Result")


def run_tasks(tasks: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """Results of ``tasks`` in order, computed by ``WORKERS`` threads, a few ahead.

    The first exception ends it; tasks that have not begun by then never do.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for task in tasks:
                pending.append(pool.submit(task))
                if len(pending) > WORKERS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
