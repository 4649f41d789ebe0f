"""The ONNX form of each call of torch: ONNX Runtime computes what torch computes, at two sizes, from one file."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxptq.errors import InputError
from fxptq.export.onnx_file import to_onnx
from fxptq.export.runtime import compare
from fxptq.export.subject import Trial, at, subject_of
from fxptq.export.table import forms
from fxptq.graph import Program
from fxptq.graph.calls import name_of, words
from fxptq.sizes import Sizes

pytest.importorskip("onnx", reason="onnx is not installed (extra `export`)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export`)")

Call = Callable[..., Any]
W = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
V = torch.linspace(0.5, 1.5, 4)
TABLE = torch.arange(4).flip(0)


class Net(nn.Module):
    """A network of one call, on an input of four channels."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        for name, tensor in (("w", W), ("v", V), ("table", TABLE)):
            self.register_buffer(name, tensor.clone())

    def forward(self, x: Tensor) -> Any:
        return self.call(x, self)


def _sizes(x: Tensor, _: Net) -> Tensor:
    b, c, h, w = x.shape
    padded = F.pad(x, (0, -w % 8, 0, -h % 8), mode="reflect")
    return padded.view(b, c, padded.shape[2] // 8, 8, -1).transpose(2, 3)


def _mask(x: Tensor, net: Net) -> Tensor:
    rows = torch.arange(x.shape[2])
    inside = (rows >= x.shape[2] - 3).long() + (rows % 2 != 0)
    return x.masked_fill((inside == 1).view(1, 1, -1, 1), -100.0)


CALLS: dict[str, Call] = {
    "add, alpha": lambda x, n: torch.add(x, x.flip(3), alpha=0.5),
    "sub from a number": lambda x, n: 1 - x,
    "mul, neg": lambda x, n: -(x * 3),
    "div": lambda x, n: (x / 3) / (x + 2),
    "division of a number": lambda x, n: 2 / (x + 1) + torch.zeros(x.shape[2], 1) + (x < 0.5),
    "floor_divide, remainder": lambda x, n: (x * 7) // 2 + (x * 7 - 3) % 2,
    "pow": lambda x, n: x**2 + (x + 1) ** 0.5 + torch.pow(x + 1, -1.5),
    "maximum, minimum": lambda x, n: torch.maximum(x, x.flip(2)) - torch.minimum(x, n.v.view(4, 1, 1)),
    "compare, where": lambda x, n: torch.where(x > 0.5, x, torch.where(x.le(0.2), x * 2, -x)),
    "abs, sqrt, rsqrt, exp, log": lambda x, n: (
        (x - 0.5).abs().sqrt() + torch.rsqrt(x + 1) + torch.exp(-x) + torch.log(x + 1)
    ),
    "round, floor, ceil": lambda x, n: (x * 5).round() + (x * 5).floor() - (x * 5).ceil(),
    "clamp": lambda x, n: x.clamp(0.2, 0.8) + x.clamp(min=0.5) + torch.clamp(x, max=0.1),
    "relu family": lambda x, n: (
        F.relu(x - 0.5) + F.leaky_relu(x - 0.5, 0.2) + F.elu(x - 0.5) + F.relu6(9 * x) + F.hardtanh(x, -0.1, 0.3)
    ),
    "sigmoid, tanh, silu, gelu": lambda x, n: (
        torch.sigmoid(x) + x.tanh() + F.silu(x) + F.gelu(x) + F.gelu(x, approximate="tanh")
    ),
    "hardswish, hardsigmoid, mish, softplus": lambda x, n: (
        F.hardswish(5 * x - 2) + F.hardsigmoid(5 * x - 2) + F.mish(x) + F.softplus(x)
    ),
    "prelu": lambda x, n: F.prelu(x - 0.5, n.v),
    "view, permute": lambda x, n: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4).transpose(1, 2),
    "flatten, unflatten": lambda x, n: x.flatten(2).unflatten(1, (2, 2)),
    "squeeze, unsqueeze": lambda x, n: x.unsqueeze(1).unsqueeze(-1).squeeze(1).squeeze(-1) + 1,
    "movedim": lambda x, n: x.movedim(1, -1).movedim((0, 1), (1, 0)),
    "expand, repeat": lambda x, n: (
        x[:, :1].expand(-1, 4, -1, -1) + n.v.view(1, 4, 1, 1).expand_as(x) + x.repeat(1, 1, 1, 1)
    ),
    "cat, stack, chunk, split": lambda x, n: (
        torch.cat([*x.chunk(2, 1)[::-1], x.split([1, 3], 1)[1]], 1), torch.stack([x, x + 1], 2)
    ),
    "unbind, select, narrow": lambda x, n: x.unbind(1)[2] + x.select(1, 0) + x.narrow(1, 1, 2).sum(1),
    "index": lambda x, n: x[:, None, 1:, ..., ::2] + x[:, 0, None, None, :, 1::2][..., :1],
    "index by a tensor": lambda x, n: x[:, n.table] + x.index_select(1, n.table),
    "last row": lambda x, n: x[:, :, -1] + x[:, :, x.shape[2] // 2],
    "roll": lambda x, n: torch.roll(x, shifts=(-3, 2), dims=(2, 3)),
    "pad, all modes": lambda x, n: (
        F.pad(x, (1, 2, 3, 0), value=0.7), F.pad(x, (1, 2, 3, 1), "reflect"), F.pad(x, (1, 2, 0, 1), "replicate"),
        F.pad(x, (1, 2, 0, 1), "circular"),
    ),
    "pixel shuffle and back": lambda x, n: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2) + 1,
    "pixel unshuffle": lambda x, n: F.pixel_unshuffle(x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2], 2),
    "channel shuffle": lambda x, n: F.channel_shuffle(x, 2),
    "linear": lambda x, n: F.linear(x.movedim(1, -1), n.w[:, :, 0].flatten(1)[:, :4], n.v),
    "convolution": lambda x, n: F.conv2d(x, n.w, n.v, stride=2, padding=2, dilation=2, groups=2),
    "rms_norm, var, std": lambda x, n: (
        F.rms_norm(x.movedim(1, -1), (4,), n.v), x.var((2, 3), keepdim=True), x.std(1), x.std(), x.var(1, correction=0)
    ),
    "split into pieces": lambda x, n: x.split(3, 1)[0] + x.split(1, 1)[3],
    "coordinates": lambda x, n: torch.stack(
        torch.meshgrid(torch.linspace(-1, 1, x.shape[2]), torch.linspace(0, 2, x.shape[3]), indexing="ij")
    ) * x[:, :2],
    "convolution, same, dilated": lambda x, n: F.conv2d(x, n.w[..., :2, :], None, padding="same", groups=2, dilation=2),
    "convolution, same": lambda x, n: F.conv2d(x, n.w, None, padding="same", groups=2),
    "transposed convolution": lambda x, n: F.conv_transpose2d(x, n.w, None, 2, 1, 1),
    "matmul, einsum": lambda x, n: x @ x.transpose(2, 3) + torch.einsum("bchw,bcgw->bchg", x, x),
    "softmax": lambda x, n: x.softmax(1) + F.softmax(x, dim=-1),
    "batch_norm": lambda x, n: F.batch_norm(x, n.v - 1, n.v, n.v, None),
    "layer_norm": lambda x, n: F.layer_norm(x.movedim(1, -1), (4,), n.v, n.v) + F.layer_norm(x.movedim(1, -1), (4,)),
    "group_norm": lambda x, n: F.group_norm(x, 2, n.v, n.v),
    "instance_norm": lambda x, n: F.instance_norm(x, weight=n.v, bias=n.v),
    "normalize": lambda x, n: F.normalize(x, dim=1),
    "mean, sum, amax": lambda x, n: (
        x.mean((2, 3), keepdim=True) + x.sum(1, keepdim=True) + x.amax(1, keepdim=True) + x.mean()
    ),
    "pools": lambda x, n: (
        F.max_pool2d(x, 2), F.max_pool2d(x, 3, 1, 1), F.avg_pool2d(x, 3, 2, 1), F.adaptive_avg_pool2d(x, 1)
    ),
    "interpolate": lambda x, n: (
        F.interpolate(x, scale_factor=2), F.interpolate(x, scale_factor=2, mode="bilinear"),
        F.interpolate(x, scale_factor=3, mode="bicubic"),
        F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    ),
    "interpolate to a size": lambda x, n: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:], mode="bilinear"),
    "arithmetic of sizes": _sizes,
    "mask from sizes": _mask,
    "full tensors": lambda x, n: x * torch.zeros_like(x) + torch.ones(x.shape[2], 1) + torch.ones_like(x),
    "types": lambda x, n: x.double().float() + (x > 0.5).to(torch.float32) + (3 * x).long(),
    "dropout, contiguous": lambda x, n: F.dropout(x, training=False).contiguous().clone().detach() * 2,
    "grid_sample": lambda x, n: F.grid_sample(x, x[:, :2].movedim(1, -1) * 2 - 1, align_corners=False),
    "a dictionary of outputs": lambda x, n: {"y": x + 1, "more": [x * 2, (x - 1,)]},
}  # fmt: skip


