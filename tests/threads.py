"""Calls in several threads at once, and what is known of each afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any


def at_once(calls: Sequence[Callable[[], Any]], rounds: int = 1) -> list[Any]:
    """The results of the calls, each in a thread of its own, all let go at the same moment, so many times over.

    Of several rounds, a list for each call. An error of any call is raised.
    """
    barrier = threading.Barrier(len(calls))
    results: list[list[Any]] = [[] for _ in calls]
    errors: list[BaseException] = []

    def run(call: Callable[[], Any], own: list[Any]) -> None:
        try:
            for _ in range(rounds):
                barrier.wait(timeout=300)
                own.append(call())
        except BaseException as error:  # noqa: BLE001  # raised again below
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=pair) for pair in zip(calls, results, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broken = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if broken or errors:
        raise (broken or errors)[0]
    return [own[0] for own in results] if rounds == 1 else results
