"""What restoration networks do in their forward, one small network each: captured, and equal to eager at every size."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import einsum as einops_einsum
from einops import rearrange, reduce, repeat
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fxptq.graph import Program

Agrees = Callable[..., Program]


class Body(nn.Module):
    """A convolution, then `step` on its output, which gives a tensor [N, C, H, W] again."""

    def __init__(self, step: Callable[[Tensor], Any], width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 1, 1)
        self.step = step

    def forward(self, x: Tensor) -> Any:
        return self.step(self.conv(x))


def branch_on_size(x: Tensor) -> Tensor:
    if x.shape[2] > x.shape[3]:
        return x * 2
    return x.transpose(2, 3).contiguous().transpose(2, 3) + 1


def pad_inside(x: Tensor) -> Tensor:
    h, w = x.size()[2:]
    padded = F.pad(x, (0, (8 - w % 8) % 8, 0, (8 - h % 8) % 8), "reflect")
    return F.avg_pool2d(padded, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :h, :w]


def windows(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    parts = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    attention = (parts @ parts.transpose(-2, -1)).softmax(-1)
    parts = (attention @ parts).view(b, h // 4, w // 4, 4, 4, c)
    return parts.permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


def mask_at_run_time(x: Tensor) -> Tensor:
    _, _, h, w = x.shape
    mask = torch.zeros((1, h, w, 1))
    count = 0
    for rows in (slice(0, -4), slice(-4, -2), slice(-2, None)):
        for columns in (slice(0, -4), slice(-4, -2), slice(-2, None)):
            mask[:, rows, columns, :] = count
            count += 1
    return x + mask.to(x.device).permute(0, 3, 1, 2)


def slices_assigned(x: Tensor) -> Tensor:
    h = x.shape[2]
    out = x.new_zeros(x.shape)
    out[:, :, : h // 2] = x[:, :, h // 2 : 2 * (h // 2)]
    out[:, :, h // 2 :] += x[:, :, h // 2 :] * 2
    out[:, 0, ...] = 0.5
    return out


def in_place(x: Tensor) -> Tensor:
    y = x * 1
    y += 1
    y.mul_(2)
    kept = y * 2
    y -= kept
    return F.elu_(y, 0.5) + F.leaky_relu_(kept * 1, 0.1) + F.leaky_relu(kept * 2, 0.1, inplace=True)


def in_place_seen_by_a_view(x: Tensor) -> Tensor:
    y = x * 1
    top = y[:, :, :4]
    top.mul_(3)
    y.add_(1)
    return torch.cat([y, top], 2)


def tiles(x: Tensor) -> Tensor:
    _, _, h, w = x.shape
    out = torch.zeros_like(x)
    for i in range(ceil(h / 8)):
        for j in range(0, w, 8):
            out[:, :, i * 8 : i * 8 + 8, j : j + 8] = x[:, :, i * 8 : i * 8 + 8, j : j + 8].flip(-1)
    return out


def int_of_a_division(x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    return F.interpolate(x, size=(int(h / 2), int(float(w) * 0.5 + 0.5)), mode="bilinear", align_corners=False)


def functions_of_sizes(x: Tensor) -> Tensor:
    h, w = x.shape[2], x.shape[3]
    side = max(h, w) - min(h, w) + round(h / 4) + divmod(w, 8)[1] + math.ceil(h / 3) + len(x) + abs(-h) + +w
    return x * side / math.sqrt(math.prod(x.shape[2:])) + sum(x.shape[2:]) - math.log2(h) ** 2


def numpy_of_sizes(x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    bottom = int(np.ceil(h / 8) * 8 - h)
    padded = F.pad(x, (0, int(np.prod([-w % 8, 1])), 0, bottom))
    return padded.view(*padded.shape[:2], -1, 8, padded.shape[3]).mean(3) + np.array([1, 2]).sum() + np.sqrt(w)


def positions_from_lists(x: Tensor) -> Tensor:
    grid = torch.tensor([[0.0, 1.0], [1.0, 2.0]])
    sizes = torch.tensor([x.shape[2], x.shape[3]])
    return x * grid.sum() + sizes[0] - sizes.float().mean()


def tensor_of_sizes(x: Tensor) -> Tensor:
    noise = torch.Tensor(x.shape[2], x.shape[3]).fill_(0.25)
    return x + noise


def coordinates(x: Tensor) -> Tensor:
    _, _, h, w = x.shape
    ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    grid = torch.stack((xs / (w - 1) * 2 - 1, ys / (h - 1) * 2 - 1), -1).unsqueeze(0).repeat(x.shape[0], 1, 1, 1)
    return F.grid_sample(x, grid.to(x), align_corners=True)


def fourier(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(x, norm="backward")
    spectrum = torch.cat([spectrum.real, spectrum.imag], 1)
    real, imag = F.relu(spectrum).chunk(2, 1)
    return torch.fft.irfft2(torch.complex(real, imag), s=x.shape[-2:], norm="backward")


def unfolded(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    columns = F.unfold(x, 3, padding=1).view(b, c, 9, h * w)
    return columns.mean(2).view(b, c, h, w) + x.unfold(2, 2, 2).mean()


def shuffles(x: Tensor) -> Tensor:
    return F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2) + F.channel_shuffle(x, 2)


def statistics(x: Tensor) -> Tensor:
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
    best, where = x.max(1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() + best * where + torch.topk(x, 2, 1).values.sum(1, keepdim=True)


def asserted(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    assert h % 4 == 0
    assert (b, c) == x.shape[:2]
    torch._assert(w % 4 == 0, "width")
    return x.reshape(b, -1, h * w).reshape_as(x)


def as_type_int(x: Tensor) -> Tensor:
    ramp = torch.arange(x.shape[3], dtype=float)
    return x + ramp.to(x) + torch.ones(int(x.shape[2] / 1), 1, dtype=int)


def iterated(x: Tensor) -> Tensor:
    return torch.stack([one.flip(0) for one in x.split(2, 1)], 1).flatten(1, 2) + sum(part.mean() for part in x)


def unpacked(x: Tensor) -> Tensor:
    q, k = x.unflatten(1, (2, 2)).permute(1, 0, 2, 3, 4)
    return torch.cat([q * k, k], 1)


STEPS: list[Callable[[Tensor], Any]] = [
    branch_on_size, pad_inside, windows, mask_at_run_time, slices_assigned, in_place, in_place_seen_by_a_view, tiles,
    int_of_a_division, functions_of_sizes, numpy_of_sizes, positions_from_lists, tensor_of_sizes, coordinates,
    fourier, unfolded, shuffles, statistics, asserted, as_type_int, iterated, unpacked,
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_constructs(step: Callable[[Tensor], Any], agrees: Agrees) -> None:
    agrees(Body(step))


def test_gradient_through_slices_that_eager_overwrites(agrees: Agrees) -> None:
    def overwrites(x: Tensor) -> Tensor:
        y = x.tanh()
        y[:, :2] = y[:, :2].square().exp()
        y[:, 2:] += y[:, :2]
        return y

    def plain(x: Tensor) -> Tensor:
        y = x.tanh()
        first = y[:, :2].square().exp()
        return torch.cat([first, y[:, 2:] + first], 1)

    model, twin = Body(overwrites), Body(plain)
    twin.load_state_dict(model.state_dict())
    program = agrees(model, gradients=False)
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    (ours,) = torch.autograd.grad(program(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(twin(x).square().sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_slices_overwritten_while_somebody_holds_a_view(agrees: Agrees) -> None:
    def step(x: Tensor) -> Tensor:
        y = x * 2
        held = y[:, 1:]
        y[:, :3] = held * 3
        return y + held.sum() + held.mean()

    agrees(Body(step))


BINARY = ["add", "sub", "mul", "truediv", "pow", "matmul", "floordiv", "mod", "gt", "eq"]


@pytest.mark.parametrize("name", BINARY)
def test_operators_in_every_order(name: str, agrees: Agrees) -> None:
    function = getattr(operator, name)
    inplace = getattr(operator, f"i{name}", None)
    others = [torch.rand(12, 12) + 1] if name == "matmul" else [torch.rand(12, 12) + 1, 2, 0.5]

    def step(x: Tensor) -> list[Tensor]:
        x = x.sigmoid() + 0.5
        found = [function(x, x)]
        for other in others:
            found += [function(x, other), function(other, x)]
            if inplace is not None and name not in ("matmul", "floordiv", "mod"):
                found.append(inplace(x * 1, other))
        return found

    agrees(Body(step), (1, 3, 12, 12), (2, 3, 12, 12), gradients=name not in ("floordiv", "mod", "gt", "eq"))


def test_gradient_through_values_that_eager_overwrites(agrees: Agrees) -> None:
    def overwrites(x: Tensor) -> Tensor:
        y = F.relu(x, inplace=True)
        y += x.mean()
        return y.mul_(2)

    def plain(x: Tensor) -> Tensor:
        y = F.relu(x)
        return (y + y.mean()) * 2

    model, twin = Body(overwrites), Body(plain)
    twin.load_state_dict(model.state_dict())
    program = agrees(model, gradients=False)
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    (ours,) = torch.autograd.grad(program(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(twin(x).square().sum(), x)
    torch.testing.assert_close(ours, theirs)


EINOPS: dict[str, Callable[[Tensor], Tensor]] = {
    "windows": lambda x: rearrange(
        rearrange(x, "b c (h p) (w q) -> (b h w) (p q) c", p=4, q=4),
        "(b h w) (p q) c -> b c (h p) (w q)", p=4, h=x.shape[2] // 4, w=x.shape[3] // 4,
    ),
    "heads": lambda x: rearrange(
        rearrange(x, "b (n c) h w -> b n c (h w)", n=2), "b n c (h w) -> b (n c) h w", h=x.shape[2]
    ),
    "reduce and repeat": lambda x: x + repeat(reduce(x, "b c h w -> b c", "mean"), "b c -> b c h w", h=x.shape[2], w=1),
    "einsum": lambda x: einops_einsum(x, x.softmax(1), "b c h w, b d h w -> b c d"),
    "equal sizes": lambda x: rearrange(x, "b c h w -> b (h w) c").transpose(1, 2).reshape(x.shape),
}  # fmt: skip


@pytest.mark.parametrize("step", EINOPS.values(), ids=EINOPS)
def test_einops(step: Callable[[Tensor], Tensor], agrees: Agrees) -> None:
    agrees(Body(step), (1, 3, 16, 16), (1, 3, 16, 24), (2, 3, 20, 28))


def test_einops_layer(agrees: Agrees) -> None:
    agrees(nn.Sequential(nn.Conv2d(3, 4, 1), Rearrange("b c (h p) w -> b (c p) h w", p=2), nn.Conv2d(8, 3, 1)))


EINSUMS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "string": (lambda x: torch.einsum("bchw,bdhw->bcd", x, x), 1),
    "list": (lambda x: torch.einsum("bchw,bdhw->bcd", [x, x]), 1),
    "implicit": (lambda x: torch.einsum("bchw,bdhw", x, x.softmax(1)), 1),
    "dots": (lambda x: torch.einsum("...hw,...wv->...hv", x, x.transpose(2, 3)), 1),
    "axes": (lambda x: torch.einsum(x, [0, 1, 2, 3], x, [0, 4, 2, 3], [0, 1, 4]), 1),
    "three factors": (lambda x: torch.einsum("bchw,bdhw,bdhv->bcv", x, x, x), 1),
    "transposition": (lambda x: torch.einsum("bchw->bcwh", x), 0),
}


@pytest.mark.parametrize(("step", "found"), EINSUMS.values(), ids=EINSUMS)
def test_einsum(step: Callable[[Tensor], Tensor], found: int, agrees: Agrees) -> None:
    program = agrees(Body(step))
    assert sum("einsum" in site.name for site in program.sites) == found


class Convolutions(nn.Module):
    """Grouped, depthwise, dilated, strided, one by one, circular, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding="same"),
            nn.Conv2d(8, 8, 3, 1, 1, groups=4),
            nn.Conv2d(8, 8, 5, 1, 2, groups=8),
            nn.Conv2d(8, 8, 3, 1, 2, dilation=2),
            nn.Conv2d(8, 8, 1, bias=False),
            nn.Conv2d(8, 8, 3, 1, 1, padding_mode="reflect"),
            nn.Conv2d(8, 8, 3, 2, 1),
            nn.ConvTranspose2d(8, 6, 4, 2, 1, groups=2),
            nn.ConvTranspose2d(6, 3, 3, 2, 1, output_padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_convolutions(agrees: Agrees) -> None:
    program = agrees(Convolutions(), (1, 3, 12, 16), (1, 3, 8, 10), (2, 3, 16, 12))
    assert [site.kind for site in program.sites] == ["conv2d"] * 7 + ["conv_transpose2d"] * 2


class Shared(nn.Module):
    """One layer called twice, and its weight used once more by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, 1, 1)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.again(F.relu(self.first(x))), self.first.weight, padding=1)


def test_shared_weight(agrees: Agrees) -> None:
    program = agrees(Shared())
    assert [site.name for site in program.sites] == ["first", "first@2", "conv2d_0"]


class RepVgg(nn.Module):
    """Two kernels added in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.three, self.one = nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.three.weight + F.pad(self.one.weight, (1, 1, 1, 1))
        return F.conv2d(x, kernel, self.three.bias + self.one.bias, padding=1)


def parametrized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3, 1, 1))


