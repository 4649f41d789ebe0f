"""Allocate: gives each operand its own bit width, by its sensitivity and its cost, within a budget.

An operand's part of the output's squared error is estimated once, at the width of the plan (see `sensitivity`). At
other widths it is in proportion to the error of the operand's values (see `widths`), and of weights that a later pass
rounds for the outputs of their layers, what this will leave is measured (see `remains`). `allocation` chooses. Operands
that share a quantizer share a width. Sites that cost next to nothing get 8 bits without a rule of their own, because
bits are cheap there. The bounds of quantizers that change are searched again. Without a budget, `candidates` compares
several choices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar, Literal

from fxptq.errors import InputError
from fxptq.passes.allocation import Errors, Limit, allocate
from fxptq.passes.assigned import AssignedWidths, observe_missing
from fxptq.passes.base import Context, Pass, PassReport, QuantizedNetwork, register
from fxptq.passes.bounds import values_of
from fxptq.passes.candidates import best
from fxptq.passes.costs import bit_operations, code_bits
from fxptq.passes.crops import training_crops
from fxptq.passes.forecast import Forecast
from fxptq.passes.judge import Judge, JudgedSettings
from fxptq.passes.offsets import movable_weights
from fxptq.passes.remains import left_at, remains
from fxptq.passes.sensitivity import estimate
from fxptq.passes.trials import FINE
from fxptq.passes.widths import bounds_by_width, errors_by_width
from fxptq.quant import search
from fxptq.quant.quantizer import BITS

_STEP = 0.25
"""Distance of the average widths that are tried for a largest drop."""

BEHIND = frozenset({"moments", "gptq", "refit", "biases", "dqc"})
"""Bundled passes that round weights or train for the widths that are there, so that they come behind this pass."""


@register("allocate")
class Allocate(Pass):
    """Chooses the widths of all operands whose bits nobody has fixed, and searches bounds again where widths change.

    Without a budget, the work and the size of the plan are the budget, and the plan stays if the choice is not better
    on held-out inputs. A budget always holds. The pass needs bounds that are set, and belongs before passes that round
    weights or train bounds.
    """

    @dataclass(frozen=True)
    class Settings(JudgedSettings):
        """Settings; see also `JudgedSettings`. At most one budget may be given.

        Attributes:
            operands: the operands that may get other widths.
            refitted: whether a later pass rounds weights for the outputs of their layers (`refit`), so that what this
                leaves of their errors counts; see `fxptq.passes.remains`.
            average: average width, 2 to 8. The network does not exceed the bit operations and the code bytes that it
                has with this width wherever the plan has the asked one.
            file_bytes: largest number of bytes of the checkpoint.
            operations: largest number of bit operations at the size of the example.
            max_drop: largest loss of PSNR in dB on held-out pictures; the fewest bits that keep it are sought.
            extra: part of the plan's bit operations and code bytes that may be added to them.
            raise_only: whether no operand may get fewer bits than the plan gives it.
            draws: random output directions for each batch, see `sensitivity.estimate`.
            crops: number of crops that sensitivities are estimated on.
            batch: crops in a batch.
            patch: side of a crop in pixels of the input.
            k: number of candidates for each bound that is searched again; a quarter where widths are compared.
        """

        operands: Literal["activations", "weights", "all"] = "all"
        refitted: bool = True
        average: float | None = None
        file_bytes: int | None = None
        operations: float | None = None
        max_drop: float | None = None
        extra: float = 0.0
        raise_only: bool = False
        draws: int = 8
        crops: int = 8
        batch: int = 4
        patch: int = 32
        k: int = 100

        def __post_init__(self) -> None:
            super().__post_init__()
            budgets = self.budgets
            if len(budgets) > 1:
                raise InputError("give one of average, file_bytes, operations and max_drop")
            if self.average is not None and not BITS.start <= self.average <= BITS.stop - 1:
                raise InputError(f"average must be {BITS.start} to {BITS.stop - 1} bits, not {self.average:g}")
            if any(budget <= 0 for budget in budgets) or self.extra < 0:
                raise InputError("budgets are above 0, and extra is not negative")
            if min(self.draws, self.crops, self.batch, self.patch, self.k) < 1:
                raise InputError("draws, crops, batch, patch and k must be at least 1")

        @property
        def budgets(self) -> tuple[float, ...]:
            """The budgets that are given."""
            given = (self.average, self.file_bytes, self.operations, self.max_drop)
            return tuple(budget for budget in given if budget is not None)

    needs: ClassVar[frozenset[str]] = frozenset()
    settings: Settings

    def run(self, ctx: Context) -> PassReport:
        """See Pass.

        Returns:
            For each quantizer its `bits` and its `sensitivity`: the squared error of the output that it makes alone, at
            the width before the pass. In the figures `error_before` and `error_after`: the squared error of the output
            on held-out inputs with the widths before the pass and with the chosen ones, which may have been taken back.
            What rounding will leave of weights is a prediction in both.

        Raises:
            InputError: bounds are not set, there are no images, or the budget cannot be met.
        """
        student, settings = ctx.student, self.settings
        if not student.quantizers:
            return PassReport(notes=("no quantizer",))
        if any(quantizer.mode != "on" for quantizer in student.quantizers.values()):
            raise InputError("allocate weighs bounds that are set: run a pass such as `dobi2d` before it")
        if settings.max_drop is not None and ctx.drop is None:
            raise InputError("max_drop is measured on pictures, and this network takes no pictures: give a budget")
        judge = Judge.of(ctx, settings)
        crops = training_crops(
            ctx, crops=settings.crops, batch=settings.batch, patch=settings.patch, fraction=settings.holdout
        )
        sensitivity = estimate(ctx, crops, settings.draws)
        widths = AssignedWidths(ctx, settings.k)
        bounds = self._bounds(ctx, widths)
        of_weights = {key: of_width for key, of_width in bounds.items() if key in widths.weights}
        left = remains(ctx, crops, of_weights) if settings.refitted else {}
        errors = self._errors(ctx, sensitivity, bounds, left)
        forecast = Forecast(ctx, judge, {key: errors[key] for key in left})
        start, notes, verdict = forecast.predicted(), list[str](), ""
        if settings.max_drop is not None:
            limits = self._within(ctx, widths, errors, notes)
            error = forecast.predicted().error
        elif settings.budgets:
            limits = self._limits(ctx, widths.plan)
            widths.set(allocate(errors, limits))
            error = forecast.predicted().error
        else:
            limits = self._limits(ctx, widths.plan)
            error, verdict = best(widths, forecast, errors, limits, start, notes)
        return PassReport(
            quantizers={key: {"bits": bits, "sensitivity": sensitivity[key]} for key, bits in widths.now.items()},
            figures={"error_before": start.error, "error_after": error},
            notes=(
                f"squared error of the output {start.error:.3g} -> {error:.3g}{verdict}",
                *notes,
                *_counted(widths),
                *(f"{limit.name}: {limit.cost(widths.now):,.0f} of {limit.most:,.0f}" for limit in limits),
            ),
        )

    def _within(self, ctx: Context, widths: AssignedWidths, errors: Errors, notes: list[str]) -> list[Limit]:
        """Sets the fewest bits that keep the largest drop, or the most bits where none do; returns their limits."""
        averages = [BITS.start + _STEP * i for i in range(round((BITS.stop - 1 - BITS.start) / _STEP) + 1)]
        most, drop = self.settings.max_drop, ctx.drop
        assert most is not None and drop is not None  # checked by `run`  # noqa: S101, PT018
        low, high = 0, len(averages) - 1
        measured: dict[int, float] = {}
        while low < high:  # the drop falls with the width, up to the noise of the measurement
            middle = (low + high) // 2
            widths.set(allocate(errors, self._averaging(ctx, widths.plan, averages[middle])))
            measured[middle] = drop()
            low, high = (low, middle) if measured[middle] <= most else (middle + 1, high)
        limits = self._averaging(ctx, widths.plan, averages[high])
        widths.set(allocate(errors, limits))
        if high not in measured:
            measured[high] = drop()
        found = f"{averages[high]:g} bits on average lose {measured[high]:.3f} dB on held-out pictures"
        notes.append(found if measured[high] <= most else f"{found}, and no allocation keeps {most:g} dB")
        return limits

    def _bounds(self, ctx: Context, widths: AssignedWidths) -> dict[str, dict[int, search.Bounds]]:
        """The best bounds, at each width, of the operands that may get other widths."""
        plan, weights = widths.plan, widths.weights
        kinds = {"activations": plan.keys() - weights, "weights": weights, "all": plan.keys()}
        free = [key for key in plan if key in kinds[self.settings.operands] and key not in ctx.fixed]
        observe_missing(ctx, free)
        bounds, k = dict[str, dict[int, search.Bounds]](), max(1, self.settings.k // 4)
        with ctx.progress.task("widths", len(free)) as advance:
            for key in free:
                bounds[key] = bounds_by_width(values_of(ctx, key), ctx.student.quantizers[key], k)
                advance()
        return bounds

    def _errors(
        self,
        ctx: Context,
        sensitivity: Mapping[str, float],
        bounds: Mapping[str, Mapping[int, search.Bounds]],
        left: Mapping[str, Mapping[int, float]],
    ) -> Errors:
        """The error of the output that each operand makes at each width that it may have."""
        errors, carriers = {}, _carriers(ctx.student)
        for key, error in sensitivity.items():
            own = ctx.student.quantizers[key].bits
            errors[key] = {own: error}
            if key not in bounds:
                continue
            nearest = errors_by_width(bounds[key], own)
            least = own if self.settings.raise_only or key in carriers else BITS.start
            errors[key] = {
                bits: error * (left_at(bits, left[key], nearest) if key in left else part)
                for bits, part in nearest.items()
                if bits >= least
            }
        return errors

    def _limits(self, ctx: Context, plan: Mapping[str, int]) -> list[Limit]:
        settings = self.settings
        work, size = _unlimited(ctx.student)
        if settings.operations is not None:
            return [replace(work, most=settings.operations)]
        if settings.file_bytes is not None:
            beside = (ctx.overhead() if ctx.overhead is not None else 0) + len(size.terms)  # codes fill whole bytes
            least = beside + sum(BITS.start * term.factor for term in size.terms) / 8
            if settings.file_bytes < least:
                raise InputError(
                    f"a file of {settings.file_bytes:,} bytes is too small: 2 bits take {least:,.0f} bytes"
                )
            return [replace(size, most=8.0 * (settings.file_bytes - beside))]
        if settings.average is None:
            return [replace(limit, most=(1 + settings.extra) * limit.cost(plan)) for limit in (work, size)]
        return self._averaging(ctx, plan, settings.average)

    @staticmethod
    def _averaging(ctx: Context, plan: Mapping[str, int], average: float) -> list[Limit]:
        """The limits that an average width sets: what the plan would cost with it in the place of the asked width."""
        asked = {key: average if key in ctx.nominal else float(bits) for key, bits in plan.items()}
        return [replace(limit, most=limit.cost(asked)) for limit in _unlimited(ctx.student)]


def _carriers(student: QuantizedNetwork) -> set[str]:
    """The fine inputs of the head, the trunk and the tail, which get no fewer bits.

    They carry the picture itself, so that a picture of stronger colours goes beyond all that the calibration shows.
    Fine ranges reach to it (see `vivid`). The best range of fewer bits for the calibration inputs clips it, in all
    channels at once, and no sensitivity to these inputs says so.
    """
    return {
        operand.quantizer
        for site in student.sites
        for operand in site.operands
        if site.edge
        and operand.quantizer
        and student.weight_of(operand.quantizer) is None
        and student.quantizers[operand.quantizer].bits >= FINE
    }


def _unlimited(student: QuantizedNetwork) -> tuple[Limit, Limit]:
    """The costs of a network, which nothing limits yet: bit operations, and the bits of weight codes."""
    coded = movable_weights(student)
    return Limit("bit operations", bit_operations(student), inf), Limit("bits of codes", code_bits(student, coded), inf)


def _counted(widths: AssignedWidths) -> list[str]:
    """How many operands have which width, as sentences."""
    now, lines = widths.now, []
    for name, keys in (("activations", now.keys() - widths.weights), ("weights", widths.weights)):
        count = Counter(now[key] for key in keys)
        lines.append(f"{name}: " + ", ".join(f"{count[bits]} at {bits} bits" for bits in sorted(count)))
    return lines
