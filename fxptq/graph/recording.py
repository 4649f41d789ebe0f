"""The graph during a trace: the node of each value, the dependence of values on the input, and the guards on numbers.

`Recording` knows tensors, numbers and modules. The tracer decides which calls to record, and how.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import ReferenceType, ref

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from fxptq.errors import CaptureError
from fxptq.graph.functions import write_down, writes
from fxptq.graph.ledger import Ledger
from fxptq.graph.pieces import Pieces, pieces_in
from fxptq.graph.places import running_line
from fxptq.graph.values import TracedNumber, is_number, plain, traced

IMAGE, SIZE, CONST = "image", "size", "const"
"""The origin of a node's value (`meta["follows"]`): the pixels of the input, only its sizes, or neither."""

_STRENGTH = (CONST, SIZE, IMAGE).index
_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}
"""The dtypes that Python's types mean; a graph is written out as code, which cannot contain the types."""


class Recording:
    """A graph being written.

    Args:
        model: the network whose tensors the graph may read.
        prefix: prefix of the names of parameters and buffers in `get_attr` targets.
        example: the inputs; the graph begins with them.
        baked: whether sizes are plain numbers, so that the graph holds for inputs of these shapes alone.

    Attributes:
        open: whether calls are being recorded; traced numbers that outlive it are plain.
        inputs: tensors to run the model on.
        numbers: every traced number.
        refused: the first refusal, which the network may have caught.
        graph, guards, constants, foreign, tied: see `fxptq.graph.tracer.Trace`.
    """

    def __init__(self, model: nn.Module, prefix: str, example: tuple[Tensor, ...], *, baked: bool = False) -> None:
        self.open = False
        self.tied = self._baked = baked
        self.refused: CaptureError | None = None
        self.numbers: list[ReferenceType[TracedNumber]] = []
        self.graph = fx.Graph()
        self.guards: list[tuple[fx.Node, Any]] = []
        self.constants: dict[str, Tensor] = {}
        self.foreign: dict[str, str] = {}
        self.ledger = Ledger(model, prefix)
        self._pinned: set[fx.Node] = set()
        self._title = type(model).__name__
        self._stack: list[tuple[nn.Module, str]] = []
        self._ordinals: Counter[str] = Counter()
        self.inputs = tuple(self._input(index, tensor) for index, tensor in enumerate(example))
        self.device = example[0].device
        self._device_node = self.graph.call_function(getattr, (next(iter(self.graph.nodes)), "device"))
        self._describe(self._device_node, self.device, CONST)

    def _input(self, index: int, tensor: Tensor) -> Tensor:
        node = self.graph.placeholder("x" if index == 0 else f"x_{index}")
        own = tensor.detach().clone()
        self._describe(node, own, IMAGE)
        self.ledger.enter(own, node)
        return own

    # -- places -------------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The path of the module that is running; empty for the network itself."""
        return self._stack[-1][1] if self._stack else ""

    def where(self, line: str = "") -> str:
        """The module and the line that are running, for messages."""
        return f"{self.path or self._title} ({line or running_line()})"

    def refusal(self, reason: str) -> CaptureError:
        """The error for something here that one graph cannot hold. It stays noted if the network catches it."""
        error = CaptureError(f"{self.where()}: {reason}")
        self.refused = self.refused or error
        return error

    def enter_module(self, module: nn.Module, path: str | None) -> None:
        """A module starts; one that is no part of the network is named by its class."""
        self._stack.append((module, path if path is not None else f"{self.path}.{type(module).__name__}".lstrip(".")))

    def leave_module(self, module: nn.Module) -> None:
        """A module is done, and so are the modules inside it that an error left, if its caller caught the error."""
        while self._stack and self._stack.pop()[0] is not module:
            pass

    # -- nodes of values ----------------------------------------------------------------------------------------------

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node that computes the tensor, or else a new node that reads it."""
        node = self.ledger.node_of(tensor)
        if node is not None:
            return node
        name = self.ledger.name_of(tensor)
        if name is None:
            path = self.path or "root"
            name = f"constants.{path}.tensor_{self._ordinals[path]}"
            self._ordinals[path] += 1
        if name.startswith("constants."):
            key = name.removeprefix("constants.").replace(".", "/")
            while key in self.constants:
                key += "~"
            name, self.constants[key] = (
                f"constants.{key}",
                tensor.detach().clone(),
            )  # as it is now: it may be overwritten
            if not self.ledger.is_networks_own(tensor):
                self.foreign[key] = self.where()
        node = self.graph.get_attr(name)
        self._describe(node, tensor, CONST)
        self.ledger.enter(tensor, node)
        return node

    def nodes_of(self, values: Any) -> Any:
        """The same arguments, however nested, with nodes in place of tensors and traced numbers."""
        for pieces in pieces_in(values):
            pieces.pin_count()
        return map_aggregate(values, self._as_node)

    def _as_node(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.node_of(value)
        if isinstance(value, TracedNumber):
            return value.origin if value.recorder is self else plain(value)
        if isinstance(value, torch.device) and value == self.device:
            return self._device_node
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray) and value.dtype != object:  # a graph cannot hold it, and reads it as a tensor
            return self.node_of(torch.from_numpy(value.copy()))
        return _DTYPES.get(value, value) if isinstance(value, type) else value

    def _describe(self, node: fx.Node, value: Any, follows: str) -> None:
        node.meta.update(path=self.path, line=running_line(), follows=follows)
        if self._stack:
            node.meta["module"] = type(self._stack[-1][0])
        if isinstance(value, Tensor):
            node.meta["shape"], node.meta["dtype"] = tuple(value.shape), value.dtype
        elif isinstance(value, (int, float)):
            node.meta["value"] = plain(value)

    # -- calls --------------------------------------------------------------------------------------------------------

    def call(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        result: Any,
        follows: str,
        *,
        ragged: bool = False,
        counted: bool = False,
    ) -> Any:
        """Records a call and returns its result, whose tensors and numbers now belong to the node.

        Args:
            func: a function, or the name of a method.
            args: arguments, with nodes in place of values.
            kwargs: keyword arguments, with nodes in place of values.
            result: the result of the call.
            follows: `IMAGE`, `SIZE` or `CONST`, the origin of the result.
            ragged: whether the sizes of the result depend on the values of an input.
            counted: whether the number of results depends on the sizes of an input.
        """
        node = self.note(func, args, kwargs, result, follows, ragged=ragged)
        recorded = self._recorded(result, node, follows)
        return Pieces(recorded, node, self) if counted and follows != CONST and not self._baked else recorded

    def call_module(self, target: str, args: Any, kwargs: Any, result: Any, follows: str) -> Any:
        """Writes down the call of a module as one."""
        node = self.graph.call_module(target, args, kwargs)
        self._describe(node, result, follows)
        return self._recorded(result, node, follows)

    def note(self, func: Any, args: Any, kwargs: Any, result: Any, follows: str, *, ragged: bool = False) -> fx.Node:
        """Writes down a call and returns its node."""
        node = write_down(self.graph, func, tuple(args), dict(kwargs))
        self._describe(node, result, follows)
        _mark_ragged(node, result, starts=ragged)
        return node

    def is_read(self, target: Tensor) -> bool:
        """Whether a call has read the target's memory; a write into it does not count."""
        return any(not writes(user.target, user.kwargs) for node in self.ledger.sharing(target) for user in node.users)

    def overwritten(self, target: Tensor, follows: str) -> None:
        """After an in-place call, all nodes that share the target's memory follow from the written values, too."""
        for node in (self.node_of(target), *self.ledger.sharing(target)):
            node.meta["follows"] = max(node.meta["follows"], follows, key=_STRENGTH)
            node.meta["written"] = True

    def _recorded(self, result: Any, node: fx.Node, follows: str) -> Any:
        """The result of a recorded call, with traced numbers in place of numbers that depend on sizes."""
        if isinstance(result, Tensor):
            self.ledger.enter(result, node)
            return result
        if isinstance(result, torch.Size):
            return torch.Size([self._item(node, i, size, follows) for i, size in enumerate(result)])
        if is_number(result):
            node.meta["follows"] = min(follows, SIZE, key=_STRENGTH)
            is_constant = follows == CONST or (self._baked and not node.meta.get("ragged"))
            return plain(result) if is_constant else self._traced(result, node)
        if isinstance(result, (tuple, list)):
            items = [self._item(node, i, item, follows) for i, item in enumerate(result)]
            return result._make(items) if hasattr(result, "_make") else type(result)(items)
        return result

    def _item(self, node: fx.Node, index: int, value: Any, follows: str) -> Any:
        if isinstance(value, (int, float)) and follows == CONST:
            return value
        item = self.graph.call_function(operator.getitem, (node, index))
        self._describe(item, value, follows if isinstance(value, Tensor) else SIZE)
        _mark_ragged(item, value, starts=False)
        return self._recorded(value, item, follows)

    # -- numbers ------------------------------------------------------------------------------------------------------

    def number(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Records a Python call on traced numbers; returns its value, traced if it is a number and else a guard."""
        node, value = self._calculated(function, args)
        if is_number(value):
            return self._traced(value, node)
        self._require(node, value)
        return value

    def _traced(self, value: Any, node: fx.Node) -> Any:
        number = traced(value, node, self)
        self.numbers.append(ref(number))
        return number

    def answer(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Records a question about traced numbers as a guard and returns the answer.

        Raises:
            CaptureError: the number depends on the image, so one graph cannot hold both answers.
        """
        node, value = self._calculated(function, args)
        self._require(node, value)
        return value

    def pin(self, number: TracedNumber) -> None:
        """Requires that a traced number always has its present value.

        Raises:
            CaptureError: it depends on the image.
        """
        if number.origin not in self._pinned:
            self.answer(operator.eq, (number, plain(number)))
            self._pinned.add(number.origin)

    def ask(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Records a torch call on nodes whose result leaves the trace as a plain value, which becomes a guard."""
        self._require(self.note(func, args, kwargs, result, SIZE), result)

    def pin_count(self, pieces: fx.Node, count: int) -> None:
        """Requires that a call always returns so many values."""
        node = self.graph.call_function(len, (pieces,))
        self._describe(node, count, SIZE)
        self._require(node, count)

    def pin_sizes(self, tensor: Tensor) -> None:
        """Requires that a tensor always has its present number of values, because its storage leaves the trace."""
        node = self.note("numel", (self.node_of(tensor),), {}, tensor.numel(), SIZE)
        self._require(node, tensor.numel())

    def _require(self, node: fx.Node, value: Any) -> None:
        if node.meta.get("ragged"):
            raise self.refusal(
                "the number of values that pass a mask (nonzero, boolean indexing) decides what the network computes, "
                "and one graph cannot hold that. Compute with all values instead (torch.where, masks, topk), or "
                "quantize the parts before and after it apart"
            )
        self.guards.append((node, value))

    def _calculated(self, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[fx.Node, Any]:
        value = function(*map_aggregate(args, plain))
        value = value.item() if isinstance(value, np.number) else value
        node = self.graph.call_function(function, tuple(self.nodes_of(args)))
        self._describe(node, value, SIZE)
        if any(source.meta.get("ragged") for source in node.all_input_nodes):
            node.meta["ragged"] = {plain(value)}
        return node, value

    # -- the end ------------------------------------------------------------------------------------------------------

    def finish(self, output: Any) -> None:
        """Ends the graph with the output of the network.

        Raises:
            CaptureError: the output holds no tensor, or the network went on after a refusal.
        """
        if self.refused is not None:
            raise self.refused
        tensors = 0

        def converted(value: Any) -> Any:
            nonlocal tensors
            tensors += isinstance(value, Tensor)
            return self._as_node(value)

        for pieces in pieces_in(output):
            pieces.pin_count()
        nodes = map_aggregate(output, converted)
        if not tensors:
            raise CaptureError(
                f"{self._title}: the output holds no tensor ({type(output).__name__}); expected the restored image, or "
                "a tuple, list or dict of tensors"
            )
        self.graph.output(nodes)
        self._give_written_attributes_a_copy()

    def _give_written_attributes_a_copy(self) -> None:
        """Lets each run start from the stored buffers, so that the network's writes into them are not kept."""
        for node in list(self.graph.nodes):
            if node.op == "get_attr" and node.meta.get("written"):
                with self.graph.inserting_after(node):
                    copied = self.graph.call_method("clone", (node,))
                copied.meta.update(node.meta)
                node.replace_all_uses_with(copied, delete_user_cb=lambda user, copied=copied: user is not copied)


def strongest(*aggregates: Any) -> str:
    """The strongest origin (`IMAGE` before `SIZE` before `CONST`) of all the nodes among the arguments."""
    origins = [CONST]
    for aggregate in aggregates:
        fx.node.map_arg(aggregate, lambda node: origins.append(node.meta.get("follows", CONST)))
    return max(origins, key=_STRENGTH)


def _mark_ragged(node: fx.Node, result: Any, *, starts: bool) -> None:
    """Marks a node with a size that depends on the image; `ragged` holds these sizes of a tensor, or the number."""
    sizes = set(result.shape[:1]) if starts and isinstance(result, Tensor) else set()
    for source in node.all_input_nodes[:1]:
        sizes |= source.meta.get("ragged") or set()
    if isinstance(result, Tensor):
        sizes &= set(result.shape)
    elif isinstance(result, (int, float)):
        sizes &= {plain(result)}
    if sizes:
        node.meta["ragged"] = sizes
