"""Small networks, each with something that lowering must see or leave alone, and their quantized programs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxptq.graph import Bits, Plan, Program
from fxptq.graph.sites import Site
from fxptq.quant.schemes.affine import Affine


class Plain(nn.Module):
    """Convolutions with ReLU, a scaled residual and pixel shuffle, as in EDSR."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        x = self.second(F.relu(self.first(x))) * 0.5 + x
        return F.pixel_shuffle(self.tail(F.leaky_relu(x, 0.1)), 2)


class Odd(nn.Module):
    """Convolutions without a kernel of their own: grouped, dilated, strided, transposed, padded by reflection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, padding_mode="reflect")
        self.depthwise = nn.Conv2d(16, 16, 5, padding=2, groups=16)
        self.dilated = nn.Conv2d(16, 20, 3, padding=2, dilation=2)
        self.down = nn.Conv2d(20, 16, 4, stride=2, padding=1)
        self.grouped = nn.Conv2d(16, 8, 1, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.dilated(self.depthwise(self.stem(x))))
        return self.last(self.up(F.silu(self.grouped(self.down(y))))) + x


class Windows(nn.Module):
    """Window attention as in SwinIR: fused qkv, position bias, mask, MLP, two residuals, rolled windows."""

    def __init__(self, width: int = 24, heads: int = 3, side: int = 4) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.embed = nn.Conv2d(3, width, 3, padding=1)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.bias = nn.Parameter(torch.randn(heads, side**2, side**2) * 0.3)
        self.register_buffer("mask", torch.where(torch.rand(4, side**2, side**2) < 0.3, -100.0, 0.0))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, width, height, breadth = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        s = self.side
        y = torch.roll(self.norm1(tokens).view(batch, height, breadth, width), (-1, -1), (1, 2))
        y = y.view(batch, height // s, s, breadth // s, s, width).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, width)
        qkv = self.qkv(y).reshape(-1, s * s, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attn = (qkv[0] * 0.35) @ qkv[1].transpose(-2, -1) + self.bias.unsqueeze(0)
        attn = attn.view(-1, 4, self.heads, s * s, s * s) + self.mask.unsqueeze(1).unsqueeze(0)
        attn = attn.view(-1, self.heads, s * s, s * s).softmax(-1)
        y = self.proj((attn @ qkv[2]).transpose(1, 2).reshape(-1, s * s, width))
        y = y.view(batch, height // s, breadth // s, s, s, width).permute(0, 1, 3, 2, 4, 5).reshape(tokens.shape)
        tokens = tokens + torch.roll(y.view(batch, height, breadth, width), (1, 1), (1, 2)).view(tokens.shape)
        tokens = tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return self.last(tokens.transpose(1, 2).reshape(x.shape))


class Channels(nn.Module):
    """Attention over channels with a learned temperature, as in Restormer: products that are no window attention."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.qkv = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3 * width, 1, bias=False)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, width, height, breadth = x.shape
        q, k, v = (
            part.reshape(batch, self.heads, width // self.heads, height * breadth)
            for part in self.qkv(x).chunk(3, dim=1)
        )
        attn = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.temperature
        y = (attn.softmax(-1) @ v).reshape(batch, width, height, breadth)
        return self.last(y + x)


class Rectangles(nn.Module):
    """Attention in masked windows of 4x2, as in DAT: dropout after the softmax, and logits asked for their sizes."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(0.1)
        self.embed, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 1)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(heads, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, width, height, breadth = x.shape
        windows = x.reshape(batch, width, height // 4, 4, breadth // 2, 2).permute(0, 2, 4, 3, 5, 1).contiguous()
        parts = self.qkv(windows.reshape(-1, 8, width)).reshape(-1, 8, 3, self.heads, width // self.heads)
        q, k, v = (part.permute(0, 2, 1, 3).contiguous() for part in parts.unbind(2))
        attn = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        attn = attn + self.bias.unsqueeze(0)
        tokens, count = attn.shape[3], height // 4 * (breadth // 2)
        window, place = (torch.arange(size, device=x.device) for size in (count, 8))
        mask = -100.0 * (window.view(-1, 1, 1) + place.view(1, 8, 1) > place + 5)
        attn = attn.view(batch, count, self.heads, tokens, tokens) + mask.unsqueeze(1).unsqueeze(0)
        attn = self.drop(F.softmax(attn.view(-1, self.heads, tokens, tokens), dim=-1, dtype=attn.dtype))
        y = self.drop(self.proj((attn @ v).transpose(1, 2).reshape(-1, 8, width)))
        y = y.reshape(batch, height // 4, breadth // 2, 4, 2, width).permute(0, 5, 1, 3, 2, 4)
        return self.last(x + y.reshape(x.shape))


class InPlace(nn.Module):
    """Writes into tensors whose codes and values are both read, and gives one of them back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 8), (8, 8), (8, 3)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        left = y[:, :4]
        left.mul_(2.0)
        z = self.b(y)
        y.add_(z)
        return self.c(F.relu_(y))


