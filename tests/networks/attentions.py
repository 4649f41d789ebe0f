"""Attention in all its forms, and weights that are made from the picture."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.body import Body, Make, conv, noise

WINDOW = 4


def heads(t: Tensor, count: int = 2) -> Tensor:
    return t.unflatten(-1, (count, -1)).transpose(1, 2)


def tokens_of(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def picture_of(t: Tensor, like: Tensor) -> Tensor:
    return t.transpose(1, 2).reshape(like.shape)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def squeeze_and_excite(net: Any, x: Tensor) -> Tensor:
    y = net.body(x)
    return x + y * torch.sigmoid(net.up(F.relu(net.down(F.adaptive_avg_pool2d(y, 1)))))


def spatial_attention(net: Any, x: Tensor) -> Tensor:
    seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return x * torch.sigmoid(net.mask(seen))


def channel_attention(net: Any, x: Tensor) -> Tensor:
    """Restormer: products over height x width."""
    n, c, h, w = x.shape
    q, k, v = (part.reshape(n, 2, c // 2, h * w) for part in net.depthwise(net.qkv(x)).chunk(3, dim=1))
    attn = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * net.temperature
    return x + net.project((attn.softmax(dim=-1) @ v).reshape(n, c, h, w))


class Windows(nn.Module):
    """Attention in windows, shifted and masked, with a bias by relative position, as in SwinIR."""

    def __init__(self, width: int, shift: int) -> None:
        super().__init__()
        self.shift, self.count = shift, 2
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.relative_position_bias_table = noise((2 * WINDOW - 1) ** 2, self.count)
        at = torch.stack(torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")).flatten(1)
        apart = (at[:, :, None] - at[:, None, :]).permute(1, 2, 0) + WINDOW - 1
        self.register_buffer("relative_position_index", apart[..., 0] * (2 * WINDOW - 1) + apart[..., 1])

    def mask(self, height: int, width: int) -> Tensor:
        regions = torch.zeros(1, height, width, 1)
        slices = (slice(0, -WINDOW), slice(-WINDOW, -self.shift), slice(-self.shift, None))
        for number, (rows, columns) in enumerate((a, b) for a in slices for b in slices):
            regions[:, rows, columns, :] = number
        regions = self.cut(regions).squeeze(-1)
        apart = regions.unsqueeze(1) - regions.unsqueeze(2)
        return apart.masked_fill(apart != 0, -100.0).masked_fill(apart == 0, 0.0)

    @staticmethod
    def cut(x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = x.view(n, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, WINDOW * WINDOW, c)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        t = x.permute(0, 2, 3, 1)
        y = torch.roll(self.norm1(t), (-self.shift, -self.shift), dims=(1, 2)) if self.shift else self.norm1(t)
        q, k, v = self.qkv(self.cut(y)).reshape(-1, WINDOW**2, 3, self.count, c // self.count).permute(2, 0, 3, 1, 4)
        attn = (q * (c // self.count) ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        attn = attn + bias.view(WINDOW**2, WINDOW**2, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if self.shift:
            mask = self.mask(h, w)
            attn = attn.view(n, len(mask), self.count, WINDOW**2, WINDOW**2) + mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, self.count, WINDOW**2, WINDOW**2)
        y = self.proj((attn.softmax(-1) @ v).transpose(1, 2).reshape(-1, WINDOW**2, c))
        y = y.view(n, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        t = t + (torch.roll(y, (self.shift, self.shift), dims=(1, 2)) if self.shift else y)
        return (t + self.fc2(F.gelu(self.fc1(self.norm2(t))))).permute(0, 3, 1, 2)


def learned_tokens(net: Any, x: Tensor) -> Tensor:
    """The picture's tokens look up words that were learned."""
    t = tokens_of(x)
    words = net.words.expand(len(x), -1, -1)
    return picture_of(t + attend(heads(net.q(t)), heads(net.k(words)), heads(net.v(words))), x)


def summary_tokens(net: Any, x: Tensor) -> Tensor:
    """Learned tokens gather from the picture, and the picture reads them."""
    t, gathered = tokens_of(x), net.words.expand(len(x), -1, -1)
    gathered = gathered + attend(heads(net.q(gathered)), heads(net.k(t)), heads(net.v(t)))
    return picture_of(t + (net.q(t) @ net.k(gathered).transpose(1, 2) * 0.3).softmax(-1) @ gathered, x)


def cross_attention(net: Any, x: Tensor) -> Tensor:
    t, small = tokens_of(x), tokens_of(F.avg_pool2d(net.other(x), 4))
    return picture_of(t + attend(heads(net.q(t)), heads(net.k(small)), heads(net.v(small))), x)


def sdpa(net: Any, x: Tensor) -> Tensor:
    q, k, v = (heads(part) for part in net.qkv(tokens_of(x)).chunk(3, -1))
    y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
    return x + picture_of(net.proj(y.transpose(1, 2).flatten(2)), x)


def multihead(net: Any, x: Tensor) -> Tensor:
    t = tokens_of(x)
    y, _ = net.attention(t, t, t, need_weights=False)
    return x + picture_of(y, x)


def linear_attention(net: Any, x: Tensor) -> Tensor:
    q, k, v = net.qkv(tokens_of(x)).chunk(3, -1)
    q, k = F.elu(q) + 1, F.elu(k) + 1
    y = (q @ (k.transpose(1, 2) @ v)) / (q @ k.sum(1).unsqueeze(-1) + 1e-6)
    return x + picture_of(y, x)


