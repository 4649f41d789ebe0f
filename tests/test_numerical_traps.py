"""Values at the end of what numbers can hold: the right result or one line that names the place, never a silent NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fxptq
from fxptq import Bits, FxptqError, QuantizedModel
from fxptq.errors import CalibrationError, InputError
from fxptq.evaluate.metrics import psnr
from fxptq.kernels.lower import IntegerModel
from tests.kernels.test_always_equal import integers
from tests.kernels.test_lower import assert_equal_up_to_rounding
from tests.tiny import inputs, settings

PASSES = (
    '{ name = "observe" }, { name = "dobi2d" }, '
    '{ name = "dqc", steps = 2, batch = 1, patch = 12, holdout_crops = 1, eval_every = 1 }'
)
INF, NAN = math.inf, math.nan


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(*widths, 3, padding=1) for widths in ((3, 12), (12, 12), (12, 3))]
    return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2]).eval()


def quantized(model: nn.Module, calib: list[Tensor] | None = None, passes: str = PASSES) -> QuantizedModel:
    images = [inputs(1, seed=seed) for seed in range(4)] if calib is None else calib
    return fxptq.quantize(model, inputs(1), Bits(4, 4), images, settings(passes))


def refusal(call: Callable[[], object], kind: type[FxptqError] = FxptqError) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def both(made: QuantizedModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the simulation makes of an input, and what the integers make of it."""
    with torch.no_grad():
        return made(x), made.to_integer(compile=False)(x)


def assert_works(made: QuantizedModel, simulated: tuple[str, ...] = ()) -> None:
    fast = made.to_integer(compile=False)
    assert set(fast.lowering.simulated) == set(simulated)
    for x in (inputs(1, seed=8), inputs(3, 10, seed=9)):
        with torch.no_grad():
            expected, found = made(x), fast(x)
        assert expected.isfinite().all()
        assert_equal_up_to_rounding(found, expected)


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("name", ["0.weight", "2.weight", "2.bias", "4.bias"])
def test_a_weight_that_is_not_finite_is_refused_by_its_name(name: str, value: float) -> None:
    model, passed = network(), []
    model.get_parameter(name).data.view(-1)[5 % model.get_parameter(name).numel()] = value
    what = "NaN" if math.isnan(value) else "infinite values"
    line = refusal(
        lambda: fxptq.quantize(
            model,
            inputs(1),
            4,
            list(inputs().split(1)),
            settings(PASSES),
            after_pass=lambda name, _: passed.append(name),
        ),
        InputError,
    )
    assert line == f"{name} holds {what}: its weights are damaged or were never set; load them again"
    assert not passed


class Buffered(nn.Module):
    """Reads a buffer, a tensor made of one, or none."""

    def __init__(self, value: float, use: str) -> None:
        super().__init__()
        self.net, self.use = network(), use
        self.register_buffer("mean", torch.tensor([0.1, value, 0.2]).view(3, 1, 1))
        self.unread = nn.Parameter(torch.full((3,), NAN))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        if self.use == "read":
            return y - self.mean
        return y - torch.exp(self.mean) if self.use == "made" else y


def test_nan_in_a_buffer_is_refused_where_it_is_read() -> None:
    assert refusal(lambda: quantized(Buffered(NAN, "read").eval())).startswith("mean holds NaN")
    assert "the network computes from its weights alone, holds NaN" in refusal(
        lambda: quantized(Buffered(NAN, "made").eval())
    )
    assert_works(quantized(Buffered(NAN, "unread").eval()))


def test_infinite_values_in_a_mask_are_meant() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.out = network(), nn.Conv2d(3, 3, 1)
            self.mask = nn.Parameter(torch.zeros(3, 3).masked_fill(torch.eye(3) == 0, -INF))

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x).flatten(2)
            share = (y @ y.transpose(-2, -1) + self.mask).softmax(-1)
            return self.out((share @ y).unflatten(2, x.shape[2:]))  # type: ignore[no-any-return]

    made = quantized(Masked().eval())
    simulated, found = both(made, inputs(2, 12, seed=5))
    assert simulated.isfinite().all()
    assert_equal_up_to_rounding(found, simulated)


def test_integers_leave_an_infinite_bias_to_the_simulation() -> None:
    model = network()
    model[2].bias.data[3] = -INF  # a ReLU hides it
    program, fast = integers(model, inputs(1))
    assert fast.lowering.simulated == {"2": "the bias holds NaN or infinite values"}
    with torch.no_grad():
        assert_equal_up_to_rounding(fast(inputs(2)), program(inputs(2)))


@pytest.mark.parametrize("variance", [-1.0, 0.0])
def test_a_normalisation_that_divides_by_zero_is_named_by_the_site_after_it(variance: float) -> None:
    first, *others = network()
    norm = nn.BatchNorm2d(12, eps=0.0)
    norm.running_var[4] = variance
    line = refusal(lambda: quantized(nn.Sequential(first, norm, *others).eval()), CalibrationError)
    assert line.startswith("3.input: a tensor of shape (1, 12, 16, 16) holds NaN or infinite values")


