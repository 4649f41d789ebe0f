"""The integer operators: their names, their arguments, and their exact form in plain torch.

A graph calls them as `torch.ops.fxptq.<name>`. Compiled kernels (build.py) take over on the CPU and Triton kernels
(cuda/) on GPUs; everywhere else the functions here run. Products of codes are exact integers in all of them, because a
float of 24 (or 53) bits holds every partial sum. Scales, offsets and biases are combined ahead of time (layer.py) and
padded to blocks of 64 columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from fxptq.kernels.panels import centred, unpack_weight


class Activation(IntEnum):
    """Activations that an epilogue can apply."""

    NONE = 0
    LEAKY = 1
    GELU = 2


class Epilogue(TypedDict):
    """The arguments of the last step of an operator: from the integer sums to values, or to codes of the next grid.

    y = scale * sum(A W) + bias [+ row_scale * sum(A)]; the activation; + residual; then the output is y, or with
    `levels` the codes round(clip(z, 0, levels)). After an activation or a residual z = y * out_scale + out_offset;
    otherwise z = y, because scale and bias then include the next grid. Every tensor but the residual has one number for
    each column.

    Attributes:
        scale: factor of the sum of products, for each column.
        row_scale: factor of the sum of the activation codes, for each column. The weight must then have been packed
            `with_sums`. None where the weights have no offset.
        activation: an `Activation`.
        slope: the slope of the leaky activation below zero; 0 is ReLU.
        residual: float32 of the output's shape, or None.
        levels: largest code of each column, or None for float32 output.
        out_scale: factor from a value to the next grid; None where the scale includes it.
        out_offset: zero point of the next grid; None where the bias includes it.
    """

    scale: Tensor
    row_scale: Tensor | None
    activation: int
    slope: float
    residual: Tensor | None
    levels: Tensor | None
    out_scale: Tensor | None
    out_offset: Tensor | None


EPILOGUE = (
    "Tensor scale, Tensor? row_scale, int activation, float slope, Tensor? residual, Tensor? levels, "
    "Tensor? out_scale, Tensor? out_offset"
)
"""The arguments of an `Epilogue` in the schema of an operator."""

_SCHEMAS = {
    "quantize": "(Tensor x, *, float lower, float step, int levels) -> Tensor",
    "affine_codes": "(Tensor x, *, Tensor scale, Tensor offset, int levels) -> Tensor",
    "share_codes": "(Tensor x, *, float scale, int levels) -> Tensor",
    "layer_norm_codes": "(Tensor x, *, Tensor scale, Tensor offset, float eps, int levels) -> Tensor",
    "linear": f"(Tensor codes, Tensor weight, *, int columns, int largest=255, Tensor bias, {EPILOGUE}) -> Tensor",
    "conv2d": (
        "(Tensor codes, Tensor weight, *, int columns, int largest=255, int[] kernel_size, int[] stride, "
        f"int[] padding, int groups=1, int shuffle=1, Tensor bias, Tensor? taps, {EPILOGUE}) -> Tensor"
    ),
    "depthwise_conv2d": (
        "(Tensor codes, Tensor weight, *, int columns, int largest, int[] kernel_size, int[] stride, int[] padding, "
        f"int[] dilation, int shuffle=1, Tensor bias, Tensor? taps, {EPILOGUE}) -> Tensor"
    ),
    "narrow_conv2d": (
        "(Tensor codes, Tensor weight, *, int columns, int largest=255, int[] kernel_size, int[] padding, "
        f"int shuffle=1, Tensor bias, Tensor? taps, {EPILOGUE}) -> Tensor"
    ),
    "conv3x3": (
        "(Tensor codes, Tensor weight, *, int columns, int largest, bool narrow, int[] padding, int shuffle=1, "
        f"Tensor bias, Tensor? taps, {EPILOGUE}) -> Tensor"
    ),
    "matmul": (
        "(Tensor lhs, Tensor rhs, *, int bits, int largest=255, Tensor left, Tensor right, bool row_sums=True, "
        "bool shares=False) -> Tensor"
    ),
    "attention": (
        "(Tensor query, Tensor key, Tensor value, *, Tensor? bias, Tensor? mask, int query_bits=8, int key_bits, "
        "int value_bits, Tensor logit, float[] prob, Tensor out, int levels, bool row_sums=True, bool shares=False) "
        "-> Tensor"
    ),
}


def spread(x: Tensor, factor: int) -> Tensor:
    """The pixel shuffle of channels that `places_first` has ordered; it moves whole runs of channels, channels last.

    Args:
        x: [B, C * factor**2, H, W], codes or values, channels last.
        factor: of the pixel shuffle.

    Returns:
        [B, C, H * factor, W * factor], channels last.
    """
    batch, channels, height, width = x.shape
    size = (batch, height * factor, width * factor, channels // factor**2)
    blocks = x.permute(0, 2, 3, 1).reshape(batch, height, width, factor, factor, size[3])
    return blocks.permute(0, 1, 3, 2, 4, 5).contiguous().reshape(size).permute(0, 3, 1, 2)


def holding(depth: int) -> torch.dtype:
    """The float type that holds any sum of `depth` products of an unsigned and a signed 8-bit code exactly."""
    return torch.float32 if depth * 255 * 128 < 1 << 24 else torch.float64


NO_CODE = "no code can stand for NaN"
"""The message of the RuntimeError that an operator raises for NaN among the values to encode; kernels say the same."""


_LEAST_WEIGHT = 1e-30
"""The least divisor of a row of weights, for rows without a positive one."""


def check_numbers(x: Tensor) -> None:
    """Refuses NaN, which codes would hide.

    Raises:
        RuntimeError: `x` holds NaN.
    """
    if bool(x.isnan().any()):
        raise RuntimeError(NO_CODE)


def quantize(x: Tensor, *, lower: float, step: float, levels: int) -> Tensor:
    """Codes of values, uint8. The operations and their order are those of the simulation, so every code is the same."""
    return torch.sub(x, lower).div_(step).clamp_(0, levels).round_().to(torch.uint8)


def affine_codes(x: Tensor, *, scale: Tensor, offset: Tensor, levels: int) -> Tensor:
    """Codes of values behind a map: round(clip(x * scale + offset, 0, levels)).

    `scale` and `offset` have one shape, which broadcasts to the trailing axes of `x`.
    """
    return (x * scale).add_(offset).clamp_(0, levels).round_().to(torch.uint8)


def share_codes(x: Tensor, *, scale: float, levels: int) -> Tensor:
    """Codes of the rows of attention weights: round(clip(x / largest of its row * scale, 0, levels))."""
    factor = scale / x.amax(-1, keepdim=True).clamp_(min=_LEAST_WEIGHT)
    return (x * factor).clamp_(0, levels).round_().to(torch.uint8).contiguous()


def layer_norm_codes(x: Tensor, *, scale: Tensor, offset: Tensor, eps: float, levels: int) -> Tensor:
    """Codes of a LayerNorm over the last axis; `scale` and `offset` hold its weight and bias in units of the step."""
    width = x.shape[-1]
    y = F.layer_norm(x, (width,), scale[:width], offset[:width], eps)
    return y.clamp_(0, levels).round_().to(torch.uint8).contiguous()


def linear(
    codes: Tensor, weight: Tensor, *, columns: int, largest: int = 255, bias: Tensor, **epilogue: Unpack[Epilogue]
) -> Tensor:
    """A linear layer on codes 0 .. `largest`, [..., K], with packed `weight`: float32 or uint8 codes [..., columns]."""
    del largest  # only kernels read it, to choose the fastest products that are exact
    return multiplied(codes, unpack_weight(weight, columns), bias, epilogue)


def multiplied(codes: Tensor, w: Tensor, bias: Tensor, epilogue: Epilogue) -> Tensor:
    """`linear` with the weight unpacked: signed codes [columns, K or more]."""
    exact = holding(w.shape[1])
    acc = F.pad(codes, (0, w.shape[1] - codes.shape[-1])).to(exact) @ w.to(exact).t()
    return _finish(acc, codes.sum(-1, keepdim=True), bias[: len(w)], epilogue)


def conv2d(
    codes: Tensor,
    weight: Tensor,
    *,
    columns: int,
    largest: int = 255,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int = 1,
    shuffle: int = 1,
    bias: Tensor,
    taps: Tensor | None,
    **epilogue: Unpack[Epilogue],
) -> Tensor:
    """A convolution on codes [B, C, H, W], 0 .. `largest`, without dilation; the result lies channels last.

    `weight` is packed from [columns, kernel height, kernel width, C / groups padded to a multiple of 4], the panels of
    each group on their own. `taps` [kernel height * kernel width, columns] holds the value that each tap inside the
    image adds to the bias; taps on the border add nothing, because the border holds real zeros. `spread` shuffles the
    output.
    """
    del largest  # as in `linear`
    w = torch.cat([unpack_weight(panels, columns // groups) for panels in weight.chunk(groups)])
    w = w.reshape(columns, *kernel_size, -1)[..., : codes.shape[1] // groups].permute(0, 3, 1, 2)
    return convolved(codes, w, bias, taps, epilogue, stride=stride, padding=padding, groups=groups, shuffle=shuffle)


def depthwise_conv2d(
    codes: Tensor,
    weight: Tensor,
    *,
    columns: int,
    largest: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    shuffle: int = 1,
    bias: Tensor,
    taps: Tensor | None,
    **epilogue: Unpack[Epilogue],
) -> Tensor:
    """A convolution on codes [B, C, H, W], 0 .. `largest`, with one kernel for each channel; otherwise as `conv2d`.

    `weight` is int8 [kernel height * kernel width, C padded to a multiple of 64].
    """
    del largest  # only the kernel reads it
    w = weight[:, :columns].t().reshape(columns, 1, *kernel_size)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    return convolved(codes, w, bias, taps, epilogue, **options, groups=columns, shuffle=shuffle)


def convolved(
    codes: Tensor,
    w: Tensor,
    bias: Tensor,
    taps: Tensor | None,
    epilogue: Epilogue,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    shuffle: int,
) -> Tensor:
    """`conv2d` with the weight unpacked: signed codes [columns, C / groups, kernel height, kernel width]."""
    columns, channels, *size = w.shape
    exact = holding(channels * size[0] * size[1])

    def over(x: Tensor, taps: Tensor, groups: int = 1) -> Tensor:
        # torch 2.13 leaves parts of a one-column result unwritten where the two strides differ and the strides of the
        # weight fit the channels-last format. A contiguous copy avoids that.
        taps = taps.clone(memory_format=torch.contiguous_format)
        y = F.conv2d(x, taps, stride=stride, padding=padding, dilation=dilation, groups=groups)
        return y.permute(0, 2, 3, 1)

    shift = bias[:columns]
    if taps is not None:
        one = torch.ones(1, 1, *codes.shape[2:], dtype=taps.dtype, device=codes.device)
        shift = shift + over(one, taps[:, :columns].t().reshape(columns, 1, *size))
    box = torch.ones(groups, 1, *size, dtype=exact, device=codes.device)
    sums = codes.to(exact).reshape(len(codes), groups, channels, *codes.shape[2:]).sum(2)
    row_sum = over(sums, box, groups).repeat_interleave(columns // groups if groups > 1 else 1, -1)
    if epilogue["residual"] is not None:
        epilogue["residual"] = epilogue["residual"].permute(0, 2, 3, 1)
    y = _finish(over(codes.to(exact), w.to(exact), groups), row_sum, shift, epilogue)
    return spread(y.contiguous().permute(0, 3, 1, 2), shuffle)


def narrow_conv2d(
    codes: Tensor,
    weight: Tensor,
    *,
    columns: int,
    largest: int = 255,
    kernel_size: Sequence[int],
    padding: Sequence[int],
    shuffle: int = 1,
    bias: Tensor,
    taps: Tensor | None,
    **epilogue: Unpack[Epilogue],
) -> Tensor:
    """`conv2d` with stride 1 for few columns; `weight` is packed from [taps * columns, C]."""
    del largest  # as in `linear`
    channels = codes.shape[1]
    w = unpack_weight(weight, kernel_size[0] * kernel_size[1] * columns)[:, :channels]
    w = w.reshape(*kernel_size, columns, channels).permute(2, 3, 0, 1)
    return convolved(codes, w, bias, taps, epilogue, stride=(1, 1), padding=padding, shuffle=shuffle)


def conv3x3(
    codes: Tensor,
    weight: Tensor,
    *,
    columns: int,
    largest: int,
    narrow: bool,
    padding: Sequence[int],
    shuffle: int = 1,
    bias: Tensor,
    taps: Tensor | None,
    **epilogue: Unpack[Epilogue],
) -> Tensor:
    """A 3x3 convolution with stride 1 on codes 0 .. `largest`, by Winograd's algorithm where there is a kernel.

    `weight` [9, ...] holds each tap as `pack_taps` packs it. The sums are exact if `winograd_fits`. `narrow` says
    whether the transforms of F(2x2, 3x3) fit bytes too (`fits_bytes`).
    """
    del largest, narrow  # only the kernel reads them
    rows = [unpack_weight(tap, columns)[:, : codes.shape[1]] for tap in weight]
    w = torch.stack(rows, -1).reshape(columns, -1, 3, 3)
    return convolved(codes, w, bias, taps, epilogue, stride=(1, 1), padding=padding, shuffle=shuffle)


def _finish(acc: Tensor, row_sum: Tensor, bias: Tensor, epilogue: Epilogue) -> Tensor:
    """Applies the epilogue to sums [..., columns]; `bias` is [columns], or of the shape of the sums."""
    columns = acc.shape[-1]
    row_scale, residual, levels = epilogue["row_scale"], epilogue["residual"], epilogue["levels"]
    y = acc.to(torch.float32) * epilogue["scale"][:columns] + bias
    if row_scale is not None:
        y = y + row_sum.to(torch.float32) * row_scale[:columns]
    if epilogue["activation"] == Activation.LEAKY:
        y = F.leaky_relu(y, epilogue["slope"])
    elif epilogue["activation"] == Activation.GELU:
        y = F.gelu(y)
    if residual is not None:
        y = y + residual
    if levels is None:
        return y
    if epilogue["activation"] != Activation.NONE or residual is not None:
        out_scale, out_offset = epilogue["out_scale"], epilogue["out_offset"]
        assert out_scale is not None  # noqa: S101  # the next grid is not linear in the sums
        assert out_offset is not None  # noqa: S101
        y = y * out_scale[:columns] + out_offset[:columns]
    return y.clamp(min=0).minimum(levels[:columns]).round().to(torch.uint8)


def matmul(
    lhs: Tensor,
    rhs: Tensor,
    *,
    bits: int,
    largest: int = 255,
    left: Tensor,
    right: Tensor,
    row_sums: bool = True,
    shares: bool = False,
) -> Tensor:
    """The product of two factors as codes: float32 [..., H, M, N], batches broadcast as torch does.

    Values are unit * (code + shift): with units u and v and shifts a and b the result is
    u v (sum(A B) + b sum(A) + a sum(B) + a b K).

    Args:
        lhs: codes A [..., H, M, K], at most `largest`.
        rhs: codes [..., H, K, N]; B is their centred form.
        bits: width of the right codes.
        largest: largest left code.
        left: (u, a) for each head and row, float64 [2, H or 1, M or 1].
        right: (v, b) for each head and column, float64 [2, H or 1, N or 1].
        row_sums: whether a shift of the right factor is not zero.
        shares: whether each row of the result is divided by the sum of its left codes.
    """
    del largest, row_sums  # only kernels read them
    exact = holding(lhs.shape[-1])
    a, b = lhs.to(exact), centred(rhs, bits).to(exact)
    if lhs.dim() == rhs.dim() == 2:
        left, right = left.squeeze(1), right.squeeze(1)
    (u, left_shift), (v, shift) = left.unsqueeze(-1), right.unsqueeze(-2)
    y = (a @ b).double() + a.sum(-1, keepdim=True).double() * shift
    y = y + left_shift * (b.sum(-2, keepdim=True).double() + lhs.shape[-1] * shift)
    if shares:
        y = y / a.sum(-1, keepdim=True).clamp(min=1)
    product: Tensor = u * v * y
    return product.to(torch.float32)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None,
    mask: Tensor | None,
    query_bits: int = 8,
    key_bits: int,
    value_bits: int,
    logit: Tensor,
    prob: Sequence[float],
    out: Tensor,
    levels: int,
    row_sums: bool = True,
    shares: bool = False,
) -> Tensor:
    """Attention on codes: [B, heads, N, D], [B, heads, M, D], [B, heads, M, E] -> [B, heads, N, E].

    Args:
        query: codes A.
        key: codes; K is their centred form.
        value: codes; V is their centred form.
        bias: times log2(e), added to each head's logits: [heads or 1, M, N padded to a multiple of 16], keys first.
        mask: times log2(e), [masks, M, N padded to a multiple of 16]; window b takes mask b modulo their number.
        query_bits: width of the query codes.
        key_bits: width of the key codes.
        value_bits: width of the value codes.
        logit: (a, b) of the logit a sum(A K) + b sum(K), times log2(e), for each head: float64 [2, heads or 1, 1].
        prob: (scale, offset, levels) of the codes P of the softmax: round(clip(p * scale + offset, 0, levels)).
        out: (a, b, c, d, e) of the output a sum(P V) + b sum(P) + c sum(V) + d M + e, for each head and column: float64
            [5, heads or 1, E or 1].
        levels: largest code of the output; 0 for float32 values.
        row_sums: whether b is not zero.
        shares: whether p is relative to the largest of its row, and the output is a sum(P V) / sum(P) + d M + e.

    Returns:
        [B, heads, N, E], in the memory order of [B, N, heads, E].
    """
    del query_bits, row_sums  # as `largest` in `linear`
    exact = holding(max(key.shape[-1], key.shape[-2]))
    out = out.unsqueeze(-2)  # [5, heads or 1, 1, E or 1]
    rows = query.shape[-2]
    a, k, v = query.to(exact), centred(key, key_bits).to(exact), centred(value, value_bits).to(exact)
    x = (a @ k.transpose(-1, -2)).to(torch.float32) * logit[0].unsqueeze(-1).to(torch.float32)
    x = x + (k.sum(-1) * logit[1]).to(torch.float32).unsqueeze(-2)
    if bias is not None:
        x = x + bias[..., :rows].transpose(-1, -2)
    if mask is not None:
        split = x.reshape(-1, mask.shape[0], *x.shape[1:])
        x = (split + mask[..., :rows].transpose(-1, -2).unsqueeze(1)).reshape(x.shape)
    x = torch.exp2(x - x.amax(-1, keepdim=True))
    scale = prob[0] if shares else prob[0] / x.sum(-1, keepdim=True)
    p = (x * scale + prob[1]).clamp(0, prob[2]).round().to(exact)
    y, row, constant = (p @ v).double(), p.sum(-1, keepdim=True).double(), out[3] * v.shape[-2] + out[4]
    if shares:
        y = y / row * out[0] + constant
    else:
        y = y * out[0] + row * out[1] + v.sum(-2, keepdim=True).double() * out[2] + constant
    y = y.to(torch.float32)
    if levels:
        y = y.clamp(0, levels).round().to(torch.uint8)
    return y.transpose(1, 2).contiguous().transpose(1, 2)


PLAIN: dict[str, Callable[..., Tensor]] = {
    "quantize": quantize,
    "affine_codes": affine_codes,
    "share_codes": share_codes,
    "layer_norm_codes": layer_norm_codes,
    "linear": linear,
    "conv2d": conv2d,
    "depthwise_conv2d": depthwise_conv2d,
    "narrow_conv2d": narrow_conv2d,
    "conv3x3": conv3x3,
    "matmul": matmul,
    "attention": attention,
}
"""The operators in plain torch, by name."""

_library: Any = torch.library.Library("fxptq", "DEF")  # type: ignore[no-untyped-call]  # torch's own


def define(name: str, schema: str, plain: Callable[..., Tensor], *, checked: bool = False) -> None:
    """Declares the operator `torch.ops.fxptq.<name>`, which runs its plain form wherever no kernel takes over.

    Args:
        name: the name of the operator.
        schema: its arguments and its result, in torch's notation.
        plain: the plain form.
        checked: whether the plain form refuses NaN in the first argument.
    """

    def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_numbers(x)
        return plain(x, *args, **kwargs)

    _library.define(name + schema)
    _library.impl(name, run if checked else plain, "CompositeExplicitAutograd")
    # torch.compile learns the shape, dtype and strides of the result from the plain form.
    torch.library.register_fake(f"fxptq::{name}", plain, lib=_library)


_CHECKED = ("quantize", "affine_codes", "share_codes", "layer_norm_codes")

for _name, _schema in _SCHEMAS.items():
    define(_name, _schema, PLAIN[_name], checked=_name in _CHECKED)
