"""The site table: nothing missed, nothing invented, the right costs, roles and ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxptq.graph import Bits, Plan, Program, Site
from fxptq.models.edsr import EDSR
from fxptq.models.swinir import SwinIR
from fxptq.passes.base import Context, run_passes


class Counting(TorchFunctionMode):
    """Counts arithmetic by its function and nothing else: no graph, no names."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = {"__matmul__": "matmul", "bmm": "matmul"}.get(func.__name__, func.__name__)
        if name in ("linear", "conv2d", "conv_transpose2d", "matmul", "einsum"):
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def swinir(**options: Any) -> SwinIR:
    sizes = {"img_size": 16, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2), "window_size": 8, "mlp_ratio": 2.0}
    return SwinIR(**sizes, upscale=2, upsampler="pixelshuffledirect", **options).eval()


def table(model: nn.Module, shape: tuple[int, ...] = (1, 3, 16, 24), plan: Plan | None = None) -> dict[str, Site]:
    return {site.name: site for site in Program(model.eval(), torch.rand(shape), plan).sites}


@pytest.mark.parametrize("make", [swinir, lambda: EDSR(n_resblocks=3, n_feats=8)], ids=["swinir", "edsr"])
def test_as_many_as_plain_interception_counts(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    with Counting() as counting, torch.no_grad():
        model(torch.rand(1, 3, 16, 24))
    assert Counter(site.kind for site in table(model).values()) == counting.calls


def test_names_of_swinir() -> None:
    attn = "layers.1.residual_group.blocks.0.attn"
    found = [name for name in table(swinir()) if name.startswith("layers.1.residual_group.blocks.0")]
    mlp = attn.replace("attn", "mlp")
    assert found == [f"{attn}.qkv", f"{attn}.matmul_0", f"{attn}.matmul_1", f"{attn}.proj", f"{mlp}.fc1", f"{mlp}.fc2"]


def test_costs_by_hand() -> None:
    sites = table(swinir())
    pixels, width = 16 * 24, 12
    attn = "layers.0.residual_group.blocks.0.attn"
    assert sites["conv_first"].macs == pixels * 3 * 9 * width
    assert sites[f"{attn}.qkv"].macs == pixels * width * 3 * width
    assert sites[f"{attn}.matmul_0"].macs == pixels * 64 * width
    assert sites[f"{attn}.matmul_1"].macs == pixels * 64 * width
    assert sites["upsample.0"].macs == pixels * width * 9 * 12


class Costs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(16, 4, 2, 2)
        self.three = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.grouped(x))
        y = torch.einsum("bchw,bdhw->bcd", y, y) @ y.flatten(2)
        return self.three(y.unsqueeze(1))  # type: ignore[no-any-return]


def test_costs_of_other_kinds() -> None:
    sites = table(Costs(), (1, 8, 4, 6))
    assert sites["grouped"].macs == 4 * 6 * 16 * 2 * 9
    assert sites["up"].macs == 4 * 6 * 16 * 4 * 4
    assert sites["einsum_0"].macs == 4 * 4 * 8 * 12
    assert sites["matmul_0"].macs == 4 * 4 * 8 * 12
    assert sites["three"].macs == 4 * 96 * 2 * 27
    assert sites["three"].reason == "conv3d: no quantizer for this operation"
    assert sites["up"].operand("weight").axis == 1
    assert sites["up"].shapes == {"input": (1, 16, 4, 6), "weight": (16, 4, 2, 2), "output": (1, 4, 8, 12)}


class Roles(nn.Module):
    """Each entry of `steps` precedes a convolution of its own."""

    def __init__(self, *steps: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.steps = steps
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, 1, 1) for _ in steps)

    def forward(self, x: Tensor) -> Tensor:
        return sum(conv(step(x - 0.5)) for step, conv in zip(self.steps, self.convs, strict=True))  # type: ignore[return-value]


ROLES: dict[str, tuple[Callable[[Tensor], Tensor], str, float | None]] = {
    "nothing": (lambda x: x, "symmetric", None),
    "relu": (F.relu, "one_sided", 0.0),
    "method in place": (lambda x: (x * 2).relu_(), "one_sided", 0.0),
    "softmax": (lambda x: x.softmax(1), "one_sided", 0.0),
    "gelu": (F.gelu, "one_sided", None),
    "gelu, moved": (lambda x: F.gelu(x).transpose(2, 3).contiguous().transpose(2, 3), "one_sided", None),
    "sigmoid, interpolated": (lambda x: F.interpolate(x.sigmoid(), size=x.shape[2:]), "one_sided", 0.0),
    "relu, bicubic": (lambda x: F.interpolate(x.relu(), size=x.shape[2:], mode="bicubic"), "symmetric", None),
    "relu beside relu": (lambda x: torch.cat([x[:, :2].relu(), x[:, 2:].relu()], 1), "one_sided", 0.0),
    "relu beside nothing": (lambda x: torch.cat([x[:, :2].relu(), x[:, 2:]], 1), "symmetric", None),
    "relu, shifted": (lambda x: x.relu() - 1, "symmetric", None),
}


