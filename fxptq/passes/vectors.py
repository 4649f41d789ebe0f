"""Vectors of the network itself that learn: biases, and the scales and shifts of norms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn


@contextmanager
def learned_vectors(vectors: Mapping[str, nn.Parameter]) -> Iterator[dict[nn.Parameter, float]]:
    """Within, vectors of a network take gradients; afterwards they do not.

    Args:
        vectors: see `QuantizedNetwork.vectors`.

    Yields:
        The unit of each vector: its root mean square as a power of two, so that few vectors have a unit of their own. A
        vector of zeros has no unit, and is left out.
    """
    units: dict[nn.Parameter, float] = {}
    for vector in vectors.values():
        size = float(vector.detach().double().square().mean().sqrt())
        if math.isfinite(size) and size > 0:
            units[vector] = 2.0 ** round(math.log2(size))
    try:
        for vector in units:
            vector.requires_grad_(True)
        yield units
    finally:
        for vector in units:
            vector.requires_grad_(False)
            vector.grad = None