def with_hooks() -> nn.Module:
    return nn.utils.weight_norm(nn.Conv2d(3, 3, 3, 1, 1))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", [RepVgg, parametrized, with_hooks])
def test_reparameterised_kernel_is_a_constant(make: Callable[[], nn.Module], agrees: Agrees) -> None:
    site = agrees(make()).sites[0]
    assert site.operand("weight").role == "constant"
    assert site.operand("input").role == "symmetric"


class Reassigned(nn.Module):
    """`.data` of a layer is set in the forward, as some reparameterised blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.train_only = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.used.weight.data = self.train_only.weight * 2
        return self.used(x)


def test_data_set_in_forward(agrees: Agrees) -> None:
    model = Reassigned()
    before = model.used.weight.detach().clone()
    program = Program(model, torch.rand(1, 3, 8, 8))
    assert torch.equal(model.used.weight, before)
    assert torch.equal(program.holder.model.used.weight, before)
    agrees(model)


class Stateful(nn.Module):
    """Writes into a buffer, rewrites a plain tensor attribute and keeps a cache by size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(1, 3, 1, 1))
        self.mean = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
        self.cache: dict[tuple[int, int], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean.type_as(x)
        self.average.mul_(0.5)
        self.average += x.mean((0, 2, 3), keepdim=True)
        self.average[:, 0] = 1
        size = (x.shape[2], x.shape[3])
        if size not in self.cache:
            self.cache[size] = torch.arange(size[1]).to(x).expand(size)
        return (x - self.mean) * self.average + self.cache[size]


def test_each_run_starts_from_the_stored_state() -> None:
    model = Stateful().eval()
    program = Program(model, torch.rand(1, 3, 8, 12))
    assert not model.cache
    assert not model.average.any()
    for shape in ((1, 3, 8, 12), (1, 3, 12, 8), (2, 3, 8, 8)):
        x = torch.rand(shape)
        for _ in range(2):
            assert torch.equal(program(x), Stateful()(x))
    assert not program.holder.model.average.any()


@functools.lru_cache(maxsize=8)
def ramp(height: int, width: int) -> Tensor:
    return torch.arange(float(height)).view(-1, 1) * torch.arange(float(width))


def test_module_level_cache(agrees: Agrees) -> None:
    ramp.cache_clear()
    ramp(16, 24)
    agrees(Body(lambda x: x + ramp(x.shape[2], x.shape[3])))
    agrees(Body(lambda x: x + ramp(x.shape[2], x.shape[3])))


class Pair(NamedTuple):
    image: Tensor
    feature: Tensor


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda x: (x, x + 1),
    "list": lambda x: [x.relu(), x],
    "dict": lambda x: {"image": x, "others": [x * 2, {"size": x.shape[2]}]},
    "named tuple": lambda x: Pair(x, x.mean(1)),
}


