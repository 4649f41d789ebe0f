"""Replaces traced numbers that outlive a trace (in a global cache, a class, a closure) by plain numbers."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from types import CellType
from typing import Any
from weakref import ReferenceType

from fxptq.graph.values import TracedNumber, plain


def make_plain(numbers: Iterable[ReferenceType[TracedNumber]]) -> None:
    """Replaces traced numbers by plain ones in all dicts, lists, sets, tuples and closures that hold them.

    Args:
        numbers: the traced numbers of a trace that is over.
    """
    targets = {id(number): number for number in (reference() for reference in numbers) if number is not None}
    new: dict[int, Any] = {key: plain(number) for key, number in targets.items()}
    old: dict[int, Any] = dict(targets)
    while targets:
        ours = {id(targets), id(old), id(new)}
        tuples: dict[int, Any] = {}
        for holder in gc.get_referrers(*targets.values()):
            if id(holder) in ours:
                continue
            if isinstance(holder, tuple):
                tuples[id(holder)] = holder
            else:
                _replace(holder, new)
        old |= tuples  # kept alive, so that no other object gets its number
        new |= {key: _rebuilt(holder, new) for key, holder in tuples.items()}
        targets = tuples


def _rebuilt(holder: Any, new: dict[int, Any]) -> Any:
    items = [new.get(id(item), item) for item in holder]
    return holder._make(items) if hasattr(holder, "_make") else type(holder)(items)


def _replace(holder: Any, new: dict[int, Any]) -> None:
    if isinstance(holder, dict):
        for key, value in list(holder.items()):
            if id(key) in new:
                del holder[key]
            if id(key) in new or id(value) in new:
                holder[new.get(id(key), key)] = new.get(id(value), value)
    elif isinstance(holder, list):
        holder[:] = [new.get(id(item), item) for item in holder]
    elif isinstance(holder, set):
        for item in [item for item in holder if id(item) in new]:
            holder.remove(item)
            holder.add(new[id(item)])
    elif isinstance(holder, CellType):
        holder.cell_contents = new.get(id(holder.cell_contents), holder.cell_contents)
