"""From a network and one example to a torch.fx graph that is proved equal to it.

A capture is a graph, the conditions on the input sizes under which it holds, and the constants it reads. It is checked against the
eager network on the example, on another image and at a second size before anyone gets it. The user's model is never changed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from fxptq.errors import CaptureError
from fxptq.graph.tracer import CONST, IMAGE, structural_copy, trace

RANDOM = frozenset(
    "rand randn rand_like randn_like randint randperm bernoulli normal multinomial dropout normal_ uniform_ bernoulli_".split()
)


@dataclass(frozen=True)
class Capture:
    """One graph of a network.

    Attributes:
        graph: the network; reads `model.*` and `constants.*`.
        conditions: a graph from the inputs to the numbers that must come out as `expected`; None when any size will do.
        expected: those numbers.
        constants: tensors the graph reads that the model does not hold, by name under `constants.`.
        tolerance: how far the graph may part from the network, relative to the largest output: 0 (bit for bit), or the rounding of a
            fused call that was written by its parts.
        pinned: the input shapes the graph is tied to, when only those can be vouched for.
    """

    graph: fx.Graph
    conditions: fx.Graph | None
    expected: tuple[Any, ...]
    constants: Mapping[str, Tensor]
    tolerance: float = 0.0
    pinned: tuple[tuple[int, ...], ...] | None = None

    def holds(self, root: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
        """Whether the graph is right for inputs of these shapes; nothing of the network is computed to tell."""
        if self.pinned is not None:
            return tuple(tuple(x.shape) for x in inputs) == self.pinned
        if self.conditions is None:
            return True
        module = fx.GraphModule(root, self.conditions)
        try:
            with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
                found = module(*(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs))
        except Exception:  # noqa: BLE001  # an operator without a shape rule: run it for real; a real failure means "does not hold"
            try:
                with torch.no_grad():
                    found = module(*(torch.zeros_like(x) for x in inputs))
            except Exception:  # noqa: BLE001
                return False
        return tuple(found) == self.expected


class Holder(nn.Module):
    """What graphs read: the network's own tensors under `model`, others under `constants`, quantizers under `quantizers`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.constants = nn.Module()
        self.quantizers = nn.Module()

    def keep(self, constants: Mapping[str, Tensor]) -> None:
        """Registers constants that are not there yet; a name met before keeps its tensor."""
        for name, tensor in constants.items():
            if name not in self.constants._buffers:
                self.constants.register_buffer(name, tensor.clone())


def _is_impure(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op in ("placeholder", "output"):
        return True
    if node.op not in ("call_function", "call_method"):
        return False
    written = name.endswith("_") and not name.endswith("__")
    inplace = name.startswith("__i") and name.endswith("__")
    return (
        written
        or inplace
        or node.target is operator.setitem
        or node.kwargs.get("inplace") is True
        or node.kwargs.get("out") is not None
    )


def eliminate_dead_code(graph: fx.Graph) -> None:
    """Removes what nobody reads, keeping calls that write in place."""
    graph.eliminate_dead_code(is_impure_node=_is_impure)


def _conditions(graph: fx.Graph, guards: tuple[tuple[fx.Node, Any], ...]) -> tuple[fx.Graph | None, tuple[Any, ...]]:
    unique = dict(guards)
    if not unique:
        return None, ()
    needed: set[fx.Node] = set()
    waiting = list(unique)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    conditions = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = conditions.node_copy(node, copies.__getitem__)
    conditions.output(tuple(copies[node] for node in unique))
    return conditions, tuple(unique.values())


def _fold(graph: fx.Graph, holder: Holder, device: torch.device) -> dict[str, Tensor]:
    """Computes what does not depend on the input once, and lets the graph read the result."""
    values: dict[fx.Node, Any] = {}
    folded: dict[str, Tensor] = {}
    written = {node.args[0] for node in graph.nodes if _is_impure(node) and node.op.startswith("call") and node.args}
    ordinals: dict[str, int] = {}
    with torch.no_grad():
        for node in list(graph.nodes):
            if node.meta.get("follows") != CONST or not all(source in values for source in node.all_input_nodes):
                if node.op == "call_function" and node.target is getattr and node.args[1:] == ("device",):
                    values[node] = device
                continue
            if node.op == "get_attr":
                if node not in written:
                    values[node] = _attribute(holder, str(node.target))
            elif node.op.startswith("call") and _name(node) not in RANDOM:
                values[node] = _call(node, values)
    for node, value in values.items():
        outside = [user for user in node.users if user not in values]
        if node.op == "get_attr" or not outside or not isinstance(value, Tensor):
            continue
        path = (node.meta.get("path") or "root").replace(".", "/")
        ordinals[path] = ordinals.get(path, -1) + 1
        name = f"{path}/folded_{ordinals[path]}"
        with graph.inserting_before(node):
            constant = graph.get_attr(f"constants.{name}")
        constant.meta = dict(node.meta)
        for user in outside:
            user.replace_input_with(node, constant)
        folded[name] = value.detach()
    for node in reversed([node for node in values if node.op.startswith("call")]):
        if not node.users and not (node.target is getattr):
            graph.erase_node(node)
    return folded


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _call(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)  # call_function's contract  # noqa: S101
    return node.target(*args, **kwargs)


def _attribute(root: nn.Module, target: str) -> Any:
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _outputs_equal(first: Any, second: Any, tolerance: float) -> bool:
    ours, theirs = tree_leaves(first), tree_leaves(second)
    return len(ours) == len(theirs) and all(_equal(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))


def _equal(ours: Any, theirs: Any, tolerance: float) -> bool:
    if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)):
        return bool(ours == theirs)
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if tolerance == 0 or not theirs.is_floating_point():
        return torch.equal(ours, theirs)
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())