@pytest.mark.parametrize("step", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs(step: Callable[[Tensor], Any], agrees: Agrees) -> None:
    agrees(Body(step))


class NoiseMap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 3, 1, 1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:]) if sigma.dim() < 4 else sigma
        return x - self.conv(torch.cat([x, level], 1))


@pytest.mark.parametrize("sigma", [(1, 1), (1,)], ids=["map", "one number an image"])
def test_several_inputs(sigma: tuple[int, ...], agrees: Agrees) -> None:
    def shapes(n: int, h: int, w: int) -> tuple[tuple[int, ...], ...]:
        return (n, 3, h, w), (n, 1, h, w) if len(sigma) > 1 else (n,)

    agrees(NoiseMap(), shapes(1, 8, 12), shapes(1, 16, 9), shapes(2, 9, 8))


def test_one_channel(agrees: Agrees) -> None:
    agrees(nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 1, 3, 1, 1)), (1, 1, 8, 8), (1, 1, 9, 12))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_precisions(dtype: torch.dtype, agrees: Agrees) -> None:
    agrees(Body(windows).to(dtype), dtype=dtype)


ORDER, WEIGHTS = np.array([2, 0, 1]), np.array([0.5, 1.0, 2.0], dtype=np.float32)
NUMPY_ARGUMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels": lambda y: y[:, ORDER],
    "rows of this height": lambda y: y[:, :, np.arange(y.shape[2])[::-1].copy()],
    "mask": lambda y: y[:, np.array([True, False, True])],
    "pixels": lambda y: y[:, :, np.array([0, 3])[:, None], np.array([1, 2])],
    "assigned": lambda y: y.clone().index_put_((torch.tensor(0), torch.as_tensor(ORDER)), y[0]),
    "weights": lambda y: y * torch.tensor(WEIGHTS).view(1, 3, 1, 1) * torch.from_numpy(WEIGHTS).view(1, 3, 1, 1),
}


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("step", NUMPY_ARGUMENTS.values(), ids=NUMPY_ARGUMENTS)
def test_arrays_of_numpy_as_arguments(step: Callable[[Tensor], Tensor], agrees: Agrees) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return step(self.conv(x))

    agrees(Network(), (1, 3, 16, 16), (2, 3, 20, 24), (1, 3, 32, 32), (1, 3, 9, 40))


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(1, 1, *x.shape[2:])
        return F.dropout(x, 0.5) + noise + torch.randn_like(x)


