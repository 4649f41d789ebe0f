"""Winograd's convolution in integers: the sums of `conv2d`, bit for bit, or nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxptq.kernels import panels, reference
from fxptq.kernels.build import backend
from tests.kernels.helpers import KINDS, Operators, close, codes, decoded, epilogue, grid, layer_of, quantizer


def sums_by(
    operators: Operators, a: torch.Tensor, w: torch.Tensor, largest: int, padding: tuple[int, int]
) -> torch.Tensor:
    assert panels.winograd_fits(w, largest)
    one = panels.pad_columns(torch.ones(w.shape[0]))
    place = {"columns": w.shape[0], "largest": largest, "padding": padding, "taps": None}
    return operators.conv3x3(a, panels.pack_taps(w), **place, bias=torch.zeros_like(one), scale=one / 4, **epilogue())


@pytest.mark.parametrize("bits", range(2, 7))
@pytest.mark.parametrize("kind", KINDS)
def test_sums_equal_int64(operators: Operators, bits: int, kind: str) -> None:
    a = codes((2, 20, 9, 27), bits, kind, seed=1)
    w = torch.randint(-14, 15, (35, 20, 3, 3), generator=torch.Generator().manual_seed(2)).to(torch.int8)
    expected = reference.convolved_sums(a, w, (1, 1), (1, 1))
    assert torch.equal(sums_by(operators, a, w, 2**bits - 1, (1, 1)).long(), expected)


@pytest.mark.parametrize("channels", [17, 18, 19, 20])
def test_weights_in_half_bytes(operators: Operators, channels: int) -> None:
    a = codes((1, channels, 7, 10), 6, "highest")
    w = 2 * torch.randint(-4, 4, (19, channels, 3, 3), generator=torch.Generator().manual_seed(2)).to(torch.int8) + 1
    assert panels.pack_taps(w).dtype == torch.uint8
    expected = reference.convolved_sums(a, w, (1, 1), (1, 1))
    assert torch.equal(sums_by(operators, a, w, 63, (1, 1)).long(), expected)


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_sums_equal_int64_for_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = [draw(st.integers(max(1, 3 - 2 * padding[i]), 30)) for i in range(2)]
    channels, columns, seed = draw(st.integers(1, 70)), draw(st.integers(1, 70)), draw(st.integers(0, 99))
    a = codes((1, channels, *size), 6, draw(st.sampled_from(KINDS)), seed)
    w = torch.randint(-14, 15, (columns, channels, 3, 3), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    expected = reference.convolved_sums(a, w, (1, 1), padding)
    for native in (True, False) if backend().native else (False,):
        assert torch.equal(sums_by(Operators(native), a, w, 63, padding).long(), expected)


@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("columns", [24, 32], ids=["room-for-sums", "no-room-for-sums"])
def test_border_is_the_real_zero(operators: Operators, symmetry: str, columns: int) -> None:
    g = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(columns, 18, 3, 3, generator=g), torch.randn(columns, generator=g)
    q, input_grid = quantizer(3, symmetry, columns, seed=3), grid(4, seed=4)
    a = codes((1, 18, 7, 12), 4, seed=6)
    layer = layer_of(weight, q, bias, input_grid, (1, 1)).for_sums_times(4)
    assert panels.winograd_fits(layer.packable(), 15)
    place = {"columns": columns, "largest": 15, "padding": (1, 1), "taps": panels.pad_columns(layer.taps)}
    found = operators.conv3x3(a, panels.pack_taps(layer.packable()), **place, **epilogue() | layer.epilogue())
    assert close(found, reference.conv2d(reference.values(a, input_grid), decoded(q, weight), bias, (1, 1), (1, 1)))


def test_what_does_not_fit_a_byte_is_left_to_the_other_kernel() -> None:
    nine = torch.full((1, 1, 3, 3), 15, dtype=torch.int8)
    assert not panels.winograd_fits(nine, 15)  # nine times 15
    assert panels.winograd_fits(nine - 1, 15)  # nine times 14
    assert not panels.winograd_fits(nine - 1, 127)  # four times 127
