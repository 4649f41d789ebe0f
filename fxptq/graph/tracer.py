"""The value-carrying tracer: runs a network once, eagerly, and writes down every torch call as an fx node.

A `TorchFunctionMode` sees each call with real tensors; sizes come back as traced numbers (`values`), so the Python of
the network runs unchanged while its shape arithmetic stays in the graph. The graph is purely functional calls and
`get_attr`s: a module such as `nn.Linear` runs its own forward and leaves `F.linear`, tagged with its module path.
Nothing here knows an architecture. A `torch.no_grad` inside the network is not kept.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from fxptq.errors import CaptureError
from fxptq.graph.attention import DECOMPOSED
from fxptq.graph.calls import ARITHMETIC, plain_name
from fxptq.graph.copies import structural_copy
from fxptq.graph.functions import (
    SHAPED_LIKE,
    VALUE_READERS,
    is_custom_operator,
    is_ragged,
    is_random,
    name_of_function,
    property_of,
    twin_of,
    write_down,
    writes,
)
from fxptq.graph.ledger import Ledger
from fxptq.graph.namespaces import substituted
from fxptq.graph.opaque import autograd_functions_go_through, compiled_pieces_run_eagerly, recorded_twin, unseen
from fxptq.graph.places import first_line, line_of_error, running_line
from fxptq.graph.values import BUILTINS_IN_TRACE, MATH_IN_TRACE, Traced, math_function_in_trace, plain, traced

IMAGE, SIZE, CONST = "image", "size", "const"
"""What a node's value follows from: the pixels of the input, only its sizes, or neither."""


@dataclass(frozen=True)
class Trace:
    """A traced network.

    Attributes:
        graph: every call, in order; `node.meta` holds `path`, `module`, `line`, `follows` and, for a tensor, `shape`
            and `dtype`; for a number, `value`.
        guards: `(node, value)`: the graph is right only for inputs on which each node comes out as the value.
        constants: tensors met that are neither parameter nor buffer of the network, by the name the graph reads them
            under.
        foreign: of those, the ones that no torch call made while tracing, with the place that first used them.
        decomposed: whether a fused call was written by its parts, which rounds differently.
    """

    graph: fx.Graph
    guards: tuple[tuple[fx.Node, Any], ...]
    constants: dict[str, Tensor]
    foreign: dict[str, str]
    decomposed: bool


