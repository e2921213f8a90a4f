"""A thread for the network, so that meanwhile the next frame is prepared and the one before is finished.

It waits for the inference library without Python's lock, which leaves that to the caller's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def network_thread() -> Iterator[Executor]:
    """Does jobs in order. At the end the one that it is at is waited for, those behind it are not done."""
    thread = ThreadPoolExecutor(1, "network")
    try:
        yield thread
    finally:
        thread.shutdown(cancel_futures=True)


def failed(error: Exception) -> Future[T]:
    """An error that has its turn after what is under way."""
    future: Future[T] = Future()
    future.set_exception(error)
    return future


def overlapped(jobs: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
    """What jobs return, in order, as `(job() for job in jobs)` gives it.

    Args: jobs, made as they are asked for, in the caller's thread; ahead, how many are begun before what the one before
        returned is given: 0 where the next may be long in coming.
    Raises: what a job raises, or the making of one, after what came before.
    """
    with network_thread() as thread:
        under_way: deque[Future[T]] = deque()
        for begun in _begun(jobs, thread):
            under_way.append(begun)
            if len(under_way) > ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _begun(jobs: Iterable[Callable[[], T]], thread: Executor) -> Iterator[Future[T]]:
    try:
        for job in jobs:
            yield thread.submit(job)
    except Exception as error:
        yield failed(error)