DEAD: dict[str, tuple[float, float]] = {
    "zero": (0.0, 0.0),
    "constant": (0.125, 0.0),
    "bias alone": (0.0, 0.7),
    "never above zero": (-0.1, -9.0),
    "denormal": (1e-40, 0.0),
}


@pytest.mark.parametrize(("weight", "bias"), DEAD.values(), ids=DEAD)
def test_dead_channels_stay_on_integers(weight: float, bias: float) -> None:
    model = network()
    with torch.no_grad():
        model[2].weight[[0, 7]], model[2].bias[[0, 7]] = weight, bias
        model[0].weight[3], model[0].bias[3] = weight, bias
    assert_works(quantized(model))


def test_a_dead_layer_gives_its_constant(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.fill_(-1.0)
    made = quantized(model)
    fast = made.to_integer(compile=False)
    assert list(fast.lowering.simulated) == ["4"]  # its input has one value only
    assert fast.lowering.simulated["4"] == "the input has several ranges, or one of zero width"
    x = inputs(2)
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-3)
        assert torch.equal(fast(x), made(x))
        made.save(tmp_path / "dead.safetensors")
        assert torch.equal(fxptq.load(tmp_path / "dead.safetensors", network())(x), made(x))


@pytest.mark.parametrize("scale", [1e-40, 1e-38, 1e-30, 1e-10, 1e10, 1e20, 1e30, 1e37])
def test_weights_of_every_size(scale: float) -> None:
    model = network()
    model[2].weight.data *= scale
    assert_works(quantized(model))


# -- activations -------------------------------------------------------------------------------------------------------


class Gain(nn.Module):
    """Activations of another size between layers."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.net, self.gain = network(), gain

    def forward(self, x: Tensor) -> Tensor:
        first, relu, second, _, last = self.net
        return last(relu(second(relu(first(x)) * self.gain)) / self.gain)  # type: ignore[no-any-return]


@pytest.mark.parametrize("gain", [1e-30, 1e-20, 1e15, 1e30, 1e37])
def test_activations_of_every_size(gain: float) -> None:
    assert_works(quantized(Gain(gain).eval()))


def test_activations_that_overflow_are_refused() -> None:
    line = refusal(lambda: quantized(nn.Sequential(Gain(3e38), nn.Conv2d(3, 3, 3)).eval(), [inputs(1) * 1e6]))
    assert "holds NaN or infinite values" in line


@pytest.mark.parametrize("factor", [1e30, 3e38, -1e30, INF, -INF, 1e-40, 0.0], ids=str)
def test_pictures_beyond_the_range_are_clipped_alike(factor: float) -> None:
    made = quantized(network())
    simulated, found = both(made, torch.full((2, 3, 8, 9), 1.0) * factor)
    assert simulated.isfinite().all()
    assert_equal_up_to_rounding(found, simulated)


@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_layer_norm_of_constants(eps: float) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.norm, self.fc = nn.Conv2d(3, 8, 1), nn.LayerNorm(8, eps=eps), nn.Linear(8, 3)
            nn.init.constant_(self.head.weight, 0.25)
            nn.init.zeros_(self.head.bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm(self.head(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Normed().eval()
    if eps == 0.0:
        assert refusal(lambda: quantized(model)).startswith("fc.input: a tensor of shape (1, 16, 16, 8) holds NaN")
        return
    made = quantized(model)
    simulated, found = both(made, inputs(2, 8))
    with torch.no_grad():
        assert torch.allclose(simulated, model(inputs(2, 8)), atol=1e-3)
    assert torch.allclose(found, simulated, atol=1e-6)


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_calibration_pictures_of_one_colour(value: float) -> None:
    made = quantized(network(), [torch.full((1, 3, 16, 16), value)] * 3)
    assert list(made.to_integer(compile=False, compare=False).lowering.simulated) == [
        "0"
    ]  # its input has one value only
    assert_works(made, ("0",))


@pytest.mark.parametrize("value", [NAN, INF])
def test_calibration_pictures_that_are_not_finite(value: float) -> None:
    images = [inputs(1), inputs(1, seed=1).index_fill(3, torch.tensor([2]), value)]
    assert refusal(lambda: quantized(network(), images)) == "calibration input 1 holds values that are not finite"


class Normalises(nn.Module):
    """Divides by the contrast of the picture, behind the last site."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        return self.net(x) * ((x - low) / (high - low))  # type: ignore[no-any-return]


QUICK = '{ name = "observe" }, { name = "dobi2d" }'


@pytest.mark.parametrize("passes", [QUICK, PASSES], ids=["quick", "standard"])
def test_a_network_that_makes_nan_of_a_calibration_picture(passes: str) -> None:
    images = [inputs(1), torch.ones(1, 3, 16, 16)]
    line = refusal(lambda: quantized(Normalises().eval(), images, passes), CalibrationError)
    assert line.startswith("the network makes NaN or infinite values of calibration input 1, behind its last quantized")


