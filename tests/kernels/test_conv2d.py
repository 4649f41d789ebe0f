"""The integer convolution: exact sums, and an exact border whatever the grid's zero is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxptq.kernels import panels, reference
from fxptq.kernels.build import backend
from fxptq.kernels.layer import Layer
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

Pair = tuple[int, int]


def run(
    operators: Operators,
    layer: Layer,
    a: torch.Tensor,
    kernel: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (1, 1),
    **changes: object,
) -> torch.Tensor:
    place = {"columns": layer.columns, "kernel_size": kernel, "stride": stride, "padding": padding}
    place["taps"] = None if layer.taps is None else panels.pad_columns(layer.taps)
    weight = panels.pack_conv_weight(layer.packable())
    return operators.conv2d(a, weight, **place, **epilogue(**changes) | layer.epilogue())


def sums_by(operators: Operators, a: torch.Tensor, w: torch.Tensor, stride: Pair, padding: Pair) -> torch.Tensor:
    layer = Layer(w, torch.ones(w.shape[0]), torch.zeros(w.shape[0]))
    return run(operators, layer, a, tuple(w.shape[2:]), stride, padding)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_sums_equal_int64(operators: Operators, bits: int, kind: str) -> None:
    a = codes((2, 20, 9, 14), bits, kind, seed=1)
    w = panels.centred(codes((35, 20, 3, 3), bits, kind, seed=2), bits)
    assert torch.equal(sums_by(operators, a, w, (1, 1), (1, 1)).long(), reference.convolved_sums(a, w, (1, 1), (1, 1)))


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_sums_equal_int64_for_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    size = [draw(st.integers(max(1, kernel[i] - 2 * padding[i]), 12)) for i in range(2)]
    channels, columns, seed = draw(st.integers(1, 9)), draw(st.integers(1, 70)), draw(st.integers(0, 99))
    a, w = (
        codes((1, channels, *size), 8, seed=seed),
        panels.centred(codes((columns, channels, *kernel), 8, "extreme", seed), 8),
    )
    if draw(st.booleans()):
        a = a.contiguous(memory_format=torch.channels_last)
    expected = reference.convolved_sums(a, w, stride, padding)
    for native in (True, False) if backend().native else (False,):
        assert torch.equal(sums_by(Operators(native), a, w, stride, padding).long(), expected)


@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric", "one_sided"])
@pytest.mark.parametrize("columns", [24, 48], ids=["room-for-sums", "no-room-for-sums"])
@pytest.mark.parametrize("groups", [1, 3, 0], ids=["per-tensor", "three-ranges", "per-channel"])
@pytest.mark.parametrize("bits", [3, 8])
def test_folded_layer_equals_float64(operators: Operators, symmetry: str, columns: int, groups: int, bits: int) -> None:
    g = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(columns, 10, 3, 3, generator=g), torch.randn(columns, generator=g)
    q = quantizer(bits, "asymmetric" if symmetry == "one_sided" else symmetry, groups or columns, seed=3)
    input_grid = grid(bits, symmetry, seed=4)
    a = codes((2, 10, 7, 8), bits, seed=6)
    layer = layer_of(weight, q, bias, input_grid, (1, 1))
    assert (layer.taps is None) == (symmetry == "one_sided")
    expected = reference.conv2d(reference.values(a, input_grid), decoded(q, weight), bias, (1, 1), (1, 1))
    assert close(run(operators, layer, a, (3, 3)), expected)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_border_is_the_real_zero_for_any_geometry(data: st.DataObject) -> None:
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = draw(st.tuples(st.integers(0, 6), st.integers(0, 6)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    size = [draw(st.integers(max(1, kernel[i] - 2 * padding[i]), 10)) for i in range(2)]
    q, input_grid = quantizer(4, seed=3), grid(4, seed=4)
    a = codes((1, 3, *size), 4, seed=6)
    weight = torch.randn(5, 3, *kernel, generator=torch.Generator().manual_seed(1))
    layer = layer_of(weight, q, None, input_grid, padding)
    expected = reference.conv2d(reference.values(a, input_grid), decoded(q, weight), None, stride, padding)
    for native in (True, False) if backend().native else (False,):
        assert close(run(Operators(native), layer, a, kernel, stride, padding), expected)


@pytest.mark.parametrize("coded", [False, True], ids=["values", "codes"])
@pytest.mark.parametrize("added", [False, True], ids=["", "residual"])
def test_epilogue_and_memory_format(operators: Operators, coded: bool, added: bool) -> None:
    weight = torch.randn(64, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    q, input_grid, target = quantizer(4, seed=3), grid(4, seed=4), grid(4, "one_sided", seed=7)
    a = codes((2, 16, 6, 9), 4, seed=6)
    layer = layer_of(weight, q, None, input_grid, (1, 1))
    expected = reference.conv2d(reference.values(a, input_grid), decoded(q, weight), None, (1, 1), (1, 1)).relu()
    residual = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)) if added else None
    expected = expected + residual.double() if added else expected
    arguments = {"activation": int(Activation.LEAKY), "residual": residual}
    if coded:
        arguments["levels"] = panels.pad_columns(torch.full((64,), 15.0))
        arguments |= next_grid(target, layer.columns)
    found = run(operators, layer, a, (3, 3), **arguments)
    assert found.is_contiguous(memory_format=torch.channels_last)
    if coded:
        assert_codes(found, (expected - target.offset) / target.scale, 15)
    else:
        assert close(found, expected)


def test_codes_without_activation_keep_the_exact_border(operators: Operators) -> None:
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    q, input_grid, target = quantizer(4, seed=3), grid(4, seed=4), grid(6, seed=7)
    a = codes((1, 4, 5, 5), 4, seed=6)
    layer = onto(layer_of(weight, q, None, input_grid, (1, 1)), target)
    expected = reference.conv2d(reference.values(a, input_grid), decoded(q, weight), None, (1, 1), (1, 1))
    found = run(operators, layer, a, (3, 3), levels=panels.pad_columns(torch.full((8,), 63.0)))
    assert_codes(found, (expected - target.offset) / target.scale, 63)


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_few_columns_by_taps_equal_the_convolution(data: st.DataObject) -> None:
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    size = [draw(st.integers(max(1, kernel[i] - 2 * padding[i]), 12)) for i in range(2)]
    channels, columns = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    a = codes((2, channels, *size), 8, draw(st.sampled_from(KINDS)), draw(st.integers(0, 99)))
    q, input_grid = quantizer(5, draw(st.sampled_from(["symmetric", "asymmetric"])), seed=3), grid(8, seed=4)
    weight, bias = (
        torch.randn(columns, channels, *kernel, generator=torch.Generator().manual_seed(1)),
        torch.ones(columns),
    )
    layer = layer_of(weight, q, bias, input_grid, padding)
    place = {"columns": columns, "kernel_size": kernel, "padding": padding}
    place["taps"] = None if layer.taps is None else panels.pad_columns(layer.taps)
    packed = panels.pack_narrow_conv_weight(layer.weight)
    expected = reference.conv2d(reference.values(a, input_grid), decoded(q, weight), bias, (1, 1), padding)
    for native in (True, False) if backend().native else (False,):
        found = Operators(native).narrow_conv2d(a, packed, **place, **epilogue() | layer.epilogue())
        assert close(found, expected)
