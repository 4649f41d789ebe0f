"""Processes that share out work leave nothing of themselves behind."""

import multiprocessing
import os
import threading
import time

import pytest

from fxptq.commands.pool import in_processes
from fxptq.errors import FxptqError


def dies(job: int) -> int:
    """A process that the system kills while it does job 1."""
    if job == 1:
        os._exit(9)
    return job


def slow(_: int) -> None:
    time.sleep(600)


def test_results_come_with_their_jobs() -> None:
    with in_processes(2, abs, [-3, 2, -1], "") as finished:
        assert dict(finished) == {-3: 3, 2: 2, -1: 1}


def test_a_killed_process_leaves_no_thread_and_no_process() -> None:
    """The pool's own thread must have ended: Python's exit would write into the pipe that it is closing."""
    before = set(threading.enumerate())
    with (
        pytest.raises(FxptqError, match="a process was killed, perhaps because memory has ended: give fewer"),
        in_processes(2, dies, range(4), "give fewer") as finished,
    ):
        list(finished)
    assert set(threading.enumerate()) == before
    assert multiprocessing.active_children() == []


def test_an_interrupt_leaves_no_thread_and_no_process() -> None:
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt), in_processes(2, slow, range(4), ""):
        raise KeyboardInterrupt
    assert set(threading.enumerate()) == before
    assert multiprocessing.active_children() == []
