"""The start: least squares for each phase, and networks that compute exactly that interpolation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxptq.data.degrade import Degradation
from fxptq.evaluate.score import evaluate
from fxptq.evaluate.sets import open_set
from fxptq.models.edsr import EDSR
from fxptq.models.swinir import RGB_MEAN, SwinIR
from fxptq.training.interpolator import fit_phase_kernels, start_as_interpolator
from fxptq.training.patches import make_pair, read_pair


def swinir(scale: int) -> nn.Module:
    return SwinIR(img_size=8, depths=(2,), num_heads=(2,), embed_dim=8, upscale=scale, upsampler="pixelshuffledirect")


def edsr(scale: int) -> nn.Module:
    return EDSR(n_resblocks=1, n_feats=16, scale=scale, rgb_range=255)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("make", "white"), [(swinir, 1), (edsr, 255)], ids=["swinir", "edsr"])
def test_network_starts_as_the_interpolator(make: Callable[[int], nn.Module], white: int, scale: int) -> None:
    torch.manual_seed(scale)
    kernels = torch.rand(scale, scale, 3, 3, dtype=torch.float64)
    model = make(scale).double().eval()
    start_as_interpolator(model, kernels)
    image = torch.rand(2, 3, 16, 8, dtype=torch.float64)
    mean = torch.tensor(RGB_MEAN).double().view(1, 3, 1, 1)
    phases = F.conv2d((image - mean).flatten(0, 1).unsqueeze(1), kernels.view(-1, 1, 3, 3), padding=1)
    expected = F.pixel_shuffle(phases, scale).view(2, 3, 16 * scale, 8 * scale) + mean
    with torch.inference_mode():
        torch.testing.assert_close(model(image * white) / white, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [swinir, edsr])
def test_residual_branch_can_still_learn(make: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make(2)
    start_as_interpolator(model, torch.rand(2, 2, 3, 3))
    model(torch.rand(1, 3, 8, 8)).square().mean().backward()
    last = model.conv_after_body if isinstance(model, SwinIR) else model.body[-1]
    assert last.weight.grad.abs().max() > 0


def test_fit_solves_the_least_squares_problem() -> None:
    generator = np.random.default_rng(0)
    pairs = [
        make_pair(generator.integers(0, 256, (28, 36, 3), dtype=np.uint8), Degradation("bicubic", scale=4))
        for _ in range(2)
    ]
    kernels = fit_phase_kernels(pairs, 4).double().numpy()
    for row, column in ((0, 0), (2, 3)):
        rows, targets = [], []
        for pair in pairs:
            low, high = pair.low.double().numpy() / 255, pair.high.double().numpy() / 255
            for colour in range(3):
                centre = low[colour].mean()
                for y in range(1, low.shape[1] - 1):
                    for x in range(1, low.shape[2] - 1):
                        rows.append((low[colour, y - 1 : y + 2, x - 1 : x + 2] - centre).ravel())
                        targets.append(high[colour, 4 * y + row, 4 * x + column] - centre)
        expected = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
        np.testing.assert_allclose(kernels[row, column].ravel(), expected, rtol=1e-4, atol=1e-5)


def test_other_network_is_refused() -> None:
    with pytest.raises(TypeError, match="no interpolating start for Conv2d"):
        start_as_interpolator(nn.Conv2d(3, 3, 1), torch.rand(2, 2, 3, 3))


def test_start_is_better_than_bicubic_on_set5(shared: Path) -> None:
    files = sorted((shared / "data" / "train").iterdir())[:12]
    model = swinir(4)
    start_as_interpolator(
        model, fit_phase_kernels([read_pair(file, Degradation("bicubic", scale=4)) for file in files], 4)
    )
    set5 = open_set("Set5", shared / "data" / "benchmarks" / "Set5", Degradation("bicubic", 4))
    assert evaluate(model.eval(), set5).mean.psnr_y >= 28.8  # bicubic: 28.43
