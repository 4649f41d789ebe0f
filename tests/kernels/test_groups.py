"""Grouped and depthwise convolutions: exact sums for every width, exact borders, and sums of each group's own codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxptq.graph.geometry import Geometry
from fxptq.kernels import panels, reference
from fxptq.kernels.build import backend
from fxptq.kernels.layer import Layer
from fxptq.kernels.layouts import PANELS
from fxptq.kernels.ops import Activation
from fxptq.quant.grid import Grid
from tests.kernels.helpers import (
    KINDS,
    Operators,
    assert_codes,
    close,
    codes,
    decoded,
    epilogue,
    grid,
    layer_of,
    next_grid,
    onto,
    quantizer,
)


def unit(bits: int) -> Grid:
    """The grid of codes as they are."""
    return Grid(scale=1.0, offset=0.0, bits=bits)


def run(
    operators: Operators, layer: Layer, a: Tensor, input_grid: Grid, geometry: Geometry, **changes: object
) -> Tensor:
    """The operator that the layout chooses, on its packed weight."""
    assert PANELS.fuses(geometry, layer.weight.shape, input_grid)
    packed = PANELS.convolution(layer, 8, input_grid, geometry)
    arguments: dict[str, Any] = packed.arguments | epilogue(**changes) | packed.layer.epilogue()
    result: Tensor = getattr(operators, packed.operator)(a, columns=layer.columns, **arguments)
    return result


def sums_by(operators: Operators, a: Tensor, w: Tensor, bits: int, geometry: Geometry) -> Tensor:
    layer = Layer(w, torch.ones(len(w)), torch.zeros(len(w)))
    return run(operators, layer, a, unit(bits), geometry)


def grouped_sums(a: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """int64 sums, tap by tap, group by group."""
    windows = geometry.windows(a.long(), w.shape[2:]).unflatten(1, (geometry.groups, w.shape[1]))
    return torch.einsum("bgcyxhw,gnchw->bgnyx", windows, w.long().unflatten(0, (geometry.groups, -1))).flatten(1, 2)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2], ids=["stride-1", "stride-2"])
def test_depthwise_sums_equal_int64(operators: Operators, bits: int, kind: str, kernel: int, stride: int) -> None:
    a = codes((2, 70, 9, 19), bits, kind, seed=1)
    w = panels.centred(codes((70, 1, kernel, kernel), bits, kind, seed=2), bits)
    geometry = Geometry((stride, stride), (kernel // 2, kernel // 2), groups=70)
    assert torch.equal(sums_by(operators, a, w, bits, geometry).long(), grouped_sums(a, w, geometry))


def test_the_largest_sums_of_depthwise_are_exact(operators: Operators) -> None:
    # 257 codes of 255 are the most whose sum fits 16 bits; so do no two products of 255 and -128.
    a, w = codes((1, 5, 3, 300), 8, "highest"), torch.full((5, 1, 1, 257), -128, dtype=torch.int8)
    geometry = Geometry(groups=5)
    found = sums_by(operators, a, w, 8, geometry)
    assert torch.equal(found.long(), grouped_sums(a, w, geometry))
    assert int(found.min()) == -257 * 255 * 128
    assert not PANELS.fuses(Geometry(groups=5, dilation=(2, 2)), (5, 1, 1, 258), unit(8))


@pytest.mark.parametrize("taps", [2, 3, 9])
def test_sums_in_16_bits_at_their_limit(operators: Operators, taps: int) -> None:
    # 2 * 127 * 127 = 32258 fits 16 bits and 3 do not; 9 * 60 * 60 = 32400 does.
    largest, most = (127, 127) if taps < 9 else (60, 60)
    a = torch.full((1, 33, 4, 20), largest, dtype=torch.uint8)
    w = torch.full((33, 1, 1, taps), most, dtype=torch.int8)
    w[::2] = -most
    layer = Layer(w, torch.ones(33), torch.zeros(33))
    geometry = Geometry(groups=33)
    packed = PANELS.convolution(layer, 8, unit(7), geometry)
    arguments = packed.arguments | {"largest": largest} | epilogue() | layer.epilogue()
    found = operators.depthwise_conv2d(a, columns=33, **arguments)
    assert torch.equal(found.long(), grouped_sums(a, w, geometry))


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_sums_equal_int64_for_any_geometry(data: st.DataObject) -> None:
    draw = data.draw
    groups, inputs, outputs = draw(st.integers(1, 9)), draw(st.integers(1, 6)), draw(st.integers(1, 20))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    depthwise = inputs == outputs == 1 and groups > 1
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) if depthwise else (1, 1)
    padding, stride = (
        draw(st.tuples(st.integers(0, 4), st.integers(0, 4))),
        draw(st.tuples(*[st.integers(1, 3)] * 2)),
    )
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in range(2)]
    size = [draw(st.integers(max(1, spans[i] - 2 * padding[i]), 14)) for i in range(2)]
    bits, seed = draw(st.integers(2, 8)), draw(st.integers(0, 99))
    geometry = Geometry(stride, padding, dilation, groups)
    a = codes((2, groups * inputs, *size), bits, draw(st.sampled_from(KINDS)), seed)
    w = panels.centred(codes((groups * outputs, inputs, *kernel), bits, draw(st.sampled_from(KINDS)), seed + 1), bits)
    if draw(st.booleans()):
        a = a.contiguous(memory_format=torch.channels_last)
    expected = grouped_sums(a, w, geometry)
    for native in (True, False) if backend().native else (False,):
        assert torch.equal(sums_by(Operators(native), a, w, bits, geometry).long(), expected)


SHAPES = {
    "depthwise": (70, 1, Geometry((1, 1), (1, 1), groups=70)),
    "depthwise-dilated": (20, 1, Geometry((1, 1), (4, 4), (3, 3), groups=20)),
    "depthwise-strided": (64, 1, Geometry((2, 2), (1, 1), groups=64)),
    "few-a-group": (36, 3, Geometry((1, 1), (1, 1), groups=12)),
    "many-a-group": (120, 5, Geometry((2, 1), (1, 0), groups=3)),
    "multiplied": (24, 1, Geometry((1, 1), (1, 1), groups=8)),
}


@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric", "one_sided"])
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("ranges", [1, 0], ids=["per-tensor", "per-channel"])
@pytest.mark.parametrize(("columns", "channels", "geometry"), SHAPES.values(), ids=SHAPES.keys())
def test_folded_layer_equals_float64(
    operators: Operators, columns: int, channels: int, geometry: Geometry, ranges: int, bits: int, symmetry: str
) -> None:
    a, layer, input_grid, expected = folded(columns, channels, geometry, ranges or columns, bits, symmetry)
    assert close(run(operators, layer, a, input_grid, geometry), expected)


def folded(
    columns: int, channels: int, geometry: Geometry, ranges: int, bits: int, symmetry: str
) -> tuple[Tensor, Layer, Grid, Tensor]:
    g = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(columns, channels, 3, 3, generator=g), torch.randn(columns, generator=g)
    q = quantizer(bits, "asymmetric" if symmetry == "one_sided" else symmetry, ranges, seed=3)
    input_grid = grid(bits, symmetry, seed=4)
    a = codes((2, channels * geometry.groups, 11, 10), bits, seed=6)
    layer = layer_of(weight, q, bias, input_grid, geometry.padding)
    x, w = reference.values(a, input_grid), decoded(q, weight)
    options = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    return a, layer, input_grid, F.conv2d(x, w, bias.double(), *options)


@pytest.mark.parametrize("added", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("columns", "channels", "geometry"), SHAPES.values(), ids=SHAPES.keys())
def test_epilogue_to_codes(
    operators: Operators, columns: int, channels: int, geometry: Geometry, symmetry: str, added: bool
) -> None:
    target = grid(4, "one_sided", seed=7)
    a, layer, input_grid, expected = folded(columns, channels, geometry, 1, 8, symmetry)
    expected = expected.relu()
    residual = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)) if added else None
    expected = expected + residual.double() if residual is not None else expected
    changes = {"activation": int(Activation.LEAKY), "residual": residual}
    changes["levels"] = panels.pad_columns(torch.full((columns,), 15.0))
    changes |= next_grid(target, layer.columns)
    found = run(operators, layer, a, input_grid, geometry, **changes)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_codes(found, (expected - target.offset) / target.scale, 15)


@pytest.mark.parametrize(("columns", "channels", "geometry"), SHAPES.values(), ids=SHAPES.keys())
def test_codes_without_activation(operators: Operators, columns: int, channels: int, geometry: Geometry) -> None:
    target = grid(6, seed=7)
    a, layer, input_grid, expected = folded(columns, channels, geometry, columns, 4, "asymmetric")
    levels = panels.pad_columns(torch.full((columns,), 63.0))
    found = run(operators, onto(layer, target), a, input_grid, geometry, levels=levels)
    assert_codes(found, (expected - target.offset) / target.scale, 63)


@pytest.mark.parametrize(
    ("groups", "columns", "expected"), [(12, 1, 1), (12, 4, 3), (12, 16, 12), (12, 5, 3), (7, 3, 1), (1, 3, 1)]
)
def test_joined_groups_fill_panels_and_give_the_same_sums(groups: int, columns: int, expected: int) -> None:
    w = panels.centred(codes((groups * columns, 2, 3, 3), 8, seed=2), 8)
    a = codes((1, groups * 2, 5, 6), 8)
    joined, count = panels.joined_groups(w, groups)
    assert count == expected
    geometry = Geometry(groups=groups)
    assert torch.equal(grouped_sums(a, joined, Geometry(groups=count)), grouped_sums(a, w, geometry))
