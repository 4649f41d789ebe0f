"""The value-carrying tracer: runs a network once, eagerly, and writes down every torch call as an fx node.

A `TorchFunctionMode` sees each call with real tensors; sizes come back as traced numbers (`values`), so the Python of the network
runs unchanged while its shape arithmetic stays in the graph. The graph is purely functional calls and `get_attr`s: a module such as
`nn.Linear` runs its own forward and leaves `F.linear`, tagged with its module path. Nothing here knows an architecture.
"""

from __future__ import annotations

import contextlib
import copy
import math
import operator
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from fxptq.errors import CaptureError
from fxptq.graph.attention import DECOMPOSED
from fxptq.graph.values import (
    BUILTINS_IN_TRACE,
    MATH_IN_TRACE,
    Traced,
    math_function_in_trace,
    plain,
    traced,
)

IMAGE, SIZE, CONST = "image", "size", "const"
"""What a node's value follows from: the pixels of the input, only its sizes, or neither."""

_VALUE_READERS = frozenset(
    {"__bool__", "__int__", "__float__", "__index__", "__complex__", "item", "tolist", "numpy", "__array__"}
)
_VALUE_PREDICATES = frozenset({"equal", "allclose", "is_nonzero"})
_SWAPPED = {
    "__radd__": operator.add,
    "__rsub__": operator.sub,
    "__rmul__": operator.mul,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod,
    "__rpow__": operator.pow,
    "__rmatmul__": operator.matmul,
}
_OPERATORS = {
    f"__{name}__": getattr(operator, name)
    for name in (
        *"add sub mul truediv floordiv mod pow matmul neg getitem eq ne lt le gt ge invert xor".split(),
        "setitem",
    )
} | {"__and__": operator.and_, "__or__": operator.or_}
_INPLACE_TWINS: dict[str, Any] = {
    **{f"{name}_": name for name in "add sub mul div relu clamp clip sigmoid tanh exp abs neg pow sqrt".split()},
    **{f"__i{name}__": getattr(operator, name) for name in "add sub mul truediv pow".split()},
}
_SHAPED_LIKE = frozenset(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty".split()
)
"""Calls that take the sizes of their tensor and not its values."""


@dataclass(frozen=True)
class Trace:
    """A traced network.

    Attributes:
        graph: every call, in order; `node.meta` holds `path`, `module`, `line`, `follows` and, for a tensor, `shape` and `dtype`; for a
            number, `value`.
        guards: `(node, value)`: the graph is right only for inputs on which each node comes out as the value.
        constants: tensors met that are neither parameter nor buffer of the network, by the name the graph reads them under.
        output: what the network returned on the example.
        decomposed: whether a fused call was written by its parts, which rounds differently.
    """

    graph: fx.Graph
    guards: tuple[tuple[fx.Node, Any], ...]
    constants: dict[str, Tensor]
    output: Any
    decomposed: bool


