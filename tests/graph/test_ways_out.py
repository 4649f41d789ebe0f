"""Every way in which a size can become a plain Python number: the captured network equals eager at far sizes too.

Each function gives a number that jumps with the size: a graph that froze it is wrong at one of the sizes tried.
"""

from __future__ import annotations

import array
import bisect
import collections
import copy
import decimal
import fractions
import functools
import itertools
import json
import math
import operator
import pickle
import random
import statistics
import string
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fxptq.errors import CaptureError
from fxptq.graph import Program, capture, values
from tests.graph import arithmetic_elsewhere
from tests.graph.arithmetic_elsewhere import Table, looped, remembered, up

SIZES = ((1, 3, 24, 32), (1, 3, 12, 16), (1, 3, 48, 32), (2, 3, 40, 56), (1, 3, 72, 96), (1, 3, 25, 33))
LOOKUP = list(range(0, 600, 3))
TABLE = Table()


def by_match(n: Any) -> int:
    match n:
        case 24 | 32:
            return 1
        case int():
            return 2
    return 3


def import_inside(n: Any) -> int:
    import math as inside  # noqa: PLC0415  # what is tried

    return 2 ** inside.ceil(inside.log2(n))


def caught(n: Any) -> int:
    try:
        return [5, 6, 7][n // 24]
    except IndexError:
        return 8


class Counts:
    """Uses numbers as C code does: through a slot."""

    def __init__(self, n: Any) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n  # type: ignore[no-any-return]  # what is tried


NUMBERS: dict[str, Callable[[Any], Any]] = {
    "list index": lambda n: LOOKUP[n],
    "list slice": lambda n: len(LOOKUP[:n]) + len(LOOKUP[n // 2 :: 7]),
    "repeated list": lambda n: len([0, 1] * n),
    "repeated text": lambda n: len("ab" * n),
    "dict key": lambda n: {i: i % 7 for i in range(200)}[n],
    "dict get": lambda n: {24: 3, 32: 4}.get(n, 9),
    "tuple key": lambda n: {(24, 0): 3, (32, 0): 4}.get((n, 0), 9),
    "counter": lambda n: collections.Counter([n, 24, 32])[24],
    "set member": lambda n: 5 if n in {24, 32} else 6,
    "frozen set": lambda n: len(frozenset((n, 24, 25))),
    "hash": lambda n: hash(n) % 11,
    "f-string": lambda n: int(f"{n}"),
    "f-string with a width": lambda n: len(f"{n:{n}d}"),
    "percent": lambda n: int("%d" % n),  # noqa: UP031  # what is tried
    "str": lambda n: {"24": 1, "32": 2}.get(str(n), 3),
    "repr of a tuple": lambda n: len(repr((n, n * 4))),
    "format": lambda n: int(format(n, "x"), 16),
    "str.format": lambda n: int("{}".format(n)),  # noqa: UP032  # what is tried
    "template": lambda n: int(string.Template("$n").substitute(n=n)),
    "bit_length": lambda n: 1 << n.bit_length(),
    "bit_count": lambda n: n.bit_count(),
    "to_bytes": lambda n: n.to_bytes(2, "big")[1],
    "is_integer": lambda n: 5 if (n / 24).is_integer() else 6,
    "as_integer_ratio": lambda n: (n / 32).as_integer_ratio()[1],
    "float hex": lambda n: len((n / 48).hex()),
    "real and imaginary": lambda n: n.real + n.imag + n.numerator * n.denominator,
    "conjugate": lambda n: n.conjugate() // 5,
    "math imported inside": import_inside,
    "math.gcd": lambda n: math.gcd(n, 24),
    "math.isqrt": math.isqrt,
    "math.modf": lambda n: math.modf(n / 24)[1],
    "math.frexp": lambda n: math.frexp(n)[1],
    "math.comb": lambda n: math.comb(n, 2),
    "math.isclose": lambda n: 1 if math.isclose(n, 24, rel_tol=0.1) else 2,
    "math.fsum": lambda n: math.fsum([n, 1]),
    "math.hypot": lambda n: math.floor(math.hypot(n, 10)),
    "helper in another file": lambda n: up(n, 16),
    "helper of a module": lambda n: arithmetic_elsewhere.up(n, 16),
    "loop in another file": looped,
    "remembered in another file": remembered,
    "object of another file": TABLE,
    "range": lambda n: sum(range(n)),
    "range member": lambda n: 3 if n in range(0, 100, 24) else 4,
    "enumerate": lambda n: next(itertools.islice(enumerate(itertools.count(), n), 1))[0],
    "islice": lambda n: len(list(itertools.islice(LOOKUP, n))),
    "divmod": lambda n: sum(divmod(n, 24)),
    "pow of three": lambda n: pow(n, 2, 19),
    "bisect": lambda n: bisect.bisect([10, 20, 30, 40, 50, 60], n),
    "sorted": lambda n: sorted([24, n, 32]).index(32),
    "statistics": lambda n: int(statistics.median([20, n, 40])),
    "operator.index": operator.index,
    "operator.length_hint": lambda n: len(Counts(n)),
    "numpy array": lambda n: int(np.array([n, 3]).sum()),
    "numpy zeros": lambda n: np.zeros((n, 2)).size,
    "numpy index": lambda n: int(np.arange(300)[n]),
    "numpy function": lambda n: int(np.gcd(n, 24)) + int(np.clip(n, 20, 40)),
    "numpy scalar": lambda n: int(np.float64(0.3) * n) + int(n * np.int64(3) // np.int64(2)),
    "numpy linspace": lambda n: len(np.linspace(0, 1, n)),
    "numpy bool": lambda n: 2 if np.isclose(n, 24) else 3,
    "struct": lambda n: struct.pack(">H", n)[1],
    "array": lambda n: array.array("i", [n])[0],
    "bytes": lambda n: len(bytes(n)),
    "json": lambda n: len(json.dumps({"n": [n, n * 40]})),
    "pickle": lambda n: pickle.loads(pickle.dumps(n)) // 5,  # noqa: S301  # our own number
    "copy": lambda n: copy.copy(n) + copy.deepcopy([n])[0],
    "lru_cache": functools.lru_cache(lambda m: m * m),
    "chr": lambda n: ord(chr(n + 60)),
    "hex": lambda n: int(hex(n), 16) + len(bin(n)),
    "round": lambda n: round(n, -1),
    "complex": lambda n: int(abs(complex(n, 3))),
    "times a complex": lambda n: int((1j * n).imag),
    "root of a negative": lambda n: int(((-n) ** 0.5).imag),
    "fraction": lambda n: int(fractions.Fraction(n, 7)),
    "decimal": lambda n: int(decimal.Decimal(n) / 7),
    "random seed": lambda n: random.Random(n).randrange(50),  # noqa: S311  # what is tried
    "match": by_match,
    "caught": caught,
    "all and any": lambda n: 1 if any((n > 30, n == 12)) else 2,
    "not": lambda n: 1 if not n % 16 else 2,
    "invert": lambda n: -(~n),
    "type": lambda n: 1 if type(n) is int and n > 30 else 2,
    "name of its type": lambda n: n // 5 if type(n).__name__ == "int" else 2,
    "class": lambda n: n // 5 if n.__class__ == int else 2,  # noqa: E721  # what is tried
    "of its type": lambda n: type(n)(n // 7),
    "max by key": lambda n: max([n, 30], key=lambda m: m % 25),
    "torch.Size": lambda n: torch.Size([n, 2]).numel(),
    "a tensor's list": lambda n: torch.tensor([n, 3]).tolist()[0] // 5,
    "a tensor's array": lambda n: int(torch.arange(n).numpy().max()) // 5,
    "a tensor's item": lambda n: torch.arange(n).sum().item() // 100,
    "a tensor compared": lambda n: 5 if torch.equal(torch.arange(n), torch.arange(24)) else 6,
    "a tensor's truth": lambda n: 5 if torch.tensor(n) > 30 else 6,
    "a tensor of a type": lambda n: int(torch.FloatTensor(n, 2).numel()),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _without_a_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the check at other sizes away: it may agree by chance, and pins must do without."""
    monkeypatch.setattr(capture, "_right_at_other_sizes", lambda *_: True)


class Jumps(nn.Module):
    """Shifts and crops by numbers made of the sizes."""

    def __init__(self, number: Callable[[Any], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.number(x.shape[2]), self.number(x.shape[-1])
        return self.conv(x)[:, :, : x.size(2) - 1] * height + width  # type: ignore[no-any-return]


def assert_equal_everywhere(model: nn.Module, sizes: tuple[tuple[int, ...], ...] = SIZES) -> Program:
    model.eval()
    program = Program(model, torch.rand(sizes[0]))
    for size in sizes:
        x = torch.rand(size)
        assert torch.equal(program(x), model(x)), size
    return program


@pytest.mark.parametrize("name", NUMBERS)
def test_number(name: str) -> None:
    assert_equal_everywhere(Jumps(NUMBERS[name]))


def chunks(x: Tensor) -> Tensor:
    return torch.stack([part.mean((0, 2, 3)) for part in x.split(8, 2)]).sum(0).view(1, -1, 1, 1)


def chunks_counted(x: Tensor) -> Tensor:
    return x * len(x.split(8, 3))


def chunks_last(x: Tensor) -> Tensor:
    return x * x.split(8, 2)[-1].mean() + x.chunk(5, 3)[-2].mean()


def chunks_joined(x: Tensor) -> Tensor:
    return torch.cat(x.split(10, 2), 2)


def chunks_starred(x: Tensor) -> Tensor:
    return torch.cat([*x.chunk(7, 2)][::-1], 2)


def images(x: Tensor) -> Tensor:
    return torch.stack([one * index for index, one in enumerate(x)])


def rows(x: Tensor) -> Tensor:
    return sum(row for row in x.unbind(2)).unsqueeze(2)  # type: ignore[attr-defined]  # a tensor, for there are rows


def tries(x: Tensor) -> Tensor:
    try:
        return x + x.reshape(x.shape[0], 3, -1, 36).mean((2, 3))[:, :, None, None]
    except RuntimeError:
        return x * 2


def tries_to_read(x: Tensor) -> Tensor:
    size = torch.tensor(x.shape[2])
    return x * 2 if size > 30 else x


def storage(x: Tensor) -> Tensor:
    return x * (x.untyped_storage().nbytes() // 1000)


def layout(x: Tensor) -> Tensor:
    return x * 2 if x.transpose(0, 2).is_contiguous() else x


def shapes_compared(x: Tensor) -> Tensor:
    return x * 2 if x.transpose(2, 3).shape == x.shape or x.is_same_size(torch.ones(1, 3, 48, 32)) else x


def printed(x: Tensor) -> Tensor:
    return x * len(str(x.shape))


class Kept(nn.Module):
    """Keeps a size between two layers, in a cache by size."""

    tables: dict[Any, Any] = {}  # noqa: RUF012  # what is tried

    def forward(self, x: Tensor) -> Tensor:
        self.tables.setdefault(x.shape[2:], x.shape[2] // 5)
        return x * self.tables[x.shape[2:]]


STEPS = [
    chunks, chunks_counted, chunks_last, chunks_joined, chunks_starred, images, rows, tries, tries_to_read, storage,
    layout, shapes_compared, printed, Kept(),
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS, ids=lambda step: getattr(step, "__name__", "kept"))
def test_step(step: Callable[[Tensor], Tensor]) -> None:
    class Stepping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + step(x)  # type: ignore[no-any-return]

    assert_equal_everywhere(Stepping(), tuple(size for size in SIZES if step is not chunks_last or size[3] > 20))


def test_unpacking_asks_nothing() -> None:
    class Unpacks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 9, 1)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.conv(x).chunk(3, 1)
            first, second, third = q.unflatten(1, (3, 1)).transpose(0, 1)
            return q * k + v + torch.cat((first, second, third), 1)

    assert Program(Unpacks().eval(), torch.rand(1, 3, 16, 16)).variants[0].capture.conditions is None


class Padded(nn.Module):
    """Pads by a helper of another file."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, up(x.shape[3], 16) - x.shape[3], 0, arithmetic_elsewhere.up(x.shape[2], 16) - x.shape[2]))


def test_recorded_in_other_files_too() -> None:
    """One graph serves every size where a helper rounds up, whichever file it stands in."""
    program = assert_equal_everywhere(Padded())
    assert len(program.variants) == 1


def test_a_refusal_that_the_network_catches_stands() -> None:
    def reads(x: Tensor) -> Tensor:
        try:
            return x * int(x.mean())
        except Exception:  # noqa: BLE001  # what is tried
            return x * 0

    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return reads(x)

    with pytest.raises(CaptureError, match=r"int\(\) of a tensor that depends on the image"):
        Program(Reads(), torch.rand(1, 3, 8, 8))


def test_a_number_that_c_code_reads_is_asked_for() -> None:
    """What makes it impossible to read a traced number unseen: it is no int, whatever it says to `isinstance`."""
    assert not issubclass(values.TracedInt, int)
    assert not issubclass(values.TracedFloat, float)


CACHE: dict[Any, Any] = {}
SEEN: list[Any] = []
EACH: set[Any] = set()


def test_what_is_left_in_globals_is_plain() -> None:
    class Leaves(nn.Module):
        last: Any = None

        def forward(self, x: Tensor) -> Tensor:
            h, w = x.shape[2:]
            type(self).last = (h // 2, [w])
            CACHE.setdefault((h, "key"), {"half": (h // 2, (w / 2, h * 2))})
            SEEN.append(h * 3)
            EACH.add(w + 1)
            return x * h

    Program(Leaves(), torch.rand(1, 3, 8, 12))
    left = (Leaves.last, list(CACHE), CACHE[8, "key"], SEEN, list(EACH))
    assert {type(leaf) for leaf in tree_leaves(left)} == {int, float, str}
    assert CACHE[8, "key"] == {"half": (4, (6.0, 16))}
    assert all(type(number) is int for number in SEEN)
    assert Leaves.last == (4, [12])


def test_pooling_by_size_stays_one_graph() -> None:
    class Pools(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pooled = F.avg_pool2d(x, x.shape[2:]) + F.max_pool2d(x, (x.shape[2], x.shape[3]))
            return x * pooled + F.avg_pool2d(x, kernel_size=x.shape[3] // 8, stride=1).mean()

    assert len(assert_equal_everywhere(Pools()).variants) == 1
