"""Parameters as parts of one vector, so that an optimizer makes one step over all of them instead of one for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def as_vector(parameters: Sequence[nn.Parameter]) -> Iterator[nn.Parameter]:
    """Within, parameters and their gradients are views of one vector; afterwards each has its own memory again.

    Autograd adds to a gradient that exists in place. A parameter that a loss does not depend on has the gradient 0.

    Args:
        parameters: at least one, of one type and on one device.

    Yields:
        The vector, [number of all elements], with its gradient, which is zero at first.
    """
    vector = nn.Parameter(torch.cat([parameter.detach().reshape(-1) for parameter in parameters]))
    vector.grad = torch.zeros_like(vector)
    sizes = [parameter.numel() for parameter in parameters]
    parts = zip(parameters, torch.split(vector.detach(), sizes), torch.split(vector.grad, sizes), strict=True)
    for parameter, values, grads in parts:
        parameter.data = values.view_as(parameter)
        parameter.grad = grads.view_as(parameter)
    try:
        yield vector
    finally:
        for parameter in parameters:
            parameter.data = parameter.data.clone()
            parameter.grad = None
