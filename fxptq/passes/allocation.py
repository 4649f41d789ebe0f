"""Allocation: the bit width of each operand, so that the sum of errors is least and no limit is exceeded.

This is an integer programme: one choice for each operand, and one linear limit for each kind of cost. The work of a
product depends on two widths at once. Its cost is linear in the shares of the pairs of widths, and these shares must
agree with the two choices, which makes the relaxation tight. `scipy.optimize.milp` solves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fxptq.errors import InputError

Errors = Mapping[str, Mapping[int, float]]
"""By operand, the error for each width that it may have; an operand whose width is fixed has one."""

_GAP = 1e-2
"""Relative gap to the least sum of errors at which the search may stop."""

_NODES = 100
"""Nodes of the search tree after which the best choice so far is taken: unlike a time, the same on every machine."""

_TOLERANCE = 1e-5
"""More than the part of a limit by which the solver may exceed it."""


@dataclass(frozen=True)
class Term:
    """A cost of `factor` times the bits of `first`, times the bits of `second` unless that is empty."""

    factor: float
    first: str
    second: str = ""

    def cost(self, first: float, second: float) -> float:
        """The cost at these widths."""
        return self.factor * first * (second if self.second else 1)


@dataclass(frozen=True)
class Limit:
    """A sum of terms that must not exceed `most`; `name` says for people what is limited, with its unit."""

    name: str
    terms: tuple[Term, ...]
    most: float

    def cost(self, widths: Mapping[str, float]) -> float:
        """The sum of the terms at these widths."""
        return sum(term.cost(widths[term.first], widths[term.second or term.first]) for term in self.terms)


def allocate(errors: Errors, limits: Sequence[Limit]) -> dict[str, int]:
    """Chooses the widths of least total error within the limits, to one part in a hundred.

    Args:
        errors: see `Errors`; the errors of an operand add to those of the others.
        limits: costs by width; every operand in them is in `errors`.

    Returns:
        The width of each operand. The same problem has the same answer.

    Raises:
        InputError: a limit cannot be met with the least widths; the message says what they cost.
    """
    least = {key: min(by_width) for key, by_width in errors.items()}
    for limit in limits:
        if limit.cost(least) > limit.most:
            raise InputError(
                f"{limit.name}: {limit.most:,.0f} cannot be met; the fewest bits take {limit.cost(least):,.0f}"
            )
    for slack in (0.0, _TOLERANCE):
        programme = _Programme(errors)
        for limit in limits:
            programme.add(limit, slack)
        widths = programme.solved() if programme.size else least
        if widths is not None and all(limit.cost(widths) <= limit.most for limit in limits):
            return widths
    return least


@dataclass
class _Programme:
    """The programme in the form of `milp`: one column for each width of an operand and each pair of a product."""

    errors: Errors
    cost: list[float] = field(default_factory=list)
    integral: list[int] = field(default_factory=list)
    rows: list[tuple[list[int], list[float], float, float]] = field(default_factory=list)
    columns: dict[str, dict[int, int]] = field(default_factory=dict)
    pairs: dict[tuple[str, str], dict[tuple[int, int], int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        free = {key: by_width for key, by_width in self.errors.items() if len(by_width) > 1}
        scale = max((abs(e) for by_width in free.values() for e in by_width.values()), default=0.0) or 1.0
        for key, by_width in free.items():
            self.columns[key] = {width: self._column(e / scale, 1) for width, e in by_width.items()}
            self.rows.append(([*self.columns[key].values()], [1.0] * len(by_width), 1.0, 1.0))

    @property
    def size(self) -> int:
        """The number of columns."""
        return len(self.cost)

    def add(self, limit: Limit, slack: float) -> None:
        """Adds a limit, lowered by that part, as one row, and the pairs of widths that it needs."""
        row: dict[int, float] = {}
        fixed = 0.0
        for term in limit.terms:
            first, second = term.first, term.second or term.first
            if first != second and first in self.columns and second in self.columns:
                costs = {column: term.cost(*pair) for pair, column in self._pairs(first, second).items()}
            elif first in self.columns or second in self.columns:
                free = first if first in self.columns else second
                costs = {
                    column: term.cost(self._width(first, width), self._width(second, width))
                    for width, column in self.columns[free].items()
                }
            else:
                costs, fixed = {}, fixed + term.cost(self._width(first, 0), self._width(second, 0))
            for column, cost in costs.items():
                row[column] = row.get(column, 0.0) + cost
        unit = max(limit.most, 1.0)
        most = (limit.most * (1 - slack) - fixed) / unit
        self.rows.append(([*row], [cost / unit for cost in row.values()], -np.inf, most))

    def solved(self) -> dict[str, int] | None:
        """The widths of the best choice; None if the solver found none."""
        from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415  # half a second to import
        from scipy.sparse import csr_array  # noqa: PLC0415

        lengths = [len(columns) for columns, *_ in self.rows]
        matrix = csr_array(
            (
                np.concatenate([values for _, values, *_ in self.rows]),
                np.concatenate([columns for columns, *_ in self.rows]),
                np.cumsum([0, *lengths]),
            ),
            shape=(len(self.rows), self.size),
        )
        bounds = ([low for *_, low, _ in self.rows], [high for *_, high in self.rows])
        found = milp(
            np.array(self.cost),
            integrality=np.array(self.integral),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, *bounds),
            options={"mip_rel_gap": _GAP, "node_limit": _NODES},
        )
        if found.x is None:
            return None
        return {key: self._chosen(key, found.x) for key in self.errors}

    def _column(self, cost: float, integral: int) -> int:
        self.cost.append(cost)
        self.integral.append(integral)
        return len(self.cost) - 1

    def _width(self, key: str, width: int) -> int:
        """`width` for an operand with a choice, and the only width of any other."""
        return width if key in self.columns else next(iter(self.errors[key]))

    def _pairs(self, first: str, second: str) -> dict[tuple[int, int], int]:
        """The columns of the pairs of widths of two operands, tied to the operands' own columns."""
        known = self.pairs.get((first, second))
        if known is not None:
            return known
        mine, others = self.columns[first], self.columns[second]
        pairs = {(i, j): self._column(0.0, 0) for i in mine for j in others}
        for width, column in mine.items():
            tied = [pairs[width, other] for other in others]
            self.rows.append(([*tied, column], [1.0] * len(tied) + [-1.0], 0.0, 0.0))
        for width, column in others.items():
            tied = [pairs[other, width] for other in mine]
            self.rows.append(([*tied, column], [1.0] * len(tied) + [-1.0], 0.0, 0.0))
        self.pairs[first, second] = pairs
        return pairs

    def _chosen(self, key: str, values: npt.NDArray[np.float64]) -> int:
        if key not in self.columns:
            return next(iter(self.errors[key]))
        return max(self.columns[key], key=lambda width: float(values[self.columns[key][width]]))
