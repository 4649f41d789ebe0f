"""From a network and one example to a torch.fx graph that is proved equal to it.

A capture is a graph, the conditions on the input sizes under which it holds, and the constants it reads. It is checked
against the eager network on the example, on another image and at a second size before anyone gets it. The user's model
is never changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxptq.errors import CaptureError
from fxptq.graph.calls import name_of
from fxptq.graph.constants import eliminate_dead_code, fold_constants
from fxptq.graph.exclusive import CAPTURING
from fxptq.graph.holder import Holder
from fxptq.graph.kinds import arithmetic
from fxptq.graph.places import first_line, line_of_error
from fxptq.graph.randomness import OwnRandomNumbers
from fxptq.graph.runnable import runnable
from fxptq.graph.tracer import Trace, TraceError, trace
from fxptq.graph.verify import Tensors, another_image, difference, far_sizes, other_sizes, run_graph, run_network

_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}
"""What rounding alone may make of a difference, relative to the largest output; 16 bits: 1e-1."""

_FEW = 4
"""So many layers are run sooner than PyTorch's rules for shapes are loaded."""


@dataclass(frozen=True)
class Capture:
    """One graph of a network.

    Attributes:
        graph: the network; reads `model.*` and `constants.*`.
        conditions: a graph from the inputs to the numbers that must come out as `expected`; None when any size will do.
        expected: those numbers.
        constants: tensors the graph reads that the model does not hold, by name under `constants.`.
        tolerance: how far graph and network were apart on the inputs tried, relative to the largest output: 0 but for
            networks that differ in rounding from run to run.
        decomposed: whether a fused attention call is written by its parts, which round differently from the call.
        pinned: the input shapes the graph is tied to, when only those can be vouched for.
        baked: whether sizes are plain numbers in the graph, because the network does not run with traced ones.
        draws: whether the network draws random numbers.
    """

    graph: fx.Graph
    conditions: fx.Graph | None
    expected: tuple[Any, ...]
    constants: Mapping[str, Tensor]
    tolerance: float = 0.0
    decomposed: bool = False
    pinned: tuple[tuple[int, ...], ...] | None = None
    baked: bool = False
    draws: bool = False

    def renamed(self, names: Mapping[str, str]) -> Capture:
        """The same capture, reading its constants under other names; its graphs are changed in place."""
        for graph in (self.graph, self.conditions):
            for node in graph.nodes if graph is not None else ():
                key = str(node.target).removeprefix("constants.")
                if node.op == "get_attr" and key in names:
                    node.target = f"constants.{names[key]}"
        return replace(self, constants={names[name]: tensor for name, tensor in self.constants.items()})

    def holds(self, root: nn.Module, inputs: Tensors) -> bool:
        """Whether the graph is right for inputs of these shapes; little of the network is computed to tell."""
        if self.pinned is not None:
            return tuple(tuple(x.shape) for x in inputs) == self.pinned
        if self.conditions is None:
            return True
        try:
            return _numbers(root, self.conditions, inputs) == self.expected
        except Exception:  # noqa: BLE001  # whatever a network's own shape arithmetic raises for sizes it is not made for
            return False


