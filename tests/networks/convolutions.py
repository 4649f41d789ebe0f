"""Convolutions, resizing, padding and normalisation, one construct each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.networks.body import Body, Make, Whole, conv, noise


def residual_chain(net: Any, x: Tensor) -> Tensor:
    y = x
    for block in net.blocks:
        y = y + block(y) * 0.2
    return x + y


def dense(net: Any, x: Tensor) -> Tensor:
    seen = [x]
    for layer in net.layers:
        seen.append(F.leaky_relu(layer(torch.cat(seen, 1)), 0.2))
    return x + net.fuse(torch.cat(seen, dim=1)) * 0.2


def bicubic_skip(net: Any, x: Tensor) -> Tensor:
    up = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    return up + F.pixel_shuffle(net.tail(F.relu(net.body(net.head(x)))), 2)


def nearest(net: Any, x: Tensor) -> Tensor:
    y = F.leaky_relu(net.up1(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
    return F.leaky_relu(net.up2(F.interpolate(y, scale_factor=2, mode="nearest")), 0.2)


def unet(net: Any, x: Tensor) -> Tensor:
    """Strides of two over odd sizes, whose maps are resized to those of the skip connection."""
    first = F.relu(net.down1(x))
    second = F.relu(net.down2(first))
    up = F.interpolate(net.up1(second), size=first.shape[2:], mode="bilinear", align_corners=False)
    up = F.relu(net.mix1(torch.cat([up, first], 1)))
    up = F.interpolate(net.up2(up), size=x.shape[-2:], mode="nearest")
    return net.mix2(torch.cat([up, x], 1))


def padded_to_eight(net: Any, x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    y = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
    y = F.relu(net.down(y))
    return net.up(net.body(y))[..., :height, :width]


def needs_eight(net: Any, x: Tensor) -> Tensor:
    """Three halvings whose maps only add up again at multiples of eight."""
    a = F.max_pool2d(x, 2)
    b = F.max_pool2d(net.b(a), 2)
    c = F.relu(net.c(F.avg_pool2d(b, 2)))
    b = b + F.interpolate(c, scale_factor=2.0, mode="nearest")
    a = a + F.interpolate(b, scale_factor=2.0, mode="nearest")
    return x + F.interpolate(a, scale_factor=2.0, mode="nearest")


def mean_shift(net: Any, x: Tensor) -> Tensor:
    y = (x - net.mean) / 255.0
    y = F.pixel_shuffle(net.tail(F.relu(net.body(net.head(y)))), 2)
    return y * 255.0 + net.mean


class MeanShift(nn.Conv2d):
    """Colours moved by a convolution of 1x1, as EDSR does."""

    def __init__(self, sign: int) -> None:
        super().__init__(3, 3, 1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias.data = sign * torch.tensor([0.45, 0.44, 0.40])
        self.requires_grad_(False)


class RepBlock(nn.Module):
    """Branches of 3x3, 1x1 and identity whose kernels are added at run time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.three, self.one = conv(width), conv(width, kernel=1)
        self.norm = nn.BatchNorm2d(width)
        self.register_buffer("identity", torch.eye(width).view(width, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.three.weight + F.pad(self.one.weight + self.identity, (1, 1, 1, 1))
        bias = self.three.bias + self.one.bias
        factor = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)
        kernel = kernel * factor.view(-1, 1, 1, 1)
        return F.conv2d(x, kernel, (bias - self.norm.running_mean) * factor + self.norm.bias, padding=1)


class LayerNorm2d(nn.Module):
    """Over channels, written by hand as in NAFNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), noise(width), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        y = (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + self.eps).sqrt()
        return self.weight.view(1, -1, 1, 1) * y + self.bias.view(1, -1, 1, 1)


def channels_last(net: Any, x: Tensor) -> Tensor:
    """ConvNeXt: depthwise, LayerNorm over channels, two linear layers and a LayerScale of 1e-6."""
    y = net.norm(net.depthwise(x).permute(0, 2, 3, 1))
    return x + (net.gamma * net.fc2(F.gelu(net.fc1(y)))).permute(0, 3, 1, 2)


def subpixel(scale: int) -> Make:
    return lambda: (
        Body(lambda net, x: F.relu(net.body(x)), out=3 * scale**2, body=conv())
        if scale == 1
        else nn.Sequential(
            Body(lambda net, x: F.relu(net.body(x)), out=3 * scale**2, body=conv()), nn.PixelShuffle(scale)
        )
    )


def simple_gate(net: Any, x: Tensor) -> Tensor:
    """NAFNet's: one half of the channels times the other."""
    first, second = net.a(x).chunk(2, dim=1)
    return x + net.b(first * second)


def norm(layer: nn.Module) -> Body:
    return Body(lambda net, x: x + net.b(F.relu(net.norm(net.a(x)))), a=conv(), norm=layer, b=conv())


def between(layer: Any) -> Make:
    """An activation between two convolutions."""
    return lambda: Body(lambda net, x: x + net.b(net.act(net.a(x))), a=conv(), act=layer(), b=conv())


CONVOLUTIONS: dict[str, Make] = {
    "plain convolutions": lambda: nn.Sequential(conv(3, 12), nn.ReLU(), conv(), nn.ReLU(), conv(12, 3)),
    "residual chain": lambda: Body(
        residual_chain, blocks=nn.ModuleList(nn.Sequential(conv(), nn.ReLU(), conv()) for _ in range(3))
    ),
    "dense connections": lambda: Body(
        dense, layers=nn.ModuleList(conv(12 + 8 * i, 8) for i in range(3)), fuse=conv(36, 12, 1)
    ),
    "pixel shuffle x2": subpixel(2),
    "pixel shuffle x3": subpixel(3),
    "pixel shuffle x4": subpixel(4),
    "pixel unshuffle": lambda: Body(
        lambda net, x: F.pixel_shuffle(net.body(F.pixel_unshuffle(x, 2)), 2), body=conv(48, 48)
    ),
    "nearest and convolution": lambda: Body(nearest, up1=conv(), up2=conv()),
    "bicubic skip": lambda: Whole(bicubic_skip, head=conv(3, 12), body=conv(), tail=conv(12, 12)),
    "transposed convolution": lambda: Body(
        lambda net, x: F.relu(net.up(x)), up=nn.ConvTranspose2d(12, 12, 4, stride=2, padding=1)
    ),
    "transposed with output padding": lambda: Body(
        lambda net, x: net.up(F.relu(net.body(x))),
        body=conv(),
        up=nn.ConvTranspose2d(12, 12, 3, stride=3, padding=1, output_padding=2),
    ),
    "strided U-Net": lambda: Body(
        unet,
        down1=conv(12, 16, stride=2),
        down2=conv(16, 24, stride=2),
        up1=conv(24, 16),
        mix1=conv(32, 16),
        up2=conv(16, 12),
        mix2=conv(24, 12),
    ),
    "pads to eight inside": lambda: Body(
        padded_to_eight, down=conv(12, 16, 4, stride=4, padding=0), body=conv(16), up=nn.ConvTranspose2d(16, 12, 4, 4)
    ),
    "needs multiples of eight": lambda: Body(needs_eight, b=conv(), c=conv()),
    "depthwise": lambda: Body(
        lambda net, x: x + net.point(F.relu(net.depth(x))), depth=conv(groups=12), point=conv(kernel=1)
    ),
    "grouped": lambda: Body(lambda net, x: net.b(F.relu(net.a(x))), 16, a=conv(16, groups=4), b=conv(16, groups=2)),
    "channel shuffle": lambda: Body(
        lambda net, x: net.b(F.channel_shuffle(F.relu(net.a(x)), 4)), 16, a=conv(16, groups=4), b=conv(16, groups=4)
    ),
    "dilated": lambda: Body(
        lambda net, x: net.b(F.relu(net.a(x))),
        a=conv(dilation=2, padding=2),
        b=conv(dilation=(3, 1), padding=(3, 1)),
    ),
    "large kernels": lambda: Body(
        lambda net, x: x * net.mix(net.tall(net.wide_(x))),
        mix=conv(kernel=1),
        tall=conv(kernel=3, groups=12, padding=9, dilation=9),
        wide_=conv(kernel=11, groups=12),
    ),
    "uneven kernels": lambda: Body(
        lambda net, x: net.b(F.relu(net.a(x))),
        a=nn.Conv2d(12, 12, (1, 5), padding=(0, 2)),
        b=nn.Conv2d(12, 12, (5, 1), padding=(2, 0)),
    ),
    "1x1 only": lambda: nn.Sequential(
        conv(3, 16, 1), nn.ReLU(), conv(16, 16, 1), nn.ReLU(), conv(16, 12, 1), nn.PixelShuffle(2)
    ),
    "padding same": lambda: Body(
        lambda net, x: net.b(F.relu(net.a(x))),
        a=conv(kernel=4, padding="same"),
        b=conv(kernel=3, padding="same", dilation=2),
    ),
    "reflect padding": lambda: Body(
        lambda net, x: net.b(F.relu(net.a(F.pad(x, (1, 2, 2, 1), "reflect")))),
        a=conv(kernel=4, padding=0),
        b=conv(padding_mode="reflect"),
    ),
    "replicate padding": lambda: Body(
        lambda net, x: net.b(F.relu(net.pad(net.a(x)))),
        a=conv(padding_mode="replicate"),
        pad=nn.ReplicationPad2d(1),
        b=conv(padding=0),
    ),
    "circular padding": lambda: Body(lambda net, x: F.relu(net.a(x)), a=conv(padding_mode="circular")),
    "PReLU": between(lambda: nn.PReLU(12)),
    "LeakyReLU": between(lambda: nn.LeakyReLU(0.1, inplace=True)),
    "GELU": between(nn.GELU),
    "GELU by tanh": between(lambda: nn.GELU("tanh")),
    "SiLU": between(nn.SiLU),
    "hardswish": between(nn.Hardswish),
    "ELU": between(nn.ELU),
    "ReLU6": between(nn.ReLU6),
    "softplus": between(nn.Softplus),
    "tanh": between(nn.Tanh),
    "mish": between(nn.Mish),
    "sigmoid gates": lambda: Body(
        lambda net, x: net.a(x) * torch.sigmoid(net.gate(x)) + x, a=conv(), gate=conv(kernel=1)
    ),
    "simple gate": lambda: Body(simple_gate, a=conv(12, 24), b=conv(kernel=1)),
    "gate with where": lambda: Body(lambda net, x: torch.where(net.a(x) > 0, net.b(x), x * 0.1), a=conv(), b=conv()),
    "LayerNorm over channels": lambda: Body(
        channels_last,
        depthwise=conv(kernel=7, groups=12),
        norm=nn.LayerNorm(12, eps=1e-6),
        fc1=nn.Linear(12, 24),
        fc2=nn.Linear(24, 12),
        gamma=noise(12),
    ),
    "LayerScale of 1e-6": lambda: Body(
        channels_last,
        depthwise=conv(kernel=7, groups=12),
        norm=nn.LayerNorm(12),
        fc1=nn.Linear(12, 24),
        fc2=nn.Linear(24, 12),
        gamma=nn.Parameter(1e-6 * torch.ones(12)),
    ),
    "LayerNorm2d by hand": lambda: norm(LayerNorm2d(12)),
    "BatchNorm": lambda: norm(nn.BatchNorm2d(12)),
    "InstanceNorm": lambda: norm(nn.InstanceNorm2d(12, affine=True)),
    "GroupNorm": lambda: norm(nn.GroupNorm(3, 12)),
    "RMSNorm": lambda: Body(
        lambda net, x: x + net.b(net.norm(net.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        a=conv(),
        norm=nn.RMSNorm(12),
        b=conv(),
    ),
    "weight norm": lambda: Body(
        lambda net, x: net.b(F.relu(net.a(x))),
        a=parametrizations.weight_norm(conv()),
        b=nn.utils.weight_norm(conv()),
    ),
    "spectral norm": lambda: Body(
        lambda net, x: net.b(F.leaky_relu(net.a(x), 0.2)),
        a=nn.utils.spectral_norm(conv(bias=False)),
        b=parametrizations.spectral_norm(conv(bias=False)),
    ),
    "reparametrised block": lambda: Body(lambda net, x: F.relu(net.rep(x)), rep=RepBlock(12)),
    "mean shift of colours in 0..255": lambda: Whole(
        mean_shift,
        head=conv(3, 12),
        body=conv(),
        tail=conv(12, 12),
        mean=nn.Parameter(torch.tensor([114.4, 111.5, 103.0]).view(1, 3, 1, 1), requires_grad=False),
    ),
    "mean shift by a convolution": lambda: nn.Sequential(
        MeanShift(-1), conv(3, 12), nn.ReLU(), conv(12, 12), nn.PixelShuffle(2), MeanShift(1)
    ),
    "multi-scale features": lambda: Body(
        lambda net, x: net.fuse(
            torch.cat([x, F.interpolate(net.small(F.avg_pool2d(x, 4, ceil_mode=True)), x.shape[2:])], 1)
        ),
        small=conv(),
        fuse=conv(24, 12, 1),
    ),
}
