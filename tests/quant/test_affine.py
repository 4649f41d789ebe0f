"""The affine scheme: uniform behind a map, equal to uniform without one; stored, trained, and refused with a reason."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxptq.errors import CalibrationError, InputError
from fxptq.quant.coding import Coding
from fxptq.quant.distribution import Distribution
from fxptq.quant.quantizer import Quantizer
from fxptq.quant.schemes.affine import Affine, most_exponent
from fxptq.quant.schemes.uniform import Uniform
from fxptq.quant.search import dobi2d
from fxptq.refusal import Refusal


def on(q: Quantizer, lower: float = -0.9, upper: float = 1.2) -> Quantizer:
    q.set_bounds(lower, upper)
    q.mode = "on"
    return q


def mapped(bits: int = 3, seed: int = 0, shape: tuple[int, ...] = (6,), ranges: int = 1) -> Affine:
    generator = torch.Generator().manual_seed(seed)
    q = Affine(bits, ranges=ranges)
    q.set_map(torch.rand(shape, generator=generator) + 0.2, torch.randn(shape, generator=generator))
    on(q)
    return q


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), ranges=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_without_a_map_it_equals_uniform_bit_for_bit(bits: int, ranges: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 6, generator=generator)
    lower = -torch.rand(ranges, generator=generator)
    affine, uniform = Affine(bits, ranges=ranges), Uniform(bits, ranges=ranges)
    for q in (affine, uniform):
        q.set_bounds(lower, lower + 1.5)
        q.mode = "on"
    assert torch.equal(affine(x), uniform(x))
    assert torch.equal(affine.encode(x), uniform.encode(x))
    assert affine.grids() == uniform.grids()
    assert affine.stored().keys() == uniform.stored().keys()
    assert affine.normalize(x) is x


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 99))
def test_values_are_the_nearest_of_each_channels_own_grid(bits: int, seed: int) -> None:
    q = mapped(bits, seed)
    x = 2 * torch.randn(50, 6, generator=torch.Generator().manual_seed(seed + 1))
    levels = torch.arange(2**bits, dtype=torch.float64)
    scale, offset = q.scale.double(), q.lower.double()
    grid = q.factor.double()[:, None] * (scale * levels + offset) + q.center.double()[:, None]  # [6, levels]
    nearest = (x.double()[..., None] - grid).abs().amin(-1)
    torch.testing.assert_close((x - q(x)).abs().double(), nearest, rtol=0, atol=1e-5)
    assert torch.equal(q.decode(q.encode(x)), q(x))
    assert all(len(q(x)[:, c].unique()) <= 2**bits for c in range(6))


@pytest.mark.parametrize(
    ("shape", "operand"), [((6,), (2, 5, 6)), ((6, 1, 1), (2, 6, 4, 5)), ((3, 1, 6), (2, 3, 7, 6)), ((), (4,))]
)
def test_maps_lie_along_trailing_axes(shape: tuple[int, ...], operand: tuple[int, ...]) -> None:
    q = mapped(8, shape=shape)
    x = torch.randn(operand).clamp(-0.5, 0.5) * q.factor + q.center
    torch.testing.assert_close(q(x), x, rtol=0, atol=0.01)


@pytest.mark.parametrize("operand", [(2, 5), (6, 2), (0,)], ids=["another-size", "another-axis", "empty"])
def test_a_map_of_another_operand_is_refused(operand: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"a map of shape \(6,\) does not fit a tensor of shape"):
        mapped()(torch.zeros(operand))


def test_a_map_with_more_axes_than_the_operand_is_refused() -> None:
    with pytest.raises(InputError, match="does not fit"):
        mapped(shape=(6, 1, 1))(torch.zeros(6, 1))


@pytest.mark.parametrize(
    ("factor", "center", "message"),
    [
        (torch.tensor([1.0, 0.0]), 0.0, "positive"),
        (1.0, float("nan"), "finite"),
        (torch.ones(2), torch.ones(3), "of one shape"),
    ],
)
def test_impossible_maps_are_refused_and_change_nothing(
    factor: torch.Tensor | float, center: torch.Tensor | float, message: str
) -> None:
    q = mapped()
    before, x = q.stored(), torch.randn(4, 6)
    expected = q(x)
    with pytest.raises(CalibrationError, match=message):
        q.set_map(factor, center)
    assert torch.equal(q(x), expected)
    assert all(tensor is before[name] or torch.equal(tensor, before[name]) for name, tensor in q.stored().items())


def test_a_map_of_half_precision_takes_two_bytes_a_number_and_comes_back_exactly() -> None:
    short = torch.tensor([0.3, 1.7, 5.25]).half().float()
    for factor, name in ((short, "factor"), (1 / short, "inverse")):
        q, other = Affine(3), Affine(3)
        q.set_map(factor, 0.0)
        q.set_bounds(-1.0, 1.0)
        stored = q.stored()
        assert stored[name].dtype == torch.float16
        assert stored["center"].numel() == 1  # no channel has a center
        other.restore(stored)
        assert torch.equal(other.factor, q.factor)
        assert torch.equal(other.center, q.center)
    q.set_map(torch.tensor([0.1, 1e-9, 1e9]), torch.tensor([0.1, 0.0, 70_000.0]))
    assert {q.stored()[name].dtype for name in ("factor", "center")} == {torch.float32}


@pytest.mark.parametrize("ranges", [1, 4])
def test_stored_tensors_give_it_back_bit_for_bit(ranges: int) -> None:
    q, x = mapped(ranges=ranges), torch.randn(4, 6)
    other = Affine(3, ranges=ranges)
    other.restore(q.stored())
    other.mode = "on"
    assert torch.equal(other(x), q(x))
    loaded = Affine(3, ranges=ranges)
    loaded.load_state_dict(q.state_dict())
    loaded.mode = "on"
    assert torch.equal(loaded(x), q(x))


def test_half_a_map_is_no_state() -> None:
    tensors = mapped().stored()
    del tensors["center"]
    with pytest.raises(CalibrationError, match="factor and center"):
        Affine(3).restore(tensors)


def test_a_weight_on_its_grid_stays_there() -> None:
    q = mapped(ranges=4)
    weight = q(torch.randn(4, 6))
    assert torch.equal(q(weight), weight)


def test_observers_see_what_the_bounds_speak_of() -> None:
    class Keep:
        def update(self, x: torch.Tensor) -> None:
            self.seen = x

    q, x, keep = mapped(), torch.randn(4, 6), Keep()
    q.observer, q.mode = keep, "observe"
    assert q(x) is x
    assert torch.equal(keep.seen, (x - q.center) / q.factor)


def test_gradients_reach_the_bounds_and_pass_where_nothing_is_clipped() -> None:
    q, x = mapped(), torch.randn(50, 6, requires_grad=True)
    q(x).square().sum().backward()
    z = (x.detach() - q.center) / q.factor
    inside = (z > q.lower) & (z < q.upper)
    torch.testing.assert_close(x.grad, 2 * q(x).detach() * inside, rtol=1e-4, atol=1e-5)
    assert q.shift.grad is not None
    assert bool(q.shift.grad.any())


def test_grids_alone_are_refused_and_a_coding_says_everything() -> None:
    q = mapped()
    grids, coding = q.grids(), q.coding()
    assert isinstance(grids, Refusal)
    assert grids.reason == "its channels have factors and centers of their own"
    assert isinstance(coding, Coding)
    codes = torch.arange(q.factor.numel()).view(q.factor.shape).to(torch.uint8)
    expected = q.decode(codes).double()
    torch.testing.assert_close(coding.steps * (codes - coding.zero_points), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(coding.lowest, q.decode(torch.zeros_like(codes)).double(), rtol=1e-6, atol=1e-6)
    assert not coding.is_plain


def test_the_coding_of_an_identity_is_its_grid() -> None:
    q = Affine(4)
    q.set_bounds(-1.0, 2.0)
    assert q.coding().grids == q.grids()
    assert q.coding().is_plain


def stepped(bits: int = 3, seed: int = 0, ranges: int = 5) -> Affine:
    """A quantizer of a weight [5, 6, 3, 3] whose columns have several steps."""
    generator = torch.Generator().manual_seed(seed)
    q = Affine(bits, ranges)
    exponents = torch.randint(0, 4, (6, 3, 3), generator=generator, dtype=torch.uint8)
    q.set_map(torch.rand(6, 1, 1, generator=generator) + 0.2, 0.0, exponents)
    return on(q)


@pytest.mark.parametrize(("bits", "most"), [(2, 5), (3, 4), (4, 3), (5, 2), (6, 1), (7, 0), (8, 0)])
def test_exponents_leave_signed_codes_in_a_byte(bits: int, most: int) -> None:
    assert most_exponent(bits) == most
    assert bits == 8 or (2**bits - 1) * 2**most <= 127 < (2**bits - 1) * 2 ** (most + 1)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 99), ranges=st.sampled_from([1, 5]))
def test_values_are_the_nearest_of_each_columns_own_grid(bits: int, seed: int, ranges: int) -> None:
    q = stepped(bits, seed, ranges)
    x = torch.randn(5, 6, 3, 3, generator=torch.Generator().manual_seed(seed + 1))
    levels = torch.arange(2**bits, dtype=torch.float64)
    multiples = 2.0 ** q.exponents.double().clamp(max=most_exponent(bits))
    assert all(grid.zero_code is not None for grid in Uniform.grids(q))
    places = q.scale.double()[:, None] * levels + q.lower.double()[:, None]  # [ranges, levels]
    grid = (q.factor.double() * multiples)[None, ..., None] * places[:, None, None, None]
    nearest = (x.double()[..., None] - grid).abs().amin(-1)
    torch.testing.assert_close((x - q(x)).abs().double(), nearest, rtol=0, atol=1e-5)
    assert torch.equal(q.decode(q.encode(x)), q(x))
    assert torch.equal(q(q(x)), q(x))


@pytest.mark.parametrize("bits", [2, 4, 5, 8])
def test_columns_of_several_steps_come_back_bit_for_bit(bits: int) -> None:
    q, back, x = stepped(bits), Affine(bits, 5), torch.randn(5, 6, 3, 3)
    back.restore(q.stored())
    back.mode = "on"
    assert torch.equal(back(x), q(x))
    assert int(q.stored()["exponents"].max()) <= most_exponent(bits)
    state = Affine(bits, 5)
    state.load_state_dict(q.state_dict())
    state.mode = "on"
    state.set_bounds(q.lower, q.upper)
    assert torch.equal(state(x), q(x))


def test_a_wider_grid_has_smaller_exponents_and_a_narrower_one_the_former() -> None:
    q, x = stepped(4), torch.randn(5, 6, 3, 3)
    before = q(x)
    q.set_bits(6)
    assert int(q.multiples.max()) == 2
    q.set_bits(4)
    assert torch.equal(q(x), before)


def test_training_keeps_the_code_of_zero_where_there_are_several_steps() -> None:
    q, x = stepped(3), torch.randn(5, 6, 3, 3)
    (only,) = q.trainables()
    assert only.parameter is q.log_scale
    q(x).square().sum().backward()
    assert q.log_scale.grad is not None
    assert bool((q.log_scale.grad != 0).any())
    with torch.no_grad():
        q.log_scale += torch.linspace(-0.3, 0.4, 5)
    trained, zeros = q(x).detach(), [grid.zero_code for grid in Uniform.grids(q)]
    assert None not in zeros
    q.absorb()
    q.shorten()
    assert torch.equal(q(x), trained)
    assert [grid.zero_code for grid in Uniform.grids(q)] == zeros


def test_a_search_finds_ranges_with_a_code_for_zero() -> None:
    q, x = stepped(3), torch.randn(5, 6, 3, 3) + 0.4
    values = Distribution.of(q.normalize(x), 5)
    found = dobi2d(values, q, 40)
    q.set_bounds(found.lower, found.upper)
    assert None not in [grid.zero_code for grid in Uniform.grids(q)]
    off = (q.normalize(q(x)) - q.normalize(x)).square().flatten(1).mean(1)
    torch.testing.assert_close(off.double(), found.error, rtol=1e-3, atol=0)


def test_exponents_are_bytes() -> None:
    with pytest.raises(CalibrationError, match=r"type torch.uint8, not torch.float32"):
        Affine(3).set_map(exponents=torch.ones(6, 3, 3))


def test_exponents_of_another_weight_are_refused() -> None:
    q = Affine(3)
    q.set_map(exponents=torch.ones(5, 3, 3, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"a map of shape \(5, 3, 3\) does not fit"):
        q.normalize(torch.zeros(5, 6, 3, 3))
