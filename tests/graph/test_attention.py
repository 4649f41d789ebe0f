"""Fused attention calls, decomposed: the same values, and their products are sites."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxptq.graph import Program
from fxptq.graph.attention import scaled_dot_product_attention

Agrees = Callable[..., Program]
TOKENS = ((1, 8, 12), (2, 8, 12), (1, 6, 12))


class Attention(nn.Module):
    """[N, L, 12] through `F.scaled_dot_product_attention` with two heads."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        options = {key: make(x.shape[1]) if callable(make) else make for key, make in self.options.items()}
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)


def lower(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "boolean mask": {"attn_mask": lower},
    "additive mask": {"attn_mask": lambda n: torch.linspace(-1, 1, n).expand(n, n)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_scaled_dot_product_attention(options: dict[str, Any], agrees: Agrees) -> None:
    program = agrees(Attention(**options), *TOKENS, tolerance=2e-6)
    assert [site.name for site in program.sites] == ["qkv", "matmul_0", "matmul_1"]
    assert program.sites[2].operand("lhs").role == "one_sided"
    assert program.sites[0].operand("weight").parts == 3
    assert all(variant.capture.tolerance == 0 for variant in program.variants)


def test_grouped_heads() -> None:
    q, k, v = torch.rand(1, 4, 5, 6), torch.rand(1, 2, 5, 6), torch.rand(1, 2, 5, 6)
    theirs = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, enable_gqa=True), theirs)


class SelfAttention(nn.Module):
    def __init__(self, *, batch_first: bool, call: dict[str, Any], **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 2, batch_first=batch_first, **options)
        self.call = call

    def forward(self, x: Tensor) -> Any:
        length = x.shape[1 if self.attention.batch_first else 0]
        call = {key: make(x, length) if callable(make) else make for key, make in self.call.items()}
        mixed, weights = self.attention(x, x, x, **call)
        return mixed if weights is None else (mixed, weights)


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no weights": {"need_weights": False},
    "weights of each head": {"average_attn_weights": False},
    "mask": {"attn_mask": lambda _, n: lower(n).logical_not()},
    "additive mask of each head": {
        "attn_mask": lambda x, n: torch.zeros(16, n, n).fill_(-0.5).tril()[: 2 * x.shape[0]]
    },
    "padding": {"key_padding_mask": lambda x, n: (torch.arange(n) >= n - 2).expand(x.shape[0], n)},
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("extra", [{}, {"add_bias_kv": True, "add_zero_attn": True}], ids=["", "extra keys"])
def test_multihead_attention(call: dict[str, Any], extra: dict[str, Any], agrees: Agrees) -> None:
    program = agrees(SelfAttention(batch_first=True, call=call, **extra), *TOKENS, tolerance=2e-6)
    assert [site.kind for site in program.sites] == ["linear", "matmul", "matmul", "linear"]


def test_length_first(agrees: Agrees) -> None:
    agrees(SelfAttention(batch_first=False, call={}), *TOKENS, tolerance=2e-6)


def test_without_batch(agrees: Agrees) -> None:
    agrees(SelfAttention(batch_first=False, call={}), (8, 12), (6, 12), tolerance=2e-6)


def test_cross_attention(agrees: Agrees) -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = nn.MultiheadAttention(12, 2, batch_first=True)
            self.other = nn.MultiheadAttention(12, 2, batch_first=True, kdim=4, vdim=6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.same(x, x + 1, x * 2)[0]
            return self.other(x, x[..., :4], x[..., :6])[0]  # type: ignore[no-any-return]

    program = agrees(Cross(), *TOKENS, tolerance=2e-6)
    assert sum(site.kind == "linear" for site in program.sites) == 8


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layer(norm_first: bool, agrees: Agrees) -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True, norm_first=norm_first)
    program = agrees(layer, *TOKENS, tolerance=5e-6)
    assert sum(site.kind == "linear" for site in program.sites) == 4


@pytest.mark.parametrize("options", [{}, {"beta": 0.5, "alpha": math.pi}], ids=["", "scaled"])
def test_added_products(options: dict[str, float], agrees: Agrees) -> None:
    class Added(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            product = torch.baddbmm(x, x.softmax(1), x, **options)
            return torch.addmm(product[0], product[0].relu(), product[0], **options).mm(x[0]) + x.bmm(x)

    program = agrees(Added(), (1, 8, 8), (2, 12, 12), tolerance=2e-6)
    assert [site.name for site in program.sites] == [f"matmul_{i}" for i in range(4)]