def structural_copy(model: nn.Module) -> nn.Module:
    """A copy of the module tree that shares parameters with `model` and owns its buffers and every other state."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        message = f"{type(model).__name__} cannot be copied ({error}); remove handles such as locks or generators from its attributes"
        raise CaptureError(message) from error


class Tracer(TorchFunctionMode):
    """Records one forward call of `model`; see `trace`."""

    def __init__(self, model: nn.Module, prefix: str) -> None:
        super().__init__()
        self.open = False
        self.graph = fx.Graph()
        self.guards: list[tuple[fx.Node, Any]] = []
        self.constants: dict[str, Tensor] = {}
        self._prefix = prefix
        self._model = model
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._stack: list[tuple[nn.Module, str]] = []
        self._calls: Counter[str] = Counter()
        self._named = self._tensors_by_identity()
        self._attributes: dict[str, fx.Node] = {}
        self._storages: defaultdict[int, list[fx.Node]] = defaultdict(list)
        self._decomposed = False
        self._device: torch.device | None = None
        self._first_input: fx.Node | None = None

    # -- what the graph knows of a value ---------------------------------------------------------------------------------------

    def _tensors_by_identity(self) -> dict[int, tuple[str, Tensor]]:
        named: dict[int, tuple[str, Tensor]] = {}
        for path, module in self._model.named_modules():
            for key, value in vars(module).items():
                if isinstance(value, Tensor):
                    named[id(value)] = (f"constants.{path}.{key}".replace("..", "."), value)
        for name, tensor in (*self._model.named_parameters(), *self._model.named_buffers()):
            named[id(tensor)] = (f"{self._prefix}.{name}", tensor)
        return named

    def _node_of(self, tensor: Tensor) -> fx.Node:
        name, _ = self._named.get(id(tensor), ("", None))
        if not name:
            tag = tensor.__dict__.get("_fxptq_node")
            if tag is not None and tag[0] is self:
                return tag[1]  # type: ignore[no-any-return]  # a tensor's __dict__ is untyped
            name = f"constants.{self._path() or 'root'}.tensor_{self._ordinal('tensor')}"
            self._named[id(tensor)] = (name, tensor)
        if name not in self._attributes:
            target = name
            if name.startswith("constants."):
                key = name.removeprefix("constants.").replace(".", "/")
                target, self.constants[key] = f"constants.{key}", tensor.detach()
            node = self.graph.get_attr(target)
            self._describe(node, tensor, CONST)
            self._attributes[name] = node
            self._storages[_storage(tensor)].append(node)
        return self._attributes[name]

    def _tag(self, tensor: Tensor, node: fx.Node) -> None:
        """From now on `tensor` is what `node` computes. The network's own tensors carry no mark."""
        self._storages[_storage(tensor)].append(node)
        if id(tensor) in self._named:
            self._attributes[self._named[id(tensor)][0]] = node
        else:
            tensor.__dict__["_fxptq_node"] = (self, node)

    def _as_node(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node_of(value)
        if isinstance(value, Traced):
            return value.node if value.recorder is self else plain(value)
        if isinstance(value, torch.device) and value == self._device:
            return self._device_node()
        if isinstance(value, torch.Size):
            return tuple(self._as_node(item) for item in value)
        return value

    def _device_node(self) -> fx.Node:
        assert self._first_input is not None  # set before any call is recorded  # noqa: S101
        if "device" not in self._attributes:
            with self.graph.inserting_after(self._first_input):
                node = self.graph.call_function(getattr, (self._first_input, "device"))
            node.meta.update(path="", line="", follows=CONST)
            self._attributes["device"] = node
        return self._attributes["device"]

    def _path(self) -> str:
        return self._stack[-1][1] if self._stack else ""

    def _ordinal(self, kind: str) -> int:
        key = f"{self._path()}:{kind}"
        self._calls[key] += 1
        return self._calls[key] - 1

    def _describe(self, node: fx.Node, value: Any, follows: str) -> None:
        node.meta["path"], node.meta["follows"] = self._path(), follows
        node.meta["line"] = _user_line()
        if self._stack:
            node.meta["module"] = type(self._stack[-1][0])
        if isinstance(value, Tensor):
            with torch._C.DisableTorchFunction():
                node.meta["shape"], node.meta["dtype"] = tuple(value.shape), value.dtype
        elif isinstance(value, (int, float)):
            node.meta["value"] = plain(value)

    # -- recording -------------------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.open:
            return func(*args, **kwargs)
        if func in DECOMPOSED:
            self._decomposed = True
            with self:
                return DECOMPOSED[func](*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        node_args, node_kwargs = map_aggregate(args, self._as_node), map_aggregate(kwargs, self._as_node)
        follows = _strongest(node_args, node_kwargs)
        if name in _VALUE_READERS or name in _VALUE_PREDICATES:
            return self._read_value(func, name, args, kwargs, follows)
        alone = self._alone(args)
        result = func(*map_aggregate(args, plain), **map_aggregate(kwargs, plain))
        if name in _SHAPED_LIKE and follows == IMAGE:
            follows = SIZE
        if _mutates(name, kwargs):
            if alone and name in _INPLACE_TWINS:
                return self._record(_INPLACE_TWINS[name], node_args, node_kwargs, result, follows)
            if alone and kwargs.get("inplace") is True:
                return self._record(func, node_args, {**node_kwargs, "inplace": False}, result, follows)
            self._spread(args, kwargs, follows)
        return self._record(func, node_args, node_kwargs, result, follows)

    def _alone(self, args: tuple[Any, ...]) -> bool:
        """Whether nobody else can see the first operand change.

        So it is for a value computed in the forward whose storage no other recorded tensor shares. An in-place call on it is
        recorded as its functional twin: the graph is free of the order of evaluation, and gradients flow through networks that
        overwrite what their backward needs.
        """
        target = args[0] if args else None
        if not isinstance(target, Tensor) or target._base is not None or id(target) in self._named:
            return False
        return len(self._storages[_storage(target)]) <= 1

    def _spread(self, args: tuple[Any, ...], kwargs: dict[str, Any], follows: str) -> None:
        """After a real in-place call, whatever shares the target's storage follows from what was written there."""
        for target in (args[0] if args else None, kwargs.get("out")):
            if isinstance(target, Tensor):
                for node in (*self._storages[_storage(target)], self._node_of(target)):
                    node.meta["follows"] = _stronger(node.meta["follows"], follows)

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any, follows: str) -> Any:
        if _is_plain_property(result) or _is_rank(func):
            return result
        node = self._call(func, args, kwargs)
        self._describe(node, result, follows)
        return self._wrap(result, node, follows)

    def _call(self, func: Any, args: Any, kwargs: Any) -> fx.Node:
        if isinstance(func, str):
            return self.graph.call_method(func, tuple(args), dict(kwargs))
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            return self.graph.call_function(getattr, (args[0], func.__self__.__name__))
        if name in _SWAPPED and len(args) == 2:
            return self.graph.call_function(_SWAPPED[name], (args[1], args[0]))
        if name in _OPERATORS and not kwargs:
            return self.graph.call_function(_OPERATORS[name], tuple(args))
        if getattr(torch.Tensor, name, None) is func or getattr(func, "__objclass__", None) is torch._C.TensorBase:
            return self.graph.call_method(name, tuple(args), dict(kwargs))
        return self.graph.call_function(func, tuple(args), dict(kwargs))

    def _wrap(self, result: Any, node: fx.Node, follows: str) -> Any:
        if isinstance(result, Tensor):
            self._tag(result, node)
            return result
        if isinstance(result, torch.Size):
            return torch.Size([self._item(node, i, size, follows) for i, size in enumerate(result)])
        if isinstance(result, (int, float)) and not isinstance(result, bool):
            return result if follows == CONST else traced(result, self._as_size(node), self)
        if isinstance(result, (tuple, list)):
            items = [self._item(node, i, item, follows) for i, item in enumerate(result)]
            if hasattr(result, "_fields") or type(result).__module__ == "torch.return_types":
                return type(result)(items)
            return type(result)(items)
        return result

    def _item(self, node: fx.Node, index: int, value: Any, follows: str) -> Any:
        if isinstance(value, (int, float)) and follows == CONST:
            return value
        item = self.graph.call_function(operator.getitem, (node, index))
        self._describe(item, value, follows if isinstance(value, Tensor) else SIZE)
        return self._wrap(value, item, follows)

    @staticmethod
    def _as_size(node: fx.Node) -> fx.Node:
        node.meta["follows"] = SIZE
        return node

    def _read_value(self, func: Any, name: str, args: Any, kwargs: Any, follows: str) -> Any:
        """A tensor becomes a Python value: allowed when it does not depend on the pixels, guarded when it depends on the sizes."""
        if follows == IMAGE:
            call = {"__bool__": "bool()", "__int__": "int()", "__float__": "float()", "__index__": "an index"}.get(
                name, f".{name}()"
            )
            raise CaptureError(
                f"{self._where()}: {call} of a tensor that depends on the image decides what the network computes; one graph cannot hold "
                "that. Replace it by tensor arithmetic (torch.where, masks), or quantize the parts before and after it apart"
            )
        result = func(*map_aggregate(args, plain), **map_aggregate(kwargs, plain))
        if follows == SIZE and isinstance(result, (bool, int, float)):
            node = self.graph.call_method("item", (self._node_of(args[0]),))
            self._describe(node, result, SIZE)
            self.guard(node, result)
        return result

    def _where(self) -> str:
        return f"{self._path() or type(self._model).__name__} ({_user_line()})"

    # -- the recorder of traced numbers ------------------------------------------------------------------------------------------

    def number(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Records a Python call on traced numbers."""
        value = function(*map(plain, args))
        node = self.graph.call_function(function, tuple(map_aggregate(args, self._as_node)))
        self._describe(node, value, SIZE)
        if isinstance(value, bool):
            return _Outcome(node)
        return traced(value, node, self)

    def guard(self, node: fx.Node, value: Any) -> None:
        """Requires that `node` comes out as `value`."""
        self.guards.append((node, value))

    # -- running -----------------------------------------------------------------------------------------------------------------

    def run(self, example: tuple[Tensor, ...]) -> Trace:
        """Runs the model on `example` and returns the trace."""
        inputs = []
        for index, tensor in enumerate(example):
            node = self.graph.placeholder("x" if index == 0 else f"x_{index}")
            self._first_input = self._first_input or node
            self._device = self._device or tensor.device
            own = tensor.clone()
            self._describe(node, own, IMAGE)
            self._tag(own, node)
            inputs.append(own)
        with contextlib.ExitStack() as scope:
            scope.enter_context(torch.no_grad())
            scope.enter_context(self._module_paths())
            scope.enter_context(_numbers_stay_traced(self._model))
            self.open = True
            scope.callback(setattr, self, "open", False)
            try:
                with self:
                    output = self._model(*inputs)
            except CaptureError:
                raise
            except Exception as error:
                raise CaptureError(
                    f"{self._where()}: the network fails on the example input of shape {tuple(example[0].shape)} "
                    f"({type(error).__name__}: {_first_line(error)}). Pass an example it accepts"
                ) from error
            finally:
                self._forget_stack()
            self.graph.output(self._output(output))
        return Trace(self.graph, tuple(self.guards), self.constants, output, self._decomposed)

    def _output(self, output: Any) -> Any:
        found = False

        def convert(value: Any) -> Any:
            nonlocal found
            found = found or isinstance(value, Tensor)
            return self._as_node(value)

        nodes = map_aggregate(output, convert)
        if not found:
            raise CaptureError(
                f"{type(self._model).__name__}: the output holds no tensor ({type(output).__name__}); expected the restored image"
            )
        return nodes

    def _forget_stack(self) -> None:
        self._stack.clear()

    @contextlib.contextmanager
    def _module_paths(self) -> Iterator[None]:
        def enter(module: nn.Module, _: Any) -> None:
            name = self._paths.get(id(module))
            if name is None:
                name = f"{self._path()}.{type(module).__name__}".lstrip(".")
            self._stack.append((module, name))

        def leave(module: nn.Module, _args: Any, _output: Any) -> None:
            if self._stack:
                self._stack.pop()

        before = nn.modules.module.register_module_forward_pre_hook(enter)
        after = nn.modules.module.register_module_forward_hook(leave)
        try:
            yield
        finally:
            before.remove()
            after.remove()


class _Outcome:
    """A recorded comparison: only its node is of use."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node


def _storage(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return (
            tensor.untyped_storage().data_ptr()
            if tensor.layout is torch.strided and tensor.device.type != "meta"
            else id(tensor)
        )


def _mutates(name: str, kwargs: dict[str, Any]) -> bool:
    written = name.endswith("_") and not name.endswith("__")
    return (
        written
        or name == "__setitem__"
        or name in _INPLACE_TWINS
        or kwargs.get("inplace") is True
        or kwargs.get("out") is not None
    )


def _stronger(first: str, second: str) -> str:
    return max(first, second, key=(CONST, SIZE, IMAGE).index)


def _strongest(*aggregates: Any) -> str:
    found = CONST

    def look(node: fx.Node) -> fx.Node:
        nonlocal found
        found = _stronger(found, node.meta.get("follows", CONST))
        return node

    for aggregate in aggregates:
        fx.node.map_arg(aggregate, look)
    return found


def _is_plain_property(result: Any) -> bool:
    """A dtype, a device, a flag: what Python code may look at without the graph's knowing."""
    return isinstance(result, bool) or not (
        result is None or isinstance(result, (Tensor, int, float, tuple, list, dict))
    )


def _is_rank(func: Any) -> bool:
    """The number of dimensions, which never changes for a given network."""
    name = getattr(func, "__name__", "")
    return name in ("dim", "ndimension", "element_size") or (
        name == "__get__" and func.__self__.__name__ in ("ndim", "itemsize")
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


_OWN = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def _user_line() -> str:
    """The file and line of the network's own code that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_OWN) and not name.startswith("<") and "contextlib" not in name:
            return f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]  # the last frame's f_back is None, which ends the loop
    return "?"


@contextlib.contextmanager
def _numbers_stay_traced(model: nn.Module) -> Iterator[None]:
    """Gives the files that define `model` an `int`, `range`, `math`, ... that do not forget traced numbers; restores them after."""
    saved: list[tuple[dict[str, Any], str, Any, bool]] = []

    def put(namespace: dict[str, Any], name: str, value: Any) -> None:
        saved.append((namespace, name, namespace.get(name), name in namespace))
        namespace[name] = value

    try:
        for namespace in _namespaces(model):
            for name, value in list(namespace.items()):
                if value is math:
                    put(namespace, name, MATH_IN_TRACE)
                elif (twin := math_function_in_trace(value)) is not None:
                    put(namespace, name, twin)
            for name, value in BUILTINS_IN_TRACE.items():
                if name not in namespace:
                    put(namespace, name, value)
        if (einops := sys.modules.get("einops.einops")) is not None and hasattr(
            einops, "_reconstruct_from_shape_uncached"
        ):
            # einops remembers a recipe by the sizes, and equal sizes are not the same size
            put(vars(einops), "_reconstruct_from_shape", einops._reconstruct_from_shape_uncached)
        yield
    finally:
        for namespace, name, value, existed in reversed(saved):
            if existed:
                namespace[name] = value
            else:
                namespace.pop(name, None)


def _namespaces(model: nn.Module) -> list[dict[str, Any]]:
    """The globals of every file that defines a class of the model, and of the files of the same package."""
    files = {kind.__module__ for module in model.modules() for kind in type(module).__mro__}
    outside = ("torch", "builtins", "einops", "numpy", "fxptq")
    files = {name for name in files if name.split(".")[0] not in outside or name.startswith("fxptq.models")}
    packages = {name.split(".")[0] for name in files} - {"__main__", "tests", "fxptq"}
    for name in list(sys.modules):
        if name.split(".")[0] in packages:
            files.add(name)
    return [vars(sys.modules[name]) for name in sorted(files) if name in sys.modules]


def trace(model: nn.Module, example: tuple[Tensor, ...], prefix: str = "model") -> Trace:
    """Traces one forward call.

    Args:
        model: any module; it is left as it was.
        example: its positional inputs, [N, C, H, W] for an image.
        prefix: what parameter and buffer names are preceded by in `get_attr` targets.

    Raises:
        CaptureError: naming the module path, the source line and the reason.
    """
    return Tracer(structural_copy(model), prefix).run(example)