UNTRIED = words(
    "conv1d numel erf sin cos reciprocal square logical_not size T t mT amin prod rsub __rsub__ __rtruediv__ __rdiv__ "
    "rdiv unsqueeze"
)
"""Spellings of calls that are tried, and forms of one line."""


def exported(call: Call, size: tuple[int, int] = (16, 16), batch: int = 1) -> tuple[Program, Any, Any]:
    example = (torch.rand(batch, 4, *size, generator=torch.Generator().manual_seed(0)),)
    program = Program(Net(call), example)
    subject = subject_of(program, example, Sizes(), size=None, white=1.0)
    return program, subject, to_onnx(program, subject, {})


@pytest.mark.parametrize("name", CALLS)
def test_the_runtime_computes_what_torch_computes(name: str) -> None:
    program, subject, file = exported(CALLS[name])
    assert subject.free == (0, 2, 3)
    more = at(subject.example, (24, 13), 1.0, seed=7)
    for found in compare(file.data, (*subject.trials, Trial(more, program(*more))), 1.0):
        assert found.largest < 2e-5, found


def test_every_form_is_tried() -> None:
    tried: set[str] = set()
    for call in CALLS.values():
        program = Program(Net(call), (torch.rand(1, 4, 16, 16),))
        tried |= {name_of(node) for node in program.variants[0].inserted.nodes}
    forms_tried = {id(form) for name, form in forms().items() if name in tried}
    assert {name for name, form in forms().items() if id(form) not in forms_tried} <= UNTRIED


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x, n: F.fold(F.unfold(x, 3), x.shape[2:], 3), "unfold"),
        (lambda x, n: x.topk(2, 1)[0], "topk"),
        (lambda x, n: torch.fft.rfft2(x).real, "fft_rfft2"),
        (lambda x, n: F.interpolate(x, scale_factor=2, mode="area"), "interpolate"),
        (
            lambda x, n: F.conv2d(
                x.flatten(0, 1)[None], n.w[:1, :1].repeat(4 * x.shape[0], 1, 1, 1), groups=4 * x.shape[0]
            ),
            "conv2d",
        ),
    ],
    ids=["unfold", "topk", "fft", "area", "groups from sizes"],
)
def test_a_call_without_a_form_is_refused_by_name_and_place(call: Call, name: str) -> None:
    with pytest.raises(InputError, match=rf"\(test_calls\.py:\d+\).*{name}: ") as caught:
        exported(call)
    assert "\n" not in str(caught.value)


def test_what_is_written_into_a_tensor_is_refused() -> None:
    def overwrite(x: Tensor, net: Net) -> Tensor:
        y = x * 2
        y[:, 0] = 1.0
        return y + x

    with pytest.raises(InputError, match="setitem: it writes into a tensor that is read elsewhere"):
        exported(overwrite)


def test_floor_arithmetic_of_negative_sizes_is_pythons() -> None:
    def pieces(x: Tensor, _: Net) -> Tensor:
        return F.pad(x, (0, operator.neg(x.shape[3]) // 5 + x.shape[3], 0, -x.shape[2] % 5))

    _, subject, file = exported(pieces)
    assert all(found.largest == 0 for found in compare(file.data, subject.trials, 1.0))