class Fused(nn.Module):
    """Attention by `scaled_dot_product_attention`, and one tensor read by two layers of different width."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 3, padding=1)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        tokens = x.flatten(2).transpose(1, 2)
        q = self.q(tokens).unflatten(-1, (2, -1)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(-1, (2, 2, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(y + tokens).transpose(1, 2).reshape(x.shape[0], 3, *x.shape[2:])


NETWORKS = {
    "plain": Plain,
    "odd": Odd,
    "windows": Windows,
    "rectangles": Rectangles,
    "channels": Channels,
    "in-place": InPlace,
    "fused": Fused,
}


def quantized(name: str, bits: int, granularity: str = "channel", size: int = 8) -> tuple[Program, Tensor]:
    """A network of this name with bounds from the values it meets, and an input it has not met."""
    torch.manual_seed(1)
    network = NETWORKS[name]().eval()
    program = Program(
        network, torch.rand(1, 3, size, size), Plan(Bits(bits, bits), granularity=granularity, edges=None)
    )
    set_bounds(program, torch.rand(1, 3, size, size))
    return program, torch.rand(1, 3, size, size)


LAYERS = (("*.input", "affine"), ("*.weight", "affine"))
"""Schemes that give layers maps."""


ALL = (
    ("*.attention", "shares"),
    *((f"*.{part}", "affine") for part in ("query", "key", "value")),
    *LAYERS,
)
"""Schemes that give maps to attentions too, and rows of shares."""


def mapped(
    name: str, bits: int, schemes: tuple[tuple[str, str], ...] = LAYERS, size: int = 8
) -> tuple[Program, Tensor]:
    """A network of this name with maps on the operands that the schemes name, and an input it has not met."""
    torch.manual_seed(1)
    network = NETWORKS[name]().eval()
    example = torch.rand(1, 3, size, size)
    program = Program(network, example, Plan(Bits(bits, bits), edges=None, connective=None, schemes=schemes))
    set_layer_maps(program)
    set_attention_maps(program, over_positions=name == "channels")
    set_bounds(program, torch.rand(1, 3, size, size))
    return program, torch.rand(1, 3, size, size)


def set_layer_maps(program: Program) -> None:
    """Random factors and centers for the inputs of layers, and the inverse factors for their weights."""
    factors: dict[str, Tensor] = {}
    for site in program.sites:
        operands = {operand.slot: program.quantizers.get(operand.quantizer) for operand in site.operands}
        entry, weight = operands.get("input"), operands.get("weight")
        if not isinstance(entry, Affine) or not isinstance(weight, Affine):
            continue
        key = site.operands[0].quantizer
        count = channels_of(site)
        groups = site.geometry.groups if site.geometry else 1
        if key not in factors:
            inner = count if groups == count or is_transposed(site) else count // groups
            factors[key] = torch.exp(torch.randn(inner)).repeat(count // inner)
            picture = (1,) * (len(site.shapes["input"]) - 2) if site.geometry else ()
            entry.set_map(factors[key].view(-1, *picture), (0.3 * torch.randn(count)).view(-1, *picture))
        shape = site.shapes["weight"]
        if is_transposed(site) or groups == count:
            weight.set_map((1 / factors[key]).view(-1, *[1] * (len(shape) - 1)))
        else:
            weight.set_map((1 / factors[key][: shape[1]]).view(-1, *[1] * (len(shape) - 2)))


def set_attention_maps(program: Program, *, over_positions: bool) -> None:
    """Random maps for queries, keys and values, by head and channel."""
    for site in program.sites:
        parts = {operand.part: program.quantizers.get(operand.quantizer) for operand in site.operands}
        query, key, value = parts.get("query"), parts.get("key"), parts.get("value")
        heads = site.shapes["output"][-3] if len(site.shapes["output"]) > 2 else 1
        if isinstance(query, Affine) and isinstance(key, Affine):
            depth = site.shapes["lhs"][-2 if over_positions else -1]
            if over_positions:
                for part, shape in ((query, (heads, depth, 1)), (key, (heads, 1, depth))):
                    part.set_map(torch.randn(shape).mul(0.5).exp(), 0.1 * torch.randn(shape))
            else:
                factor = torch.randn(heads, 1, depth).exp()
                query.set_map(factor)
                common = torch.rand(heads, 1, 1) + 0.5
                key.set_map(common / factor.transpose(1, 2), torch.randn(heads, depth, 1))
        if isinstance(value, Affine):
            shape = (heads, 1, 1 if over_positions else site.shapes["rhs"][-1])
            value.set_map(torch.randn(shape).mul(0.5).exp(), torch.randn(shape))


def is_transposed(site: Site) -> bool:
    """Whether the site is a transposed convolution."""
    return site.geometry is not None and site.geometry.transposed


def channels_of(site: Site) -> int:
    """Number of input channels of a layer."""
    return site.shapes["input"][-1] if site.geometry is None else site.shapes["input"][1]


class Range:
    """Observes the range of what passes."""

    def __init__(self) -> None:
        self.low, self.high = float("inf"), -float("inf")

    def update(self, x: Tensor) -> None:
        """Widens the range."""
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))


def set_bounds(program: Program, x: Tensor) -> None:
    """Bounds a little inside the range of each quantizer, off symmetry; per-channel weights symmetric."""
    for quantizer in program.quantizers.values():
        quantizer.observer, quantizer.mode = Range(), "observe"
    with torch.no_grad():
        program(x)
    for key, quantizer in program.quantizers.items():
        seen, weight = quantizer.observer, program.weight_of(key)
        if quantizer.ranges > 1:
            own = quantizer.normalize(weight)
            largest = own.transpose(0, quantizer.axis).reshape(quantizer.ranges, -1).abs().amax(1)
            quantizer.set_bounds(-largest, largest)
        else:
            quantizer.set_bounds(seen.low * 0.95, seen.high * 0.9)
        quantizer.mode, quantizer.observer = "on", None
