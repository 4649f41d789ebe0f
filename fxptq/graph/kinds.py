"""The kinds of site, one row each: the facts about `linear`, `conv2d`, `matmul` and the other calls that multiply.

A row names the calls of the kind, their factors, the output axis of the weight, the cost, the reader of the geometry,
and the reason if the kind cannot be quantized. No other module lists kinds. To add a kind is to add a row to `KINDS`.
Importing this module loads no torch, because the command line checks recipes against the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fxptq.graph.calls import argument, is_torchs_own, name_of, words
from fxptq.graph.einsum import einsum_operands, summed_size
from fxptq.graph.geometry import Geometry, convolution_geometry, transposed_geometry

if TYPE_CHECKING:
    from torch import fx, nn

Slot = Literal["input", "weight", "lhs", "rhs"]
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a site's operands by slot, and of its `output`."""


def _no_factors(node: fx.Node) -> tuple[Any, ...]:  # noqa: ARG001  # the signature of Kind.factors
    return ()


def _no_macs(node: fx.Node, shapes: Shapes) -> int:  # noqa: ARG001  # the signature of Kind.macs
    return 0


@dataclass(frozen=True)
class Kind:
    """One kind of site.

    Attributes:
        name: its name in sites, recipes and checkpoints.
        functions: plain names of its calls (`fxptq.graph.calls.plain_name`).
        slots: the slots of its two factors, in the order of `factors`: a layer's input and weight, or the two sides of
            a product. Empty for arithmetic whose factors fxptq does not read.
        factors: the factors among the arguments of a call; more or fewer than two where the call is something else.
        macs: multiply-accumulates of a call, given the shapes of its operands and output.
        weight_axis: the axis of the weight along which its outputs lie; None for products.
        channel_axis: the axis of the output that holds the channels, counted from the end; None for products.
        geometry: reads stride, padding, dilation and groups of a convolution; None for anything else.
        layers: names of the modules of `torch.nn` that are one such call; the site has the path of the module.
        reason: the reason why sites of this kind are left in float; empty if they can be quantized.
    """

    name: str
    functions: frozenset[str]
    slots: tuple[Slot, ...] = ()
    factors: Callable[[fx.Node], tuple[Any, ...]] = _no_factors
    macs: Callable[[fx.Node, Shapes], int] = _no_macs
    weight_axis: int | None = None
    channel_axis: int | None = None
    geometry: Callable[[fx.Node], Geometry | None] | None = None
    layers: tuple[str, ...] = ()
    reason: str = ""

    @property
    def is_layer(self) -> bool:
        """Whether one factor is a weight."""
        return "weight" in self.slots

    @property
    def is_product(self) -> bool:
        """Whether it multiplies two tensors and neither is a weight."""
        return "lhs" in self.slots

    @property
    def is_convolution(self) -> bool:
        """Whether it slides a kernel over its input."""
        return self.geometry is not None


def _layer_factors(node: fx.Node) -> tuple[Any, ...]:
    return argument(node, 0, "input"), argument(node, 1, "weight")


def _product_factors(node: fx.Node) -> tuple[Any, ...]:
    if name_of(node) == "einsum":
        return einsum_operands(node)
    return argument(node, 0, "input"), argument(node, 1, "other", node.kwargs.get("mat2"))


def _linear_macs(node: fx.Node, shapes: Shapes) -> int:  # noqa: ARG001  # the signature of Kind.macs
    return math.prod(shapes["output"]) * shapes["weight"][-1]


def _convolution_macs(node: fx.Node, shapes: Shapes) -> int:  # noqa: ARG001  # likewise
    return math.prod(shapes["output"]) * math.prod(shapes["weight"][1:])


def _transposed_macs(node: fx.Node, shapes: Shapes) -> int:  # noqa: ARG001  # likewise
    return math.prod(shapes["input"]) * math.prod(shapes["weight"][1:])


def _product_macs(node: fx.Node, shapes: Shapes) -> int:
    depth = summed_size(node, (shapes["lhs"], shapes["rhs"])) if name_of(node) == "einsum" else shapes["lhs"][-1]
    return math.prod(shapes["output"]) * depth


