"""A quantized network as an ONNX file: quantize-dequantize (QDQ) nodes on every operand, codes as constants.

Values are those of the simulation, whatever the grids. The file says for each site whether a runtime can compute it on
integers, or why it stays in float there.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxptq._version import __version__
from fxptq.errors import InputError
from fxptq.export.builder import TYPES, Value
from fxptq.export.quantizers import obstacle
from fxptq.export.subject import Subject
from fxptq.export.walk import Walked, walk
from fxptq.graph.program import Program
from fxptq.graph.sites import Site

OPSET = 21
"""The opset of a file unless another is asked for: the first one with 4-bit codes."""

_IR_VERSIONS = {21: 10, 22: 10, 23: 11, 24: 12, 25: 13}
"""The opsets that a file can have, with the version of the file format that each needs."""

_WIDTHS = (4, 8)
"""The bits of codes in a file."""


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file, and the account of what it carries.

    Attributes:
        data: the bytes of the file.
        opset: the version of ONNX's operators.
        in_float: the quantized sites that a runtime computes in float, with the reason.
        sites: the number of quantized sites.
        wider: the number of weights whose codes are stored with more bits than they have, by their own bits.
    """

    data: bytes = field(repr=False)
    opset: int
    in_float: Mapping[str, str]
    sites: int
    wider: Mapping[int, int]


def check_opset(opset: int) -> None:
    """Checks that a file can have an opset.

    Raises:
        InputError: it cannot.
    """
    if opset not in _IR_VERSIONS:
        raise InputError(
            f"--opset {opset}: expected {min(_IR_VERSIONS)} to {max(_IR_VERSIONS)}; 4-bit codes came with {OPSET}"
        )


def check_installed() -> None:
    """Checks that the package for ONNX files is there.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("onnx") is None:
        raise InputError('ONNX files need the package onnx: pip install "fxptq[export]"')


def to_onnx(program: Program, subject: Subject, facts: Mapping[str, str], opset: int = OPSET) -> OnnxFile:
    """The ONNX file of a quantized network.

    Args:
        program: the network; its quantizers are on.
        subject: what to export.
        facts: metadata for the file's reader, by name.
        opset: see `check_opset`.

    Raises:
        InputError: a call of the network has no ONNX form, the opset is unknown, or the package onnx is missing.
    """
    check_opset(opset)
    check_installed()
    walked = walk(subject.variant, program.quantizers, free=subject.free)
    model = _model(walked, subject, facts, opset)
    widths = Counter(quantizer.bits for key, quantizer in program.quantizers.items() if program.weight_target(key))
    return OnnxFile(
        data=model.SerializeToString(),
        opset=opset,
        in_float=_in_float(program, subject.variant.sites),
        sites=sum(any(operand.quantizer for operand in site.operands) for site in subject.variant.sites),
        wider={bits: count for bits, count in sorted(widths.items()) if bits not in _WIDTHS},
    )


def _in_float(program: Program, sites: Sequence[Site]) -> dict[str, str]:
    """The quantized sites that no runtime computes on codes, with the reason."""
    found = {}
    for site in sites:
        reasons = [
            f"{operand.slot}: {reason}"
            for operand in site.operands
            if operand.quantizer and (reason := obstacle(program.quantizers[operand.quantizer].coding()))
        ]
        if reasons:
            found[site.name] = "; ".join(reasons)
    return found


def _model(walked: Walked, subject: Subject, facts: Mapping[str, str], opset: int) -> Any:
    from onnx import checker, helper, shape_inference  # noqa: PLC0415  # an extra

    inputs = [
        helper.make_tensor_value_info(value.name, TYPES[value.dtype], _shape(tuple(x.shape), subject, index))
        for index, (value, x) in enumerate(zip(walked.inputs, subject.example, strict=True))
    ]
    outputs = [_output(value) for value in walked.outputs]
    nodes = _needed(walked)
    read = {name for node in nodes for name in node.input}
    constants = [tensor for name, tensor in walked.builder.constants.items() if name in read]
    graph = helper.make_graph(nodes, "fxptq", inputs, outputs, constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR_VERSIONS[opset], producer_name="fxptq",
        producer_version=__version__,
    )  # fmt: skip
    for name, text in facts.items():
        model.metadata_props.add(key=f"fxptq.{name}", value=text)
    checker.check_model(model)
    inferred = shape_inference.infer_shapes(model)
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
    return model


def _needed(walked: Walked) -> list[Any]:
    """The nodes that an output depends on, in their order."""
    wanted, kept = {value.name for value in walked.outputs}, []
    for node in reversed(walked.builder.nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    return kept[::-1]


_AXES = {0: "batch", 2: "height", 3: "width"}


def _shape(shape: tuple[int, ...], subject: Subject, index: int) -> list[int | str]:
    """The shape of an input: free axes by name, others by length."""
    pictures = index == 0 or (len(shape) == 4 and shape[-2:] == subject.example[0].shape[-2:])
    batched = len(shape) > 0 and shape[0] == subject.example[0].shape[0]
    return [
        _AXES[axis] if axis in subject.free and (pictures or (axis == 0 and batched)) else length
        for axis, length in enumerate(shape)
    ]


def _output(value: Value) -> Any:
    from onnx import helper  # noqa: PLC0415  # an extra

    return helper.make_tensor_value_info(value.name, TYPES[value.dtype], [None] * value.rank)
