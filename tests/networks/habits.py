"""Habits of code: outputs and inputs of every form, modules shared, sizes in loops, einsum, in-place operations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from tests.networks.body import Body, Make, Whole, conv, noise


def plain(net: Any, x: Tensor) -> Tensor:
    return F.relu(net.body(x))


class Giving(Body):
    """Gives its picture in a form of the caller's choice."""

    def __init__(self, form: Any, **parts: Any) -> None:
        super().__init__(plain, body=conv(), **parts)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(self, super().forward(x))


def noisy(net: Any, x: Tensor, sigma: Tensor) -> Tensor:
    y = torch.cat([x, sigma.expand(-1, -1, *x.shape[2:])], 1)
    return x - net.tail(F.relu(net.head(y)))


def fourier(net: Any, x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    y = torch.fft.rfft2(x, norm="ortho")
    y = F.relu(net.mix(torch.cat([y.real, y.imag], 1)))
    real, imaginary = y.chunk(2, 1)
    return x + torch.fft.irfft2(torch.complex(real, imaginary), s=(h, w), norm="ortho")


def squares_only(net: Any, x: Tensor) -> Tensor:
    return net.body(x + x.transpose(2, 3))


def with_einsum(net: Any, x: Tensor) -> Tensor:
    y = torch.einsum("nchw,dc->ndhw", x, net.mix)
    scores = torch.einsum("nchw,ndhw->ncd", x, y) / (x.shape[2] * x.shape[3])
    return x + torch.einsum("ncd,ndhw->nchw", scores.softmax(-1), y)


def with_einops(net: Any, x: Tensor) -> Tensor:
    y = rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4)
    y = y + net.mlp(y) * reduce(y, "b n d -> b 1 d", "mean")
    return rearrange(y, "b (h w) (p q c) -> b c (h p) (w q)", p=4, q=4, h=x.shape[2] // 4)


def rolled(net: Any, x: Tensor) -> Tensor:
    parts = [
        torch.roll(part, shift, axis)
        for part, shift, axis in zip(x.chunk(4, 1), (1, -1, 1, -1), (2, 2, 3, 3), strict=True)
    ]
    return net.body(torch.cat(parts, 1))


def folded(net: Any, x: Tensor) -> Tensor:
    size = x.shape[2:]
    patches = F.unfold(x, 4, stride=2, padding=1)
    patches = net.mix(patches.transpose(1, 2)).transpose(1, 2)
    ones = F.fold(F.unfold(torch.ones_like(x[:, :1]), 4, stride=2, padding=1), size, 4, stride=2, padding=1)
    return F.fold(patches, size, 4, stride=2, padding=1) / ones


def masked_by_sizes(net: Any, x: Tensor) -> Tensor:
    _, _, h, w = x.shape
    checker = (torch.arange(h).view(-1, 1) + torch.arange(w)) % 2
    return x + net.a(x * checker) + net.b(x * (1 - checker.to(x.dtype)))


def loops_over_sizes(net: Any, x: Tensor) -> Tensor:
    """Strips of eight rows, one at a time."""
    out = torch.empty_like(x)
    for top in range(0, x.shape[2], 8):
        out[:, :, top : top + 8] = F.relu(net.body(x[:, :, top : top + 8]))
    return out


def in_place(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.mul_(0.5).add_(x)
    y[:, :4] += 0.1
    left = y[:, 4:8]
    left.clamp_(min=0)
    y[:, :, 0].zero_()
    return net.b(F.relu_(y))


def by_keyword(net: Any, x: Tensor) -> Tensor:
    y = F.conv2d(input=x, weight=net.kernel, bias=net.bias, padding=1)
    y = F.linear(y.permute(0, 2, 3, 1), weight=net.mix, bias=None).permute(0, 3, 1, 2)
    return F.conv_transpose2d(F.relu(y), bias=None, stride=2, padding=1, weight=net.up)


class Shared(nn.Module):
    """One module called three times, and two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.tail = conv(3, 12), conv(), conv(12, 3)
        self.one, self.two = conv(kernel=1), conv(kernel=1)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for _ in range(3):
            y = y + F.relu(self.body(y)) * 0.3
        return self.tail(self.two(F.relu(self.one(y))))


class Keywords(nn.Module):
    """Modules whose names are words of Python, or hard to write."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("class", "lambda", "0", "it's", "a b", "conv2d_0", "weight"):
            self.add_module(name, conv())
        self.head, self.tail = conv(3, 12), conv(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for name in ("class", "lambda", "0", "it's", "a b", "conv2d_0", "weight"):
            y = y + F.relu(getattr(self, name)(y)) * 0.2
        return self.tail(F.conv2d(y, self.get_submodule("class").weight, padding=1))


class Nested(nn.Sequential):
    """Numbered names within numbered names."""

    def __init__(self) -> None:
        block = [
            nn.Sequential(nn.Sequential(conv(), nn.ReLU()), nn.Sequential(conv(), nn.Identity())) for _ in range(2)
        ]
        super().__init__(nn.Sequential(conv(3, 12)), nn.Sequential(*block, nn.Dropout(0.1)), nn.Sequential(conv(12, 3)))


class Tiled(nn.Module):
    """A network that cuts its input into quarters itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(3, 12), nn.ReLU(), conv(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        h, w = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
        rows = [torch.cat([self.net(part) for part in row.split(w, 3)], 3) for row in x.split(h, 2)]
        return torch.cat(rows, 2)


def double_constants(net: Any, x: Tensor) -> Tensor:
    y = x.double() * net.factors
    return net.body(y.float()) + torch.tensor(0.5, dtype=torch.float64)


def wavelet(net: Any, x: Tensor) -> Tensor:
    """Haar by strided slices, and back."""
    a, b, c, d = x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]
    y = F.relu(net.body(torch.cat([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], 1) * 0.5))
    ll, lh, hl, hh = y.chunk(4, 1)
    out = x.new_zeros(x.shape)
    out[..., ::2, ::2], out[..., 1::2, ::2] = ll + lh + hl + hh, ll - lh + hl - hh
    out[..., ::2, 1::2], out[..., 1::2, 1::2] = ll + lh - hl - hh, ll - lh - hl + hh
    return out


def positions_resized(net: Any, x: Tensor) -> Tensor:
    return net.body(x + F.interpolate(net.position, x.shape[2:], mode="bilinear", align_corners=True))


def coordinates(net: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    rows, columns = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    return net.body(torch.cat([x, torch.stack([rows, columns]).expand(n, -1, -1, -1)], 1))


def of_statistics(net: Any, x: Tensor) -> Tensor:
    mean, spread = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True) + 1e-5
    return net.body((x - mean) / spread) * spread + mean


def branch_on_size(net: Any, x: Tensor) -> Tensor:
    return net.a(x) if x.shape[2] > x.shape[3] else net.b(x)


def fixed_kernels(net: Any, x: Tensor) -> Tensor:
    edges = F.conv2d(x, net.sobel.expand(x.shape[1], -1, -1, -1), padding=1, groups=x.shape[1])
    return net.body(torch.cat([x, edges], 1))


HABITS: dict[str, Make] = {
    "output in a list": lambda: Giving(lambda _, y: [y]),
    "output in a tuple": lambda: Giving(lambda _, y: (y, y.mean())),
    "output in a dict": lambda: Giving(lambda _, y: {"features": y[:, :1], "out": y}),
    "output nested": lambda: Giving(lambda _, y: {"all": [(y.abs(), [y])], "scale": 1}),
    "outputs of several scales": lambda: Giving(
        lambda net, y: [y, F.pixel_shuffle(net.two(y), 2), F.interpolate(y, scale_factor=0.5)], two=conv(3, 12)
    ),
    "picture and noise map": lambda: Whole(noisy, head=conv(4, 12), tail=conv(12, 3)),
    "Fourier branch": lambda: Body(fourier, mix=conv(24, 24, 1)),
    "square only": lambda: Body(squares_only, body=conv()),
    "einsum": lambda: Body(with_einsum, mix=noise(12, 12)),
    "einops": lambda: Body(with_einops, 4, mlp=nn.Sequential(nn.Linear(64, 24), nn.GELU(), nn.Linear(24, 64))),
    "torch.roll": lambda: Body(rolled, body=conv(kernel=1)),
    "unfold and fold": lambda: Body(folded, 4, mix=nn.Linear(64, 64)),
    "index buffer": lambda: Body(
        lambda net, x: net.body(x[:, net.order]).index_select(1, net.back),
        body=conv(),
        order=torch.arange(12).flip(0),
        back=torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7, 11, 10]),
    ),
    "masks made from sizes": lambda: Body(masked_by_sizes, a=conv(), b=conv()),
    "loop over sizes": lambda: Body(loops_over_sizes, body=conv()),
    "in-place operations": lambda: Body(in_place, a=conv(), b=conv()),
    "functional calls by keyword": lambda: Body(
        by_keyword,
        kernel=noise(12, 12, 3, 3, scale=0.1),
        bias=noise(12),
        mix=noise(12, 12),
        up=noise(12, 12, 4, 4, scale=0.1),
    ),
    "shared modules and weights": Shared,
    "sequential of sequential": Nested,
    "names that are keywords": Keywords,
    "quarters": Tiled,
    "scaling buffers": lambda: Body(
        lambda net, x: x * net.skip + net.body(x) * net.scale,
        body=conv(),
        scale=torch.tensor(0.2),
        skip=torch.linspace(0.5, 1.5, 12).view(1, -1, 1, 1),
    ),
    "float64 constants": lambda: Body(
        double_constants, body=conv(), factors=torch.linspace(0.1, 1.3, 12, dtype=torch.float64).view(1, -1, 1, 1)
    ),
    "scalar parameters": lambda: Body(
        lambda net, x: x * net.alpha + F.relu(net.body(x)) * net.beta.exp(),
        body=conv(),
        alpha=nn.Parameter(torch.tensor(0.7)),
        beta=nn.Parameter(torch.tensor(-1.2)),
    ),
    "wavelet": lambda: Body(wavelet, 4, body=conv(16)),
    "position resized": lambda: Body(positions_resized, body=conv(), position=noise(1, 12, 8, 8)),
    "coordinates": lambda: Body(coordinates, body=conv(14, 12)),
    "own statistics": lambda: Body(of_statistics, body=conv()),
    "branch on size": lambda: Body(branch_on_size, a=conv(), b=conv()),
    "fixed kernels": lambda: Body(
        fixed_kernels, body=conv(24, 12), sobel=torch.tensor([[[[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]]])
    ),
}
