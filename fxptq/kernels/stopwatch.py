"""Times of calls and of nodes of a graph: the least of a few repetitions, because other work only adds to a time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

REPEATS = 5
ENOUGH = 0.5
"""Seconds after which a call is not repeated any more."""


def least_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """The least time of a few calls, after one that is not timed.

    Args:
        call: what is timed.
        device: where it computes; its queue is waited for.
    """
    _timed(call, device)
    least = spent = _timed(call, device)
    for _ in range(REPEATS - 1):
        if spent > ENOUGH:
            break
        again = _timed(call, device)
        least, spent = min(least, again), spent + again
    return least


def node_seconds(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[fx.Node, float]:
    """The least time of each node of a graph, after a run that is not timed.

    Args:
        module: runs the graph.
        inputs: its inputs; they may be written into.
    """
    runner = TimedGraph(module, inputs[0].device)
    spent = 0.0
    for turn in range(REPEATS):
        started = time.perf_counter()
        runner.run(*inputs)
        if turn == 0:
            runner.seconds.clear()
        else:
            spent += time.perf_counter() - started
        if spent > ENOUGH:
            break
    return {node: min(times) for node, times in runner.seconds.items()}


class TimedGraph(fx.Interpreter):
    """Runs a graph and records the seconds of each node.

    Args:
        module: runs the graph.
        device: where it computes.

    Attributes:
        seconds: by node, one time for each run.
    """

    def __init__(self, module: fx.GraphModule, device: torch.device) -> None:
        super().__init__(module)
        self.device = device
        self.seconds: dict[fx.Node, list[float]] = defaultdict(list)

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node and records its time."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result: Any = None

        def call() -> None:
            nonlocal result
            result = getattr(self, n.op)(n.target, args, kwargs)

        self.seconds[n].append(_timed(call, self.device))
        return result


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    _wait_for(device)
    started = time.perf_counter()
    call()
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
