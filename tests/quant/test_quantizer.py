"""The quantizer: modes, ranges, parameters, and the promise that saving changes no bit."""

from __future__ import annotations

import pytest
import torch

from fxptq.errors import CalibrationError, InputError
from fxptq.quant.grid import fake_quantize
from fxptq.quant.schemes.uniform import Uniform


def ready(bits: int = 4, lower: float = -1.0, upper: float = 1.3, ranges: int = 1) -> Uniform:
    q = Uniform(bits, ranges=ranges)
    q.set_bounds(lower, upper)
    q.mode = "on"
    return q


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_bits_outside_two_to_eight_are_refused(bits: int) -> None:
    with pytest.raises(InputError, match=f"2 to 8 bits, not {bits}"):
        Uniform(bits)


@pytest.mark.parametrize(("lower", "upper"), [(float("nan"), 1.0), (0.0, float("inf")), (1.0, 0.5)])
def test_bad_bounds_are_refused_and_change_nothing(lower: float, upper: float) -> None:
    q = ready()
    before = {k: v.clone() for k, v in q.state_dict().items()}
    with pytest.raises(CalibrationError, match="finite"):
        q.set_bounds(lower, upper)
    assert all(torch.equal(before[k], v) for k, v in q.state_dict().items())


def test_wrong_number_of_bounds_is_refused() -> None:
    with pytest.raises(InputError, match="takes 1 or 3 bounds, not 2"):
        Uniform(4, ranges=3).set_bounds(torch.zeros(2), torch.ones(2))


def test_groups_that_do_not_divide_the_axis_are_refused() -> None:
    q = ready(ranges=3)
    with pytest.raises(InputError, match="3 ranges do not divide axis 0"):
        q(torch.randn(4, 2))


def test_off_and_observe_are_the_identity_and_observe_feeds_the_observer() -> None:
    class Keep:
        def __init__(self) -> None:
            self.seen: list[torch.Tensor] = []

        def update(self, x: torch.Tensor) -> None:
            self.seen.append(x)

    q, x = Uniform(3), torch.randn(5, requires_grad=True)
    assert q(x) is x
    keep = Keep()
    q.observer, q.mode = keep, "observe"
    assert q(x) is x
    assert [s.tolist() for s in keep.seen] == [x.tolist()]
    assert not keep.seen[0].requires_grad


@pytest.mark.parametrize(("ranges", "axis"), [(1, 0), (3, 0), (6, 0), (4, 1), (2, -1)])
def test_groups_are_contiguous_blocks_along_the_axis(ranges: int, axis: int) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    lower = torch.linspace(-1.5, -0.5, ranges)
    upper = torch.linspace(0.4, 1.2, ranges)
    q = Uniform(3, ranges=ranges, axis=axis)
    q.set_bounds(lower, upper)
    q.mode = "on"
    expected = torch.cat(
        [
            fake_quantize(block, (upper[i : i + 1] - lower[i : i + 1]) / 7, lower[i : i + 1], 3)
            for i, block in enumerate(x.chunk(ranges, dim=axis))
        ],
        dim=axis,
    )
    assert torch.equal(q(x), expected)
    assert torch.equal(q.decode(q.encode(x)), expected)
    assert q.encode(x).dtype == torch.uint8


def test_groups_of_zero_width_pass_values_and_gradients_through() -> None:
    q = Uniform(4, ranges=2)
    q.set_bounds(torch.tensor([0.7, -1.0]), torch.tensor([0.7, 1.0]))
    q.mode = "on"
    x = torch.randn(2, 50, requires_grad=True)
    y = q(x)
    y.sum().backward()
    assert torch.equal(y[0], x[0])
    assert not torch.equal(y[1], x[1])
    assert x.grad is not None
    assert torch.equal(x.grad[0], torch.ones(50))
    for parameter in (q.shift, q.log_scale):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad[0] == 0
    constant = torch.full((2, 5), 0.7)
    assert torch.equal(q.encode(constant)[0], torch.zeros(5, dtype=torch.uint8))
    assert torch.equal(q.decode(q.encode(constant))[0], constant[0])


def test_a_quantizer_loaded_into_flat_bounds_quantizes() -> None:
    source, target = ready(), Uniform(4)
    target.load_state_dict(source.state_dict())
    target.mode = "on"
    x = torch.randn(100)
    assert torch.equal(target(x), source(x))
    flat = Uniform(4)
    source.load_state_dict(flat.state_dict())
    assert torch.equal(source(x), x)


@pytest.mark.parametrize("seed", range(20))
def test_absorbing_and_saved_bounds_repeat_the_trained_forward_bit_for_bit(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = Uniform(5, ranges=4)
    q.set_bounds(-torch.rand(4, generator=generator), torch.rand(4, generator=generator))
    q.mode = "on"
    with torch.no_grad():
        q.shift.normal_(0, 0.1, generator=generator)
        q.log_scale.normal_(0, 0.1, generator=generator)
    x = torch.randn(8, 100, generator=generator)
    trained = q(x)

    loaded = Uniform(5, ranges=4)
    loaded.restore({"lower": q.lower, "width": q.width})
    loaded.mode = "on"
    assert torch.equal(loaded(x), trained)

    q.absorb()
    assert torch.equal(q(x), trained)
    assert not q.shift.any()
    assert not q.log_scale.any()


def test_parameters_are_in_units_of_the_initial_width() -> None:
    q = ready(lower=-2.0, upper=6.0)
    with torch.no_grad():
        q.shift.fill_(0.25)
        q.log_scale.fill_(-50.0)
    assert q.lower.item() == 0.0
    assert 0 < q.width.item() < 1e-20
    assert q.upper.item() >= q.lower.item()
    assert q.scale.item() == pytest.approx(q.width.item() / 15)


def test_training_moves_bounds_towards_less_error() -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    q = ready(3, float(x.min()), float(x.max()))

    def error() -> torch.Tensor:
        return (q(x) - x).square().mean()

    before = error().item()
    optimizer = torch.optim.Adam(q.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    assert error().item() < 0.5 * before
