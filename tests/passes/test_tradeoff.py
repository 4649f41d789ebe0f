"""The exchange of errors for bits against budgets that are met one width at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxptq.passes.tradeoff import LayerErrors, exchanged

ERRORS = st.floats(1e-6, 1.0)


def least_error(errors: list[float], costs: list[float]) -> float:
    """The least sum of e 4^-b where sum c b = 0, with real widths; the price of a bit is found by halving."""
    e, c = np.array(errors), np.array(costs)

    def widths(price: float) -> np.ndarray:
        return np.log(e * math.log(4) / (price * c)) / math.log(4)  # where one more bit takes what it costs

    low, high = 1e-30, 1e30
    for _ in range(400):
        price = math.sqrt(low * high)
        low, high = (low, price) if float(c @ widths(price)) < 0 else (price, high)
    return float((e * 4 ** -widths(price)).sum())


@given(ERRORS, ERRORS, ERRORS, ERRORS, st.floats(0.1, 10), st.integers(2, 8), st.integers(2, 8))
def test_the_mean_says_what_the_best_widths_leave(
    input_before: float, weight_before: float, input_after: float, weight_after: float, macs: float, a: int, w: int
) -> None:
    others, their_costs = [0.02, 0.3, 0.001], [3.0, 1.0, 20.0]
    costs = [macs * w, macs * a, *their_costs]
    before = least_error([input_before, weight_before, *others], costs)
    after = least_error([input_after, weight_after, *others], costs)
    share = (costs[0] + costs[1]) / sum(costs)
    means = [
        exchanged([LayerErrors(of_input, of_weight, macs, w)], a)
        for of_input, of_weight in ((input_before, weight_before), (input_after, weight_after))
    ]
    assert after / before == pytest.approx((means[1] / means[0]) ** share, rel=1e-6)


def test_two_readers_weigh_by_their_work() -> None:
    small, large = LayerErrors(0.1, 0.01, 1.0, 4), LayerErrors(0.3, 0.2, 3.0, 2)
    logs = (1 * 4 + 3 * 2) * math.log(0.1 + 0.3) + 1 * 8 * math.log(0.01) + 3 * 8 * math.log(0.2)
    assert exchanged([small, large], 8) == pytest.approx(math.exp(logs / (10 + 32)))


def test_an_exact_input_has_a_price_and_a_nan_has_none() -> None:
    exact, nothing = LayerErrors(0.0, 0.1, 1.0, 4), LayerErrors(math.nan, 0.1, 1.0, 4)
    assert 0 < exchanged([exact], 4) < exchanged([LayerErrors(1e-4, 0.1, 1.0, 4)], 4)
    assert math.isnan(exchanged([nothing], 4))