@pytest.mark.parametrize(("step", "role", "lowest"), ROLES.values(), ids=ROLES)
def test_roles(step: Callable[[Tensor], Tensor], role: str, lowest: float | None) -> None:
    operand = table(Roles(lambda x: x, step), (1, 4, 6, 6))["convs.1"].operand("input")
    assert (operand.role, operand.lowest) == (role, lowest)


class Constants(nn.Module):
    """Products with a fixed matrix, with one that depends on the size, and with one another."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Parameter(torch.rand(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.fixed) @ torch.ones(x.shape[3], x.shape[3]) @ (self.fixed @ self.fixed)


def test_constant_factors() -> None:
    program = Program(Constants().eval(), torch.rand(1, 4, 6, 6), Plan(Bits(3, 5), edges=None))
    assert [site.operand("rhs").role for site in program.sites] == ["constant"] * 3
    assert [site.bits for site in program.sites] == [(3, 5)] * 3
    assert [program.weight_of(site.operand("rhs").quantizer) is not None for site in program.sites] == [
        True,
        False,
        True,
    ]


class Qkv(nn.Module):
    """A fused projection whose thirds are q, k and v, or are interleaved."""

    def __init__(self, layout: str, *, conv: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(12, 36, 1) if conv else nn.Linear(12, 36)
        self.layout, self.conv = layout, conv

    def forward(self, x: Tensor) -> Tensor:
        y = self.qkv(x)
        if self.conv:
            y = y.flatten(2).transpose(1, 2)
        if self.layout == "thirds":
            q, k, v = y.unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        elif self.layout == "chunks":
            q, k, v = (part.unflatten(-1, (2, 6)).transpose(1, 2) for part in y.chunk(3, -1))
        elif self.layout == "normalized":
            q, k, v = y.unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
            q, k = F.normalize(q, dim=-1) * 3, F.normalize(k, dim=-1)
        elif self.layout == "interleaved":
            q, k, v = y.unflatten(-1, (2, 3, 6)).permute(3, 0, 2, 1, 4)
        else:
            q = k = v = y.unflatten(-1, (2, 18)).transpose(1, 2)
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v


@pytest.mark.parametrize(
    ("layout", "ranges"), [("thirds", 3), ("chunks", 3), ("normalized", 3), ("interleaved", 1), ("one", 1)]
)
@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
def test_ranges_of_a_fused_weight(layout: str, ranges: int, conv: bool) -> None:
    shape = (1, 12, 4, 5) if conv else (1, 20, 12)
    sites = table(Qkv(layout, conv=conv), shape, Plan(Bits(4, 4), granularity="tensor", edges=None))
    operand = sites["qkv"].operand("weight")
    assert (operand.parts, operand.ranges) == (ranges, ranges)


def test_ranges_of_swinir() -> None:
    sites = table(swinir(), plan=Plan(Bits(4, 4), granularity="tensor"))
    assert {s.operand("weight").ranges for n, s in sites.items() if n.endswith("qkv")} == {3}
    assert {s.operand("weight").ranges for n, s in sites.items() if n.endswith(("proj", "fc1", "fc2"))} == {1}


class SharedOperand(nn.Module):
    """Three layers read one tensor; a product multiplies it with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        return (self.q(x) @ self.k(x).transpose(1, 2)) @ self.v(x) + x @ x.transpose(1, 2) @ x


def test_operands_that_read_one_tensor_share_a_quantizer() -> None:
    program = Program(SharedOperand().eval(), torch.rand(1, 5, 8), Plan(Bits(4, 4), edges=None))
    sites = {site.name: site for site in program.sites}
    readers = [sites[name].operand("input").quantizer for name in "qkv"]
    readers += [sites["matmul_2"].operand("lhs").quantizer, sites["matmul_3"].operand("rhs").quantizer]
    assert set(readers) == {"q.input"}
    assert sum(node.target == "quantizers.q/input" for node in program.variants[0].inserted.nodes) == 1