class Tracer(TorchFunctionMode):
    """Records one forward call of `model`, of which it may change the buffers and attributes; see `trace`."""

    def __init__(self, model: nn.Module, prefix: str, *, twins: bool = True) -> None:
        super().__init__()
        self.open = False
        self.graph = fx.Graph()
        self.guards: list[tuple[fx.Node, Any]] = []
        self.constants: dict[str, Tensor] = {}
        self.foreign: dict[str, str] = {}
        self.decomposed = False
        self._model, self._prefix, self._twins = model, prefix, twins
        self._ledger = Ledger(model, prefix)
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._stack: list[tuple[nn.Module, str]] = []
        self._ordinals: Counter[str] = Counter()
        self._unrecorded: set[str] | None = None
        self._device: torch.device | None = None
        self._device_node: fx.Node | None = None

    # -- what the graph knows of a value -------------------------------------------------------------------------------

    def _node_of(self, tensor: Tensor) -> fx.Node:
        node = self._ledger.node_of(tensor)
        if node is not None:
            return node
        name = self._ledger.name_of(tensor)
        if name is None:
            place = self._path() or "root"
            name = f"constants.{place}.tensor_{self._ordinals[place]}"
            self._ordinals[place] += 1
        if name.startswith("constants."):
            key = name.removeprefix("constants.").replace(".", "/")
            name, self.constants[key] = f"constants.{key}", tensor.detach()
            if not self._ledger.is_networks_own(tensor):
                self.foreign[key] = self._where()
        node = self.graph.get_attr(name)
        self._describe(node, tensor, CONST)
        self._ledger.enter(tensor, node)
        return node

    def _as_node(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node_of(value)
        if isinstance(value, Traced):
            return value.node if value.recorder is self else plain(value)
        if isinstance(value, torch.device) and value == self._device:
            return self._device_node
        return _DTYPES.get(value, value) if isinstance(value, type) else value

    def _path(self) -> str:
        return self._stack[-1][1] if self._stack else ""

    def _where(self, line: str = "") -> str:
        return f"{self._path() or type(self._model).__name__} ({line or running_line()})"

    def _describe(self, node: fx.Node, value: Any, follows: str) -> None:
        node.meta.update(path=self._path(), line=running_line(), follows=follows)
        if self._stack:
            node.meta["module"] = type(self._stack[-1][0])
        if isinstance(value, Tensor):
            node.meta["shape"], node.meta["dtype"] = tuple(value.shape), value.dtype
        elif isinstance(value, (int, float)):
            node.meta["value"] = plain(value)

    # -- recording -----------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.open or self._unrecorded is not None:
            if self._unrecorded is not None:
                self._unrecorded.add(plain_name(name_of_function(func)))
            return func(*args, **kwargs)
        if func in DECOMPOSED:
            self.decomposed = True
            with self:
                return DECOMPOSED[func](*args, **kwargs)
        name = name_of_function(func)
        if name == "__set__":
            return self._assign(func, *args)
        if name in VALUE_READERS:
            return self._read_value(func, name, args, kwargs)
        return self._run(func, name, args, kwargs)

    def _run(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._refuse_autocast()
        nodes, keywords = map_aggregate(args, self._as_node), map_aggregate(kwargs, self._as_node)
        follows = IMAGE if is_random(func, args, kwargs) else _strongest(nodes, keywords)
        written = writes(func, kwargs)
        twin = twin_of(func, args, kwargs) if written and args and self._is_alone(args[0]) else None
        ragged = follows == IMAGE and is_ragged(func, args)
        result = func(*map_aggregate(args, plain), **map_aggregate(kwargs, plain))
        if name in SHAPED_LIKE and follows == IMAGE:
            follows = SIZE
        if _says_nothing(func, name, result):
            return result
        if twin is not None:
            call, options = twin
            node = self._recorded(call, nodes, map_aggregate(options, self._as_node), result, follows)
            self._ledger.replace(result, node)
            return result
        if written:
            self._spread(func, args, kwargs, follows)
        node = self._recorded(func, nodes, keywords, result, follows)
        _note_ragged(node, result, starts=ragged)
        return self._wrap(result, node, follows)

    def _recorded(self, func: Any, args: Any, kwargs: Any, result: Any, follows: str) -> fx.Node:
        node = write_down(self.graph, func, tuple(args), dict(kwargs))
        self._describe(node, result, follows)
        return node

    def _is_alone(self, target: Any) -> bool:
        """Whether an in-place call on it may be recorded as its functional twin.

        The graph is then free of the order of evaluation, and gradients flow through networks that overwrite what
        their backward needs.
        """
        return isinstance(target, Tensor) and self._ledger.is_alone(target)

    def _spread(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], follows: str) -> None:
        """After a real in-place call, whatever shares the target's memory follows from what was written there."""
        for target in (*(args if is_custom_operator(func) else args[:1]), kwargs.get("out")):
            if isinstance(target, Tensor):
                for node in (self._node_of(target), *self._ledger.sharing(target)):
                    node.meta["follows"] = max(node.meta["follows"], follows, key=_STRENGTH)
                    node.meta["written"] = True

    def _assign(self, func: Callable[..., Any], target: Tensor, value: Any) -> None:
        """`x.data = y`: from now on x reads as y. Other properties (requires_grad, grad) change no value."""
        func(target, plain(value))
        if property_of(func) == "data":
            self._ledger.enter(target, self._node_of(value))

    def _wrap(self, result: Any, node: fx.Node, follows: str) -> Any:
        if isinstance(result, Tensor):
            self._ledger.enter(result, node)
            return result
        if isinstance(result, torch.Size):
            return torch.Size([self._item(node, i, size, follows) for i, size in enumerate(result)])
        if isinstance(result, (int, float)) and not isinstance(result, bool):
            node.meta["follows"] = min(follows, SIZE, key=_STRENGTH)
            return plain(result) if follows == CONST else traced(result, node, self)
        if isinstance(result, (tuple, list)):
            items = [self._item(node, i, item, follows) for i, item in enumerate(result)]
            return result._make(items) if hasattr(result, "_make") else type(result)(items)
        return result

    def _item(self, node: fx.Node, index: int, value: Any, follows: str) -> Any:
        if isinstance(value, (int, float)) and follows == CONST:
            return value
        item = self.graph.call_function(operator.getitem, (node, index))
        self._describe(item, value, follows if isinstance(value, Tensor) else SIZE)
        _note_ragged(item, value, starts=False)
        return self._wrap(value, item, follows)

    def _read_value(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """A tensor becomes a Python value: allowed unless the pixels decide it, guarded when the sizes do."""
        nodes = map_aggregate(args, self._as_node)
        follows = _strongest(nodes)
        if follows == IMAGE:
            call = {"__bool__": "bool()", "__int__": "int()", "__float__": "float()", "__index__": "an index made"}
            raise CaptureError(
                f"{self._where()}: {call.get(name, f'.{name}()')} of a tensor that depends on the image decides what "
                "the network computes, and one graph cannot hold that. Replace it by tensor arithmetic (torch.where, "
                "masks), or quantize the parts before and after it apart"
            )
        result = func(*map_aggregate(args, plain), **map_aggregate(kwargs, plain))
        if follows == SIZE and isinstance(result, (bool, int, float)):
            node = self.graph.call_method("item", (nodes[0],))
            self._describe(node, result, SIZE)
            self.guards.append((node, result))
        return result

    def _refuse_autocast(self) -> None:
        kind = self._device.type if self._device else "cpu"
        if torch.is_autocast_enabled(kind):
            raise CaptureError(
                f"{self._where()}: runs under torch.autocast, which a graph cannot hold. Convert the network instead "
                "(model.bfloat16()), or take the autocast out of its forward"
            )

    # -- pieces recorded as one call -----------------------------------------------------------------------------------

    def _record_piece(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a piece unseen and records it as one call; one with arithmetic inside is seen through after all."""
        if not self.open or self._unrecorded is not None:
            return func(*args, **kwargs)
        self._unrecorded = set()
        try:
            result = func(*map_aggregate(args, plain), **map_aggregate(kwargs, plain))
            seen = self._unrecorded
        finally:
            self._unrecorded = None
        if seen & ARITHMETIC:
            return func(*args, **kwargs)
        with unseen():
            nodes, keywords = map_aggregate(args, self._as_node), map_aggregate(kwargs, self._as_node)
            follows = _strongest(nodes, keywords)
            return self._wrap(result, self._recorded(func, nodes, keywords, result, follows), follows)

    def _record_scripted(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """A TorchScript module just ran, unseen: records it as a call of the module."""
        with unseen():
            nodes, keywords = map_aggregate(args, self._as_node), map_aggregate(kwargs, self._as_node)
            follows = _strongest(nodes, keywords)
            node = self.graph.call_module(f"{self._prefix}.{self._path()}", nodes, keywords)
            self._describe(node, result, follows)
            return self._wrap(result, node, follows)

    # -- the recorder of traced numbers --------------------------------------------------------------------------------

    def number(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Records a Python call on traced numbers and returns its value, traced."""
        node, value = self._calculated(function, args)
        return traced(value, node, self)

    def answer(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Records a question about traced numbers as a guard and returns the answer.

        Raises:
            CaptureError: the number depends on the image, so one graph cannot hold both answers.
        """
        node, value = self._calculated(function, args)
        if node.meta.get("ragged"):
            raise CaptureError(
                f"{self._where()}: the number of values that pass a mask (nonzero, boolean indexing) decides what the "
                "network computes, and one graph cannot hold that. Compute with all values instead (torch.where, "
                "masks, topk), or quantize the parts before and after it apart"
            )
        self.guards.append((node, value))
        return value

    def _calculated(self, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[fx.Node, Any]:
        value = function(*map_aggregate(args, plain))
        nodes = map_aggregate(args, self._as_node)
        node = self.graph.call_function(function, tuple(nodes))
        self._describe(node, value, SIZE)
        if any(source.meta.get("ragged") for source in node.all_input_nodes):
            node.meta["ragged"] = {plain(value)}
        return node, value

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, example: tuple[Tensor, ...]) -> Trace:
        """Runs the model on `example` and returns the trace."""
        inputs = self._inputs(example)
        with contextlib.ExitStack() as scope:
            scope.enter_context(torch.no_grad())
            scope.enter_context(self._module_paths())
            scope.enter_context(substituted(self._model, self._twin, self._builtins()))
            scope.enter_context(autograd_functions_go_through(self._record_piece))
            scope.enter_context(compiled_pieces_run_eagerly())
            self.open = True
            scope.callback(setattr, self, "open", False)
            try:
                with self:
                    output = self._model(*inputs)
            except CaptureError:
                raise
            except Exception as error:
                if self._twins and isinstance(error, TypeError) and "_NumberType" in str(error):
                    raise NumberUsedAsDtypeError from error
                raise CaptureError(
                    f"{self._where(line_of_error(error))}: runs as it is but not while it is traced "
                    f"({type(error).__name__}: {first_line(error)})"
                ) from error
        self.graph.output(self._output(output))
        self._give_written_attributes_a_copy()
        return Trace(self.graph, tuple(self.guards), self.constants, self.foreign, self.decomposed)

    def _inputs(self, example: tuple[Tensor, ...]) -> list[Tensor]:
        inputs = []
        for index, tensor in enumerate(example):
            node = self.graph.placeholder("x" if index == 0 else f"x_{index}")
            own = tensor.detach().clone()
            self._describe(node, own, IMAGE)
            self._ledger.enter(own, node)
            inputs.append(own)
        self._device = example[0].device
        self._device_node = self.graph.call_function(getattr, (next(iter(self.graph.nodes)), "device"))
        self._describe(self._device_node, self._device, CONST)
        return inputs

    def _twin(self, value: Any) -> Any:
        if value is math:
            return MATH_IN_TRACE
        return math_function_in_trace(value) or recorded_twin(value, self._record_piece)

    def _builtins(self) -> dict[str, Any]:
        return {n: v for n, v in BUILTINS_IN_TRACE.items() if self._twins or not isinstance(v, type)}

    def _output(self, output: Any) -> Any:
        tensors = 0

        def convert(value: Any) -> Any:
            nonlocal tensors
            tensors += isinstance(value, Tensor)
            return self._as_node(value)

        nodes = map_aggregate(output, convert)
        if not tensors:
            raise CaptureError(
                f"{type(self._model).__name__}: the output holds no tensor ({type(output).__name__}); expected the "
                "restored image, or a tuple, list or dict of tensors"
            )
        return nodes

    def _give_written_attributes_a_copy(self) -> None:
        """What the network writes into its own buffers is not kept: each run starts from the stored ones."""
        for node in list(self.graph.nodes):
            if node.op == "get_attr" and node.meta.get("written"):
                with self.graph.inserting_after(node):
                    copied = self.graph.call_method("clone", (node,))
                copied.meta.update(node.meta)
                node.replace_all_uses_with(copied, delete_user_cb=lambda user, copied=copied: user is not copied)

    @contextlib.contextmanager
    def _module_paths(self) -> Iterator[None]:
        def enter(module: nn.Module, _: Any) -> None:
            inside = f"{self._path()}.{type(module).__name__}".lstrip(".")
            self._stack.append((module, self._paths.get(id(module), inside)))

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            scripted = isinstance(module, torch.jit.ScriptModule) and self.open and self._unrecorded is None
            result = self._record_scripted(args, kwargs, output) if scripted else None
            while self._stack and self._stack.pop()[0] is not module:
                pass  # a module that raised, and whose caller went on
            return result

        before = nn.modules.module.register_module_forward_pre_hook(enter)
        after = nn.modules.module.register_module_forward_hook(leave, with_kwargs=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()


class NumberUsedAsDtypeError(Exception):
    """A traced file hands `int` or `float` to torch as a dtype, which takes only the real ones."""


_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}
"""What Python's types mean as a dtype; a graph is written out as code, where they could not stand."""

_STRENGTH = (CONST, SIZE, IMAGE).index


def _strongest(*aggregates: Any) -> str:
    found = [CONST]
    for aggregate in aggregates:
        fx.node.map_arg(aggregate, lambda node: found.append(node.meta.get("follows", CONST)))
    return max(found, key=_STRENGTH)


def _says_nothing(func: Any, name: str, result: Any) -> bool:
    """A dtype, a flag, the number of dimensions: what Python code may look at without the graph's knowing."""
    rank = name in ("dim", "ndimension", "element_size") or (
        name == "__get__" and property_of(func) in ("ndim", "itemsize")
    )
    known = result is None or isinstance(result, (Tensor, int, float, tuple, list, dict))
    return rank or isinstance(result, bool) or not known


def _note_ragged(node: fx.Node, result: Any, *, starts: bool) -> None:
    """Marks what has a size that depends on the image; `ragged` holds such sizes of a tensor, or the number itself."""
    sizes = set(result.shape[:1]) if starts and isinstance(result, Tensor) else set()
    for source in node.all_input_nodes[:1]:
        sizes |= source.meta.get("ragged") or set()
    if isinstance(result, Tensor):
        sizes &= set(result.shape)
    elif isinstance(result, (int, float)):
        sizes &= {plain(result)}
    if sizes:
        node.meta["ragged"] = sizes


def trace(model: nn.Module, example: tuple[Tensor, ...], prefix: str = "model") -> Trace:
    """Traces one forward call.

    Args:
        model: any module; it is left as it was.
        example: its positional inputs, [N, C, H, W] for an image.
        prefix: what parameter and buffer names are preceded by in `get_attr` targets.

    Raises:
        CaptureError: naming the module path, the source line and the reason.
    """
    try:
        return Tracer(structural_copy(model), prefix).run(example)
    except NumberUsedAsDtypeError:
        # Sizes that pass through int() and float() are then plain; where it matters, the check at a second size tells.
        return Tracer(structural_copy(model), prefix, twins=False).run(example)