class _ShapesOnly(fx.Interpreter):
    """Runs a graph on tensors that have a shape and no values."""

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The tensor there, without its values."""
        value = super().get_attr(target, args, kwargs)
        return value.to("meta") if isinstance(value, Tensor) else value


def _numbers(root: nn.Module, conditions: fx.Graph, inputs: Tensors) -> tuple[Any, ...]:
    # Interpreted: torch would keep the code of a module that is made for each question.
    with torch.no_grad():
        layers = arithmetic()
        if sum(name_of(node) in layers for node in conditions.nodes) > _FEW:
            with contextlib.suppress(NotImplementedError, RuntimeError), torch.device("meta"):
                shaped = (torch.empty(x.shape, dtype=x.dtype) for x in inputs)
                return tuple(_ShapesOnly(root, graph=conditions).run(*shaped))
        return tuple(fx.Interpreter(root, graph=conditions).run(*(torch.zeros_like(x) for x in inputs)))


def capture(model: nn.Module, example: Tensors, proved: Capture | None = None) -> Capture:
    """Captures a network for inputs like `example` and proves the graph equal to it.

    The graph is compared, bit for bit, on the example, on another image, and at a second size and number of images when
    the network takes one and the conditions allow it. A graph that is right at its own size and wrong at another is
    tied to its own size. One network is captured at a time in a process.

    Args:
        model: in evaluation mode; left as it is.
        example: positional inputs.
        proved: a capture, for inputs of these shapes, of a network that differs in the values of its weights alone:
            what was found of it is taken as found.

    Raises:
        CaptureError: naming the module path, the source line and the reason.
    """
    with CAPTURING, OwnRandomNumbers() as numbers, torch.inference_mode(mode=False):
        example = tuple(x.detach().clone() for x in example)
        taken = _captured(model, example) if proved is None else _captured_as(proved, model, example)
    return replace(taken, draws=numbers.drew)


def _captured_as(proved: Capture, model: nn.Module, example: Tensors) -> Capture:
    """What `proved` is, of a network that differs in the values of its weights alone."""
    taken = _cleaned(model, trace(model, example, baked=proved.baked), example)[1]
    return replace(taken, tolerance=proved.tolerance, pinned=proved.pinned, baked=proved.baked)


def _captured(model: nn.Module, example: Tensors) -> Capture:
    try:
        output = run_network(model, example)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} ({line_of_error(error)}): the network fails on the example of shape "
            f"{tuple(example[0].shape)}, {example[0].dtype} ({type(error).__name__}: {first_line(error)}). "
            "Pass an input it takes"
        ) from error
    try:
        return _proved(model, example, output, trace(model, example))
    except (TraceError, _UnequalError) as error:
        # Traced numbers are not Python's in everything. With plain ones the graph is right for one size.
        try:
            return _proved(model, example, output, trace(model, example, baked=True), baked=True)
        except CaptureError:
            raise error from None


class _UnequalError(CaptureError):
    """A graph that is not its network."""


def _proved(model: nn.Module, example: Tensors, output: Any, recorded: Trace, *, baked: bool = False) -> Capture:
    """The capture of a trace, if it equals the network; tied to its own size unless it is right at others too."""
    root, taken = _cleaned(model, recorded, example)
    module = runnable(root, taken.graph)
    apart = max(
        difference(run_graph(module, example), output),
        difference(run_graph(module, other := another_image(example)), run_network(model, other)),
    )
    if apart > _ROUNDING.get(example[0].dtype, 0.1):
        raise _UnequalError(_reason(model, recorded, example))
    taken = replace(taken, tolerance=apart, baked=baked)
    if not recorded.tied and _right_at_other_sizes(root, module, taken, example):
        return taken
    return replace(taken, pinned=tuple(tuple(x.shape) for x in example))


def _cleaned(model: nn.Module, recorded: Trace, example: Tensors) -> tuple[Holder, Capture]:
    """The trace without dead code and with constants computed, and what it reads."""
    graph = recorded.graph
    conditions, expected = _conditions(graph, recorded.guards)
    root = Holder(model)
    root.keep(recorded.constants)
    eliminate_dead_code(graph)
    folded = fold_constants(graph, root, example[0].device)
    root.keep(folded)
    eliminate_dead_code(graph)
    graph.lint()
    read = {node.target for part in (graph, conditions) if part for node in part.nodes if node.op == "get_attr"}
    constants = {n: t for n, t in {**recorded.constants, **folded}.items() if f"constants.{n}" in read}
    return root, Capture(graph, conditions, expected, constants, decomposed=recorded.decomposed)


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


def _right_at_other_sizes(root: Holder, module: fx.GraphModule, taken: Capture, example: Tensors) -> bool:
    """Whether the graph is right at one size of each group that the network takes and the conditions allow."""
    for group in (other_sizes(example), *far_sizes(example)):
        outcomes = (_right_at(root, module, taken, inputs) for inputs in group)
        if next((outcome for outcome in outcomes if outcome is not None), True) is False:
            return False
    return True


def _right_at(root: Holder, module: fx.GraphModule, taken: Capture, inputs: Tensors) -> bool | None:
    """Whether the graph equals the network there; None if the one is not for these sizes or the other fails."""
    if not taken.holds(root, inputs):
        return None
    try:
        expected = run_network(root.model, inputs)
    except Exception:  # noqa: BLE001  # a size this network does not take, whatever it raises: try the next
        return None
    try:
        return difference(run_graph(module, inputs), expected) <= taken.tolerance
    except Exception:  # noqa: BLE001  # a size was baked in: the graph stays tied to its own size
        return False


def _reason(model: nn.Module, recorded: Trace, inputs: Tensors) -> str:
    """Why the graph may part from the network."""
    for place in recorded.foreign.values():
        return (
            f"{place}: a tensor appears that no torch call made (numpy, a list of Python numbers) and it changes with "
            "the image, so the graph would freeze it. Compute it with torch calls"
        )
    return (
        f"{type(model).__name__}: the captured graph does not reproduce the network on an input of shape "
        f"{tuple(inputs[0].shape)}. Something in it depends on state outside the input: a counter, a cache, random "
        "numbers of Python or numpy"
    )
