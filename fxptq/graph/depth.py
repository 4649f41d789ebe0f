"""A higher limit of recursion for networks whose modules are nested too deeply for Python's usual limit."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from torch import nn

from fxptq.graph.exclusive import CAPTURING

_USUAL = 50
_CALLS = 30
"""The largest number of Python calls between a module and one of its parts while the network is copied or traced."""


@contextlib.contextmanager
def room_for(model: nn.Module) -> Iterator[None]:
    """For a while, raises the limit of recursion in proportion to the depth of a deeply nested network."""
    depth = max(name.count(".") for name, _ in model.named_modules())
    if depth <= _USUAL:
        yield
        return
    with CAPTURING:  # the limit is the whole process's
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(limit + _CALLS * depth)
        try:
            yield
        finally:
            sys.setrecursionlimit(limit)
