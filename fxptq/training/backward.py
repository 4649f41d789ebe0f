"""The costly half of an update: forward, loss and backward, run as they are or replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

WARM_UPS = 3

Backward = Callable[[Tensor, Tensor], Tensor]
"""Takes low and high patches, leaves the gradients in the parameters, and returns the loss, a scalar."""


class Eager:
    """Runs forward and backward as they are.

    Args:
        loss: computes the loss of low and high patches.
        parameters: the parameters that are trained.
    """

    def __init__(self, loss: Backward, parameters: Sequence[nn.Parameter]) -> None:
        self._loss, self._parameters = loss, parameters

    def __call__(self, low: Tensor, high: Tensor) -> Tensor:
        """See `Backward`."""
        for parameter in self._parameters:
            parameter.grad = None
        loss = self._loss(low, high)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


class Graphed:
    """Replays forward and backward as a CUDA graph; a batch of another shape is captured anew.

    A small network launches some thousand short kernels for each update, and Python cannot launch them as fast as a GPU
    runs them. The gradients stay in the memory of the graph and are overwritten by each call.

    Args:
        loss: computes the loss of low and high patches; without any transfer to the processor.
        parameters: the parameters that are trained.
    """

    def __init__(self, loss: Backward, parameters: Sequence[nn.Parameter]) -> None:
        self._eager = Eager(loss, parameters)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._low = self._high = self._result = torch.empty(0)

    def __call__(self, low: Tensor, high: Tensor) -> Tensor:
        """See `Backward`."""
        graph = self._graph
        if graph is None or low.shape != self._low.shape:
            self._graph = graph = self._captured(low, high)
        self._low.copy_(low)
        self._high.copy_(high)
        graph.replay()
        return self._result.clone()

    def _captured(self, low: Tensor, high: Tensor) -> torch.cuda.CUDAGraph:
        self._graph = None  # frees the memory of the graph before
        self._low, self._high = low.clone(), high.clone()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._eager(self._low, self._high)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._result = self._eager(self._low, self._high)
        return graph