def _eager(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return structural_copy(model)(*(x.clone() for x in inputs))


def _run(holder: Holder, capture: Capture, inputs: tuple[Tensor, ...]) -> Any:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return fx.GraphModule(holder, capture.graph)(*(x.clone() for x in inputs))


def _another_image(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Images of the same shapes and value ranges with other content."""
    return tuple(x.flip(-1).roll(3, -1) * 0.75 if x.is_floating_point() else x for x in inputs)


def _other_sizes(inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Inputs of other heights and widths, cut from the example; most networks take one of the first."""
    if any(x.dim() != 4 for x in inputs):
        return
    height, width = inputs[0].shape[-2:]
    for step in (8, 16, 7, 32, 64):
        sizes = (height - step if height > 2 * step else height + step, width + step)
        yield tuple(
            x.repeat(1, 1, 2, 2)[
                ..., : sizes[0] * x.shape[-2] // height, : sizes[1] * x.shape[-1] // width
            ].contiguous()
            for x in inputs
        )


def capture(holder: Holder, example: tuple[Tensor, ...]) -> Capture:
    """Captures `holder.model` for inputs like `example` and proves the graph equal to it.

    The graph is compared, bit for bit, on the example, on another image, and at a second size when the network takes one and the
    conditions allow it. A graph that is right at its own size and wrong at another is tied to its own size.

    Args:
        holder: holds the network in evaluation mode; receives the constants of the graph.
        example: positional inputs.

    Raises:
        CaptureError: naming the module path, the source line and the reason.
    """
    model = holder.model
    recorded = trace(model, example)
    conditions, expected = _conditions(recorded.graph, recorded.guards)
    holder.keep(recorded.constants)
    eliminate_dead_code(recorded.graph)
    folded = _fold(recorded.graph, holder, example[0].device)
    holder.keep(folded)
    eliminate_dead_code(recorded.graph)
    recorded.graph.lint()
    taken = Capture(
        recorded.graph, conditions, expected, {**recorded.constants, **folded}, 1e-4 if recorded.decomposed else 0.0
    )
    other = _another_image(example)
    for inputs in (example, other):
        if not _outputs_equal(_run(holder, taken, inputs), _eager(model, inputs), taken.tolerance):
            raise CaptureError(_difference(model, holder, taken, inputs))
    return (
        taken
        if _right_at_another_size(holder, taken, example)
        else replace(taken, pinned=tuple(tuple(x.shape) for x in example))
    )


def _right_at_another_size(holder: Holder, taken: Capture, example: tuple[Tensor, ...]) -> bool:
    for inputs in _other_sizes(example):
        try:
            eager = _eager(holder.model, inputs)
        except Exception:  # noqa: BLE001, S112  # a size this network does not take, whatever it raises: try the next
            continue
        if not taken.holds(holder, inputs):
            continue
        try:
            return _outputs_equal(_run(holder, taken, inputs), eager, taken.tolerance)
        except Exception:  # noqa: BLE001  # a size was baked in: the graph stays tied to its own size
            return False
    return True


def _difference(model: nn.Module, holder: Holder, taken: Capture, inputs: tuple[Tensor, ...]) -> str:
    """Names the first place where the graph and the network part."""
    suspects = [name for name in taken.constants if "/tensor_" in name or name.startswith("root/tensor_")]
    if suspects:
        place = suspects[0].rsplit("/", 1)[0].replace("/", ".")
        return (
            f"{type(model).__name__}: in {place} a tensor appears that no torch call made (numpy, a scripted function, a tensor built from "
            "Python numbers) and it changes with the image, so the graph would freeze it. Compute it with torch calls"
        )
    return (
        f"{type(model).__name__}: the captured graph does not reproduce the network on an input of shape {tuple(inputs[0].shape)}. "
        "Something in it depends on state outside the input: a counter, a cache, a random number"
    )


def run_eager(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The network itself, on a copy of its state and of the inputs."""
    return _eager(model, inputs)


__all__ = ["IMAGE", "Capture", "Holder", "capture", "eliminate_dead_code", "run_eager"]
_Callable = Callable
