"""The integer linear layer: exact sums, folded scales and every epilogue, against int64 and float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fxptq.graph import Bits, Plan, Program
from fxptq.kernels import panels, reference
from fxptq.kernels.build import backend
from fxptq.kernels.layer import Layer
from fxptq.kernels.limits import sums_fit
from fxptq.kernels.lower import lower
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
from tests.kernels.networks import set_bounds

BITS = range(2, 9)


def sums_by(operators: Operators, a: torch.Tensor, w: torch.Tensor, largest: int = 255) -> torch.Tensor:
    """The accumulators as floats: an epilogue of scale one and bias zero."""
    one = panels.pad_columns(torch.ones(w.shape[0]))
    weight = panels.pack_weight(w)
    plain = {"bias": torch.zeros_like(one), "scale": one} | epilogue()
    return operators.linear(a, weight, columns=w.shape[0], largest=largest, **plain)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_sums_equal_int64(operators: Operators, bits: int, kind: str) -> None:
    a = codes((3, 41, 60), bits, kind, seed=1)
    w = panels.centred(codes((180, 60), bits, kind, seed=2), bits)
    for largest in (2**bits - 1, 255):
        assert torch.equal(sums_by(operators, a, w, largest).long(), reference.sums(a, w))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 150), st.integers(1, 200), st.sampled_from(KINDS), st.integers(0, 99))
def test_sums_equal_int64_for_any_shape(rows: int, columns: int, depth: int, kind: str, seed: int) -> None:
    a, w = codes((rows, depth), 8, kind, seed), panels.centred(codes((columns, depth), 8, "extreme", seed + 1), 8)
    for native in (True, False) if backend().native else (False,):
        assert torch.equal(sums_by(Operators(native), a, w).long(), reference.sums(a, w))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 8), st.integers(2, 8), st.integers(1, 13), st.integers(1, 40), st.integers(1, 700),
    st.sampled_from(KINDS), st.sampled_from(KINDS),
)  # fmt: skip
def test_sums_equal_int64_for_any_widths(  # type: ignore[no-untyped-def]  # the strategies say it
    bits, weight_bits, rows, columns, depth, kind, weight_kind
) -> None:
    a = codes((rows, depth), bits, kind, 1)
    w = panels.centred(codes((columns, depth), weight_bits, weight_kind, 2), weight_bits)
    for native in (True, False) if backend().native else (False,):
        assert torch.equal(sums_by(Operators(native), a, w, 2**bits - 1).long(), reference.sums(a, w))


LIMITS = [(4, 4), (4, 8), (8, 4), (5, 5), (6, 6), (7, 7), (8, 6), (8, 2), (2, 2)]


@pytest.mark.parametrize(("bits", "weight_bits"), LIMITS, ids=[f"A{a}-W{w}" for a, w in LIMITS])
@pytest.mark.parametrize("kind", ["highest", "lowest"])
def test_sums_at_the_limits_of_16_bits(operators: Operators, bits: int, weight_bits: int, kind: str) -> None:
    """Depths on both sides of the largest sum that 16 bits hold, with the codes and weights that reach it."""
    w = panels.centred(codes((17, 2400), weight_bits, kind), weight_bits)
    a = codes((7, 2400), bits, "highest")
    pair = 2 * int(a[0, 0]) * abs(int(w[0, 0]))
    full = 2 * (32767 // pair)
    assert full * pair // 2 <= 32767 < (full + 2) * pair // 2
    for depth in {full - 4, full, full + 1, full + 4, 2 * full, 2 * full + 4, 582, 583, 2400} - {0, -4}:
        if depth <= 2400:
            found = sums_by(operators, a[:, :depth], w[:, :depth], 2**bits - 1)
            assert torch.equal(found, reference.sums(a[:, :depth], w[:, :depth]).float())


def test_sums_beyond_24_bits_are_rounded_once(operators: Operators) -> None:
    a = codes((5, 3000), 8, "highest")
    w = torch.randint(80, 128, (33, 3000), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    expected = reference.sums(a, w)
    assert int(expected.abs().max()) > 1 << 24
    assert torch.equal(sums_by(operators, a, w), expected.float())


@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("columns", [45, 48], ids=["room-for-sums", "no-room-for-sums"])
@pytest.mark.parametrize("groups", [1, 3, 0], ids=["per-tensor", "three-ranges", "per-channel"])
@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_folded_layer_equals_float64(operators: Operators, symmetry: str, columns: int, groups: int, bits: int) -> None:
    g = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(columns, 50, generator=g), torch.randn(columns, generator=g)
    q, input_grid = quantizer(bits, symmetry, groups or columns, seed=3), grid(bits, "asymmetric", seed=4)
    a = codes((2, 9, 50), bits, seed=6)
    layer = layer_of(weight, q, bias, input_grid)
    assert (layer.row_scale is None) == (symmetry == "symmetric" and bits < 8)
    expected = reference.linear(reference.values(a, input_grid), decoded(q, weight), bias)
    assert close(run(operators, layer, a), expected)


def run(operators: Operators, layer: Layer, a: torch.Tensor, **changes: object) -> torch.Tensor:
    weight = panels.pack_weight(layer.packable())
    return operators.linear(a, weight, columns=layer.columns, **epilogue(**changes) | layer.epilogue())


@pytest.fixture
def case() -> tuple[torch.Tensor, Layer, torch.Tensor]:
    """Codes, a layer and its float64 output."""
    g = torch.Generator().manual_seed(8)
    weight, bias = torch.randn(70, 24, generator=g), torch.randn(70, generator=g)
    q, input_grid = quantizer(4, seed=3), grid(4, seed=4)
    a = codes((50, 24), 4, seed=6)
    expected = reference.linear(reference.values(a, input_grid), decoded(q, weight), bias)
    return a, layer_of(weight, q, bias, input_grid), expected


@pytest.mark.parametrize(
    ("activation", "slope", "function"),
    [
        pytest.param(Activation.NONE, 0.0, lambda y: y, id="none"),
        pytest.param(Activation.LEAKY, 0.0, torch.relu, id="relu"),
        pytest.param(Activation.LEAKY, 0.2, lambda y: F.leaky_relu(y, 0.2), id="leaky"),
        pytest.param(Activation.GELU, 0.0, F.gelu, id="gelu"),
    ],
)
@pytest.mark.parametrize("added", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("coded", [False, True], ids=["values", "codes"])
def test_epilogues(operators: Operators, case, activation, slope, function, added, coded) -> None:  # type: ignore[no-untyped-def]  # the parameters say it
    a, layer, plain = case
    residual = torch.randn(plain.shape, generator=torch.Generator().manual_seed(2)) if added else None
    expected = function(plain) + (residual.double() if added else 0)
    arguments = {"activation": int(activation), "slope": slope, "residual": residual}
    if not coded:
        assert close(run(operators, layer, a, **arguments), expected)
        return
    target = grid(3, "asymmetric", seed=11)
    arguments["levels"] = panels.pad_columns(torch.full((layer.columns,), float(target.levels)))
    if activation == Activation.NONE and not added:
        layer = onto(layer, target)
    else:
        arguments |= next_grid(target, layer.columns)
    found = run(operators, layer, a, **arguments)
    assert found.dtype == torch.uint8
    assert_codes(found, (expected - target.offset) / target.scale, target.levels)


def test_gelu_is_within_a_millionth(operators: Operators) -> None:
    x = torch.linspace(-9, 9, 40001)
    # A layer of one input whose code is 1 and whose bias is x.
    layer = Layer(torch.zeros(len(x), 1, dtype=torch.int8), torch.zeros(len(x)), x)
    found = run(operators, layer, torch.ones(1, 1, dtype=torch.uint8), activation=int(Activation.GELU))[0]
    assert float((found.double() - F.gelu(x.double())).abs().max()) < 1e-6


def test_codes_of_columns_may_have_different_grids(operators: Operators, case) -> None:  # type: ignore[no-untyped-def]  # a fixture
    a, layer, plain = case
    first, second = grid(3, seed=1), grid(8, seed=2)
    lower = torch.cat([torch.full((30,), first.offset), torch.full((40,), second.offset)]).double()
    step = torch.cat([torch.full((30,), first.scale), torch.full((40,), second.scale)]).double()
    levels = torch.cat([torch.full((30,), 7.0), torch.full((40,), 255.0)])
    found = run(operators, layer.plus(-lower).times(1 / step), a, levels=panels.pad_columns(levels))
    assert_codes(found[:, :30], ((plain - lower) / step)[:, :30], 7)
    assert_codes(found[:, 30:], ((plain - lower) / step)[:, 30:], 255)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(16, 64), (17, 5), (1, 1), (35, 18)], ids=str)
def test_packing_is_undone_and_few_bits_take_their_own_room(bits: int, shape: tuple[int, int]) -> None:
    w = panels.with_sums(panels.centred(codes(shape, bits, "extreme", seed=bits), bits))
    packed = panels.pack_weight(w)
    assert torch.equal(panels.unpack_weight(packed, len(w))[:, : shape[1]], w)
    room = -(-len(w) // 16) * 16 * -(-shape[1] // 4) * 4
    assert packed.numel() * packed.element_size() == (room * bits // 8 if bits <= 4 else room)


def test_depth_that_could_overflow_is_refused() -> None:
    assert sums_fit((1, (1 << 31) // (255 * 128)))
    assert not sums_fit((1, 70_000))
    network, x = torch.nn.Sequential(torch.nn.Linear(70_000, 1)).eval(), torch.rand(1, 1, 1, 70_000)
    program = Program(network, x, Plan(Bits(8, 8), edges=None))
    set_bounds(program, x)
    assert lower(program, compile=False).lowering.simulated == {"0": "its sums do not fit 32 bits"}


def test_no_rows(operators: Operators, case) -> None:  # type: ignore[no-untyped-def]  # a fixture
    _, layer, _ = case
    assert run(operators, layer, torch.zeros(0, 24, dtype=torch.uint8)).shape == (0, 70)


def test_threads_change_nothing(case) -> None:  # type: ignore[no-untyped-def]  # a fixture
    _, layer, _ = case
    a = codes((3000, 24), 4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(Operators(True), layer, a)
        torch.set_num_threads(2)
        assert torch.equal(run(Operators(True), layer, a), one)
    finally:
        torch.set_num_threads(threads)