def test_a_network_that_makes_nan_of_a_calibration_crop() -> None:
    image = torch.ones(1, 3, 16, 16)
    image[..., 0, 0] = 0.0
    line = refusal(lambda: quantized(Normalises().eval(), [image] * 3), CalibrationError)
    assert line.startswith("dqc: the float network makes NaN or infinite values of a calibration crop")


def test_the_calibration_picture_is_named_whose_values_are_not_finite_at_a_site() -> None:
    model = nn.Sequential(Normalises(), nn.Conv2d(3, 3, 3)).eval()
    line = refusal(lambda: quantized(model, [inputs(1), inputs(1, seed=1), torch.ones(1, 3, 16, 16)]), CalibrationError)
    assert line.startswith("1.input: a tensor of shape (1, 3, 16, 16) holds NaN or infinite values")
    assert line.endswith("(calibration input 2)")


@pytest.mark.parametrize("integer", [False, True], ids=["simulation", "integers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nan_made_of_a_finite_input_is_said(
    integer: bool, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    made = quantized(Normalises().eval())
    model = made.to_integer(compile=False) if integer else made
    with torch.no_grad():
        model(inputs(2).to(dtype))
        model(inputs(1).index_fill(3, torch.tensor([2]), NAN).to(dtype))  # the caller's own NaN
        assert not [line for line in caplog.messages if "NaN" in line]
        output = model(torch.cat([inputs(1), torch.zeros(1, 3, 16, 16)]).to(dtype))
    assert output[0].isfinite().all()
    assert not output[1].isfinite().all()
    (line,) = (line for line in caplog.messages if "NaN" in line)
    assert line.startswith("the network makes NaN of a finite input of shape (2, 3, 16, 16): first at div (")
    assert "test_numerical_traps.py:" in line


@pytest.fixture(scope="module")
def good() -> tuple[QuantizedModel, IntegerModel]:
    made = quantized(network())
    return made, made.to_integer(compile=False)


def test_batch_0_gives_batch_0(good: tuple[QuantizedModel, IntegerModel]) -> None:
    for model in good:
        assert model(torch.rand(0, 3, 12, 10)).shape == (0, 3, 12, 10)


def test_a_side_of_0_is_refused_as_by_the_network(good: tuple[QuantizedModel, IntegerModel]) -> None:
    for model in good:
        assert "the network fails" in refusal(lambda m=model: m(torch.rand(1, 3, 0, 16)))


def test_calibration_of_batch_0_is_refused() -> None:
    line = refusal(lambda: quantized(network(), [inputs(1), torch.rand(0, 3, 16, 16)]), InputError)
    assert line.startswith("calibration input 1 has shape (0, 3, 16, 16)")


def test_pictures_of_one_pixel(good: tuple[QuantizedModel, IntegerModel]) -> None:
    x = torch.rand(1, 3, 1, 1)
    simulated, found = (model(x) for model in good)
    assert torch.allclose(found, simulated, atol=1e-6)
    for model in good:
        assert fxptq.restore(model, x).shape == (1, 3, 1, 1)
    assert_works(
        quantized(network(), [torch.rand(1, 3, 1, 1, generator=torch.Generator().manual_seed(i)) for i in (0, 1)])
    )


def test_a_network_that_refuses_a_pixel_is_refused_in_one_line() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.Conv2d(8, 3, 1)).eval()
    made = quantized(model)
    for each in (made, made.to_integer(compile=False)):
        assert "more than 1 spatial element" in refusal(lambda m=each: m(torch.rand(1, 3, 1, 1)))


class Divides(nn.Module):
    """Gives NaN for a picture of zeros, and is sound for others."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.amax((1, 2, 3), keepdim=True)


PICTURES = [torch.zeros(1, 3, 8, 8), np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8)), Image.new("L", (8, 8))]


@pytest.mark.parametrize("black", PICTURES, ids=["tensor", "uint8", "float64 in grey", "Pillow"])
def test_nan_made_of_a_sound_picture_is_refused(black: Any) -> None:
    expected = "the network returned values that are not finite; no picture can be made of them"
    assert refusal(lambda: fxptq.restore(Divides(), black)) == expected
    assert refusal(lambda: fxptq.restore(Divides(), black, tile=33)) == expected


def test_nan_in_a_picture_stays_where_it_is(good: tuple[QuantizedModel, IntegerModel]) -> None:
    x = inputs(1).index_fill(3, torch.tensor([2]), NAN)
    for model in good:
        restored = fxptq.restore(model, x)
        assert restored[..., 2].isnan().all()
        assert restored[..., 9:].isfinite().all()


def test_a_network_that_fails_with_any_error_is_one_line() -> None:
    class Fails(nn.Module):
        def forward(self, _x: Tensor) -> Tensor:
            raise KeyError("no such\npicture")

    assert "failed on an input of shape (1, 3, 8, 8)" in refusal(lambda: fxptq.restore(Fails(), torch.rand(1, 3, 8, 8)))


def test_equal_pictures_have_infinite_psnr() -> None:
    grey = np.full((16, 16, 3), 128, dtype=np.uint8)
    assert psnr(grey, grey, crop=0) == math.inf
    assert psnr(grey, grey + 1, crop=0) == pytest.approx(20 * math.log10(255))
