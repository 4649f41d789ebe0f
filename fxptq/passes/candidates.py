"""Candidates: widths by the predicted errors, by those that a rehearsal found, and with the weights' planned widths.

Small errors of many weights may make more together than their sum. So where weights have got other widths, `refit` is
rehearsed. Where it leaves far more than predicted, widths are chosen again by the errors that it left, and if these do
not hold either, with the weights' planned widths; the best of all rehearsals is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fxptq.passes.allocation import Errors, Limit, allocate
from fxptq.passes.assigned import AssignedWidths
from fxptq.passes.forecast import Forecast, Prediction

_AS_FOUND, _PLANNED = ", with the errors of weights as found", ", with the weights' planned bits"
"""What is said of widths that were not chosen by the predicted errors alone."""

_TRUST = 1.25
"""The error behind a rehearsal of `refit`, in units of the predicted one, up to which a prediction is trusted."""


@dataclass(frozen=True)
class _Choice:
    """Widths to choose among.

    Attributes:
        verdict: what the widths are, to be said behind the error.
        widths: by quantizer.
        parts: the parts of the prediction.
        predicted: the predicted error of the output, with the part of the weights as found where one was found.
        rehearsed: the error behind a rehearsal of the rounding; the predicted one where there is none.
    """

    verdict: str
    widths: Mapping[str, int]
    parts: Prediction
    predicted: float
    rehearsed: float


def best(
    widths: AssignedWidths,
    forecast: Forecast,
    errors: Errors,
    limits: Sequence[Limit],
    start: Prediction,
    notes: list[str],
) -> tuple[float, str]:
    """Sets the best of freely allocated widths, others that what was found with these asks for, and the plan.

    Args:
        widths: the student's.
        forecast: of the student.
        errors: as for `allocate`.
        limits: likewise.
        start: the prediction for the plan.
        notes: where rehearsals are told.

    Returns:
        The predicted error and what to say behind it; if the plan stays, the error is that of the last widths tried.
    """
    choices: list[_Choice] = []
    for verdict, allowed, factor in _offers(widths, forecast, errors, choices):
        widths.set(allocate(allowed, limits))
        parts = forecast.predicted()
        error = rehearsed = parts.measured + factor * parts.left
        is_better = error < start.measured + factor * start.left
        has_moved = not widths.weights.isdisjoint(widths.changed)
        if is_better:
            if forecast.of_weights and (has_moved or choices):
                rehearsed = forecast.rehearsed()
                notes.append(f"a rehearsal of refit left {rehearsed:.3g}; predicted were {error:.3g}{verdict}")
            choices.append(_Choice(verdict, widths.now, parts, error, rehearsed))
        if not has_moved or (is_better and rehearsed <= _TRUST * error):
            break
    if not choices:
        widths.take_back()
        return error, ": not better, taken back"
    least = min(choices, key=lambda choice: choice.rehearsed)
    if least is not choices[-1]:
        widths.set(least.widths)
    return least.predicted, least.verdict


def _offers(
    widths: AssignedWidths, forecast: Forecast, errors: Errors, choices: Sequence[_Choice]
) -> Iterator[tuple[str, Errors, float]]:
    """Errors to allocate by, one after the other, with their verdict and what errors of weights count.

    Args:
        widths: the student's.
        forecast: of the student.
        errors: as predicted.
        choices: what was chosen of the offers so far.
    """
    yield "", errors, 1.0
    if choices and choices[0].parts.left > 0:
        free = choices[0]
        factor = max(0.0, free.rehearsed - free.parts.measured) / free.parts.left
        yield _AS_FOUND, as_found(errors, forecast.of_weights, free.widths, free.parts.measured, factor), factor
    planned = {key: {widths.plan[key]: errors[key][widths.plan[key]]} for key in widths.weights}
    yield _PLANNED, {**errors, **planned}, 1.0


def as_found(errors: Errors, of_weights: Errors, widths: Mapping[str, int], measured: float, factor: float) -> Errors:
    """The errors with those of rounded weights in the proportion to the others that a rehearsal has found.

    Args:
        errors: of all operands.
        of_weights: those of the weights that are rounded.
        widths: of the network that was measured and rehearsed.
        measured: the error that the other operands made together.
        factor: the error that the weights made together, over the sum of their own.
    """
    of_others = sum(by_width[widths[key]] for key, by_width in errors.items() if key not in of_weights)
    more = factor * of_others / measured if measured > 0 else 1.0
    found = {key: {bits: more * error for bits, error in errors[key].items()} for key in of_weights}
    return {**errors, **found}
