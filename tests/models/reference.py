"""SwinIR and EDSR once more, in plain numpy and float64, from the papers' equations: the other side of our tests.

It shares no code and no formulation with the bundled networks: convolution is a sum over taps, and attention is written
pixel by pixel, a query looking for its keys by distance and not by partitioning, rolling and masking.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
State = Mapping[str, Array]
MEAN = np.float32([0.4488, 0.4371, 0.4040]).astype(np.float64)


def hashed(key: str, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Weights that need no file: numbers that look random, the same on every machine.

    Integer hashing of the element's index (the finalizer of MurmurHash3), started from the name. Weights have the
    spread that keeps signals at their size; norms are near one and biases small.
    """
    count = math.prod(shape)
    with np.errstate(over="ignore"):
        bits = np.arange(count, dtype=np.uint64) + np.uint64(zlib.crc32(key.encode()) << 20)
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(factor)
        bits ^= bits >> np.uint64(33)
    uniform = (bits >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5
    if len(shape) > 1:
        values = uniform * math.sqrt(12 / math.prod(shape[1:])) if "table" not in key else uniform
    else:
        values = 1 + uniform / 2 if key.endswith("weight") else uniform / 4
    return values.reshape(shape).astype(np.float32)


def conv(w: State, name: str, x: Array) -> Array:
    """[C, H, W] -> [O, H, W], zero padding, as a sum over taps."""
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    reach = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
    _, height, width = x.shape
    y = np.broadcast_to(bias[:, None, None], (len(bias), height, width)).copy()
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            y += np.tensordot(weight[:, :, row, column], padded[:, row : row + height, column : column + width], 1)
    return y


def shuffle(x: Array, scale: int) -> Array:
    """Pixel shuffle, one sub-pixel after another."""
    y = np.empty((x.shape[0] // scale**2, x.shape[1] * scale, x.shape[2] * scale))
    for row in range(scale):
        for column in range(scale):
            y[:, row::scale, column::scale] = x[row * scale + column :: scale**2]
    return y


def stages(w: State, name: str, x: Array, scale: int) -> Array:
    """Sub-pixel up-sampling by 3, or by 2 as often as it takes."""
    for index in range(0, 1 if scale == 3 else 2 * int(math.log2(scale)), 2):
        x = shuffle(conv(w, f"{name}.{index}", x), 3 if scale == 3 else 2)
    return x


def leaky(x: Array, slope: float) -> Array:
    """Leaky ReLU."""
    return np.where(x > 0, x, slope * x)


def linear(w: State, name: str, x: Array) -> Array:
    """[..., I] -> [..., O]."""
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def norm(w: State, name: str, x: Array) -> Array:
    """LayerNorm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Array) -> Array:
    """GELU with the exact normal distribution."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(w: State, name: str, x: Array, *, window: int, shift: int, heads: int) -> Array:
    """Window attention of a map [H, W, C], pixel by pixel.

    The windows' borders lie at `shift` modulo `window`. A query's keys are the pixels of its own window, which at the
    image's border is cut off.
    """
    height, width, dim = x.shape
    size = dim // heads
    q, k, v = np.split(linear(w, f"{name}.qkv", x), 3, axis=-1)
    table = w[f"{name}.relative_position_bias_table"]
    y = np.empty_like(x)
    for row in range(height):
        top = (row - shift) // window * window + shift
        rows = [r for r in range(top, top + window) if 0 <= r < height]
        for column in range(width):
            left = (column - shift) // window * window + shift
            keys = [(r, c) for r in rows for c in range(left, left + window) if 0 <= c < width]
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                logits = np.array(
                    [
                        q[row, column, part] @ k[r, c, part] / math.sqrt(size)
                        + table[(row - r + window - 1) * (2 * window - 1) + column - c + window - 1, head]
                        for r, c in keys
                    ]
                )
                chance = np.exp(logits - logits.max())
                chance /= chance.sum()
                y[row, column, part] = sum(p * v[r, c, part] for p, (r, c) in zip(chance, keys, strict=True))
    return linear(w, f"{name}.proj", y)


def closing(w: State, name: str, x: Array, kind: str) -> Array:
    """The convolution at the end of a residual branch."""
    if kind == "1conv":
        return conv(w, name, x)
    return conv(w, f"{name}.4", leaky(conv(w, f"{name}.2", leaky(conv(w, f"{name}.0", x), 0.2)), 0.2))


def to_pixels(x: Array) -> Array:
    """[C, H, W] -> [H, W, C]."""
    return x.transpose(1, 2, 0)


def to_map(x: Array) -> Array:
    """[H, W, C] -> [C, H, W]."""
    return x.transpose(2, 0, 1)


def swinir(w: State, config: Mapping[str, Any], image: Array) -> Array:
    """One image [C, H, W] through SwinIR."""
    window, scale, kind = config["window_size"], config["upscale"], config["resi_connection"]
    gain = config["img_range"]
    _, height, width = image.shape
    mean = (MEAN if image.shape[0] == 3 else np.zeros(1))[:, None, None]
    x = np.pad(image, ((0, 0), (0, -height % window), (0, -width % window)), "reflect")
    x = (x - mean) * gain
    shallow = conv(w, "conv_first", x)
    y = norm(w, "patch_embed.norm", to_pixels(shallow))
    if "absolute_pos_embed" in w:
        y = y + w["absolute_pos_embed"].reshape(y.shape)
    for group, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        entry = y
        for index in range(depth):
            name = f"layers.{group}.residual_group.blocks.{index}"
            shift = window // 2 if index % 2 else 0
            y = y + attention(w, f"{name}.attn", norm(w, f"{name}.norm1", y), window=window, shift=shift, heads=heads)
            hidden = gelu(linear(w, f"{name}.mlp.fc1", norm(w, f"{name}.norm2", y)))
            y = y + linear(w, f"{name}.mlp.fc2", hidden)
        y = to_pixels(closing(w, f"layers.{group}.conv", to_map(y), kind)) + entry
    y = closing(w, "conv_after_body", to_map(norm(w, "norm", y)), kind) + shallow
    if config["upsampler"] == "pixelshuffledirect":
        y = shuffle(conv(w, "upsample.0", y), scale)
    elif config["upsampler"] == "pixelshuffle":
        y = leaky(conv(w, "conv_before_upsample.0", y), 0.01)
        y = conv(w, "conv_last", stages(w, "upsample", y, scale))
    elif config["upsampler"] == "nearest+conv":
        y = leaky(conv(w, "conv_before_upsample.0", y), 0.01)
        for name in ("conv_up1", "conv_up2")[: int(math.log2(scale))]:
            y = leaky(conv(w, name, y.repeat(2, axis=1).repeat(2, axis=2)), 0.2)
        y = conv(w, "conv_last", leaky(conv(w, "conv_hr", y), 0.2))
    else:
        y = x + conv(w, "conv_last", y)
    return (y / gain + mean)[:, : height * scale, : width * scale]


def edsr(w: State, config: Mapping[str, Any], image: Array) -> Array:
    """One image [3, H, W] through EDSR."""
    shallow = y = conv(w, "head.0", conv(w, "sub_mean", image))
    for index in range(config["n_resblocks"]):
        inner = np.maximum(conv(w, f"body.{index}.body.0", y), 0)
        y = y + config["res_scale"] * conv(w, f"body.{index}.body.2", inner)
    y = conv(w, f"body.{config['n_resblocks']}", y) + shallow
    y = conv(w, "tail.1", stages(w, "tail.0", y, config["scale"]))
    return conv(w, "add_mean", y)