def test_randomness_stays_random() -> None:
    model = Noisy().eval()
    program = Program(model, torch.rand(1, 3, 8, 8))
    for shape in ((1, 3, 8, 8), (2, 3, 12, 9)):
        x = torch.rand(shape)
        torch.manual_seed(3)
        theirs = model(x)
        torch.manual_seed(3)
        assert torch.equal(program(x), theirs)
        assert not torch.equal(program(x), theirs)


class Halved(torch.autograd.Function):
    """Doubles, and says its gradient is 0.5."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor, times: int) -> Tensor:
        return x * times

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * 0.5, None


halved = Halved.apply


@pytest.mark.parametrize("apply", [lambda x: Halved.apply(x, 2), lambda x: halved(x, 2)], ids=["class", "alias"])
def test_autograd_function_keeps_its_gradient(apply: Callable[[Tensor], Tensor], agrees: Agrees) -> None:
    agrees(Body(apply))


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.transpose(-2, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad @ x + grad.transpose(-2, -1) @ x


def test_arithmetic_in_an_autograd_function_is_a_site(agrees: Agrees) -> None:
    program = agrees(Body(Product.apply))
    assert [site.name for site in program.sites] == ["conv", "matmul_0"]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointing_is_seen_through(agrees: Agrees) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, *, reentrant: bool) -> None:
            super().__init__()
            self.block = Body(windows)
            self.reentrant = reentrant

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, x, use_reentrant=self.reentrant)  # type: ignore[no-any-return]

    for reentrant in (True, False):
        assert agrees(Checkpointed(reentrant=reentrant)).sites[0].name == "block.conv"


@torch.library.custom_op("fxptq_tests::scaled", mutates_args=())
def scaled(x: Tensor, factor: float) -> Tensor:
    return x * factor


@scaled.register_fake
def _(x: Tensor, factor: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fxptq_tests::fill", mutates_args=("x",))
def fill(x: Tensor, value: float) -> None:
    x[:, :1] = value


@pytest.mark.parametrize(
    "step",
    [lambda x: scaled(x, 2.0), lambda x: torch.ops.fxptq_tests.scaled(x, float(x.shape[2]))],
    ids=["definition", "packet"],
)
def test_custom_operator_is_listed(step: Callable[[Tensor], Tensor], agrees: Agrees) -> None:
    site = agrees(Body(step), gradients=False).sites[1]
    assert (site.kind, site.operands) == ("other", ())
    assert "custom operator" in site.reason


def test_custom_operator_that_writes(agrees: Agrees) -> None:
    def step(x: Tensor) -> Tensor:
        y = x * 2
        fill(y, 0.5)
        return y

    agrees(Body(step), gradients=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_pieces_are_listed(agrees: Agrees) -> None:
    global scripted  # noqa: PLW0603  # a network's file holds its scripted function as a global

    def gate(x: Tensor, size: int) -> Tensor:
        return x * torch.sigmoid(x) / size

    scripted = torch.jit.script(gate)

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.jit.script(nn.Conv2d(3, 4, 3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return scripted(self.conv(x), x.shape[2])  # type: ignore[no-any-return]

    sites = agrees(Half()).sites
    assert [(site.name, site.reason) for site in sites] == [("conv.scripted_0", "TorchScript hides what it computes")]


def test_recurrent_layers_are_listed(agrees: Agrees) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).reshape(x.shape)  # type: ignore[no-any-return]

    # Not bit for bit: on processors with AMX a GRU and its own deep copy differ in the last bit.
    assert [site.kind for site in agrees(Recurrent(), tolerance=1e-6).sites] == ["other"]


def test_fourier_transforms_are_listed(agrees: Agrees) -> None:
    program = agrees(Body(fourier))
    assert {site.name: site.reason.split(":")[0] for site in program.sites if site.reason} == {
        "fft_rfft2_0": "fft_rfft2",
        "fft_irfft2_0": "fft_irfft2",
    }


def test_compiled_network_is_unwrapped(agrees: Agrees) -> None:
    model = torch.compile(Body(windows), backend="eager")
    program = Program(model.eval(), torch.rand(1, 3, 8, 8))
    assert program.sites[0].name == "conv"
