"""The facts about a network before any work: from the caller, from its recipe, and from trying the network.

A recipe is not questioned. A network without a recipe is tried (fxptq.probe) to find its scale, number of channels,
value range and sizes. The caller's own facts come before both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fxptq.data.degrade import Degradation
from fxptq.data.tasks import TASKS, task_named
from fxptq.errors import InputError
from fxptq.graph.outputs import picture_output
from fxptq.graph.verify import run_network
from fxptq.probe import Taken, Trials, first_taken, pictures_of, sizes_of, takes_batches
from fxptq.recipe import DEFAULT, PAIRS, DegradationTable, Recipe
from fxptq.sizes import ANY_SIZE, Size, Sizes

BEYOND_WHITE = 16
"""An example whose maximum exceeds this multiple of white cannot be noise; the network must expect another range."""


@dataclass(frozen=True)
class Overrides:
    """The facts that the caller gives about a network; None for a fact that the caller leaves open.

    Attributes:
        scale: ratio of the output's height and width to the input's.
        value_range: the value of white in the input, 1 or 255.
        multiple: height and width of the input are multiples of this.
        degradation: the difference between the input and the clean picture: `bicubic` (by the scale), `noise:SIGMA`,
            `jpeg:QUALITY`, `none`, or a `Degradation`.
        size: height and width of the input that the network is tried on, where nobody gives an example.

    Raises:
        InputError: a value out of its range.
    """

    scale: int | None = None
    value_range: float | None = None
    multiple: int | None = None
    degradation: str | Degradation | None = None
    size: Size | None = None

    def __post_init__(self) -> None:
        for name, number in (("scale", self.scale), ("multiple", self.multiple)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise InputError(f"the {name} is {number!r}; expected a whole number of 1 or more")
        if self.value_range not in (None, 1, 255):
            raise InputError(f"the value range is {self.value_range!r}; expected 1 or 255, the value of white")
        self._table()

    def _table(self) -> dict[str, Any]:
        """The fields of a recipe's [degradation]; empty if the caller gives none."""
        given = self.degradation
        if given is None:
            return {}
        if isinstance(given, Degradation):
            return {"kind": given.kind, "sigma": given.sigma, "quality": given.quality, "amount": given.amount}
        kind, _, level = str(given).partition(":")
        task = next((task for task in TASKS if task.name == kind), None)
        name = task.level if task is not None and task.level != "scale" else ""
        if task is None or bool(level) != bool(name) or not re.fullmatch(r"[\d.]*", level):
            raise InputError(f"degradation {given!r}: expected {_ways()}")
        try:
            table: dict[str, Any] = {name: int(level) if name == "quality" else float(level)} if name else {}
        except ValueError as error:
            raise InputError(f"degradation {given!r}: {level!r} is no {name}") from error
        Degradation(kind, **table)
        return {"kind": kind, **table}

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with the caller's facts in place of its own.

        Raises:
            InputError: the parts do not fit each other.
        """
        if self == NO_OVERRIDES:
            return recipe
        fields = recipe.model_dump()
        if self.scale is not None:
            fields["scale"] = self.scale
        if self.value_range is not None:
            fields["input"]["range"] = float(self.value_range)
        if self.multiple is not None:
            fields["input"]["multiple"] = self.multiple
        if self.size is not None:
            fields["input"]["size"] = self.size
        if fields["scale"] > 1 and fields["degradation"]["kind"] == "none":
            fields["degradation"] = {"kind": "bicubic"}
        if self.degradation is not None:
            fields["degradation"] = self._table()
        return Recipe.checked(fields, recipe.name)


def _ways() -> str:
    """The ways to name a degradation, for an error: `bicubic, noise:SIGMA (as noise:25), jpeg:QUALITY or none`."""
    ways = [f"{t.name}:{t.level.upper()}" if t.level not in ("", "scale") else t.name for t in TASKS]
    ways = [f"{way} (as noise:25)" if way == "noise:SIGMA" else way for way in ways]
    return f"{', '.join(ways[:-1])} or {ways[-1]}"


NO_OVERRIDES = Overrides()


@dataclass(frozen=True)
class Facts:
    """The facts about a network before the work.

    Attributes:
        recipe: the recipe, with the scale, input and degradation to work by.
        sizes: the sizes for generated inputs and for crops.
        batches: whether the network takes several pictures at once.
        found_scale: the scale that the network showed; 0 if it showed none.
        inferred: one line on the facts that were found by trying; empty for a network with a recipe.
    """

    recipe: Recipe
    sizes: Sizes
    batches: bool
    found_scale: int
    inferred: str = ""

    @property
    def fault(self) -> str:
        """One line on the fact that does not fit, so that neither pictures nor scores can be made; empty if all fit."""
        scale, kind = self.recipe.scale, self.recipe.degradation.kind
        if self.found_scale not in (0, scale):
            return (
                f"the network enlarges pictures {self.found_scale} times, and the scale is said to be {scale}: "
                f"say {self.found_scale} (`scale` in the recipe, or --scale)"
            )
        if scale > 1 and task_named(kind).level != "scale":
            return f"the scale is {scale} and the degradation {kind}: a scale above 1 goes with bicubic or pairs"
        return ""

    def checked(self) -> Facts:
        """These facts.

        Raises:
            InputError: the facts do not fit each other or the network.
        """
        if self.fault:
            raise InputError(self.fault)
        return self


def gather_facts(
    model: nn.Module, recipe: Recipe, example: tuple[Tensor, ...] | None = None, overrides: Overrides = NO_OVERRIDES
) -> Facts:
    """Gathers the facts about a network from the caller, the recipe and the network.

    Args:
        model: the network in evaluation mode; it stays unchanged.
        recipe: the recipe of the network; the bundled `default` for a network without one.
        example: the inputs that the network is captured with; None to find one.
        overrides: facts that come before the recipe and before the trials.

    Raises:
        InputError: the overrides do not fit the network, or no picture was found that the network takes.
    """
    if recipe in (Recipe.load(DEFAULT), Recipe.load(PAIRS)):
        return _inferred(model, recipe, example, overrides)
    recipe = overrides.applied(recipe)
    known = _taken(model, recipe, example)
    sizes, batches = recipe.input.sizes, True
    if known is not None:
        trials = Trials(model, recipe.input.range, recipe.scale)
        batches = takes_batches(trials, known)
        if sizes == ANY_SIZE and overrides.multiple is None:
            sizes = sizes_of(trials, known)
    facts = Facts(recipe, sizes, batches, known.output.scale if known is not None else 0)
    return facts if overrides == NO_OVERRIDES else facts.checked()


def _taken(model: nn.Module, recipe: Recipe, example: tuple[Tensor, ...] | None) -> Taken | None:
    """A picture of the example's size, or of the recipe's, if the network takes it."""
    if example is not None and len(example) > 1:
        return None
    trials = Trials(model, recipe.input.range, recipe.scale)
    if example is None:
        return trials.take(recipe.input.channels, recipe.input.sizes.near(*recipe.input.size))
    height, width = example[0].shape[2:]
    return trials.take(example[0].shape[1], (height, width))


def _inferred(model: nn.Module, base: Recipe, example: tuple[Tensor, ...] | None, overrides: Overrides) -> Facts:
    white = overrides.value_range
    if example is not None and white is None and float(example[0].max()) > BEYOND_WHITE:
        white = 255.0
    if example is None:
        known: Taken | None = first_taken(Trials(model, white or 1.0, overrides.scale), overrides.size)
    elif len(example) > 1:
        known = None
    else:
        height, width = example[0].shape[2:]
        known = Trials(model, white or 1.0, overrides.scale).take(example[0].shape[1], (height, width))
    if known is None:
        scale = _shown_scale(model, example or (), overrides.scale)
        recipe = overrides.applied(_of_scale(base, scale or base.scale))
        return Facts(recipe, recipe.input.sizes, True, scale).checked()
    pictures = pictures_of(model, known, white)
    sizes = pictures.sizes if overrides.multiple is None else replace(pictures.sizes, multiple=overrides.multiple)
    fields = _of_scale(base, pictures.scale).model_dump()
    fields["input"] |= {
        "channels": pictures.channels if pictures.channels in (1, 3) else 3,
        "range": pictures.value_range,
        "multiple": sizes.multiple,
        "minimum": sizes.minimum,
        "square": sizes.square,
        "fixed": sizes.fixed,
    }
    if example is None:
        fields["input"]["size"] = known.size
    found = overrides.applied(Recipe.checked(fields, base.name))
    if found != base:
        found = found.model_copy(update={"title": f"A network of your own: {_in_words(found, pictures.channels)}"})
    batches = takes_batches(Trials(model, pictures.value_range, overrides.scale), known)
    return Facts(found, found.input.sizes, batches, known.output.scale, _in_words(found, pictures.channels)).checked()


def _of_scale(recipe: Recipe, scale: int) -> Recipe:
    """The recipe for another scale; inputs of a network that enlarges are made by bicubic shrinking, or are real."""
    if scale == recipe.scale:
        return recipe
    kind = recipe.degradation.kind if recipe.name == PAIRS else "bicubic"
    return recipe.model_copy(update={"scale": scale, "degradation": DegradationTable(kind=kind)})


def _shown_scale(model: nn.Module, example: tuple[Tensor, ...], scale: int | None) -> int:
    """The scale that the first of several inputs has in the network's output; 0 if it shows none."""
    try:
        return picture_output(example[0], run_network(model, example), scale).scale
    except Exception:  # noqa: BLE001  # whatever a network raises: capture tells it better
        return 0


def _in_words(recipe: Recipe, channels: int) -> str:
    colours = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    repairs = "" if recipe.degradation.kind == "none" else f" ({recipe.task})"
    return f"scale {recipe.scale}{repairs}, {colours} in 0..{recipe.input.range:g}, {recipe.input.sizes}"
