"""Quantizes a super-resolution network of one's own, stores it in one file and runs the file.

    python examples/super_resolution.py

The network has random weights. Yours has trained ones, and nothing else changes.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxptq


class SmallSR(nn.Module):
    """Convolutions with residuals, then a pixel shuffle: [B, 3, H, W] -> [B, 3, 2 H, 2 W], both in 0..1."""

    def __init__(self, features: int = 16, blocks: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(features, features, 3, padding=1) for _ in range(blocks))
        self.tail = nn.Conv2d(features, 3 * 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for layer in self.body:
            y = y + torch.relu(layer(y))
        return F.pixel_shuffle(self.tail(y), 2) + F.interpolate(x, scale_factor=2, mode="bilinear")


TEXT = 'name = "small"\ntitle = "Small network, x2"\nscale = 2\ndegradation = { kind = "bicubic" }'
RECIPE = fxptq.Recipe.parse(TEXT, "super_resolution.py")
"""Says that the inputs are pictures of half the size, so that calibration makes such pictures."""


def trained() -> SmallSR:
    """Builds the network. Load your weights here."""
    torch.manual_seed(0)
    return SmallSR().eval()


def psnr(output: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio of two outputs in 0..1, dB."""
    return float(-10 * torch.log10((output - reference).square().mean()))


if __name__ == "__main__":
    network, file = trained(), Path("small_w4a4.safetensors")
    quantized = fxptq.quantize(network, torch.rand(1, 3, 48, 48), fxptq.Bits(4, 4), recipe=RECIPE, preset="quick")
    quantized.save(file)
    loaded = fxptq.load(file, model=SmallSR())
    picture = torch.rand(1, 3, 50, 71)  # any size the network takes
    with torch.no_grad():
        difference = psnr(loaded(picture), network(picture))
    print(f"{len(quantized.sites)} sites quantized, {len(quantized.float_sites)} left in float")
    print(f"{file}: {file.stat().st_size:,} bytes in place of {4 * sum(p.numel() for p in network.parameters()):,}")
    print(f"the file's output against the float network's at 50x71: {difference:.1f} dB")
