"""Functions of sizes in a file of their own, which defines no network."""

from __future__ import annotations

import functools
import math
from typing import Any


def up(n: Any, multiple: int) -> int:
    return int(math.ceil(n / multiple) * multiple)


def looped(n: Any) -> int:
    return sum(1 for _ in range(n)) + len([0] * n)


@functools.lru_cache
def remembered(n: Any) -> int:
    return 1 << n.bit_length()


class Table:
    """A callable object, whose file is not that of the network."""

    def __init__(self) -> None:
        self.known: dict[int, int] = {}

    def __call__(self, n: Any) -> int:
        return self.known.setdefault(n, n * 2)
