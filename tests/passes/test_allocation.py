"""The integer programme against brute force over all choices."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
import pytest

from fxptq.errors import InputError
from fxptq.passes.allocation import Errors, Limit, Term, allocate


def brute_force(errors: Errors, limits: list[Limit]) -> float:
    """The least sum of errors over every choice that keeps the limits."""
    keys = list(errors)
    best = inf
    for choice in product(*(errors[key] for key in keys)):
        widths = dict(zip(keys, choice, strict=True))
        if all(limit.cost(widths) <= limit.most for limit in limits):
            best = min(best, total(errors, widths))
    return best


def total(errors: Errors, widths: dict[str, int]) -> float:
    return sum(errors[key][width] for key, width in widths.items())


def instance(seed: int) -> tuple[dict[str, dict[int, float]], list[Limit]]:
    """Five operands at 2 to 5 bits: products, a shared operand, a square, a fixed one, and weights with a size."""
    rng = np.random.default_rng(seed)
    sensitivity = {key: float(10 ** rng.uniform(-3, 0)) for key in "abcde"}
    errors = {key: {b: e * 3.0 ** (4 - b) for b in range(2, 6)} for key, e in sensitivity.items()}
    errors["e"] = {4: errors["e"][4]}
    macs = 10 ** rng.uniform(0, 3, 5)
    work = (
        Term(macs[0], "a", "b"),
        Term(macs[1], "a", "c"),
        Term(macs[2], "c", "e"),
        Term(macs[3], "d", "d"),
        Term(macs[4], "e", "e"),
    )
    size = (Term(float(rng.integers(1, 50)), "b"), Term(float(rng.integers(1, 50)), "c"))
    plan = dict.fromkeys("abcde", int(rng.integers(3, 5))) | {"e": 4}
    limits = [Limit("work", work, inf), Limit("size", size, inf)]
    return errors, [Limit(limit.name, limit.terms, limit.cost(plan)) for limit in limits]


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_within_the_limits_is_better_by_more_than_the_gap(seed: int) -> None:
    errors, limits = instance(seed)
    widths = allocate(errors, limits)
    assert all(limit.cost(widths) <= limit.most for limit in limits)
    assert total(errors, widths) <= brute_force(errors, limits) * (1 + 1.1e-2)


def test_the_same_problem_has_the_same_answer() -> None:
    errors, limits = instance(3)
    assert allocate(errors, limits) == allocate(errors, limits)


def test_an_operand_that_costs_next_to_nothing_gets_eight_bits_and_one_without_error_the_fewest() -> None:
    errors = {
        key: {b: e * 3.0 ** (4 - b) for b in range(2, 9)}
        for key, e in {"large": 1.0, "tiny": 0.1, "dead": 0.0, "w": 1.0}.items()
    }
    errors["w"] = {4: 1.0}
    work = (Term(1e6, "large", "w"), Term(10.0, "tiny", "w"), Term(1e6, "dead", "w"))
    limit = Limit("work", work, 4.0 * 4 * 2e6)
    widths = allocate(errors, [limit])
    assert (widths["tiny"], widths["dead"], widths["large"]) == (8, 2, 5)


def test_the_most_that_a_limit_allows_is_kept_to_the_last_bit() -> None:
    errors = {key: {b: 3.0**-b for b in range(2, 9)} for key in "abc"}
    size = tuple(Term(10.0**9 + i, key) for i, key in enumerate("abc"))
    for most in (Limit("size", size, 0.0).cost(dict.fromkeys("abc", 5)), 17 * 10.0**9 - 1):
        widths = allocate(errors, [Limit("size", size, most)])
        assert Limit("size", size, most).cost(widths) <= most


def test_without_a_limit_that_binds_every_operand_gets_the_most_bits() -> None:
    errors = {key: {b: 3.0**-b for b in range(2, 9)} for key in "ab"}
    assert allocate(errors, [Limit("work", (Term(1.0, "a", "b"),), 64.0)]) == {"a": 8, "b": 8}
    assert allocate({"a": {3: 1.0}}, []) == {"a": 3}


def test_a_limit_below_the_fewest_bits_is_refused_with_what_they_take() -> None:
    errors = {"a": {2: 1.0, 3: 0.5}}
    with pytest.raises(InputError, match=r"^bits of codes: 199 cannot be met; the fewest bits take 200$"):
        allocate(errors, [Limit("bits of codes", (Term(100.0, "a"),), 199.0)])
