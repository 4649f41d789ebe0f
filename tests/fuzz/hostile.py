"""Values and bytes that break parsers, drawn by a random generator: the same generator gives the same ones."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np

Rng = np.random.Generator

NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 9, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64),
    *(10**30, 10**400, -(2**63), 0.5, -0.0, 1e-300, 1e308, True, False),
)
TEXTS = (
    "",
    " ",
    "x",
    "../../etc/passwd",
    "os:system",
    "a" * 5000,
    "\0",
    "\x1b[31m",
    "\ud800",
    "é",
    "%s%n",
    "'\"",
    "1" * 400,
)


def value(rng: Rng, depth: int = 0) -> Any:
    """Something that does not belong there."""
    kind = int(rng.integers(0, 8 if depth < 3 else 5))
    if kind <= 2:
        choices: tuple[Any, ...] = TEXTS if kind == 2 else NUMBERS
        return choices[int(rng.integers(len(choices)))]
    if kind <= 4:
        return (None, [], {})[int(rng.integers(3))]
    if kind == 7:
        return nested(int(rng.integers(2, 200)))
    inner = [value(rng, depth + 1) for _ in range(int(rng.integers(1, 5)))]
    return inner if kind == 5 else {str(value(rng, 3)): item for item in inner}


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all the values of a tree of dicts and lists."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def changed(rng: Rng, tree: Any) -> Any:
    """The tree with one to three values replaced, removed, doubled or swapped; the tree itself is not changed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(int(rng.integers(1, 4))):
        found = [place for place in places(tree) if place]
        if not found:
            return value(rng)
        *way, last = found[int(rng.integers(len(found)))]
        parent = tree
        for key in way:
            parent = parent[key]
        match int(rng.integers(0, 6)):
            case 0:
                del parent[last]
            case 1 if isinstance(parent, dict):
                parent[str(value(rng, 3))] = parent.pop(last)
            case 2 if isinstance(parent, list):
                parent.append(parent[last])
            case 3 if isinstance(parent[last], int | float):
                parent[last] = parent[last] * int(rng.integers(2, 1000))
            case _:
                parent[last] = value(rng)
    return tree


def exchanged(rng: Rng, tree: Any) -> Any:
    """The tree with a few values made others of their own type, so that most parsers take it; it is not changed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(int(rng.integers(1, 4))):
        found = [place for place in places(tree) if place]
        *way, last = found[int(rng.integers(len(found)))]
        parent = tree
        for key in way:
            parent = parent[key]
        old = parent[last]
        if isinstance(old, bool) or old is None:
            parent[last] = not old
        elif isinstance(old, int | float):
            parent[last] = type(old)(rng.choice([0, 1, 2, 3, 8, 64, 4096, 1 << 20, abs(old) + 1, old * 2, old * 1000]))
        elif isinstance(old, list) and old and rng.random() < 0.7:
            parent[last] = old[1:] if rng.random() < 0.5 else [*old, old[-1]]
        else:
            others = [_at(tree, place) for place in found if type(_at(tree, place)) is type(old)]
            parent[last] = json.loads(json.dumps(others[int(rng.integers(len(others)))]))
    return tree


def _at(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def damaged(rng: Rng, data: bytes) -> bytes:
    """Bytes with some flipped, cut off, left out, doubled or zeroed."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, len(found) + 1))
        length = int(rng.integers(1, 64))
        match int(rng.integers(0, 7)):
            case 0:
                del found[at:]
            case 1:
                del found[at : at + length]
            case 2:
                found[at:at] = rng.bytes(length)
            case 3:
                found[at : at + length] = bytes(len(found[at : at + length]))
            case 4:
                found[at:at] = found[at : at + length]
            case 5 if len(found) >= at + 8:
                found[at : at + 8] = int(rng.integers(0, 2**63)).to_bytes(8, "little")
            case _ if found:
                found[min(at, len(found) - 1)] = int(rng.integers(0, 256))
    return bytes(found)


def bomb(rng: Rng) -> bytes:
    """A few kilobytes that inflate to tens or hundreds of megabytes."""
    size = int(rng.choice([1 << 20, 1 << 26, 1 << 28]))
    packer = zlib.compressobj(9)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(size >> 20)) + packer.flush()
