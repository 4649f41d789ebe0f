"""The metadata of a checkpoint: the record of its making, for people to read.

Everything is plain JSON, checked by pydantic when it is read back. There are no times and no paths in it: the same run
gives the same metadata.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from fxptq.quant.scheme import UNIFORM

FORMAT_VERSION = 2
"""The newest version of the format that this program reads."""

PLAIN_VERSION = 1
"""The version of files whose quantizers are all uniform; such files are always written in this version."""

MOST_EXAMPLE = 1 << 24
"""The largest number of elements of an example. `load` runs the network on one, so a file must not ask for more."""


def _small_enough(shape: list[int]) -> list[int]:
    if not fits(shape):
        raise ValueError(f"an example of shape {shape} is too large; expected {MOST_EXAMPLE} elements at most")
    return shape


def fits(shape: Sequence[int]) -> bool:
    """Whether an example of this shape can be kept in a checkpoint."""
    return prod(shape) <= MOST_EXAMPLE


_Sides = Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=8), AfterValidator(_small_enough)]


class Record(BaseModel):
    """Base of the tables that are read from a file: frozen, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FloatSite(Record):
    """A site that was left in float, and the reason."""

    name: str
    reason: str


class PassRecord(Record):
    """A pass that was run: its name, its settings and a short report, as JSON."""

    name: str
    settings: dict[str, JsonValue] = {}
    report: dict[str, JsonValue] = {}


class OperandRecord(Record):
    """One operand of a site: its quantizer, and the name its weight's codes are stored under (empty for none).

    `groups` is the file's name for the number of the quantizer's ranges. The scheme stands in the file only where it is
    not the uniform one.
    """

    slot: str
    quantizer: str = ""
    bits: Annotated[int, Field(ge=2, le=8)] | None = None
    groups: Annotated[int, Field(ge=1)] = 1
    codes: str = ""
    scheme: str = UNIFORM

    @model_serializer(mode="wrap")
    def _without_the_usual_scheme(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if self.scheme == UNIFORM:
            del content["scheme"]
        return content


class SiteRecord(Record):
    """A site as a rebuilt network needs it to plan the same quantizers; `reason` tells why it is left in float."""

    name: str
    kind: str
    operands: list[OperandRecord] = []
    reason: str = ""


def version_for(sites: Iterable[SiteRecord]) -> int:
    """The oldest version of the format that can describe the quantizers of these sites."""
    schemes = {operand.scheme for site in sites for operand in site.operands}
    return PLAIN_VERSION if schemes <= {UNIFORM} else FORMAT_VERSION


class ExampleRecord(Record):
    """A further input of the example: its shape and its type (`float32`, `int64`)."""

    shape: _Sides
    dtype: Annotated[str, Field(pattern=r"^(float16|bfloat16|float32|float64|int32|int64|bool)$")]


class Metadata(Record):
    """The record of a checkpoint's making, and the facts that are needed to rebuild its network.

    Attributes:
        created_by: Program and version that wrote the file.
        recipe: Name of the bundled recipe that rebuilds the network, or None for a network of the user's own.
        task: The recipe's tables that describe the input and the output (scale, input, degradation).
        bits_w: Bits of weights, 1 to 8; `bits_a` of activations.
        sites: The site table.
        float_sites: The sites that stayed in float, with the reason.
        example_shape: Shape of the example the network was captured with; `example_dtype` its dtype (`float32`).
        more_examples: The example's further inputs, of a network that takes several.
        seed: Seed of everything random.
        calibration: Source of the calibration images.
        passes: The passes that were run, in order.
        float_dtype: Dtype the float tensors are stored in.
        versions: Versions of the software that made the file.
        source_sha256: Digest of the weights that were quantized, hexadecimal.
        format_version: Version of the file format.
    """

    created_by: str
    recipe: str | None = None
    task: dict[str, JsonValue] = {}
    bits_w: int = Field(ge=1, le=8)
    bits_a: int = Field(ge=1, le=8)
    sites: list[SiteRecord] = []
    float_sites: list[FloatSite] = []
    example_shape: _Sides
    example_dtype: Annotated[str, Field(pattern=r"^(float16|bfloat16|float32|float64)$")] = "float32"
    more_examples: list[ExampleRecord] = []
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    calibration: str
    passes: list[PassRecord] = []
    float_dtype: Annotated[str, Field(pattern=r"^(float16|float32)$")] = "float32"
    versions: dict[str, str] = {}
    source_sha256: str
    format_version: int = PLAIN_VERSION
