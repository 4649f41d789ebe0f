"""Makes the nodes and constants of an ONNX graph.

Equal nodes are made once, and so are equal constants. Node names begin with the place in the network, as in
`fxptq inspect`; values have short names, because each stands in the file several times. Sizes of tensors are int64
tensors of one element, so that they join into shapes without reshaping.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxptq.refusal import Refusal

UINT4, INT4 = 21, 22
"""ONNX's numbers for the types of two codes a byte."""

TYPES: dict[torch.dtype, int] = {
    torch.float32: 1, torch.uint8: 2, torch.int8: 3, torch.int16: 5, torch.int32: 6, torch.int64: 7, torch.bool: 9,
    torch.float16: 10, torch.float64: 11, torch.bfloat16: 16,
}  # fmt: skip
"""ONNX's numbers for types, by torch's."""


@dataclass(frozen=True)
class Value:
    """A tensor in the graph.

    Attributes:
        name: its name.
        dtype: its type.
        rank: the number of its axes.
        shape: its shape, in a graph without free sizes; None where it is not known.
    """

    name: str
    dtype: torch.dtype
    rank: int
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Turned(Value):
    """The weight of a linear layer as [inputs, outputs], the form that MatMul takes; torch has [outputs, inputs]."""


@dataclass(frozen=True)
class Size:
    """A whole number that the graph computes from the sizes of its input; an int64 tensor of one element."""

    name: str


Number = int | Size
Input = Value | Size | Tensor | str | None


class Unsupported(Exception):  # noqa: N818  # the caller turns it into an error that names the place
    """A call that has no ONNX form, with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(reason)


class Builder:
    """Collects nodes and constants.

    Attributes:
        place: where in the network the next nodes belong; their names begin with it.
        nodes: NodeProtos in the order of execution.
        constants: TensorProtos by name.
    """

    def __init__(self) -> None:
        self.place = ""
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._made: dict[Any, str] = {}
        self._names: set[str] = set()

    def op(self, kind: str, *inputs: Input, **attributes: Any) -> str:
        """The name of the result of a node with one output.

        Raises:
            Unsupported: an attribute is computed from sizes.
        """
        for value in attributes.values():
            if any(isinstance(each, (Value, Size)) for each in (value if isinstance(value, list) else [value])):
                raise Unsupported("an argument depends on the size of the input (--size makes a file for one size)")
        names = [self._name_of(value) for value in inputs]
        key = kind, tuple(names), tuple(sorted((name, _frozen(value)) for name, value in attributes.items()))
        if key not in self._made:
            self._made[key] = self._node(kind, names, 1, attributes)[0]
        return self._made[key]

    def outputs(self, kind: str, count: int, *inputs: Input, **attributes: Any) -> list[str]:
        """The names of the results of a node with several outputs."""
        return self._node(kind, [self._name_of(value) for value in inputs], count, attributes)

    def like(self, value: Value, kind: str, *inputs: Input, **attributes: Any) -> Value:
        """The result of a node with one output, of the type and the number of axes of `value`."""
        return Value(self.op(kind, *inputs, **attributes), value.dtype, value.rank)

    def named(self, kind: str, name: str, value: Value) -> Value:
        """The result of a node of one input under a name of its own: an output of the graph."""
        from onnx import helper  # noqa: PLC0415  # an extra

        self.nodes.append(helper.make_node(kind, [value.name], [name], name=name))
        return Value(name, value.dtype, value.rank)

    def constant(self, tensor: Tensor, name: str = "") -> str:
        """The name of a constant; equal tensors are one constant."""
        tensor = tensor.detach().cpu().contiguous()
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        return self._constant(TYPES[tensor.dtype], tuple(tensor.shape), data, name)

    def codes(self, codes: Tensor, bits: int, name: str, *, zero: int = 0) -> str:
        """The name of a constant of codes: two a byte up to 4 bits, the first in the low half; else one a byte.

        Args:
            codes: uint8.
            bits: bits of a code.
            name: the name of the constant.
            zero: the code that is stored as 0; the type is a signed one if it is not 0.
        """
        shape, flat = tuple(codes.shape), codes.detach().cpu().contiguous().reshape(-1).numpy()
        stored = (flat - np.uint8(zero)).astype(np.uint8)  # two's complement
        if bits > 4:
            return self._constant(TYPES[torch.int8 if zero else torch.uint8], shape, stored.tobytes(), name)
        pairs = np.append(stored & 15, np.zeros(len(flat) % 2, np.uint8)).reshape(-1, 2)
        return self._constant(INT4 if zero else UINT4, shape, (pairs[:, 0] | pairs[:, 1] << 4).tobytes(), name)

    def numbers(self, values: Sequence[Number]) -> str:
        """The name of an int64 tensor of one axis that holds these numbers."""
        if all(isinstance(value, int) for value in values):
            return self.constant(torch.tensor([int(value) for value in values if isinstance(value, int)]).long())
        parts = [value.name if isinstance(value, Size) else self.numbers([value]) for value in values]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def _node(self, kind: str, inputs: list[str], count: int, attributes: dict[str, Any]) -> list[str]:
        from onnx import helper  # noqa: PLC0415  # an extra

        name = self._unique(f"{self.place}/{kind}" if self.place else kind)
        outputs = [f"v{len(self.nodes)}"] if count == 1 else [f"v{len(self.nodes)}.{index}" for index in range(count)]
        while inputs and not inputs[-1]:  # optional inputs that are left out at the end
            inputs = inputs[:-1]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, **attributes))
        return outputs

    def _constant(self, kind: int, shape: tuple[int, ...], data: bytes, name: str) -> str:
        from onnx import TensorProto  # noqa: PLC0415  # an extra

        key = kind, shape, hashlib.sha256(data).digest()
        if key not in self._made:
            unique = self._unique(name or "constant")
            self.constants[unique] = TensorProto(name=unique, dims=shape, data_type=kind, raw_data=data)
            self._made[key] = unique
        return self._made[key]

    def _name_of(self, value: Input) -> str:
        if isinstance(value, Tensor):
            return self.constant(value)
        return value.name if isinstance(value, (Value, Size)) else value or ""

    def _unique(self, name: str) -> str:
        unique, count = name, 0
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def scalar(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a constant of a type."""
    return torch.tensor(value, dtype=dtype)
