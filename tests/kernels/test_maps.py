"""Maps in integers: layers against float64, codes in every layout of memory, networks against their simulation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxptq.graph import Bits, Plan, Program
from fxptq.graph.geometry import Geometry
from fxptq.kernels import ops
from fxptq.kernels.backend import get_backend
from fxptq.kernels.build import backend
from fxptq.kernels.convolution import GeneralConvolution
from fxptq.kernels.layer import integer_layer
from fxptq.kernels.layouts import PANELS, ROWS
from fxptq.kernels.lower import lower
from fxptq.kernels.maps import layer_map
from fxptq.kernels.pace import Sparing
from fxptq.kernels.products import product_map
from fxptq.kernels.rewrite import add_row_term
from fxptq.quant.coding import Coding
from fxptq.quant.schemes.affine import Affine
from fxptq.quant.schemes.shares import Shares
from fxptq.quant.schemes.uniform import Uniform
from fxptq.refusal import Refusal
from tests.kernels.helpers import Operators, arguments_of, assert_codes, close, codes, epilogue, factors, grid
from tests.kernels.networks import ALL, LAYERS, NETWORKS, mapped, set_attention_maps, set_bounds
from tests.kernels.test_lower import assert_equal_up_to_rounding, graph_of, run
from tests.kernels.test_products import attend
from tests.kernels.test_rows import call as on_rows

BOTH = (True, False) if backend().native else (False,)


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def affine(bits: int, factor: Tensor, center: Tensor | float = 0.0, ranges: int = 1, seed: int = 0) -> Affine:
    """A quantizer with this map and random bounds."""
    made = Affine(bits, ranges)
    made.set_map(factor, center)
    made.set_bounds(-0.2 - numbers(ranges, seed=seed).abs(), 0.3 + numbers(ranges, seed=seed + 1).abs())
    made.mode = "on"
    return made


def values(codes_: Tensor, coding: Coding) -> Tensor:
    """The values of codes in float64; the ranges of grids lie along the first axis."""
    blocks = len(codes_) // len(coding.grids) if len(coding.grids) > 1 else 1
    shape = (-1, *[1] * (codes_.dim() - 1))
    step, offset = (
        torch.tensor([getattr(grid, name) for grid in coding.grids], dtype=torch.float64)
        .repeat_interleave(blocks)
        .view(shape)
        for name in ("scale", "offset")
    )
    return (codes_.double() * step + offset) * coding.factors + coding.centers


GEOMETRIES = {
    "linear": (None, 6, 20, ()),
    "padded": (Geometry(padding=(1, 1)), 20, 18, (3, 3)),
    "few columns": (Geometry(padding=(1, 1)), 20, 3, (3, 3)),
    "strided": (Geometry(stride=(2, 1), padding=(0, 2)), 7, 9, (2, 3)),
    "grouped": (Geometry(padding=(1, 1), groups=2), 8, 6, (3, 3)),
    "depthwise": (Geometry(padding=(1, 1), groups=10), 10, 10, (3, 3)),
    "dilated": (Geometry(padding=(2, 2), dilation=(2, 2)), 6, 5, (3, 3)),
    "transposed": (Geometry(stride=(2, 2), padding=(1, 1), groups=2, transposed=True), 8, 6, (3, 3)),
}


@settings(deadline=None, max_examples=12)
@given(st.sampled_from(range(2, 9)), st.sampled_from(range(2, 9)), st.booleans(), st.integers(0, 99))
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_a_layer_with_maps_equals_float64(kind: str, bits: int, weight_bits: int, each: bool, seed: int) -> None:
    geometry, channels, columns, kernel = GEOMETRIES[kind]
    groups, transposed = (geometry.groups, geometry.transposed) if geometry else (1, False)
    shape = (channels, columns // groups, *kernel) if transposed else (columns, channels // groups, *kernel)
    picture = (1,) * len(kernel)
    inner = channels // groups if groups < channels and not transposed else channels
    factor = numbers(inner, seed=seed).exp()
    whole = factor.repeat(channels // inner)
    entry = affine(bits, whole.view(-1, *picture), numbers(channels, seed=seed + 1).view(-1, *picture), seed=seed)
    by_first = transposed or groups == channels > 1  # the axis of the weight along which the input channels lie
    weight = affine(
        weight_bits,
        (1 / factor).view(-1, *([1] * (len(shape) - 1) if by_first else picture)),
        ranges=columns if each and not transposed else 1,
        seed=seed + 2,
    )
    a = codes((2, channels, 6, 7) if geometry else (5, channels), bits, seed=seed)
    w = codes(shape, weight_bits, seed=seed + 3)
    bias = numbers(columns, seed=seed + 4)
    entry_coding, coding = entry.coding(), weight.coding()
    x, v = values(a, entry_coding), values(w, coding)

    def apply(x: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        if geometry is None:
            return x @ v.T + bias.double()
        return geometry.apply(x, v, groups) + bias.double().view(-1, 1, 1)

    expected = apply(x, v, bias)
    terms = apply(x.abs(), v.abs(), bias.abs())
    if geometry and not PANELS.fuses(geometry, shape, entry_coding.grid):
        found = GeneralConvolution(w, coding, bias, entry=entry_coding, geometry=geometry)(a)
        assert close(found, expected, terms)
        return
    layer = integer_layer(w, coding, bias, entry_coding, geometry)
    if geometry is None:
        packed = PANELS.linear(layer, weight_bits, entry_coding.grid)
    else:
        packed = PANELS.convolution(layer, weight_bits, entry_coding.grid, geometry)
    for native in BOTH:
        arguments = epilogue() | packed.arguments | packed.layer.epilogue()
        found = getattr(Operators(native), packed.operator)(a, columns=columns, **arguments)
        assert close(found, expected, terms)


@settings(deadline=None, max_examples=12)
@given(st.sampled_from(range(2, 9)), st.sampled_from(range(2, 9)), st.booleans(), st.integers(0, 99))
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_columns_of_several_steps_equal_float64(kind: str, bits: int, weight_bits: int, each: bool, seed: int) -> None:
    geometry, channels, columns, kernel = GEOMETRIES[kind]
    groups, transposed = (geometry.groups, geometry.transposed) if geometry else (1, False)
    shape = (channels, columns // groups, *kernel) if transposed else (columns, channels // groups, *kernel)
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(0, 6, shape[1:], generator=generator, dtype=torch.uint8)
    exponents.view(-1)[0] = 5
    picture = (1,) * len(kernel)
    factor = 1.0 if transposed or groups > 1 else numbers(channels, seed=seed).exp()
    entry = affine(
        bits, torch.as_tensor(factor).view(-1, *picture), numbers(channels, seed=seed + 1).view(-1, *picture)
    )
    weight = Affine(weight_bits, columns if each and not transposed else 1)
    weight.set_map((1 / torch.as_tensor(factor)).view(-1, *picture), exponents=exponents)
    weight.set_bounds(-1.0, numbers(weight.ranges, seed=seed + 2).abs() + 0.5)
    a = codes((2, channels, 6, 7) if geometry else (5, channels), bits, seed=seed)
    w = codes(shape, weight_bits, seed=seed + 3)
    bias = numbers(columns, seed=seed + 4)
    entry_coding, coding = entry.coding(), weight.coding()
    x, v = values(a, entry_coding), weight.decode(w).double()

    def apply(x: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        if geometry is None:
            return x @ v.T + bias.double()
        return geometry.apply(x, v, groups) + bias.double().view(-1, 1, 1)

    expected, terms = apply(x, v, bias), apply(x.abs(), v.abs(), bias.abs())
    if geometry and not PANELS.fuses(geometry, shape, entry_coding.grid):
        found = GeneralConvolution(w, coding, bias, entry=entry_coding, geometry=geometry)(a)
        assert close(found, expected, terms)
        return
    layer = integer_layer(w, coding, bias, entry_coding, geometry)
    if weight_bits < 7:
        assert layer.row_scale is None  # no sum of the input's codes
        assert layer.width(weight_bits) == 8
    place = (layer, layer.width(weight_bits), entry_coding.grid)
    packed = PANELS.linear(*place) if geometry is None else PANELS.convolution(*place, geometry)
    for native in BOTH:
        arguments = epilogue() | packed.arguments | packed.layer.epilogue()
        found = getattr(Operators(native), packed.operator)(a, columns=columns, **arguments)
        assert close(found, expected, terms)
    if geometry is None or ROWS.fuses(geometry, shape, entry_coding.grid):  # of a GPU
        rows = ROWS.linear(*place) if geometry is None else ROWS.convolution(*place, geometry)
        assert close(on_rows(rows, a), expected, terms)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4), st.randoms(), st.integers(2, 8), st.booleans(),
    st.integers(1, 70),
)  # fmt: skip
def test_codes_of_a_map_in_every_layout(sizes: list[int], random, bits: int, gaps: bool, last: int) -> None:  # type: ignore[no-untyped-def]  # hypothesis has no type for it
    sizes = [*sizes, last]
    trailing = random.randint(0, len(sizes))
    shape = [size if random.random() < 0.6 else 1 for size in sizes[len(sizes) - trailing :]]
    order = random.sample(range(len(sizes)), len(sizes))
    x = numbers(*[sizes[axis] for axis in order], seed=bits)
    if gaps:
        x = torch.cat([x, x], -1)[..., : x.shape[-1]]
    x = x.permute([order.index(axis) for axis in range(len(sizes))])
    made = affine(bits, numbers(*shape, seed=1).exp(), numbers(*shape, seed=2))
    coding = made.coding()
    scale, offset = (1 / coding.steps).float(), coding.zero_points.float()
    for native in BOTH:
        found = Operators(native).affine_codes(x, scale=scale, offset=offset, levels=2**bits - 1)
        assert found.shape == x.shape
        assert_close_codes(found, x.double() / coding.steps + coding.zero_points, 2**bits - 1)
        assert_close_codes(found, made.encode(x).double(), 2**bits - 1)


def assert_close_codes(found: Tensor, exact: Tensor, levels: int) -> None:
    """`assert_codes` for few values, of which one tie is a large share."""
    off = (found.double() - exact.clamp(0, levels)).abs()
    assert float(off.max()) <= 0.5 + 1e-4 * (1 + float(exact.abs().max())) or float((off > 0.51).double().sum()) <= 1


@pytest.mark.parametrize("operator", ["affine_codes", "share_codes"])
def test_nan_is_refused(operator: str) -> None:
    x = torch.rand(3, 70)
    x[1, 5] = torch.nan
    arguments = {"scale": torch.ones(70), "offset": torch.ones(70)} if operator == "affine_codes" else {"scale": 3.0}
    with pytest.raises(RuntimeError, match=ops.NO_CODE):
        getattr(torch.ops.fxptq, operator)(x, **arguments, levels=3)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 90), st.integers(2, 8), st.floats(0.3, 1.0))
def test_codes_of_shares(rows: int, width: int, bits: int, ceiling: float) -> None:
    x = numbers(rows, width, seed=bits).mul(3).softmax(-1)
    levels = 2**bits - 1
    for native in BOTH:
        found = Operators(native).share_codes(x, scale=levels / ceiling, levels=levels)
        assert_codes(found, x.double() / x.double().amax(-1, keepdim=True) * levels / ceiling, levels)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("schemes", [LAYERS, ALL], ids=["layers", "all"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_with_maps_equal_the_simulation(name: str, schemes: tuple[tuple[str, str], ...], bits: int) -> None:
    program, x = mapped(name, bits, schemes)
    model = lower(program, compile=False)
    assert not model.lowering.simulated
    assert set(model.lowering.kernels) == {site.name for site in program.sites}
    assert_equal_up_to_rounding(run(model, x), run(program, x))


def test_producers_make_the_codes_of_maps() -> None:
    program, x = mapped("windows", 4, ALL)
    model = lower(program, compile=False)
    run(model, x)
    calls = [str(node.target) for node in graph_of(model).nodes if node.op == "call_function"]
    assert calls.count("fxptq.layer_norm_codes.default") == 2
    assert calls.count("fxptq.attention.default") == 1
    assert calls.count("fxptq.affine_codes.default") == 1  # of the image
    assert not any("quantize" in call or "gelu" in call for call in calls)


def test_a_pixel_shuffle_keeps_its_channels() -> None:
    class Shuffled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.last = torch.nn.Conv2d(3, 24, 3, padding=1), torch.nn.Conv2d(6, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.nn.functional.pixel_shuffle(self.up(x), 2))

    NETWORKS["shuffled"] = Shuffled
    try:
        program, x = mapped("shuffled", 4)
    finally:
        del NETWORKS["shuffled"]
    model = lower(program, compile=False)
    calls = [str(node.target) for node in graph_of(model).nodes if node.op == "call_function"]
    assert calls.count("fxptq.affine_codes.default") == 1  # of the image alone
    assert_equal_up_to_rounding(run(model, x), run(program, x))


@pytest.mark.parametrize(("pixels", "place"), [(1, "mul"), (2, "reshape")], ids=["one pixel", "two pixels"])
def test_codes_of_a_map_are_made_before_moves_that_keep_its_channels_apart(pixels: int, place: str) -> None:
    class Moved(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3 * pixels, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.roll(x * 2.0, (1, 1), (2, 3)).permute(0, 2, 3, 1).reshape(x.shape[0], -1, pixels * x.shape[1])
            return self.linear(y) + y.sum()

    NETWORKS["moved"] = Moved
    try:
        program, x = mapped("moved", 4)
    finally:
        del NETWORKS["moved"]
    model = lower(program, compile=False)
    (codes_,) = (node for node in graph_of(model).nodes if "affine_codes" in str(node.target))
    assert codes_.args[0].name == place
    assert_equal_up_to_rounding(run(model, x), run(program, x))


def coded(factor: Tensor, center: Tensor | float = 0.0) -> Coding:
    found = affine(4, factor, center).coding()
    assert isinstance(found, Coding)
    return found


@pytest.mark.parametrize(
    ("weight", "entry", "reason"),
    [
        pytest.param(coded(torch.rand(6) + 1), coded(torch.rand(6) + 1), "no common product", id="product"),
        pytest.param(coded(torch.ones(6), torch.rand(6)), coded(torch.ones(6), 1.0), "has centers", id="weight"),
        pytest.param(coded(torch.ones(6)), coded(torch.rand(5, 1) + 1), "other axes", id="axis"),
    ],
)
def test_maps_that_leave_no_sum_of_codes_are_refused_by_name(weight: Coding, entry: Coding, reason: str) -> None:
    found = layer_map(weight, entry, (4, 6), None)
    assert isinstance(found, Refusal)
    assert reason in found.reason


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_with_columns_of_several_steps_equal_the_simulation(name: str, bits: int) -> None:
    program, x = mapped(name, bits)
    for site in program.sites:
        key = next(operand.quantizer for operand in site.operands if operand.slot in ("weight", "rhs"))
        quantizer, weight = program.quantizers[key], program.weight_of(key)
        if isinstance(quantizer, Affine) and weight is not None:
            steps = torch.arange(weight[0].numel(), dtype=torch.uint8).remainder(4).view(weight.shape[1:])
            quantizer.set_map(quantizer.factor, quantizer.center, steps)
            quantizer.set_bounds(quantizer.lower, quantizer.upper)
    model = lower(program, compile=False)
    assert not model.lowering.simulated
    assert_equal_up_to_rounding(run(model, x), run(program, x))


def test_columns_of_several_steps_in_ranges_without_a_code_for_zero_are_refused() -> None:
    weight = affine(4, torch.ones(()))
    weight.set_map(exponents=torch.tensor([0, 1, 2, 3], dtype=torch.uint8))
    weight.restore(weight.stored() | {"lower": torch.tensor([-1.0]), "width": torch.tensor([3.1])})
    found = layer_map(weight.coding(), coded(torch.ones(())), (5, 4), None)
    assert isinstance(found, Refusal)
    assert "0 lies between two codes" in found.reason


def test_sites_that_cannot_carry_their_map_are_simulated_and_listed() -> None:
    program, x = mapped("plain", 4)
    program.quantizers["second.weight"].set_map(torch.rand(24, 1, 1) + 0.5)
    model = lower(program, compile=False)
    assert model.lowering.simulated == {"second": "the factors of input and weight have no common product"}
    assert_equal_up_to_rounding(run(model, x), run(program, x))


def test_a_site_that_is_left_to_the_simulation_leaves_the_others_their_maps() -> None:
    program, x = mapped("windows", 4, ALL)
    model = lower(program, compile=False, backend=Sparing(get_backend("cpu"), {"proj": "slow"}))
    assert model.lowering.simulated == {"proj": "slow"}
    assert_equal_up_to_rounding(run(model, x), run(program, x))


def test_a_back_end_that_says_nothing_of_maps_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    program, x = mapped("plain", 4)
    made = get_backend("torch")
    monkeypatch.setattr(type(made), "maps", False)
    model = lower(program, compile=False, backend=made)
    assert set(model.lowering.simulated.values()) == {"this back end carries no maps and no shares"}
    assert_equal_up_to_rounding(run(model, x), run(program, x))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 40), st.integers(1, 20),
    st.sampled_from(["summed", "outer", "heads"]), st.booleans(), st.integers(2, 8), st.integers(2, 8),
    st.integers(0, 9),
)  # fmt: skip
def test_products_with_maps_equal_float64(  # type: ignore[no-untyped-def]  # the strategies say it
    batch, heads, rows, depth, columns, axis, shares, left_bits, right_bits, seed
) -> None:
    a = codes((batch, heads, rows, depth), left_bits, seed=seed)
    b = codes((batch, heads, depth, columns), right_bits, seed=seed + 1)
    left_shape, right_shape = {
        "summed": ((heads, 1, depth), (heads, depth, 1)),
        "outer": ((heads, rows, 1), (heads, 1, columns)),
        "heads": ((heads, 1, 1), (1, 1, 1)),
    }[axis]
    factor = numbers(*left_shape, seed=seed).exp()
    right_factor = 1.7 / factor.transpose(1, 2) if axis == "summed" else numbers(*right_shape, seed=seed + 1).exp()
    left_center = torch.zeros(()) if axis == "summed" else numbers(*left_shape, seed=seed + 2)
    left = affine(left_bits, factor, left_center, seed=seed).coding()
    right = affine(right_bits, right_factor, numbers(*right_shape, seed=seed + 3), seed=seed + 4).coding()
    if shares and axis != "summed":
        made = Shares(left_bits)
        made.set_bounds(0.0, 0.7)
        left = made.coding()
    product = factors(left, right)
    x = a.double() / a.double().sum(-1, keepdim=True).clamp(min=1) if left.shares else values(a, left)
    expected = x @ values(b, right)
    for native in BOTH:
        found = Operators(native).matmul(a, b, bits=right_bits, largest=2**left_bits - 1, **arguments_of(product))
        if product.row_term is not None:
            terms = product.row_term.float().unsqueeze(-1), product.row_constant.float().view(-1, 1, 1)
            found = add_row_term(found, a, *terms)
        assert float((found.double() - expected).abs().max()) <= 3e-6 * float((x.abs() @ values(b, right).abs()).max())


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("coded", [False, True], ids=["values", "codes"])
@pytest.mark.parametrize("shares", [False, True], ids=["grid", "shares"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_attention_with_maps_equals_float64(  # type: ignore[no-untyped-def]  # the parameters say it
    operators: Operators, bits: int, shares, coded, masked
) -> None:
    windows, heads, rows, keys, depth, width = 2, 3, 20, 30, 10, 12
    a, k, v = (
        codes((windows, count, heads, size), bits, seed=seed).transpose(1, 2)
        for seed, (count, size) in enumerate([(rows, depth), (keys, depth), (keys, width)])
    )
    factor = numbers(heads, 1, depth, seed=1).mul(0.3).exp()
    query = affine(bits, factor, seed=1).coding()
    # As the attention reads them: keys turned, with the map of a turned tensor.
    key = affine(bits, 0.5 / factor.transpose(1, 2), 0.3 * numbers(heads, depth, 1, seed=2), seed=2).coding()
    value = affine(bits, numbers(heads, 1, width, seed=3).exp(), numbers(heads, 1, width, seed=4), seed=3).coding()
    made = Shares(bits) if shares else Uniform(bits)
    made.set_bounds(0.0, 0.8 if shares else 0.6)
    weights = made.coding()
    bias = numbers(heads, rows, keys, seed=5)
    mask = torch.where(numbers(windows, rows, keys, seed=6) < -0.6, -100.0, 0.0) if masked else None
    target = grid(bits, "asymmetric", 5) if coded else None
    found = attend(operators, (a, k, v), (query, key, value, weights), bias, mask, target)
    logits = values(a, query) @ values(k.transpose(-1, -2), key) + bias
    logits = logits if mask is None else logits + mask.unsqueeze(1)
    p = logits.softmax(-1)
    steps = p / (p.amax(-1, keepdim=True) if shares else 1.0) / weights.grid.scale
    p = steps.clamp(0, weights.grid.levels).round()
    p = p / p.sum(-1, keepdim=True) if shares else p * weights.grid.scale
    expected = p @ values(v, value)
    sure = ((steps - steps.floor() - 0.5).abs() > 1e-4).all(-1, keepdim=True).expand_as(expected)
    assert float(sure.double().mean()) > 0.7
    if target is None:
        assert close(torch.where(sure, found, 0.0), torch.where(sure, expected, 0.0))
    else:
        assert_codes(found[sure], ((expected - target.offset) / target.scale)[sure], target.levels)


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        pytest.param(coded(torch.rand(1, 1, 6) + 1), coded(torch.rand(1, 6, 1) + 1), "no common product", id="product"),
        pytest.param(
            coded(torch.ones(1, 1, 6), torch.rand(1, 1, 6)), coded(torch.ones(1, 6, 1)), "centers", id="center"
        ),
        pytest.param(coded(torch.rand(1, 4, 6)), coded(torch.ones(1, 6, 1)), "another one", id="axes"),
        pytest.param(coded(torch.rand(2, 1, 1, 6) + 1), coded(torch.ones(1, 6, 1)), "other axes", id="batch"),
    ],
)
def test_maps_of_products_that_leave_no_sum_are_refused_by_name(left: Coding, right: Coding, reason: str) -> None:
    found = product_map(left, right)
    assert isinstance(found, Refusal)
    assert reason in found.reason


class Seen(torch.nn.Module):
    """Attention with a temperature, whose logits are read by something else too, or not."""

    def __init__(self, *, seen: bool) -> None:
        super().__init__()
        self.seen = seen
        self.qkv, self.temperature = torch.nn.Linear(12, 36), torch.nn.Parameter(torch.rand(2, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        logits = (q @ k.transpose(-2, -1)) * self.temperature
        y = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return y + logits.mean((1, 3)).unsqueeze(-1) if self.seen else y


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
def test_the_term_of_a_keys_center_is_added_where_more_than_a_softmax_reads_it(seen: bool) -> None:
    torch.manual_seed(2)
    x = torch.randn(1, 12, 4, 4)
    program = Program(Seen(seen=seen).eval(), x, Plan(Bits(4, 4), edges=None, schemes=ALL))
    set_attention_maps(program, over_positions=False)
    set_bounds(program, x)
    model = lower(program, compile=False)
    assert not model.lowering.simulated
    assert any(node.target is add_row_term for node in graph_of(model).nodes) == seen
    assert_equal_up_to_rounding(run(model, x), run(program, x))
