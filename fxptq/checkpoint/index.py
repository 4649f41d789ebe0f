"""The index of a checkpoint file: its metadata, and the way to cut its joined tensors into codes, bounds and floats.

Promises: an index that was read claims nothing absurd. Its JSON, its shapes and its numbers are bounded, so that
nothing is allocated for a claim before it has been compared with the content of the file and with the network.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from math import prod
from typing import Annotated

import torch
from pydantic import AfterValidator, Field, ValidationError

from fxptq.checkpoint.metadata import Metadata, OperandRecord, Record
from fxptq.errors import CheckpointError

MOST_JSON = 1 << 25
"""Bytes of an index as JSON; a network of 10,000 sites needs a tenth of it. A compressed bomb stops here."""

_MOST_ELEMENTS = 1 << 48
_KINDS = frozenset(
    (
        *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "complex64"),
        *("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "float64"),
    )
)


def _countable(shape: list[int]) -> list[int]:
    if prod(max(1, side) for side in shape) > _MOST_ELEMENTS:
        raise ValueError("a shape has more elements than any tensor")
    return shape


def _known(kind: str) -> str:
    if kind not in _KINDS or not hasattr(torch, kind):
        raise ValueError(f"{kind!r} is no dtype")
    return kind


Shape = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=16), AfterValidator(_countable)]
Kind = Annotated[str, AfterValidator(_known)]


class Index(Record):
    """The JSON inside the file: the metadata, and the parts of the joined tensors, in their order.

    Attributes:
        meta: how the checkpoint was made.
        codes: bits and shape of each weight that is stored as codes, by its name.
        bounds: number of ranges, by quantizer key.
        floats: dtype and shape of everything else, by its name.
    """

    meta: Metadata
    codes: dict[str, tuple[Annotated[int, Field(ge=1, le=8)], Shape]]
    bounds: dict[str, Annotated[int, Field(ge=0)]]
    floats: dict[str, tuple[Kind, Shape]]

    @property
    def kinds(self) -> list[str]:
        """The dtypes of the floats, each of which is one run in the file."""
        return sorted({kind for kind, _ in self.floats.values()})

    @property
    def code_lengths(self) -> list[int]:
        """The number of bytes of the codes of each weight, in the order they lie in the run."""
        return [-(-prod(shape) * bits // 8) for bits, shape in self.codes.values()]

    @property
    def bytes_of_bounds(self) -> int:
        """The number of bytes of the run of bounds, two of float32 for each range."""
        return 2 * sum(self.bounds.values()) * torch.float32.itemsize

    def members(self, kind: str) -> dict[str, list[int]]:
        """The floats of one dtype, in the order they lie in the run."""
        return {name: shape for name, (found, shape) in self.floats.items() if found == kind}

    def bytes_of(self, kind: str) -> int:
        """The number of bytes of the run of a dtype, before it is deflated."""
        itemsize: int = getattr(torch, kind).itemsize
        return sum(map(prod, self.members(kind).values())) * itemsize


def encode(index: Index, text: str) -> bytes:
    """The JSON `text` of an index as it is stored.

    Raises:
        ValueError: the text is longer than `decode` accepts.
    """
    data = text.encode()
    if len(data) > MOST_JSON:
        raise ValueError(f"the site table of {len(index.meta.sites)} sites is too long")
    return zlib.compress(data, 9)


def decode(stored: bytes) -> Index:
    """The index in the bytes of a file.

    Raises:
        ValueError: these bytes hold no index.
    """
    inflating = zlib.decompressobj()
    try:
        text = inflating.decompress(stored, MOST_JSON)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not inflating.eof or inflating.unused_data:
        raise ValueError("it is cut off, too long, or followed by something else")
    try:
        return Index.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def check_sites(index: Index, source: str) -> None:
    """Compares the site table with the codes and bounds: every weight that is stored as codes belongs to one operand.

    Without this check, a file whose table names no codes would leave random values in these weights.

    Raises:
        CheckpointError: naming the first site or weight that has no counterpart.
    """
    operands = [(site.name, operand) for site in index.meta.sites for operand in site.operands]
    for site, operand in operands:
        if operand.bits is not None and not operand.quantizer:
            raise CheckpointError(f"{source}: damaged: {site} has {operand.bits} bits and no quantizer")
        _check_bounds(index, operand, source)
        if not operand.codes:
            continue
        if operand.codes not in index.codes:
            raise CheckpointError(f"{source}: damaged: it has no codes for {operand.codes}, the weight of {site}")
        bits = index.codes[operand.codes][0]
        if not operand.quantizer or operand.bits != bits:
            raise CheckpointError(f"{source}: damaged: {site} has {operand.bits} bits and its codes {bits}")
    orphans = sorted(set(index.codes) - {operand.codes for _, operand in operands})
    if orphans:
        raise CheckpointError(f"{source}: damaged: no site uses the codes of {orphans[0]}")


def _check_bounds(index: Index, operand: OperandRecord, source: str) -> None:
    if any(name.startswith(f".{operand.quantizer}.") for name in index.floats):
        return  # its scheme stores tensors of its own, and checks them in `restore`
    ranges = index.bounds.get(operand.quantizer)
    if operand.quantizer and ranges is None:
        raise CheckpointError(f"{source}: damaged: it has no bounds for {operand.quantizer}")
    if operand.quantizer and ranges != operand.groups:
        raise CheckpointError(f"{source}: damaged: {operand.quantizer} has {operand.groups} ranges and {ranges} bounds")


def check_names(wanted: Mapping[str, Iterable[int]], given: Mapping[str, Iterable[int]], source: str) -> None:
    """Compares the tensors a checkpoint holds with those of a network, by name and shape, before any is allocated.

    Args:
        wanted: shapes of the network's tensors, by name.
        given: shapes of the checkpoint's tensors, by name.
        source: the file's name, for messages.

    Raises:
        CheckpointError: names or shapes differ; the message names the first of them.
    """
    lacking = [
        f"{who} lacks {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for who, names in (
            ("the checkpoint", sorted(set(wanted) - set(given))),
            ("this network", sorted(set(given) - set(wanted))),
        )
        if names
    ]
    if lacking:
        raise CheckpointError(f"{source}: another architecture: {'; '.join(lacking)}")
    for name, shape in wanted.items():
        if tuple(given[name]) != tuple(shape):
            raise CheckpointError(
                f"{source}: another architecture: {name} has shape {tuple(given[name])} there and "
                f"{tuple(shape)} in this network"
            )
