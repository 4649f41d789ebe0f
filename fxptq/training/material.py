"""What a network is trained on: photographs with their degraded sides, and a teacher's answers to shrunken photographs.

A teacher is a larger network for the same task. Its answer to a low-resolution picture holds what can be known from that
picture and none of the chance detail of a photograph, so a student learns more from each patch of it; and it answers
pictures that are no benchmark's kind of input as well. (Learning from a teacher's outputs: Hinton et al., "Distilling
the Knowledge in a Neural Network", arXiv 1503.02531.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxptq.data.degrade import Degradation
from fxptq.data.resize import imresize
from fxptq.training.patches import Group, TrainingPair, make_pair

Photograph = npt.NDArray[np.uint8]
SHRUNKEN = Fraction(4, 5)
ANSWERED = (Fraction(1, 3), Fraction(1, 4), Fraction(1, 5))
TRUTH_SHARE = 0.3

Made = TypeVar("Made")


def plain(photographs: Sequence[Photograph], degradation: Degradation) -> list[Group]:
    """Pairs of each photograph and its degraded side."""
    return [Group(_each(partial(make_pair, degradation=degradation), photographs))]


def with_answers(
    photographs: Sequence[Photograph], degradation: Degradation, teacher: nn.Module, device: torch.device
) -> list[Group]:
    """Pairs of photographs in two sizes, and a teacher's answers to photographs shrunk to a third, fourth and fifth.

    Args:
        photographs: [H, W, 3] uint8 each.
        degradation: "bicubic", with the scale of the student and the teacher.
        teacher: maps [B, 3, h, w] to [B, 3, h * scale, w * scale], both in 0..1.
        device: where the teacher runs.

    Returns:
        Groups with shares: 0.3 for the photographs, in equal parts at their own size and at four fifths of it, and 0.7
        for the answers, in equal parts for the three sizes.
    """
    smaller = _each(partial(imresize, scale=float(SHRUNKEN)), photographs)
    truths = [plain(pictures, degradation)[0] for pictures in (photographs, smaller)]
    groups = [Group(truth.pairs, TRUTH_SHARE / len(truths)) for truth in truths]
    teacher = teacher.to(device).eval()
    for size in ANSWERED:
        lows = [
            torch.from_numpy(low).permute(2, 0, 1).contiguous()
            for low in _each(partial(imresize, scale=float(size)), photographs)
        ]
        groups.append(Group(answers(teacher, lows, device), (1 - TRUTH_SHARE) / len(ANSWERED)))
    return groups


@torch.inference_mode()
def answers(
    teacher: nn.Module, lows: Sequence[Tensor], device: torch.device, pixels: int = 120_000
) -> list[TrainingPair]:
    """Pairs of each low picture and what the teacher makes of it.

    Args:
        teacher: maps [B, C, h, w] to [B, C, h * scale, w * scale], both in 0..1.
        lows: [C, h, w] uint8 each.
        device: where the teacher is; on CUDA its products run in half precision.
        pixels: most pixels of a batch; pictures of one size share a batch.

    Returns:
        Pairs in the order of `lows`, the answers rounded to uint8.
    """
    by_size: dict[torch.Size, list[int]] = {}
    for index, low in enumerate(lows):
        by_size.setdefault(low.shape, []).append(index)
    pairs: dict[int, TrainingPair] = {}
    for shape, indices in by_size.items():
        count = max(1, pixels // (shape[1] * shape[2]))
        for first in range(0, len(indices), count):
            batch = indices[first : first + count]
            x = torch.stack([lows[index] for index in batch]).to(device).float() / 255
            with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
                y = teacher(x)
            rounded = (y.float().clamp(0, 1) * 255).round().byte().cpu()
            pairs.update({index: TrainingPair(lows[index], high) for index, high in zip(batch, rounded, strict=True)})
    return [pairs[index] for index in range(len(lows))]


def _each(make: Callable[[Photograph], Made], photographs: Sequence[Photograph]) -> list[Made]:
    """The results for all photographs, in their order; numpy lets threads work side by side."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        return list(pool.map(make, photographs))