class Overwritten(nn.Module):
    """Layers that read one tensor: two as it is made, one after a view of it was written into, two at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        total = self.layers[0](y) + self.layers[1](y)
        part = y[:, :4]
        part -= 5
        total = total + self.layers[2](y)
        part[:, 1] = 9
        return self.tail(total + self.layers[3](y) + self.layers[4](y))  # type: ignore[no-any-return]


def test_what_is_written_between_two_readers_is_quantized_for_each() -> None:
    torch.manual_seed(0)
    model, x = Overwritten().eval(), torch.rand(1, 3, 8, 8)
    program, teacher = Program(model, x, Plan(Bits(8, 8), edges=None)), Program(model, x)
    keys = [site.operand("input").quantizer for site in program.sites if site.name.startswith("layers")]
    assert keys == [f"layers.{first}.input" for first in (0, 0, 2, 3, 3)]
    run_passes([("minmax", {})], Context(program, teacher, [x]))
    with torch.no_grad():
        assert (program(x) - model(x)).abs().max() < 0.05 * model(x).abs().max()


def test_mean_shift_stays_in_float() -> None:
    sites = table(EDSR(n_resblocks=1, n_feats=8), plan=Plan(Bits(4, 4)))
    assert [name for name, site in sites.items() if site.reason] == ["sub_mean", "add_mean"]
    assert "colours" in sites["sub_mean"].reason
    assert sites["sub_mean"].bits == (None, None)


class Attending(nn.Module):
    """An attention between channels, written as networks for [B, C, H, W] write it: a convolution for each layer."""

    def __init__(self, width: int = 16, *, attends: bool = True) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.local = nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width)
        self.mlp = nn.Sequential(nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1))
        self.attends = attends

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        q, k, v = self.local(self.qkv(x)).chunk(3, 1)
        if self.attends:
            weights = torch.softmax(q.flatten(2) @ k.flatten(2).transpose(1, 2), dim=-1)
            x = x + (weights @ v.flatten(2)).view_as(v)
        else:
            x = x + q * k * v
        return self.tail(x + self.mlp(x))  # type: ignore[no-any-return]


def test_pointwise_convolutions_beside_products_are_planned_as_linear_layers() -> None:
    """They do most of the work, so the network is a transformer, whose other convolutions have eight bits."""
    sites = table(Attending(), plan=Plan(Bits(3, 4)))
    bits = {name: site.bits for name, site in sites.items()}
    assert bits == {
        "head": (8, 8), "tail": (8, 8), "local": (8, 8),
        "qkv": (3, 4), "mlp.0": (3, 4), "mlp.2": (3, 4), "matmul_0": (4, 4), "matmul_1": (4, 4),
    }  # fmt: skip


def test_without_products_a_network_of_pointwise_convolutions_is_no_transformer() -> None:
    sites = table(Attending(attends=False), plan=Plan(Bits(3, 4)))
    assert {name: sites[name].bits for name in ("head", "local", "mlp.0")} == {
        "head": (8, 8), "local": (3, 4), "mlp.0": (3, 4),
    }  # fmt: skip


def test_convolutions_that_do_most_of_the_work_beside_products_have_the_asked_bits() -> None:
    network = Attending()
    network.mlp = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.GELU(), nn.Conv2d(64, 16, 3, padding=1))
    assert table(network, plan=Plan(Bits(3, 4)))["mlp.0"].bits == (3, 4)


def test_edges() -> None:
    sites = table(EDSR(n_resblocks=2, n_feats=8, scale=2))
    assert {name: site.edge for name, site in sites.items() if site.edge} == {
        "head.0": "head", "body.2": "trunk", "tail.0.0": "trunk", "tail.1": "tail",
    }  # fmt: skip


class Positions(nn.Module):
    """A layer fed with coordinates: nothing in it depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fixed = self.mlp(torch.tensor([[0.0, 1.0]])).view(1, 3, 1, 1)
        size = self.mlp(torch.tensor([[float(x.shape[2]), 1.0]])).view(1, 3, 1, 1)
        return self.conv(x) + fixed + size  # type: ignore[no-any-return]


def test_what_does_not_depend_on_the_image_is_no_site() -> None:
    assert list(table(Positions())) == ["conv"]


class Codebook(nn.Module):
    """Each pixel is replaced by the nearest of eight codes."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.codes, self.tail = nn.Conv2d(3, 4, 1), nn.Parameter(torch.rand(8, 4)), nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x).permute(0, 2, 3, 1)
        distance = self.codes.square().sum(1) - 2 * y @ self.codes.t()
        chosen = F.one_hot(distance.argmin(-1), 8).to(y) @ self.codes
        return self.tail((y + (chosen - y).detach()).permute(0, 3, 1, 2))  # type: ignore[no-any-return]


def test_what_only_chooses_stays_in_float() -> None:
    sites = table(Codebook(), (1, 3, 8, 8))
    assert {name: site.reason[:12] for name, site in sites.items()} == {
        "head": "a shift or m", "matmul_0": "only chooses", "matmul_1": "", "tail": ""
    }  # fmt: skip


def test_operand_lookup() -> None:
    site = table(EDSR(n_resblocks=1, n_feats=8))["head.0"]
    assert site.operand("weight").role == "constant"
    with pytest.raises(KeyError, match=r"head\.0 has no lhs"):
        site.operand("lhs")
