"""The value-carrying tracer: runs a network once, eagerly, and writes down every torch call as an fx node.

A `TorchFunctionMode` sees each call with real tensors; sizes come back as traced numbers (`values`), so the Python of
the network runs unchanged while its shape arithmetic stays in the graph. The graph is purely functional calls and
`get_attr`s: a module such as `nn.Linear` runs its own forward and leaves `F.linear`, tagged with its module path.
Nothing here knows an architecture. A `torch.no_grad` inside the network is not kept.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from fxptq.errors import CaptureError
from fxptq.graph.attention import DECOMPOSED
from fxptq.graph.calls import is_custom_operator, name_of_function, plain_name
from fxptq.graph.copies import structural_copy
from fxptq.graph.depth import room_for
from fxptq.graph.functions import (
    SHAPED_LIKE,
    VALUE_READERS,
    asks_of_sizes,
    is_counted,
    is_ragged,
    is_random,
    property_of,
    twin_of,
    writes,
)
from fxptq.graph.kinds import arithmetic
from fxptq.graph.leftovers import make_plain
from fxptq.graph.namespaces import substituted
from fxptq.graph.opaque import autograd_functions_go_through, compiled_pieces_run_eagerly, recorded_twin, unseen
from fxptq.graph.places import first_line, line_of_error
from fxptq.graph.recording import CONST, IMAGE, SIZE, Recording, strongest
from fxptq.graph.stand_ins import builtins_in_trace, global_in_trace
from fxptq.graph.values import pinned, plain

__all__ = ["CONST", "IMAGE", "SIZE", "Trace", "trace"]


@dataclass(frozen=True)
class Trace:
    """A traced network.

    Attributes:
        graph: every call, in order; `node.meta` holds `path`, `module`, `line`, `follows` and, for a tensor, `shape`
            and `dtype`; for a number, `value`.
        guards: `(node, value)`: the graph is right only for inputs on which each node has its value.
        constants: the tensors that are neither parameters nor buffers of the network, by their name in the graph.
        foreign: the constants that no torch call made while tracing, with the module and line that first used them.
        decomposed: whether a fused call was recorded by its parts, which rounds differently.
        tied: whether the graph is right only for inputs of the example's shapes: sizes are plain numbers in it, or the
            network caught an error of a torch call, which other sizes may not raise.
    """

    graph: fx.Graph
    guards: tuple[tuple[fx.Node, Any], ...]
    constants: dict[str, Tensor]
    foreign: dict[str, str]
    decomposed: bool
    tied: bool = False


class Tracer(TorchFunctionMode):
    """Records one forward call of `model`; the call may change the buffers and attributes of `model`.

    Args:
        model: a copy for the tracer alone.
        prefix: see `trace`.
        example: see `trace`.
        number_types: whether `int` and `float` in traced files keep numbers traced.
        baked: see `trace`.
    """

    def __init__(
        self,
        model: nn.Module,
        prefix: str,
        example: tuple[Tensor, ...],
        *,
        number_types: bool = True,
        baked: bool = False,
    ) -> None:
        super().__init__()
        self._model, self._prefix, self._number_types = model, prefix, number_types
        self._baked = baked
        self._recording = Recording(model, prefix, example, baked=baked)
        self.numbers = self._recording.numbers
        self._decomposed = False
        self._unrecorded: set[str] | None = None
        """While an opaque call runs without tracing, the names of the functions that it calls; None otherwise."""

    # -- calls --------------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of_function(func)
        if self._unrecorded is not None:
            self._unrecorded.add(plain_name(name))
            return func(*args, **kwargs)
        if not self._recording.open:
            return func(*args, **kwargs)
        try:
            if func in DECOMPOSED:
                self._decomposed = True
                with self:
                    return DECOMPOSED[func](*args, **kwargs)
            if name == "__set__":
                return self._assign(func, *args)
            if name in VALUE_READERS:
                return self._read_value(func, name, args, kwargs)
            return self._call(func, name, args, kwargs)
        except Exception:
            self._recording.tied = True  # the network may catch the error, which other sizes may not raise
            raise

    def _call(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        recording = self._recording
        self._refuse_autocast()
        nodes, keywords = recording.nodes_of(args), recording.nodes_of(kwargs)
        follows = IMAGE if is_random(func, args, kwargs) else strongest(nodes, keywords)
        written = writes(func, kwargs)
        twin = self._functional_twin(func, args, kwargs) if written and args and isinstance(args[0], Tensor) else None
        ragged = follows == IMAGE and is_ragged(func, args)
        result = func(*map_aggregate(args, plain), **map_aggregate(kwargs, plain))
        if name in SHAPED_LIKE and follows == IMAGE:
            follows = SIZE
        if isinstance(result, (torch.UntypedStorage, torch.TypedStorage)):
            recording.pin_sizes(args[0])
        if follows != CONST and isinstance(result, bool) and asks_of_sizes(name):
            recording.ask(func, nodes, keywords, result)
        if _says_nothing(func, name, result):
            return result
        if twin is not None:
            node = recording.note(twin[0], nodes, recording.nodes_of(twin[1]), args[0], follows)
            recording.ledger.replace(args[0], node)
            return result
        if written:
            for target in (*(args if is_custom_operator(func) else args[:1]), kwargs.get("out")):
                if isinstance(target, Tensor):
                    recording.overwritten(target, follows)
        counted = is_counted(func, args, kwargs)
        recorded = recording.call(func, nodes, keywords, result, follows, ragged=ragged, counted=counted)
        return pinned(recorded) if name == "__len__" else recorded  # C code calls `__len__` and accepts only an int

    def _functional_twin(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The functional call to record for an in-place call that nobody else sees; None to record the call itself.

        The graph then does not depend on the order of evaluation, and gradients flow through networks that overwrite
        tensors that their backward needs. The twin of writing an item copies the tensor, which is worth its time only
        where the tensor was read before.
        """
        target = args[0]
        if not self._recording.ledger.is_alone(target):
            return None
        if name_of_function(func) == "__setitem__" and not self._recording.is_read(target):
            return None
        return twin_of(func, args, kwargs)

    def _assign(self, func: Callable[..., Any], target: Tensor, value: Any) -> None:
        """`x.data = y`: from now on x reads as y. Other properties (requires_grad, grad) change no value."""
        func(target, plain(value))
        if property_of(func) == "data":
            self._recording.ledger.enter(target, self._recording.node_of(value))

    def _read_value(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """A tensor becomes a Python value: allowed unless the pixels decide it, guarded when the sizes do."""
        recording = self._recording
        nodes = recording.nodes_of(args)
        follows = strongest(nodes)
        if follows == IMAGE:
            call = {"__bool__": "bool()", "__int__": "int()", "__float__": "float()", "__index__": "an index made"}
            raise recording.refusal(
                f"{call.get(name, f'.{name}()')} of a tensor that depends on the image decides what the network "
                "computes, and one graph cannot hold that. Replace it by tensor arithmetic (torch.where, masks), or "
                "quantize the parts before and after it apart"
            )
        result = func(*map_aggregate(args, plain), **map_aggregate(kwargs, plain))
        if follows == SIZE and name in ("equal", "allclose"):
            recording.ask(func, nodes, recording.nodes_of(kwargs), result)
        elif follows == SIZE:
            recording.ask("tolist", (nodes[0],), {}, args[0].tolist())
        return result

    def _refuse_autocast(self) -> None:
        if torch.is_autocast_enabled(self._recording.device.type):
            raise self._recording.refusal(
                "runs under torch.autocast, which a graph cannot hold. Convert the network instead (model.bfloat16()), "
                "or take the autocast out of its forward"
            )

    # -- pieces recorded as one call ----------------------------------------------------------------------------------

    def _piece(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an opaque call (an autograd function, a scripted function) without tracing and records it as one node.

        If the call turns out to hold arithmetic, it runs a second time with tracing on, so that its products and
        convolutions become sites.
        """
        if not self._recording.open or self._unrecorded is not None:
            return func(*args, **kwargs)
        self._unrecorded = set()
        try:
            result = func(*map_aggregate(args, plain), **map_aggregate(kwargs, plain))
            names = self._unrecorded
        finally:
            self._unrecorded = None
        if names & arithmetic():
            return func(*args, **kwargs)
        with unseen():
            nodes, keywords = self._recording.nodes_of(args), self._recording.nodes_of(kwargs)
            return self._recording.call(func, nodes, keywords, result, strongest(nodes, keywords))

    def _scripted(self, args: Any, kwargs: Any, result: Any) -> Any:
        """A TorchScript module just ran, unseen: records it as a call of the module."""
        with unseen():
            nodes, keywords = self._recording.nodes_of(args), self._recording.nodes_of(kwargs)
            target = f"{self._prefix}.{self._recording.path}"
            return self._recording.call_module(target, nodes, keywords, result, strongest(nodes, keywords))

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self) -> Trace:
        """Runs the model and returns the trace."""
        recording = self._recording
        with contextlib.ExitStack() as scope:
            scope.enter_context(torch.no_grad())
            scope.enter_context(room_for(self._model))
            scope.enter_context(self._module_paths())
            scope.enter_context(substituted(self._model, self._twin, self._builtins()))
            scope.enter_context(autograd_functions_go_through(self._piece))
            scope.enter_context(compiled_pieces_run_eagerly())
            recording.open = True
            scope.callback(setattr, recording, "open", False)
            try:
                with self:
                    output = self._model(*recording.inputs)
            except CaptureError:
                raise
            except Exception as error:
                if self._number_types and isinstance(error, TypeError) and "_NumberType" in str(error):
                    raise NumberUsedAsDtypeError from error
                raise TraceError(
                    f"{recording.where(line_of_error(error))}: runs as it is but not while it is traced "
                    f"({type(error).__name__}: {first_line(error)})"
                ) from error
        recording.finish(output)
        guards = tuple(recording.guards)
        return Trace(recording.graph, guards, recording.constants, recording.foreign, self._decomposed, recording.tied)

    def _twin(self, value: Any) -> Any:
        return (None if self._baked else global_in_trace(value)) or recorded_twin(value, self._piece)

    def _builtins(self) -> dict[str, Any]:
        return {} if self._baked else builtins_in_trace(number_types=self._number_types)

    @contextlib.contextmanager
    def _module_paths(self) -> Iterator[None]:
        paths = {id(module): name for name, module in self._model.named_modules()}
        owner = threading.get_ident()

        def enter(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == owner:
                self._recording.enter_module(module, paths.get(id(module)))

        def leave(module: nn.Module, args: Any, *rest: Any) -> Any:
            if threading.get_ident() != owner:  # where the keywords are missing while the hook comes or goes
                return None
            kwargs, output = rest
            scripted = isinstance(module, torch.jit.ScriptModule) and self._unrecorded is None
            result = self._scripted(args, kwargs, output) if scripted and self._recording.open else None
            self._recording.leave_module(module)
            return result

        before = nn.modules.module.register_module_forward_pre_hook(enter)
        after = nn.modules.module.register_module_forward_hook(leave, with_kwargs=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()
            # PyTorch forgets to remove this entry, and torch.compile would then warn of hooks that do not exist.
            vars(nn.modules.module)["_global_forward_hooks_with_kwargs"].pop(after.id, None)


class TraceError(CaptureError):
    """A network runs as it is and not while it is traced."""


class NumberUsedAsDtypeError(Exception):
    """A traced file hands `int` or `float` to torch as a dtype, which takes only the real ones."""


def _says_nothing(func: Any, name: str, result: Any) -> bool:
    """Whether the result (a dtype, a flag, the number of dimensions) is the same at every size and needs no node."""
    rank = name in ("dim", "ndimension", "element_size") or (
        name == "__get__" and property_of(func) in ("ndim", "itemsize")
    )
    has_node = result is None or isinstance(result, (Tensor, int, float, tuple, list, dict))
    return rank or isinstance(result, bool) or not has_node


def trace(model: nn.Module, example: tuple[Tensor, ...], prefix: str = "model", *, baked: bool = False) -> Trace:
    """Traces one forward call.

    Args:
        model: any module; it is left as it was.
        example: its positional inputs, [N, C, H, W] for an image.
        prefix: prefix of parameter and buffer names in `get_attr` targets.
        baked: whether sizes are plain numbers in the graph. The graph is then right only for inputs of these shapes,
            but the network may do anything with its sizes.

    Raises:
        CaptureError: naming the module path, the source line and the reason; a `TraceError` if it may be due to the
            traced numbers.
    """
    try:
        return _traced(model, example, prefix, number_types=True, baked=baked)
    except NumberUsedAsDtypeError:
        # Sizes that pass through int() and float() are then pinned.
        return _traced(model, example, prefix, number_types=False, baked=baked)


def _traced(model: nn.Module, example: tuple[Tensor, ...], prefix: str, *, number_types: bool, baked: bool) -> Trace:
    tracer = Tracer(structural_copy(model), prefix, example, number_types=number_types, baked=baked)
    numbers = tracer.numbers
    try:
        return tracer.run()
    finally:
        del tracer
        make_plain(numbers)
