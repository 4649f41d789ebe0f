"""Linear layers and convolutions: exact sums at every width of the weights, and every epilogue."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from fxptq.graph.geometry import Geometry
from fxptq.kernels import panels, reference, rows
from fxptq.kernels.cuda import convolution, gemm
from fxptq.kernels.cuda.tiles import TILES, Tile, tuned
from fxptq.kernels.layer import Layer
from fxptq.kernels.layouts import ROWS
from fxptq.kernels.ops import Activation
from fxptq.quant.grid import Grid
from tests.kernels.cuda.helpers import Kernels, run
from tests.kernels.helpers import KINDS, assert_codes, close, codes, decoded, grid, layer_of, next_grid, onto, quantizer

ANY = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def bare(w: Tensor) -> Layer:
    """A layer whose output is the sums."""
    return Layer(w, torch.ones(len(w)), torch.zeros(len(w)))


def linear_sums(operators: Kernels, a: Tensor, w: Tensor, bits: int, a_bits: int) -> Tensor:
    return run(operators, ROWS.linear(bare(w), bits, Grid(1.0, 0.0, a_bits)), a).long()


def conv_sums(operators: Kernels, a: Tensor, w: Tensor, bits: int, a_bits: int, geometry: Geometry) -> Tensor:
    return run(operators, ROWS.convolution(bare(w), bits, Grid(1.0, 0.0, a_bits), geometry), a).long()


@pytest.mark.parametrize("a_bits", [4, 8])
@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_sums_equal_int64(operators: Kernels, a_bits: int, bits: int, kind: str) -> None:
    a = codes((3, 41, 60), a_bits, kind, seed=1)
    w = panels.centred(codes((70, 60), bits, kind, seed=2), bits)
    assert torch.equal(linear_sums(operators, a, w, bits, a_bits), reference.sums(a, w))


@ANY
@given(st.integers(1, 99), st.integers(1, 150), st.integers(1, 300), st.sampled_from(range(2, 9)), st.integers(0, 99))
def test_linear_sums_equal_int64_for_any_shape(  # type: ignore[no-untyped-def]  # the parameters say it
    operators: Kernels, rows, columns, depth, bits, seed
) -> None:
    a = codes((rows, depth), 8, seed=seed)
    w = panels.centred(codes((columns, depth), bits, "extreme", seed + 1), bits)
    assert torch.equal(linear_sums(operators, a, w, bits, 8), reference.sums(a, w))


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile(operators: Kernels, monkeypatch: pytest.MonkeyPatch, tile: Tile) -> None:
    monkeypatch.setattr(gemm, "_linear", tuned([tile], ["N"])(gemm.linear_kernel))
    monkeypatch.setattr(convolution, "_conv2d", tuned([tile], ["N"])(convolution.conv2d_kernel))
    a, w = codes((150, 70), 8, seed=1), panels.centred(codes((140, 70), 4, seed=2), 4)
    assert torch.equal(linear_sums(operators, a, w, 4, 8), reference.sums(a, w))
    a, w = codes((1, 33, 12, 13), 8, seed=1), panels.centred(codes((140, 33, 3, 3), 4, seed=2), 4)
    found = conv_sums(operators, a, w, 4, 8, Geometry(padding=(1, 1)))
    assert torch.equal(found, reference.convolved_sums(a, w, (1, 1), (1, 1)))


@pytest.mark.parametrize("a_bits", [4, 8])
@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("channels", [3, 20, 64], ids=["no-gaps", "padded-taps", "whole-slices"])
def test_convolution_sums_equal_int64(operators: Kernels, a_bits: int, bits: int, channels: int) -> None:
    for kind in ("random", "extreme"):
        a = codes((2, channels, 7, 9), a_bits, kind, seed=1)
        w = panels.centred(codes((35, channels, 3, 3), bits, kind, seed=2), bits)
        found = conv_sums(operators, a, w, bits, a_bits, Geometry(padding=(1, 1)))
        assert torch.equal(found, reference.convolved_sums(a, w, (1, 1), (1, 1)))


@ANY
@given(data=st.data())
def test_border_is_the_real_zero_for_any_geometry(operators: Kernels, data: st.DataObject) -> None:
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = draw(st.tuples(st.integers(0, 6), st.integers(0, 6)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    size = [draw(st.integers(max(1, kernel[i] - 2 * padding[i]), 10)) for i in range(2)]
    channels, columns = draw(st.sampled_from([1, 3, 16, 17, 33])), draw(st.integers(1, 70))
    bits, a_bits = draw(st.sampled_from([2, 3, 4, 8])), draw(st.sampled_from([4, 8]))
    q, input_grid = quantizer(bits, seed=3), grid(a_bits, seed=4)
    a = codes((draw(st.integers(1, 2)), channels, *size), a_bits, seed=6)
    if draw(st.booleans()):
        a = a.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(columns, channels, *kernel, generator=torch.Generator().manual_seed(1))
    layer = layer_of(weight, q, torch.ones(columns), input_grid, padding)
    served = ROWS.convolution(layer, bits, input_grid, Geometry(stride=stride, padding=padding))
    expected = reference.conv2d(
        reference.values(a, input_grid), decoded(q, weight), torch.ones(columns), stride, padding
    )
    assert close(run(operators, served, a), expected)


@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("groups", [1, 3, 0], ids=["per-tensor", "three-ranges", "per-channel"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_folded_linear_equals_float64(operators: Kernels, symmetry: str, groups: int, bits: int) -> None:
    g = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(48, 50, generator=g), torch.randn(48, generator=g)
    q, input_grid = quantizer(bits, symmetry, groups or 48, seed=3), grid(bits, "asymmetric", seed=4)
    a = codes((2, 9, 50), bits, seed=6)
    expected = reference.linear(reference.values(a, input_grid), decoded(q, weight), bias)
    served = ROWS.linear(layer_of(weight, q, bias, input_grid), bits, input_grid)
    assert close(run(operators, served, a), expected)


EPILOGUES = [
    pytest.param(Activation.NONE, 0.0, lambda y: y, id="none"),
    pytest.param(Activation.LEAKY, 0.0, torch.relu, id="relu"),
    pytest.param(Activation.LEAKY, 0.2, lambda y: F.leaky_relu(y, 0.2), id="leaky"),
    pytest.param(Activation.GELU, 0.0, F.gelu, id="gelu"),
]


@pytest.mark.parametrize(("activation", "slope", "function"), EPILOGUES)
@pytest.mark.parametrize("added", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("coded", [False, True], ids=["values", "codes"])
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_epilogues(operators: Kernels, activation, slope, function, added, coded, kind) -> None:  # type: ignore[no-untyped-def]  # the parameters say it
    g = torch.Generator().manual_seed(8)
    q, input_grid, target = quantizer(4, seed=3), grid(4, seed=4), grid(3, "asymmetric", seed=11)
    if kind == "linear":
        weight, a = torch.randn(70, 24, generator=g), codes((50, 24), 4, seed=6)
        layer = layer_of(weight, q, None, input_grid)
        plain = reference.linear(reference.values(a, input_grid), decoded(q, weight), None)
    else:
        weight, a = torch.randn(70, 20, 3, 3, generator=g), codes((2, 20, 5, 6), 4, seed=6)
        layer = layer_of(weight, q, None, input_grid, (1, 1))
        plain = reference.conv2d(reference.values(a, input_grid), decoded(q, weight), None, (1, 1), (1, 1))
    residual = torch.randn(plain.shape, generator=g) if added else None
    expected = function(plain) + (residual.double() if added else 0)
    arguments = {"activation": int(activation), "slope": slope, "residual": residual}
    if coded:
        arguments["levels"] = panels.pad_columns(torch.full((layer.columns,), float(target.levels)))
        if activation == Activation.NONE and not added:
            layer = onto(layer, target)
        else:
            arguments |= next_grid(target, layer.columns)
    geometry = Geometry(padding=(1, 1))
    served = ROWS.linear(layer, 4, input_grid) if kind == "linear" else ROWS.convolution(layer, 4, input_grid, geometry)
    found = run(operators, served, a, **arguments)
    assert kind == "linear" or found.is_contiguous(memory_format=torch.channels_last)
    if coded:
        assert_codes(found, (expected - target.offset) / target.scale, target.levels)
    else:
        assert close(found, expected)


def test_codes_of_columns_may_have_different_grids(operators: Kernels) -> None:
    weight = torch.randn(70, 24, generator=torch.Generator().manual_seed(8))
    q, input_grid = quantizer(4, seed=3), grid(4, seed=4)
    a = codes((50, 24), 4, seed=6)
    first, second = grid(3, seed=1), grid(8, seed=2)
    lower = torch.tensor([first.offset] * 30 + [second.offset] * 40).double()
    step = torch.tensor([first.scale] * 30 + [second.scale] * 40).double()
    levels = torch.tensor([7.0] * 30 + [255.0] * 40)
    layer = layer_of(weight, q, None, input_grid).plus(-lower).times(1 / step)
    found = run(operators, ROWS.linear(layer, 4, input_grid), a, levels=panels.pad_columns(levels))
    exact = (reference.linear(reference.values(a, input_grid), decoded(q, weight), None) - lower) / step
    assert_codes(found[:, :30], exact[:, :30], 7)
    assert_codes(found[:, 30:], exact[:, 30:], 255)


@pytest.mark.parametrize("coded", [False, True], ids=["values", "codes"])
@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle(operators: Kernels, factor: int, coded: bool) -> None:
    weight = torch.randn(5 * factor**2, 16, 3, 3, generator=torch.Generator().manual_seed(8))
    q, input_grid = quantizer(4, seed=3), grid(4, seed=4)
    a = codes((2, 16, 4, 5), 4, seed=6)
    layer = onto(layer_of(weight, q, None, input_grid, (1, 1)), grid(4, seed=5))
    served = ROWS.convolution(
        layer.reordered(panels.places_first(layer.columns, factor)), 4, input_grid, Geometry(padding=(1, 1))
    )
    levels = panels.pad_columns(torch.full((layer.columns,), 15.0)) if coded else None
    served.arguments["shuffle"] = factor
    found = run(operators, served, a, levels=levels)
    plain = ROWS.convolution(layer, 4, input_grid, Geometry(padding=(1, 1)))
    expected = F.pixel_shuffle(run(operators, plain, a, levels=levels), factor)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_gelu_is_within_a_millionth(operators: Kernels) -> None:
    x = torch.linspace(-9, 9, 4001)
    # A layer of one input whose code is 1 and whose bias is x.
    layer = Layer(torch.zeros(len(x), 1, dtype=torch.int8), torch.zeros(len(x)), x)
    served = ROWS.linear(layer, 8, Grid(1.0, 0.0, 8))
    found = run(operators, served, torch.ones(1, 1, dtype=torch.uint8), activation=int(Activation.GELU))[0]
    assert float((found.double() - F.gelu(x.double())).abs().max()) < 1e-6


@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (1, 5, 1, 7), (2, 1, 3, 1)], ids=str)
@pytest.mark.parametrize("columns", [1, 12])
@pytest.mark.parametrize("shuffle", [1, 2])
def test_convolutions_lie_as_the_plain_form_s(
    operators: Kernels, shape: tuple[int, ...], columns: int, shuffle: int
) -> None:
    """Compiled code around the operators counts on the strides of the plain form."""
    layer = bare(torch.zeros(columns * shuffle**2, shape[1], 3, 3, dtype=torch.int8))
    served = ROWS.convolution(layer, 8, grid(8), Geometry(padding=(1, 1)))
    served.arguments["shuffle"] = shuffle
    found, plain = (run(one, served, codes(shape, 8)) for one in (operators, rows))
    assert (found.shape, found.dtype) == (plain.shape, plain.dtype)
    # Where an axis has one element, its stride means nothing.
    strides = ([step for size, step in zip(x.shape, x.stride(), strict=True) if size > 1] for x in (found, plain))
    assert next(strides) == next(strides)


def test_no_rows(operators: Kernels) -> None:
    served = ROWS.linear(bare(torch.zeros(70, 24, dtype=torch.int8)), 8, grid(8))
    assert run(operators, served, torch.zeros(0, 24, dtype=torch.uint8)).shape == (0, 70)
