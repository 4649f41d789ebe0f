"""Work shared out to processes of this machine: each takes one job at a time, and its part of the processor's cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from fxptq.errors import FxptqError

J = TypeVar("J")
R = TypeVar("R")


def threads_of_each(count: int) -> int:
    """The threads that each of `count` processes may have."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // count)


@contextmanager
def in_processes(count: int, work: Callable[[J], R], jobs: Sequence[J], remedy: str) -> Iterator[Iterator[tuple[J, R]]]:
    """Does jobs in processes; within, yields each one with its result as it is done.

    Args:
        count: number of processes.
        work: a function that other processes can import, or a partial call of one.
        jobs: in the order in which they begin.
        remedy: the end of the message for a process that was killed.

    Raises:
        FxptqError: a process was killed.
    """
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_leave_interrupts)
    try:
        waiting = {pool.submit(work, job): job for job in jobs}

        def finished() -> Iterator[tuple[J, R]]:
            left = set(waiting)
            while left:
                done, left = wait(left, return_when=FIRST_COMPLETED)
                for future in done:
                    yield waiting[future], future.result()

        yield finished()
    except BaseException as error:
        for process in multiprocessing.active_children():
            process.terminate()
        # Waits for the pool's own thread: Python's exit would use the pipe that the thread is closing.
        pool.shutdown(cancel_futures=True)
        if not isinstance(error, BrokenProcessPool):
            raise
        raise FxptqError(f"a process was killed, perhaps because memory has ended: {remedy}") from None
    pool.shutdown()


def _leave_interrupts() -> None:
    """A process of the pool ends silently at Ctrl-C; the first process says what has happened."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
