"""A small network of the kind passes work on, written by hand: what a captured program offers them, and no more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fxptq.graph.geometry import Geometry
from fxptq.graph.randomness import OwnRandomNumbers
from fxptq.passes.base import Context
from fxptq.quant.schemes.uniform import Uniform


@dataclass(frozen=True)
class Operand:
    slot: str
    quantizer: str
    role: str = "symmetric"
    lowest: float | None = None
    part: str = ""


@dataclass(frozen=True)
class Site:
    kind: str
    operands: tuple[Operand, ...]
    shapes: dict[str, tuple[int, ...]]
    geometry: Geometry | None = None


class TinyNetwork(nn.Module):
    """conv -> ReLU -> per-pixel linear, plus the input; the feature is the output of the ReLU."""

    def __init__(self, bits: int = 3, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.conv = torch.randn(8, 3, 3, 3, generator=generator) / 5
        self.mix = torch.randn(3, 8, generator=generator) / 3
        self.quantizers: dict[str, Uniform] = {  # type: ignore[assignment]
            "conv.input": Uniform(bits),
            "conv.weight": Uniform(bits, ranges=8),
            "mix.input": Uniform(bits, role="one_sided"),
            "mix.weight": Uniform(bits),
        }
        self.own = nn.ModuleDict({key.replace(".", "_"): q for key, q in self.quantizers.items()})

        self.sites = (
            Site(
                "conv2d",
                (Operand("input", "conv.input"), Operand("weight", "conv.weight", "constant")),
                {"input": (1, 3, 16, 16), "weight": (8, 3, 3, 3), "output": (1, 8, 16, 16)},
                Geometry(padding=(1, 1)),
            ),
            Site(
                "linear",
                (Operand("input", "mix.input", "one_sided", 0.0), Operand("weight", "mix.weight", "constant")),
                {"input": (1, 16, 16, 8), "weight": (3, 8), "output": (1, 16, 16, 3)},
            ),
        )

    def operands(self) -> dict[str, Operand]:
        return {operand.quantizer: operand for site in self.sites for operand in site.operands}

    def weight_of(self, key: str) -> Tensor | None:
        return {"conv.weight": self.conv, "mix.weight": self.mix}.get(key)

    def has_other_readers(self, key: str) -> bool:  # noqa: ARG002  # as a program's
        return False

    def set_weight(self, key: str, value: Tensor) -> None:
        weight = self.weight_of(key)
        assert weight is not None
        weight.copy_(value)

    def bias_of(self, key: str) -> Tensor | None:  # noqa: ARG002  # as a program's
        return None

    def tensors_in(self, twin: TinyNetwork, key: str) -> tuple[Tensor, None]:
        weight = twin.weight_of(key)
        assert weight is not None
        return weight, None

    def set_bias(self, key: str, value: Tensor) -> None:
        raise NotImplementedError

    def vectors(self) -> dict[str, nn.Parameter]:
        return {}

    def drawing(self, numbers: OwnRandomNumbers) -> AbstractContextManager[None]:  # noqa: ARG002  # it draws none
        return nullcontext()

    def with_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        q = self.quantizers
        feature = torch.relu(nn.functional.conv2d(q["conv.input"](x), q["conv.weight"](self.conv), padding=1))
        mixed = nn.functional.linear(q["mix.input"](feature.movedim(1, 3)), q["mix.weight"](self.mix))
        return x + mixed.movedim(3, 1), [feature]

    def forward(self, x: Tensor) -> Tensor:
        return self.with_features(x)[0]


def make_context(bits: int = 3, count: int = 6, size: int = 24, seed: int = 0) -> Context:
    generator = torch.Generator().manual_seed(seed + 100)
    images = [torch.rand(1, 3, size, size + 4 * i, generator=generator) for i in range(count)]
    return Context(student=TinyNetwork(bits), teacher=TinyNetwork(bits), images=images, seed=seed)


@pytest.fixture
def context() -> Context:
    """A student and a teacher with equal weights, and six images."""
    return make_context()


@pytest.fixture
def new_context() -> Callable[..., Context]:
    """Makes further contexts: bits, count and size of images, seed."""
    return make_context
