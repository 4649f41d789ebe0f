"""`fxptq.restore`: pictures of every kind come back as they were given, and equal what the parts give by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import fxptq
from fxptq import Bits, FxptqError, InputError, Recipe
from fxptq.io.images import to_image, to_tensor
from tests.io.test_images import inks
from tests.tiny import RECIPE, inputs, settings, swinir


class Double(nn.Module):
    """Every pixel four times; 255 times as bright if told; wrong in training mode."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0) * self.gain * (0.5 if self.training else 1.0)


class Several(Double):
    """Returns features and both scales beside each other."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"features": x.repeat(1, 8, 1, 1), "pictures": [x.flip(3), super().forward(x)]}


def levels(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    top = 255 if dtype is np.uint8 else 65535
    return np.random.default_rng(0).integers(0, top + 1, (height, width, channels)).astype(dtype)


def doubled(array: np.ndarray) -> np.ndarray:
    return array.repeat(2, 0).repeat(2, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("value_range", [1.0, 255.0])
@pytest.mark.parametrize("form", ["colour", "grey", "plane"])
def test_arrays_come_back_as_they_were_given(dtype: type, value_range: float, form: str) -> None:
    integer = np.issubdtype(dtype, np.integer)
    array = levels(7, 9, 3 if form == "colour" else 1, dtype if integer else np.uint8)
    array = array if integer else (array / 255).astype(dtype)
    array = array[:, :, 0] if form == "plane" else array
    restored = fxptq.restore(Double().eval(), array, scale=2, value_range=value_range)
    assert restored.dtype == dtype
    np.testing.assert_allclose(restored, doubled(array), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "1", "I;16"])
def test_images_come_back_as_they_were_given(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(levels(7, 9, 1, np.uint16)[:, :, 0])
    else:
        image = Image.fromarray(levels(7, 9)).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(levels(7, 9, 1)[:, :, 0]))
    restored = fxptq.restore(Double().eval(), image, scale=2)
    assert isinstance(restored, Image.Image)
    assert restored.mode == {"P": "RGB", "CMYK": "RGB", "1": "L"}.get(mode, mode)
    shown = image.convert(restored.mode) if mode != "I;16" else image
    colours = 1 if restored.mode in ("L", "LA", "I;16") else 3
    ours, theirs = (np.asarray(x).reshape(*x.size[::-1], -1)[:, :, :colours] for x in (restored, shown))
    np.testing.assert_array_equal(ours, doubled(theirs))
    if mode in ("RGBA", "LA"):
        alpha = image.getchannel("A").resize((18, 14), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(np.asarray(restored.getchannel("A")), np.asarray(alpha))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("space", [b"RGB ", b"GRAY", b"CMYK"])
def test_a_colour_profile_stays_with_an_image_that_it_describes(mode: str, space: bytes) -> None:
    image = Image.fromarray(levels(7, 9)).convert(mode)
    image.info["icc_profile"] = profile = bytes(16) + space + bytes(16) + b"acsp" + bytes(88)
    restored = fxptq.restore(Double().eval(), image, scale=2)
    fits = space == (b"GRAY" if mode in ("L", "LA") else b"RGB ")
    assert restored.info.get("icc_profile") == (profile if fits else None)


def test_an_image_in_cmyk_comes_back_in_srgb_by_its_profile() -> None:
    image = Image.new("CMYK", (2, 2), (255, 0, 0, 0))
    image.info["icc_profile"] = inks()
    restored = np.asarray(fxptq.restore(Double().eval(), image, scale=2))
    assert restored.shape == (4, 4, 3)
    assert np.ptp(restored) <= 3  # a grey, as the profile has it, and no cyan
    assert 150 < restored.mean() < 220


def test_tensors_stay_in_the_networks_range() -> None:
    x = 300 * torch.rand(2, 3, 5, 6, dtype=torch.float64) - 20
    restored = fxptq.restore(Double(gain=1.5).eval(), x, scale=2, value_range=255.0)
    assert restored.dtype == torch.float64
    torch.testing.assert_close(restored, 1.5 * F.interpolate(x, scale_factor=2.0), rtol=1e-6, atol=1e-4)


def test_whole_numbers_are_rounded_and_clipped() -> None:
    array = np.array([[0, 100, 201]], np.uint8)
    restored = fxptq.restore(Double(gain=1.275).eval(), array, scale=2)
    np.testing.assert_array_equal(restored[0, ::2], [0, 128, 255])
    with pytest.raises(FxptqError, match="values that are not finite"):
        fxptq.restore(Double(gain=float("nan")).eval(), array, scale=2)


def test_of_several_outputs_the_one_of_the_scale_is_restored() -> None:
    array = levels(6, 5)
    np.testing.assert_array_equal(fxptq.restore(Several().eval(), array, scale=2), doubled(array))
    np.testing.assert_array_equal(fxptq.restore(Several().eval(), array), array[:, ::-1])


def test_a_network_in_training_mode_is_evaluated_and_left_as_it_was() -> None:
    model = nn.Sequential(Double(), nn.Identity().eval()).train()
    model[1].eval()
    np.testing.assert_array_equal(fxptq.restore(model, levels(4, 4), scale=2), doubled(levels(4, 4)))
    assert [module.training for module in model.modules()] == [True, True, False]


@pytest.mark.parametrize("form", [lambda q: q, lambda q: q.to_integer(compile=False)], ids=["simulated", "integer"])
def test_a_quantized_network_knows_its_pictures(form: Callable[[nn.Module], nn.Module]) -> None:
    recipe = Recipe.parse(RECIPE, "tiny")
    q = fxptq.quantize(swinir(), inputs(1), Bits(4, 4), inputs(), recipe, preset="quick")
    model, array = form(q), levels(13, 22)
    restored = fxptq.restore(model, array)
    padded = np.pad(array, ((0, 3), (0, 2), (0, 0)), mode="reflect")
    with torch.no_grad():
        expected = to_image(model(to_tensor(padded)))[:26, :44]
    np.testing.assert_array_equal(restored, expected)
    tiled = fxptq.restore(model, levels(50, 44), tile=48)
    assert tiled.shape == (100, 88, 3)


def test_half_networks_take_pictures_of_any_type() -> None:
    restored = fxptq.restore(Double().eval().bfloat16(), levels(5, 5), scale=2)
    assert abs(restored.astype(int) - doubled(levels(5, 5)).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("model", "picture", "options", "message"),
    [
        (Double, levels(4, 4), {}, r"fxptq.restore: the network is the class Double; pass an instance of it"),
        (Double(), "a.png", {}, "the picture is of type str; expected a Pillow image, an array"),
        (Double(), levels(4, 4, 4), {}, r"shape \(4, 4, 4\); expected \[H, W, 3\] or grey"),
        (Double(), levels(4, 4).astype(np.int32), {}, "the picture is of int32; expected uint8, uint16, or floating"),
        (Double(), torch.rand(3, 4, 4), {}, r"shape \(3, 4, 4\), torch.float32; expected \[1, 3, H, W\]"),
        (Double(), torch.zeros(1, 3, 4, 4, dtype=torch.uint8), {}, "torch.uint8; expected .* floating point"),
        (Double(), levels(4, 4), {"tile": -1}, "the tile is -1; expected 0"),
        (Double(), levels(4, 4), {"channels": 1}, r"expected \[H, W, 1\]"),
        (Double(), Image.new("RGB", (4, 4)), {"channels": 1}, r"takes grey: give image.convert\('L'\)"),
        (Double(), Image.new("F", (4, 4)), {}, "the image has mode F"),
        (Double(), levels(4, 4), {}, r"expected 4x4 \(rows x columns\) at scale 1"),
    ],
)
def test_unfit_pictures_are_one_line(model: nn.Module, picture: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FxptqError, match=message) as caught:
        fxptq.restore(model, picture, **options)
    assert "\n" not in str(caught.value)


def test_what_is_no_network_is_said_so() -> None:
    def build() -> nn.Module:
        return Double()

    for given, message in (
        (Double, "fxptq.quantize: the network is the class Double; pass an instance of it, as in Double()"),
        (build, "the network is the function build; pass a torch.nn.Module, and if build makes one, what it returns"),
        ("edsr", "the network is of type str; pass a torch.nn.Module"),
    ):
        with pytest.raises(InputError) as caught:
            fxptq.quantize(given, inputs(1), Bits(4, 4), inputs(), settings())
        assert message in str(caught.value)
        with pytest.raises(InputError, match=r"fxptq\.load: the network is"):
            fxptq.load("missing.safetensors", given)
