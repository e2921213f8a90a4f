"""Threads for the network, so that meanwhile the next frame is prepared and the one before is finished.

They wait for the inference library without Python's lock, which leaves that to the caller's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def network_threads(number: int) -> Iterator[Executor]:
    """Begin with jobs in order. At the end those that they are at are waited for, those behind are not done."""
    threads = ThreadPoolExecutor(number, "network")
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def failed(error: Exception) -> Future[T]:
    """An error that has its turn after what is under way."""
    future: Future[T] = Future()
    future.set_exception(error)
    return future


def overlapped(jobs: Iterable[Callable[[], T]], ahead: int, at_once: int) -> Iterator[T]:
    """What jobs return, in order, as `(job() for job in jobs)` gives it.

    Args: jobs, made as they are asked for, in the caller's thread; ahead, how many are begun before what the one before
        returned is given: 0 where the next may be long in coming; at_once, the threads.
    Raises: what a job raises, or the making of one, after what came before.
    """
    with network_threads(at_once) as threads:
        under_way: deque[Future[T]] = deque()
        for begun in _begun(jobs, threads):
            under_way.append(begun)
            if len(under_way) > ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _begun(jobs: Iterable[Callable[[], T]], threads: Executor) -> Iterator[Future[T]]:
    try:
        for job in jobs:
            yield threads.submit(job)
    except Exception as error:
        yield failed(error)
