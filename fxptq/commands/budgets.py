"""The budget that the options of `fxptq quantize` ask for."""

from __future__ import annotations

from fxptq.bits import Budget, as_budget
from fxptq.errors import InputError


def asked_budget(
    budget: str | None, target_bits: float | None, target_bytes: str | None, max_drop: float | None
) -> Budget | None:
    """Reads the four options that set a budget, of which at most one may be given.

    Raises:
        InputError: two are given, or a value is out of range or written in another way.
    """
    given = {
        "--budget": budget,
        "--target-bits": target_bits,
        "--target-bytes": target_bytes,
        "--max-drop": max_drop,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"{names[0]} and {names[1]} are both budgets: leave one of them out")
    try:
        if budget is not None:
            return as_budget(budget)
        if target_bits is not None:
            return Budget(average=target_bits)
        if target_bytes is not None:
            return as_budget(target_bytes if target_bytes.endswith("B") else f"{target_bytes}B")
        return None if max_drop is None else Budget(max_drop=max_drop)
    except InputError as error:
        raise InputError(f"{names[0]}: {error}") from None
