"""Whether a captured graph is the network: both are run on the same inputs and compared, bit for bit.

Fused attention calls are written by their parts in the graph; here the network runs with the same parts, so that they
too must agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fxptq.graph.attention import DECOMPOSED
from fxptq.graph.copies import structural_copy
from fxptq.graph.depth import room_for
from fxptq.graph.exclusive import CAPTURING
from fxptq.graph.opaque import compiled_pieces_run_eagerly
from fxptq.graph.randomness import OwnRandomNumbers

Tensors = tuple[Tensor, ...]


class _Decomposing(TorchFunctionMode):
    """Runs fused attention calls by their parts."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return DECOMPOSED.get(func, func)(*args, **(kwargs or {}))


def run_network(model: nn.Module, inputs: Tensors) -> Any:
    """The output of the network for the inputs; neither is changed."""
    with (
        CAPTURING,
        room_for(model),
        torch.no_grad(),
        OwnRandomNumbers(),
        compiled_pieces_run_eagerly(),
        _Decomposing(),
    ):
        return structural_copy(model)(*(x.clone() for x in inputs))


def run_graph(module: fx.GraphModule, inputs: Tensors) -> Any:
    """The output of a graph for the inputs, which are not changed."""
    with CAPTURING, torch.no_grad(), OwnRandomNumbers():
        # `forward` instead of a call, because a call of a GraphModule prints its failures.
        return module.forward(*(x.clone() for x in inputs))


def difference(first: Any, second: Any) -> float:
    """The largest difference of two outputs, relative to the largest value of the second; infinite if forms differ."""
    ours, theirs = tree_leaves(first), tree_leaves(second)
    if len(ours) != len(theirs):
        return float("inf")
    return max((_difference(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _difference(ours: Any, theirs: Any) -> float:
    if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)):
        return 0.0 if ours == theirs else float("inf")
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    if torch.allclose(ours, theirs, rtol=0, atol=0, equal_nan=True):
        return 0.0
    if not theirs.is_floating_point():
        return float("inf")
    relative = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()
    return float(relative) if relative.isfinite() else float("inf")


def another_image(inputs: Tensors) -> Tensors:
    """Tensors of the same shapes and value ranges with other content."""
    return tuple(x.flip(-1).roll(3, -1) * 0.75 if x.is_floating_point() and x.dim() else x for x in inputs)


def other_sizes(inputs: Tensors) -> Iterator[Tensors]:
    """Tensors of other heights, widths and numbers of images, made of the example; most networks take the first.

    The first sizes are no multiple of any window size, so that padding inside the network runs. For networks that
    accept only multiples of a window, the last ones double the width, then both sides. Tensors that are not
    [N, C, H, W] change only in the number of images.
    """
    images = [x for x in inputs if x.dim() == 4]
    if not images:
        return
    height, width = images[0].shape[2:]
    lower = height - 8 if height > 16 else height + 8
    for rows, columns, more in (
        (lower + 1, width + 5, True),
        (lower + 1, width + 5, False),
        (lower, width + 8, True),
        (lower, width + 8, False),
        (height, 2 * width, True),
        (height, 2 * width, False),
        (2 * height, 2 * width, False),
    ):
        yield _resized(inputs, Fraction(rows, height), Fraction(columns, width), more=more)


def far_sizes(inputs: Tensors) -> Iterator[Iterator[Tensors]]:
    """Groups of inputs of half, twice and three times the height or width of the example, smallest first in each.

    A value that depends on a power of two, or on a number of tiles, differs at one of these sizes at least. They are
    narrow, so that all together cost less than twice the example.
    """
    quarter, half, one = (Fraction(1, n) for n in (4, 2, 1))
    for heights, widths in (((half,), (half,)), ((2 * one,), (quarter, half, one)), ((quarter, half, one), (3 * one,))):
        yield _at_ratios(inputs, product(heights, widths))


def _at_ratios(inputs: Tensors, ratios: Iterable[tuple[Fraction, Fraction]]) -> Iterator[Tensors]:
    if any(x.dim() == 4 for x in inputs):
        for height, width in ratios:
            yield _resized(inputs, height, width, more=False)


def _resized(inputs: Tensors, height: Fraction, width: Fraction, *, more: bool) -> Tensors:
    """The inputs with their pictures tiled or cropped to `height` and `width` times their sides.

    With `more` there is one picture more.
    """
    batch = next(x.shape[0] for x in inputs if x.dim() == 4)

    def resized(x: Tensor) -> Tensor:
        if x.dim() == 4:
            rows, columns = max(1, int(height * x.shape[2])), max(1, int(width * x.shape[3]))
            x = x.repeat(1, 1, -(-rows // x.shape[2]), -(-columns // x.shape[3]))[:, :, :rows, :columns]
        return torch.cat([x, x[:1].flip(-1)]) if more and x.dim() and x.shape[0] == batch else x.contiguous()

    return tuple(map(resized, inputs))
