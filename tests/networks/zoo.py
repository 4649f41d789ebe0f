"""More than 60 small networks, one for each construct of restoration networks, built alike in every process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.networks.attentions import ATTENTIONS
from tests.networks.convolutions import CONVOLUTIONS
from tests.networks.habits import HABITS

NETWORKS = {**CONVOLUTIONS, **ATTENTIONS, **HABITS}

WHITE = {"mean shift of colours in 0..255": 255.0}
"""The value of white of the networks that do not take 0..1."""


def build(name: str, seed: int = 0) -> nn.Module:
    """The network of this name, with weights of this seed and statistics that are not those of a new one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = NETWORKS[name]().eval()
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.2)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.3, 2.0)
    return network


def pictures(name: str, height: int = 32, width: int = 32, batch: int = 1, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs for the network of this name: a smooth picture with some noise, and what else it takes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    x = (0.8 * smooth + 0.2 * torch.rand(batch, 3, height, width, generator=generator)) * WHITE.get(name, 1.0)
    if name == "picture and noise map":
        return x, torch.rand(batch, 1, 1, 1, generator=generator)
    return (x,)
