"""Weights as rows at 2, 4 and 8 bits: what is packed comes back, and the operators on it are those on panels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxptq.graph.geometry import Geometry
from fxptq.kernels import ops, panels, rows
from fxptq.kernels.backend import backend_for
from fxptq.kernels.layouts import PANELS, ROWS, Packed
from tests.kernels.helpers import codes, epilogue, grid, layer_of, quantizer


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 300), st.integers(0, 99))
def test_what_is_packed_comes_back(bits: int, columns: int, depth: int, seed: int) -> None:
    weight = panels.centred(codes((columns, depth), bits, seed=seed), bits)
    packed = rows.pack_rows(weight, bits)
    assert packed.dtype == torch.uint8
    assert torch.equal(rows.unpack_rows(packed, bits)[:, :depth], weight)


@pytest.mark.parametrize(("bits", "size"), [(1, 32), (2, 32), (3, 64), (4, 64), (5, 128), (8, 128)])
def test_codes_take_two_four_or_eight_bits(bits: int, size: int) -> None:
    assert rows.pack_rows(panels.centred(codes((3, 128), bits), bits), bits).shape == (3, size)


def test_bytes_hold_the_slices_side_by_side() -> None:
    weight = panels.centred(torch.arange(64).remainder(16).to(torch.uint8).view(1, 64), 4)
    assert rows.pack_rows(weight, 4)[0, :3].tolist() == [0x00, 0x11, 0x22]
    weight[0, 32:] = 15
    assert rows.pack_rows(weight, 4)[0, :3].tolist() == [0xF0, 0xF1, 0xF2]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_start_makes_up_for_128_less(bits: int) -> None:
    a = codes((5, 70), 8, seed=1)
    weight = panels.centred(codes((9, 70), bits, seed=2), bits)
    packed = rows.pack_rows(weight, bits)
    start = rows.start_of(packed, bits, largest=255)
    stored = rows.unpack_rows(packed, bits).int()
    shifted = torch.nn.functional.pad(a.int(), (0, stored.shape[1] - 70)) - 128
    assert torch.equal(shifted @ stored.t() + start, a.int() @ weight.int().t())
    assert rows.start_of(packed, bits, largest=127) is None


def call(served: Packed, a: torch.Tensor) -> torch.Tensor:
    layer = served.layer
    return ops.PLAIN.get(served.operator, getattr(rows, served.operator, None))(
        a, columns=layer.columns, **epilogue() | layer.epilogue() | served.arguments
    )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("a_bits", [4, 8])
def test_linear_is_that_on_panels(bits: int, a_bits: int) -> None:
    weight = torch.randn(45, 50, generator=torch.Generator().manual_seed(1))
    q, input_grid = quantizer(bits, seed=3), grid(a_bits, seed=4)
    layer, a = layer_of(weight, q, None, input_grid), codes((2, 9, 50), a_bits, seed=6)
    found, expected = (call(layout.linear(layer, bits, input_grid), a) for layout in (ROWS, PANELS))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("channels", [3, 20, 64], ids=["no-gaps", "padded-taps", "whole-slices"])
def test_convolution_is_that_on_panels(bits: int, channels: int) -> None:
    weight = torch.randn(45, channels, 3, 2, generator=torch.Generator().manual_seed(1))
    q, input_grid, geometry = quantizer(bits, seed=3), grid(4, seed=4), Geometry(stride=(2, 1), padding=(1, 1))
    layer, a = layer_of(weight, q, None, input_grid, (1, 1)), codes((2, channels, 7, 8), 4, seed=6)
    found, expected = (call(layout.convolution(layer, bits, input_grid, geometry), a) for layout in (ROWS, PANELS))
    assert torch.equal(found, expected)


def test_operators_keep_what_their_declarations_promise() -> None:
    """What torch.compile relies on: schemas, and the shape, dtype and strides told in advance."""
    q, input_grid, geometry = quantizer(4, seed=3), grid(8, seed=4), Geometry(padding=(1, 1))
    linear = ROWS.linear(layer_of(torch.randn(20, 24), q, None, input_grid), 4, input_grid)
    convolution = ROWS.convolution(
        layer_of(torch.randn(20, 5, 3, 3), q, None, input_grid, (1, 1)), 4, input_grid, geometry
    )
    for served, shape in ((linear, (2, 7, 24)), (convolution, (2, 5, 6, 7))):
        arguments = epilogue() | served.layer.epilogue() | served.arguments | {"columns": 20}
        positional = (codes(shape, 8), arguments.pop("weight"), arguments.pop("start"))
        operator = getattr(torch.ops.fxptq, served.operator).default
        torch.library.opcheck(operator, positional, arguments, test_utils=("test_schema", "test_faketensor"))


def test_each_device_has_its_layout() -> None:
    assert backend_for(torch.device("cpu")).name == "cpu"
    assert backend_for(torch.device("cuda")).name == "triton"