_LAYER: tuple[Slot, Slot] = ("input", "weight")
_NOT_QUANTIZED = "no quantizer for this operation"


def convolution(axes: int, reason: str = "") -> Kind:
    """The row of a convolution over `axes` axes, with a weight [N, C / groups, *kernel]."""
    return Kind(
        name=f"conv{axes}d",
        functions=frozenset([f"conv{axes}d"]),
        slots=_LAYER,
        factors=_layer_factors,
        macs=_convolution_macs,
        weight_axis=0,
        channel_axis=-axes - 1,
        geometry=convolution_geometry,
        layers=(f"Conv{axes}d",),
        reason=reason,
    )


def transposed_convolution(axes: int, reason: str = "") -> Kind:
    """The row of a transposed convolution over `axes` axes, with a weight [C, N / groups, *kernel]."""
    return Kind(
        name=f"conv_transpose{axes}d",
        functions=frozenset([f"conv_transpose{axes}d"]),
        slots=_LAYER,
        factors=_layer_factors,
        macs=_transposed_macs,
        weight_axis=1,
        channel_axis=-axes - 1,
        geometry=transposed_geometry,
        layers=(f"ConvTranspose{axes}d",),
        reason=reason,
    )


OTHER = Kind(
    name="other",
    functions=words(
        "convolution conv_transpose1d conv_transpose3d conv_tbc deform_conv2d bilinear lstm gru rnn_tanh rnn_relu "
        "cdist tensordot addmm baddbmm addbmm mv addmv inner outer kron chain_matmul multi_dot fft_fft fft_fft2 "
        "fft_fftn fft_ifft fft_ifft2 fft_ifftn fft_rfft fft_rfft2 fft_rfftn fft_irfft fft_irfft2 fft_irfftn"
    ),
    reason=_NOT_QUANTIZED,
)
"""Arithmetic that is listed by name and left in float."""

KINDS: tuple[Kind, ...] = (
    Kind(
        name="linear",
        functions=words("linear"),
        slots=_LAYER,
        factors=_layer_factors,
        macs=_linear_macs,
        weight_axis=0,
        channel_axis=-1,
        layers=("Linear",),
    ),
    convolution(1, reason=_NOT_QUANTIZED),
    convolution(2),
    convolution(3, reason=_NOT_QUANTIZED),
    transposed_convolution(2),
    Kind(
        name="matmul",
        functions=words("matmul einsum"),
        slots=("lhs", "rhs"),
        factors=_product_factors,
        macs=_product_macs,
    ),
    OTHER,
)
"""The table. Where two rows name one function, the first row has it."""


def kind_of(node: fx.Node) -> Kind | None:
    """The kind of a call; None for a call without arithmetic, or with arithmetic that the graph does not show."""
    name = name_of(node)
    for kind in KINDS:
        if name not in kind.functions:
            continue
        if kind.slots and not is_torchs_own(node.target):
            return None  # a custom operator that happens to have the name
        # An einsum of one tensor is a transposition or a sum.
        return None if kind.slots and len(kind.factors(node)) == 1 else kind
    return None


def kind_named(name: str) -> Kind:
    """The kind of that name; `OTHER` for a name that is not in the table."""
    return next((kind for kind in KINDS if kind.name == name), OTHER)


def quantizable() -> tuple[str, ...]:
    """Names of the kinds that can be quantized, in the order of the table."""
    return tuple(kind.name for kind in KINDS if not kind.reason)


def arithmetic() -> frozenset[str]:
    """Plain names of all calls that do arithmetic."""
    return frozenset().union(*(kind.functions for kind in KINDS))


def layers() -> tuple[type[nn.Module], ...]:
    """Torch's modules that are one site each."""
    from torch import nn  # noqa: PLC0415  # the table itself is read without torch

    return tuple(getattr(nn, layer) for kind in KINDS for layer in kind.layers)


def weight_axis(kind: str) -> int:
    """The axis of a weight along which its outputs lie, by the name of its kind; 0 for a kind without one."""
    return kind_named(kind).weight_axis or 0
