"""Samples of the values that quantizers see in float: some from each input, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.passes.base import Context, QuantizedNetwork

MOST_BYTES = 1 << 29
"""Memory for the samples that are taken in one run over the inputs."""

T = TypeVar("T")

Take = Callable[[Tensor], T]
"""Takes a sample of the values of one input: a copy on the CPU, which keeps nothing else in memory."""


@contextmanager
def turned_off(student: QuantizedNetwork, keys: Iterable[str]) -> Iterator[None]:
    """Within, the quantizers of these keys are off; afterwards each has its former mode."""
    modes = {key: student.quantizers[key].mode for key in keys}
    try:
        for key in modes:
            student.quantizers[key].mode = "off"
        yield
    finally:
        for key, mode in modes.items():
            student.quantizers[key].mode = mode


@contextmanager
def in_float(student: QuantizedNetwork) -> Iterator[None]:
    """Within, all quantizers are off; afterwards each has its former mode."""
    with turned_off(student, student.quantizers):
        yield


@torch.no_grad()
def sample(ctx: Context, inputs: Sequence[Inputs], takes: Mapping[str, Take[T]]) -> dict[str, list[T]]:
    """Runs inputs through the student in float and samples the values that quantizers see.

    Args:
        ctx: the student.
        inputs: calibration inputs.
        takes: by quantizer key, how to take a sample.

    Returns:
        By quantizer key, one sample for each time that the quantizer was met.
    """
    samples: dict[str, list[T]] = {key: [] for key in takes}
    with in_float(ctx.student), ExitStack() as hooks:
        for key, take in takes.items():

            def keep(_module: object, args: tuple[Tensor], _x: Tensor, key: str = key, take: Take[T] = take) -> None:
                samples[key].append(take(args[0]))

            handle = ctx.student.quantizers[key].register_forward_hook(keep)
            hooks.callback(handle.remove)
        for item in inputs:
            ctx.student(*ctx.placed(item))
    return samples


def in_memory(items: Sequence[T], nbytes: Callable[[T], int], most: int = MOST_BYTES) -> Iterator[list[T]]:
    """Items in their order, in lists whose samples take up to `most` bytes, or one item that takes more."""
    part: list[T] = []
    total = 0
    for item in items:
        if part and total + nbytes(item) > most:
            yield part
            part, total = [], 0
        part.append(item)
        total += nbytes(item)
    if part:
        yield part


def most_bytes(ctx: Context) -> int:
    """Memory for the samples that are taken in one run over the inputs."""
    return MOST_BYTES if ctx.memory is None else min(MOST_BYTES, ctx.memory)


def evenly(x: Tensor, count: int, axis: int = 0) -> Tensor:
    """Up to `count` evenly spread entries of an axis, as a copy."""
    length = x.shape[axis]
    index = torch.linspace(0, length - 1, min(count, length), dtype=torch.float32, device=x.device).round().long()
    return x.index_select(axis, index)
