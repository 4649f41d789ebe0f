"""Shapes of a graph's values at several sizes of the input, so that nothing is fused because of a coincidence.

Two tensors of one image may have the same shape by chance: a position map [1, N, C] and the features it is added to, a
mask for each window and a bias for each head. At two images, or at twice the size, the shapes differ. Every pattern
that needs equal shapes asks `Shapes`, and it matches only where the shapes are equal at every size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxptq.graph.program import Variant

Shape = tuple[int, ...]


class Shapes:
    """The shapes of each value of a graph, one for each size of the input.

    Args:
        variant: a graph with quantizers; its nodes carry the shapes of the capture.
        holder: the module whose tensors the graph reads.
    """

    def __init__(self, variant: Variant, holder: nn.Module) -> None:
        nodes = list(variant.inserted.nodes)
        self._shapes: dict[fx.Node, tuple[Shape, ...]] = {
            node: (tuple(node.meta["shape"]),) for node in nodes if "shape" in node.meta
        }
        for inputs in _other_inputs(nodes):
            there = _shapes_at(variant, holder, inputs)
            if there is not None:
                self._shapes = {node: (*shapes, there[node]) for node, shapes in self._shapes.items() if node in there}

    def of(self, node: fx.Node) -> tuple[Shape, ...]:
        """The shapes of a value: at the capture's size first, then at the others; empty if it is no tensor."""
        return self._shapes.get(node, ())

    def same(self, first: fx.Node, second: fx.Node) -> bool:
        """Whether two values have one shape, at every size."""
        return bool(self.of(first)) and self.of(first) == self.of(second)


def _other_inputs(nodes: list[fx.Node]) -> Iterator[tuple[Tensor, ...]]:
    """Inputs with twice the number of images, and inputs of twice the height and width."""
    placeholders = [node for node in nodes if node.op == "placeholder"]
    shapes = [tuple(node.meta.get("shape", ())) for node in placeholders]
    dtypes = [node.meta.get("dtype", torch.float32) for node in placeholders]
    if not shapes or len(shapes[0]) != 4:
        return
    batch, _, *sides = shapes[0]
    for repeat, stretch in ((2, 1), (1, 2)):
        yield tuple(
            torch.zeros(_changed(shape, batch, sides, repeat, stretch), dtype=dtype, device="cpu")
            for shape, dtype in zip(shapes, dtypes, strict=True)
        )


def _changed(shape: Shape, batch: int, sides: list[int], repeat: int, stretch: int) -> Shape:
    """A shape with `repeat` times the images, and `stretch` times the sides where it has the sides of a picture."""
    first = shape[:1] if not shape or shape[0] != batch else (batch * repeat,)
    rest = shape[1:]
    if list(rest[-2:]) == sides:
        rest = (*rest[:-2], *(side * stretch for side in sides))
    return (*first, *rest)


def _shapes_at(variant: Variant, holder: nn.Module, inputs: tuple[Tensor, ...]) -> dict[fx.Node, Shape] | None:
    """The shapes for these inputs; None where the graph does not hold for them, or the network refuses them."""
    device = next((tensor.device for tensor in holder.parameters()), torch.device("cpu"))
    inputs = tuple(x.to(device) for x in inputs)
    if not variant.capture.holds(holder, inputs):
        return None
    # Tensors without values are quick, but not every operation takes them; a run with values takes longest.
    for recorder, tensors in (
        (_WithoutValues(variant.module), tuple(x.to("meta") for x in inputs)),
        (_Recorder(variant.module), tuple(x.clone() for x in inputs)),
    ):
        try:
            with torch.no_grad():
                recorder.run(*tensors)
        except Exception:  # noqa: BLE001, S112  # a size that the network does not take, whatever it raises
            continue
        return recorder.shapes
    return None


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the shape of each value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.extra_traceback = False
        self.shapes: dict[fx.Node, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node; a quantizer changes no shape."""
        value = self.fetch_args_kwargs_from_env(n)[0][0] if "quantizer" in n.meta else super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


class _WithoutValues(_Recorder):
    """A recorder that runs the graph on tensors with a shape and without values."""

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The tensor there, without its values."""
        value = super().get_attr(target, args, kwargs)
        return value.to("meta") if isinstance(value, Tensor) else value

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the graph; the tensors that it makes have no values either."""
        with torch.device("meta"):
            return super().run(*args, **kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Calls a function, without the device that its tensors had at the capture."""
        return super().call_function(target, args, kwargs | {"device": "meta"} if "device" in kwargs else kwargs)