def top_k(net: Any, x: Tensor) -> Tensor:
    """Only the largest scores are kept, as in DRSformer."""
    n, c, h, w = x.shape
    q, k, v = (part.flatten(2) for part in net.qkv(x).chunk(3, 1))
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2)
    chosen = scores.topk(c // 2, dim=-1).indices
    mask = torch.zeros_like(scores).scatter_(-1, chosen, 1.0)
    scores = torch.where(mask > 0, scores, torch.full_like(scores, float("-inf")))
    return x + (scores.softmax(-1) @ v).view(n, c, h, w)


def strips(net: Any, x: Tensor) -> Tensor:
    """Attention along rows, then along columns."""
    for axis in (2, 3):
        y = x.movedim(1, -1).movedim(axis - 1, -2)
        q, k, v = net.qkv(y).chunk(3, -1)
        y = ((q @ k.transpose(-2, -1)) * 0.3).softmax(-1) @ v
        x = x + y.movedim(-2, axis - 1).movedim(-1, 1)
    return x


def dynamic_convolution(net: Any, x: Tensor) -> Tensor:
    """Each picture mixes its own kernel out of four."""
    n, c, h, w = x.shape
    share = net.route(x.mean((2, 3))).softmax(-1)
    kernels = (share @ net.kernels.flatten(1)).view(n * c, c, 3, 3)
    return x + F.conv2d(x.reshape(1, n * c, h, w), kernels, padding=1, groups=n).view(n, c, h, w)


def kernel_prediction(net: Any, x: Tensor) -> Tensor:
    """A kernel of 3x3 for each pixel."""
    n, c, h, w = x.shape
    kernel = net.predict(x).softmax(1).view(n, 1, 9, h, w)
    return (F.unfold(x, 3, padding=1).view(n, c, 9, h, w) * kernel).sum(2)


def warped(net: Any, x: Tensor) -> Tensor:
    """Pixels are fetched from where offsets say."""
    n, _, h, w = x.shape
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    grid = torch.stack((columns, rows), -1).unsqueeze(0).expand(n, -1, -1, -1)
    offsets = torch.tanh(net.offsets(x)).permute(0, 2, 3, 1) * 0.1
    return net.body(F.grid_sample(x, grid + offsets, padding_mode="border", align_corners=True))


def softmax_channels(net: Any, x: Tensor) -> Tensor:
    share = net.share(x).softmax(dim=1)
    return net.a(x) * share[:, 0:1] + net.b(x) * share[:, 1:2]


def overlapping(net: Any, x: Tensor) -> Tensor:
    """Windows look at larger windows around them, as in HAT."""
    n, c, h, w = x.shape
    q = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    around = F.unfold(x, 6, stride=4, padding=1).view(n, c, 36, -1).permute(0, 3, 2, 1).reshape(-1, 36, c)
    k, v = net.kv(around).chunk(2, -1)
    y = attend(heads(net.q(q)), heads(k), heads(v), net.bias)
    y = y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
    return x + y


def linears(*names: str, width: int = 12) -> dict[str, nn.Linear]:
    return {name: nn.Linear(width, width) for name in names}


ATTENTIONS: dict[str, Make] = {
    "channel attention with pooling": lambda: Body(
        squeeze_and_excite, body=conv(), down=conv(12, 4, 1), up=conv(4, 12, 1)
    ),
    "spatial attention": lambda: Body(spatial_attention, mask=conv(2, 1, 7)),
    "channel attention over pixels": lambda: Body(
        channel_attention,
        qkv=conv(12, 36, 1, bias=False),
        depthwise=conv(36, groups=36, bias=False),
        project=conv(kernel=1),
        temperature=nn.Parameter(torch.ones(2, 1, 1)),
    ),
    "shifted windows": lambda: Body(
        lambda net, x: x + net.shifted(net.still(x)), still=Windows(12, 0), shifted=Windows(12, 2)
    ),
    "overlapping windows": lambda: Body(overlapping, q=nn.Linear(12, 12), kv=nn.Linear(12, 24), bias=noise(2, 16, 36)),
    "learned tokens": lambda: Body(learned_tokens, **linears("q", "k", "v"), words=noise(1, 10, 12)),
    "summary tokens": lambda: Body(summary_tokens, **linears("q", "k", "v"), words=noise(1, 10, 12)),
    "cross attention": lambda: Body(cross_attention, **linears("q", "k", "v"), other=conv()),
    "scaled_dot_product_attention": lambda: Body(sdpa, qkv=nn.Linear(12, 36), proj=nn.Linear(12, 12)),
    "MultiheadAttention": lambda: Body(multihead, attention=nn.MultiheadAttention(12, 2, batch_first=True)),
    "linear attention": lambda: Body(linear_attention, qkv=nn.Linear(12, 36)),
    "top-k attention": lambda: Body(top_k, qkv=conv(12, 36, 1)),
    "attention in strips": lambda: Body(strips, qkv=nn.Linear(12, 36)),
    "dynamic convolution": lambda: Body(
        dynamic_convolution, 8, route=nn.Linear(8, 4), kernels=noise(4, 8 * 8 * 9, scale=0.1)
    ),
    "kernel prediction": lambda: Body(kernel_prediction, predict=conv(12, 9)),
    "grid_sample": lambda: Body(warped, offsets=conv(12, 2), body=conv()),
    "softmax over channels": lambda: Body(softmax_channels, share=conv(12, 2, 1), a=conv(), b=conv()),
}
