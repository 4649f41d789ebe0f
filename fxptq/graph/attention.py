"""PyTorch's fused attention functions, and its functions that add to a product, written with plain matrix products.

The tracer records these forms in place of the fused calls, so that their products become sites like any other. A graph
with such a call equals the network up to float rounding instead of bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def scaled_dot_product_attention(  # the signature of the function it stands for
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001  # networks are quantized in evaluation
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k^T * scale + mask) v, as the documentation of `torch.nn.functional` writes it; the same arguments.

    Args:
        query: [..., L, E].
        key: [..., S, E].
        value: [..., S, V].
        attn_mask: boolean (True takes part) or additive, broadcastable to [..., L, S].
        dropout_p: ignored.
        is_causal: masks what lies ahead.
        scale: of the products; 1 / sqrt(E) by default.
        enable_gqa: each head of key and value serves several of the query.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = torch.matmul(
        query * (scale if scale is not None else 1 / math.sqrt(query.shape[-1])), key.transpose(-2, -1)
    )
    if is_causal:
        ahead = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(ahead, -math.inf)
    if attn_mask is not None:
        scores = (
            scores.masked_fill(attn_mask.logical_not(), -math.inf)
            if attn_mask.dtype is torch.bool
            else scores + attn_mask
        )
    return torch.matmul(F.softmax(scores, dim=-1), value)


def multi_head_attention(  # the signature of the function it stands for
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,  # noqa: ARG001  # as above
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,  # noqa: ARG001  # networks are quantized in evaluation
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`F.multi_head_attention_forward` for evaluation: projections, products and softmax as separate calls.

    Inputs are [length, batch, channels], or [length, channels] without a batch.
    """
    batched = query.dim() == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    length, batch, width = query.shape
    if in_proj_weight is not None and query is key and key is value:
        q, k, v = F.linear(query, in_proj_weight, in_proj_bias).chunk(3, -1)
    else:
        weights = (
            [options[f"{name}_proj_weight"] for name in "qkv"] if in_proj_weight is None else in_proj_weight.chunk(3)
        )
        biases = [None] * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    head = width // num_heads
    extra = 0
    if bias_k is not None and bias_v is not None:
        k, v = (torch.cat([x, bias.repeat(1, batch, 1)]) for x, bias in ((k, bias_k), (v, bias_v)))
        extra += 1
    if add_zero_attn:
        k, v = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (k, v))
        extra += 1

    def heads(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], batch, num_heads, head).permute(1, 2, 0, 3)

    scores = torch.matmul(heads(q) * (1 / math.sqrt(head)), heads(k).transpose(-2, -1))
    mask, padding = options.get("attn_mask"), options.get("key_padding_mask")
    if mask is not None:
        mask = F.pad(mask, (0, extra))
        if mask.dim() == 3:
            mask = mask.reshape(batch, num_heads, *mask.shape[1:])
        scores = scores.masked_fill(mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    if padding is not None:
        padding = F.pad(padding if batched else padding.unsqueeze(0), (0, extra))[:, None, None, :]
        scores = scores.masked_fill(padding, -math.inf) if padding.dtype is torch.bool else scores + padding
    weights_of_values = F.softmax(scores, dim=-1)
    mixed = torch.matmul(weights_of_values, heads(v)).permute(2, 0, 1, 3).reshape(length, batch, width)
    out = F.linear(mixed, out_proj_weight, out_proj_bias)
    shown = None
    if options.get("need_weights", True):
        shown = weights_of_values.mean(1) if options.get("average_attn_weights", True) else weights_of_values
    if not batched:
        out, shown = out.squeeze(1), None if shown is None else shown.squeeze(0)
    return out, shown


def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:  # noqa: A002  # PyTorch's name
    """`torch.baddbmm`, and `torch.addmm` for matrices: beta * input + alpha * (batch1 @ batch2)."""
    product = torch.matmul(batch1, batch2)
    return (product if alpha == 1 else product * alpha) + (input if beta == 1 else input * beta)


DECOMPOSED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: multi_head_attention,
    F.scaled_dot_product_attention: scaled_dot_product_attention,
    **dict.fromkeys((torch.baddbmm, torch.Tensor.baddbmm, torch.addmm, torch.Tensor.addmm), baddbmm),
}
"""The functions that the tracer records by their parts, with these parts."""
