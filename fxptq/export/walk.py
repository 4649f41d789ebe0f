"""Walks a quantized graph and writes each of its calls as ONNX nodes.

The graph is that of the simulation (`Variant.inserted`). It keeps the arithmetic of sizes, so that free heights and
widths give an ONNX graph for every size that the torch graph holds for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxptq.errors import InputError
from fxptq.export import quantizers
from fxptq.export.builder import TYPES, Builder, Unsupported, Value
from fxptq.export.calls.elementwise import as_type
from fxptq.export.calls.moves import sides
from fxptq.export.compact import compact
from fxptq.export.table import forms
from fxptq.graph.calls import is_torchs_own, name_of
from fxptq.graph.constants import attribute
from fxptq.graph.functions import writes
from fxptq.graph.program import Variant
from fxptq.quant.quantizer import Quantizer

_CONVERSIONS = frozenset(("to", "type", "type_as", "float", "double", "half", "bfloat16", "long", "int", "bool"))
_ATTRIBUTES: Mapping[str, Callable[[Builder, Value], Any]] = {
    "device": lambda _, __: None,
    "dtype": lambda _, x: x.dtype,
    "ndim": lambda _, x: x.rank,
    "data": lambda _, x: x,
}


@dataclass(frozen=True)
class Walked:
    """An ONNX graph in the making.

    Attributes:
        builder: its nodes and constants.
        inputs: its inputs, in the order of the network's.
        outputs: its outputs, in the order in which torch's pytrees have them.
    """

    builder: Builder
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def walk(variant: Variant, quantizer_of: Mapping[str, Quantizer], *, free: Collection[int]) -> Walked:
    """The ONNX nodes of a graph.

    Args:
        variant: the graph, with quantizers.
        quantizer_of: the quantizers by key; each is on.
        free: the axes of the inputs whose lengths are free; without any, sizes are numbers.

    Raises:
        InputError: a call has no ONNX form; the message names it and its place in the network.
    """
    return _Walk(variant, quantizer_of, static=not free).run()


class _Walk:
    def __init__(self, variant: Variant, quantizer_of: Mapping[str, Quantizer], *, static: bool) -> None:
        self.variant, self.quantizer_of, self.static = variant, quantizer_of, static
        self.b = Builder()
        self.values: dict[fx.Node, Any] = {}
        self.constants: dict[fx.Node, Tensor] = {}

    def run(self) -> Walked:
        inputs: list[Value] = []
        for node in self.variant.inserted.nodes:
            if node.op == "output":
                found = [leaf for leaf in tree_leaves(self._read(node.args[0])) if leaf is not None]
                return Walked(self.b, tuple(inputs), tuple(self._outputs(found)))
            self.b.place = self._place(node)
            if node.op == "placeholder":
                self.values[node] = self._known(node, str(node.name))
                inputs.append(self.values[node])
            elif node.op == "get_attr":
                self.constants[node] = attribute(self.variant.holder, str(node.target)).detach()
            else:
                self.values[node] = self._called(node)
        raise AssertionError("a graph has an output")

    def _outputs(self, found: list[Any]) -> list[Value]:
        """The outputs by their names, `output` or `output_0` and so on; a node of its own makes each."""
        self.b.place = ""
        for leaf in found:
            if not isinstance(leaf, Value):
                raise InputError(f"the network returns {type(leaf).__name__} among its tensors, which ONNX cannot")
        names = ["output"] if len(found) == 1 else [f"output_{index}" for index in range(len(found))]
        return [self.b.named("Identity", name, leaf) for name, leaf in zip(names, found, strict=True)]

    def _place(self, node: fx.Node) -> str:
        return str(node.meta.get("site") or node.meta.get("quantizer") or node.meta.get("path") or "")

    def _read(self, argument: Any) -> Any:
        """An argument of a call with values in place of nodes."""
        return fx.node.map_aggregate(argument, lambda leaf: self._value(leaf) if isinstance(leaf, fx.Node) else leaf)

    def _value(self, node: fx.Node) -> Any:
        if node in self.constants and node not in self.values:
            tensor = self.constants[node]
            if tensor.dtype not in TYPES:
                raise InputError(f"{node.target}: ONNX has no constants of {tensor.dtype}")
            name = compact(self.b, tensor, str(node.target).partition(".")[2])
            self.values[node] = Value(name, tensor.dtype, tensor.dim(), tuple(tensor.shape))
        return self.values[node]

    def _called(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            return self._quantized(node)
        where = f"{self._place(node) or 'the network'} ({node.meta.get('line', 'no line')})"
        name = name_of(node)
        try:
            return self._checked(node, self._form(node, name))
        except Unsupported as error:
            raise InputError(f"{where}: {name}: {error.refusal.reason}, which has no ONNX form here") from None
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise InputError(f"{where}: {name}: no ONNX form for these arguments ({error})") from error

    def _form(self, node: fx.Node, name: str) -> Any:
        """The value of a call."""
        target: Any = node.target
        if target is getattr:
            return self._attribute(node, name)
        if self._changes_for_others(node):
            raise Unsupported("it writes into a tensor that is read elsewhere")
        if name in _CONVERSIONS:
            x = self._read(node.args[0])
            return as_type(self.b, x, node.meta["dtype"]) if isinstance(x, Value) else x
        form = forms().get(name) if is_torchs_own(target) else None
        if form is None:
            raise Unsupported("it is not in the table of calls")
        return form(self.b, *self._read(node.args), **self._read(dict(node.kwargs)))

    def _changes_for_others(self, node: fx.Node) -> bool:
        """Whether a call writes into a tensor, and its result does not say all that it does."""
        if not writes(node.target, dict(node.kwargs)):
            return False
        first = node.args[0]
        return name_of(node) == "setitem" or not isinstance(first, fx.Node) or len(first.users) > 1

    def _attribute(self, node: fx.Node, name: str) -> Any:
        owner = node.args[0]
        if name == "shape" and isinstance(owner, fx.Node):
            return tuple(sides(self.b, self._value(owner)))
        if name in ("T", "mT"):
            return forms()[name](self.b, self._read(owner))
        if name not in _ATTRIBUTES:
            raise Unsupported("it is not in the table of calls")
        return _ATTRIBUTES[name](self.b, self._read(owner))

    def _quantized(self, node: fx.Node) -> Value:
        key = node.meta["quantizer"]
        quantizer, source = self.quantizer_of[key], node.args[0]
        assert isinstance(source, fx.Node)  # noqa: S101  # a quantizer reads one node
        if source in self.constants:
            turned = all(name_of(user) == "linear" and user.args[1] is node for user in node.users)
            return quantizers.weight(self.b, quantizer, self.constants[source], key, turned=turned)
        return quantizers.activation(self.b, quantizer, self._value(source), key)

    def _checked(self, node: fx.Node, value: Any) -> Any:
        """A result with the type and the number of axes that the call has in torch."""
        if not isinstance(value, Value) or "shape" not in node.meta:
            return value
        return self._known(node, as_type(self.b, value, node.meta["dtype"]).name)

    def _known(self, node: fx.Node, name: str) -> Value:
        shape = tuple(node.meta["shape"])
        return Value(name, node.meta["dtype"], len(shape), shape if self.static else None)
