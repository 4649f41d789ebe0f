"""What is exported: one graph of a network, the axes of its inputs that are free, and inputs to try it with.

A program holds a graph for each class of sizes, and a file carries one: the graph that holds at the most sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxptq.errors import InputError
from fxptq.graph.program import Program, Variant
from fxptq.sizes import Size, Sizes

Inputs = tuple[Tensor, ...]

_RATIOS = (((3, 2), (5, 4)), ((1, 2), (3, 4)), ((9, 4), (1, 1)))
"""Heights and widths of trials over those of the example."""


@dataclass(frozen=True)
class Trial:
    """Inputs that the network takes, and its output."""

    inputs: Inputs
    output: Any

    @property
    def size(self) -> Size:
        """Height and width of the picture."""
        return self.inputs[0].shape[-2], self.inputs[0].shape[-1]


@dataclass(frozen=True)
class Subject:
    """The part of a network that a file carries.

    Attributes:
        variant: the graph.
        example: inputs of a size that the graph holds for.
        batch: whether the number of pictures is free.
        sizes: whether height and width are free.
        trials: inputs at which the file is compared with the simulation.
        elsewhere: trials of sizes that the network takes and this graph does not hold for.
    """

    variant: Variant
    example: Inputs
    batch: bool
    sizes: bool
    trials: tuple[Trial, ...]
    elsewhere: tuple[Trial, ...] = ()

    @property
    def free(self) -> tuple[int, ...]:
        """The axes of pictures whose lengths are free."""
        return (*((0,) if self.batch else ()), *((2, 3) if self.sizes else ()))


def subject_of(program: Program, example: Inputs, sizes: Sizes, *, size: Size | None, white: float) -> Subject:
    """Chooses the graph to export.

    Args:
        program: the quantized network.
        example: inputs that it was captured with.
        sizes: the sizes that the network takes.
        size: height and width of a file for one size; None for free ones where the network has a graph of many sizes.
        white: the value of white in the input.

    Raises:
        InputError: the network does not take the size.
        CaptureError: the network fails on it.
    """
    own: Size = (example[0].shape[-2], example[0].shape[-1])
    if size is not None and not sizes.takes(*size):
        raise InputError(f"--size {size[0]}x{size[1]}: the network takes {sizes}")
    first = at(example, size or own, white)
    trials = [Trial(first, _output(program, first))]
    if size is not None:
        return Subject(program.variant(first), first, False, False, tuple(trials))
    others = [] if sizes.fixed is not None else _others(own, sizes)
    for seed, other in enumerate(others, 1):
        trials += _tried(program, at(example, other, white, seed))
    graphs = [program.variant(trial.inputs) for trial in reversed(trials)]
    best = max(graphs, key=lambda variant: sum(_holds(program, variant, trial.inputs) for trial in trials))
    held = [trial for trial in trials if _holds(program, best, trial.inputs)]
    many = at(held[0].inputs, held[0].size, white, seed=9, batch=2)
    batches = _tried(program, many) if _holds(program, best, many) else []
    elsewhere = tuple(trial for trial in trials if not any(trial is other for other in held))
    return Subject(best, held[0].inputs, bool(batches), len(held) > 1, (*held, *batches), elsewhere)


def _output(program: Program, inputs: Inputs) -> Any:
    with torch.no_grad():
        return program(*inputs)


def _tried(program: Program, inputs: Inputs) -> list[Trial]:
    """A trial, if the network takes the inputs: no condition of a graph says at which sizes the network fails."""
    try:
        return [Trial(inputs, _output(program, inputs))]
    except Exception:  # noqa: BLE001  # whatever a network raises for a size that it is not made for
        return []


def _others(own: Size, sizes: Sizes) -> list[Size]:
    """Sizes around a size, larger and smaller, not square where that is allowed."""
    step = sizes.multiple
    shapes = [(side * up // down + step for side, (up, down) in zip(own, ratios, strict=True)) for ratios in _RATIOS]
    return [sizes.at_least(*shape) for shape in shapes]


def _holds(program: Program, variant: Variant, inputs: Inputs) -> bool:
    return variant.capture.holds(program.holder, inputs)


def at(example: Inputs, size: Size, white: float, seed: int = 0, batch: int | None = None) -> Inputs:
    """Inputs like an example, whose pictures have another size, and smooth content with some noise.

    Inputs of four axes that have the size of the first are pictures; others stay the same.
    """
    generator = torch.Generator().manual_seed(seed)
    own, found = example[0].shape, []
    for x in example:
        count = batch if batch is not None and x.dim() and x.shape[0] == own[0] else None
        shape = [count or x.shape[0], *x.shape[1:]] if x.dim() else []
        if x.dim() == 4 and x.shape[-2:] == own[-2:] and x.is_floating_point():
            coarse = torch.rand((shape[0], shape[1], 4, 4), generator=generator)
            smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=False).clamp(0, 1)
            noisy = 0.9 * smooth + 0.1 * torch.rand(smooth.shape, generator=generator)
            found.append((noisy * white).to(x.dtype))
        else:
            found.append(x.expand(shape).clone() if count else x)
    return tuple(found)
