"""Winograd's convolution in integers: the sums of `conv2d`, bit for bit, for every width, up to its exact limit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxptq.kernels import panels, reference
from fxptq.kernels.build import backend
from fxptq.kernels.ops import Activation
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


def sums_by(
    operators: Operators, a: Tensor, w: Tensor, largest: int, padding: tuple[int, int], scale: float = 1.0
) -> Tensor:
    assert panels.winograd_fits(w, largest)
    one = panels.pad_columns(torch.full((w.shape[0],), scale))
    narrow = panels.fits_bytes(w, largest)
    place = {"columns": w.shape[0], "largest": largest, "narrow": narrow, "padding": padding, "taps": None}
    return operators.conv3x3(a, panels.pack_taps(w), **place, bias=torch.zeros_like(one), scale=one, **epilogue())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_sums_equal_int64(operators: Operators, bits: int, kind: str) -> None:
    a = codes((2, 20, 9, 27), bits, kind, seed=1)
    w = panels.centred(codes((35, 20, 3, 3), bits, kind, seed=2), bits)
    expected = reference.convolved_sums(a, w, (1, 1), (1, 1))
    assert torch.equal(sums_by(operators, a, w, 2**bits - 1, (1, 1)).long(), expected)


@pytest.mark.parametrize("bits", range(2, 7))
@pytest.mark.parametrize("channels", [20, 200], ids=["few-channels", "many-channels"])
def test_transforms_in_bytes(operators: Operators, bits: int, channels: int) -> None:
    # The weights of F(4x4) for 200 channels and 150 columns are large, so that F(2x2) in bytes may be faster.
    a = codes((2, channels, 5, 13), bits, seed=1)
    shape = (35 if channels == 20 else 150, channels, 3, 3)
    w = torch.randint(-14, 15, shape, generator=torch.Generator().manual_seed(2)).to(torch.int8)
    assert panels.fits_bytes(w, 2**bits - 1)
    expected = reference.convolved_sums(a, w, (1, 1), (1, 1))
    assert torch.equal(sums_by(operators, a, w, 2**bits - 1, (1, 1)).long(), expected)


@pytest.mark.parametrize("channels", [17, 18, 19, 20])
def test_weights_in_half_bytes(operators: Operators, channels: int) -> None:
    a = codes((1, channels, 7, 10), 6, "highest")
    w = 2 * torch.randint(-4, 4, (19, channels, 3, 3), generator=torch.Generator().manual_seed(2)).to(torch.int8) + 1
    assert panels.pack_taps(w).dtype == torch.uint8
    expected = reference.convolved_sums(a, w, (1, 1), (1, 1))
    assert torch.equal(sums_by(operators, a, w, 63, (1, 1)).long(), expected)


def test_odd_sums_above_two_to_the_24_are_rounded_as_float32_rounds_them(operators: Operators) -> None:
    a = codes((1, 59, 3, 3), 8, "highest")
    w = panels.centred(codes((1, 59, 3, 3), 8, "highest"), 8)
    expected = reference.convolved_sums(a, w, (1, 1), (0, 0))
    assert int(expected) == 255 * 127 * 9 * 59
    assert torch.equal(sums_by(operators, a, w, 255, (0, 0)), expected.float())


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_sums_equal_int64_for_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = [draw(st.integers(max(1, 3 - 2 * padding[i]), 30)) for i in range(2)]
    batch, channels, columns = draw(st.integers(1, 3)), draw(st.integers(1, 70)), draw(st.integers(1, 140))
    bits, kind, seed = draw(st.integers(2, 8)), draw(st.sampled_from(KINDS)), draw(st.integers(0, 99))
    a = codes((batch, channels, *size), bits, draw(st.sampled_from(KINDS)), seed)
    w = panels.centred(codes((columns, channels, 3, 3), bits, kind, seed + 1), bits)
    if draw(st.booleans()):
        a = a.contiguous(memory_format=torch.channels_last)
    expected = reference.convolved_sums(a, w, (1, 1), padding)
    for native in (True, False) if backend().native else (False,):
        # From 58 channels on sums may pass 2^24, and float32, which holds them, rounds odd ones.
        assert torch.equal(sums_by(Operators(native), a, w, 2**bits - 1, padding), expected.float())


@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_sums_at_the_limit_are_exact(operators: Operators, sign: int) -> None:
    # Powers of two keep the sums exact in float32: 115 channels of 9 taps of 127 or 128 are just below 2^25 / 255.
    a = codes((1, 115, 6, 9), 8, "highest")
    w = torch.full((16, 115, 3, 3), sign * 127, dtype=torch.int8)
    w[:, :4] = sign * 125
    largest = 255 * int(w[0].long().sum().abs())
    assert 2**25 - 1 - largest < 255 * 9 * 130
    assert panels.winograd_fits(w, 255)
    expected = reference.convolved_sums(a, w, (1, 1), (1, 1))
    assert int(expected.abs().max()) == largest
    # float32 holds no odd number of this size, so the sums are compared as float32 rounds them.
    assert torch.equal(sums_by(operators, a, w, 255, (1, 1)), expected.float())


def test_the_limit_is_the_largest_sum_that_64_times_itself_fits_32_bits() -> None:
    w = torch.zeros(2, 129, 8, 128, dtype=torch.int8)
    w[1] = 1  # 132096 taps of 1
    one_less = w.clone()
    one_less.view(2, -1)[1, 2**17 :] = 0  # 2^17 of them, and -3 that does not count
    one_less.view(2, -1)[1, -1] = -3
    assert panels.winograd_fits(one_less, 255)
    assert not panels.winograd_fits(one_less, 256)
    assert not panels.winograd_fits(-w, 255)


@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric", "one_sided"])
@pytest.mark.parametrize("columns", [24, 32, 70, 130], ids=["sums", "no-room-for-sums", "sums-at-70", "sums-at-130"])
@pytest.mark.parametrize("bits", [3, 8])
def test_folded_layer_equals_float64(operators: Operators, symmetry: str, columns: int, bits: int) -> None:
    found, expected = folded(operators, symmetry, columns, bits, size=(7, 12))
    assert close(found, expected)


def test_sums_of_codes_of_a_strip_of_small_patch_rows(operators: Operators) -> None:
    # One group of patches spans several rows of patches and two groups of columns; only the last group has the sums.
    found, expected = folded(operators, "asymmetric", 70, 4, size=(21, 6))
    assert close(found, expected)


def folded(
    operators: Operators, symmetry: str, columns: int, bits: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(columns, 18, 3, 3, generator=g), torch.randn(columns, generator=g)
    q = quantizer(bits, "asymmetric" if symmetry == "one_sided" else symmetry, columns, seed=3)
    input_grid = grid(bits, symmetry, seed=4)
    a = codes((2, 18, *size), bits, seed=6)
    layer = layer_of(weight, q, bias, input_grid, (1, 1))
    place = {"columns": columns, "largest": 2**bits - 1, "padding": (1, 1)}
    place |= {
        "narrow": panels.fits_bytes(layer.packable(), 2**bits - 1),
        "taps": None if layer.taps is None else panels.pad_columns(layer.taps),
    }
    found = operators.conv3x3(a, panels.pack_taps(layer.packable()), **place, **epilogue() | layer.epilogue())
    return found, reference.conv2d(reference.values(a, input_grid), decoded(q, weight), bias, (1, 1), (1, 1))


@pytest.mark.parametrize("columns", [64, 100], ids=["one-group", "two-groups"])
@pytest.mark.parametrize("added", [False, True], ids=["", "residual"])
def test_epilogue_to_codes(operators: Operators, columns: int, added: bool) -> None:
    weight = torch.randn(columns, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    q, input_grid, target = quantizer(8, seed=3), grid(8, seed=4), grid(4, "one_sided", seed=7)
    a = codes((2, 16, 6, 9), 8, seed=6)
    layer = layer_of(weight, q, None, input_grid, (1, 1))
    expected = reference.conv2d(reference.values(a, input_grid), decoded(q, weight), None, (1, 1), (1, 1)).relu()
    residual = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)) if added else None
    expected = expected + residual.double() if added else expected
    levels = panels.pad_columns(torch.full((columns,), 15.0))
    arguments = epilogue(activation=int(Activation.LEAKY), residual=residual, levels=levels)
    arguments |= next_grid(target, layer.columns)
    place = {"columns": columns, "largest": 255, "narrow": False, "padding": (1, 1)}
    place["taps"] = panels.pad_columns(layer.taps)
    found = operators.conv3x3(a, panels.pack_taps(layer.packable()), **place, **arguments | layer.epilogue())
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_codes(found, (expected - target.offset) / target.scale, 15)


def test_codes_without_activation_keep_the_exact_border(operators: Operators) -> None:
    weight = torch.randn(80, 20, 3, 3, generator=torch.Generator().manual_seed(1))
    q, input_grid, target = quantizer(4, seed=3), grid(4, seed=4), grid(6, seed=7)
    a = codes((1, 20, 5, 5), 4, seed=6)
    layer = onto(layer_of(weight, q, None, input_grid, (1, 1)), target)
    expected = reference.conv2d(reference.values(a, input_grid), decoded(q, weight), None, (1, 1), (1, 1))
    place = {"columns": 80, "largest": 15, "narrow": False, "padding": (1, 1), "taps": panels.pad_columns(layer.taps)}
    arguments = epilogue(levels=panels.pad_columns(torch.full((80,), 63.0))) | layer.epilogue()
    found = operators.conv3x3(a, panels.pack_taps(layer.packable()), **place, **arguments)
    assert_codes(found, (expected - target.offset) / target.scale, 63)


def test_what_does_not_fit_a_byte() -> None:
    nine = torch.full((1, 1, 3, 3), 15, dtype=torch.int8)
    assert not panels.fits_bytes(nine, 15)  # nine times 15
    assert panels.fits_bytes(nine - 1, 15)  # nine times 14
    assert not panels.fits_bytes(nine - 1, 127)  # four times 127
