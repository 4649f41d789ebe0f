"""Recipes: the facts about a network that its quantization needs, as data in a TOML file.

A recipe names the network and its weights, describes its input and its task, and lists the passes of each preset.
Promises: a file is checked in full, and a fault raises one InputError that names the file and the field.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from fxptq.data.degrade import Degradation
from fxptq.data.tasks import task_named, task_names
from fxptq.errors import InputError
from fxptq.formats import PictureFormat
from fxptq.graph.kinds import quantizable
from fxptq.sizes import Sizes

if TYPE_CHECKING:
    from torch import nn

Positive = Annotated[int, Field(gt=0, le=4096)]
"""A size, a scale or a number of pictures, small enough that nobody allocates too much for a recipe."""

DEFAULT = "default"
"""The recipe whose presets all others share."""

PAIRS = "pairs"
"""The recipe for networks of one's own with pairs of real pictures."""

_LONGEST = 1 << 20  # bytes of a recipe
_SHOWN = 200  # characters of a value that does not fit

SiteBits = Annotated[str, Field(pattern=r"^(float|W[2-8]A[2-8])$")]
"""The bits of a site: "W3A4", or "float"."""


def _site_kind(name: str) -> str:
    *others, last = (repr(kind) for kind in quantizable())
    if name not in quantizable():
        raise ValueError(f"input should be {', '.join(others)} or {last}, not {name!r}")
    return name


SiteKind = Annotated[str, AfterValidator(_site_kind)]
"""A kind of site that can be quantized, by its name in the table of kinds."""

PresetName = Annotated[str, Field(pattern=r"^[\w-]+$")]


class Frozen(BaseModel):
    """A table of the file: unchangeable, and without room for misspelt fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _without_unused(table: Frozen, serialize: SerializerFunctionWrapHandler, *later: str) -> dict[str, Any]:
    """The fields of a table; fields that are younger than the first files stand in a file only where they are used."""
    fields: dict[str, Any] = serialize(table)
    defaults = {name: type(table).model_fields[name].default for name in later}
    return {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}


class Model(Frozen):
    """The network of a recipe: `factory` is "package.module:name", called with `args`."""

    factory: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    args: dict[str, Any] = {}


def _white(value: float) -> float:
    if value not in {1.0, 255.0}:
        raise ValueError(f"expected 1 or 255, not {value:g}")
    return value


class Input(Frozen):
    """The input of the network.

    Attributes:
        channels: 1 or 3.
        range: the value of white, 1 or 255.
        multiple: height and width are multiples of this (the window of the network).
        minimum: the least height and width that the network takes.
        square: whether the network takes squares only.
        fixed: the only height and width that the network takes, if there is only one.
        size: height and width of the example that the network is captured with.
    """

    channels: Literal[1, 3] = 3
    range: Annotated[float, AfterValidator(_white)] = 1.0
    multiple: Positive = 1
    minimum: Positive = 1
    square: bool = False
    fixed: Annotated[tuple[Positive, Positive], Field(strict=False)] | None = None
    size: Annotated[tuple[Positive, Positive], Field(strict=False)] = (64, 64)

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        try:
            self.sizes  # noqa: B018  # the value checks itself
        except InputError as error:
            raise ValueError(str(error)) from error
        return self

    @model_serializer(mode="wrap")
    def _as_in_files(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_unused(self, serialize, "minimum", "square", "fixed")

    @property
    def sizes(self) -> Sizes:
        """The sizes that the network takes."""
        return Sizes(self.multiple, self.minimum, self.square, self.fixed)


def _task_name(name: str) -> str:
    *others, last = (repr(task) for task in task_names())
    if name not in task_names():
        raise ValueError(f"input should be {', '.join(others)} or {last}, not {name!r}")
    return name


class DegradationTable(Frozen):
    """The degradation that the network repairs; see `fxptq.data.degrade.Degradation`, which checks the level.

    Attributes:
        kind: a row of the table of tasks: bicubic (MATLAB's, by the recipe's scale), noise (Gaussian), jpeg, none, ...
        sigma: standard deviation of the noise, on the scale 0..255.
        quality: quality of the JPEG, 1..100.
        amount: the level of a task that has neither; a file names it only where it is not 0.
    """

    kind: Annotated[str, AfterValidator(_task_name)] = "none"
    sigma: float = 0.0
    quality: int = 0
    amount: float = 0.0

    @model_serializer(mode="wrap")
    def _as_in_files(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_unused(self, serialize, "amount")


class Weights(Frozen):
    """The source of the weights.

    Attributes:
        bundled: a file of the package fxptq.models.weights, "" for none.
        url: the address of the authors' release.
        sha256: SHA-256 of the file at `url`, or its first 8 or more digits where the authors publish no more; "" where
            they publish none, so that a download cannot be checked.
        file: the file name of the download.
        key: the entry of the file that holds the state dict, "" to find it.
    """

    bundled: str = ""
    url: Annotated[str, Field(pattern=r"^(https://.*)?$")] = ""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{8,64})?$")] = ""
    file: Annotated[str, Field(pattern=r"^[\w.-]*$")] = ""
    key: str = ""

    @model_validator(mode="after")
    def _download_has_a_name(self) -> Self:
        if self.url and not self.file:
            raise ValueError("url needs file, the name the download is kept under")
        return self


class QuantizeSettings(Frozen):
    """The sites to quantize, and their bits.

    Attributes:
        kinds: the kinds of site that are quantized; by default all kinds that can be.
        edges: the bits of the sites that read the image, make the output, or belong to the trunk (see
            `fxptq.graph.sites.Site`): high (`high_bits`), float, or low (the bits of all others).
        connective: the bits of a transformer's convolutions with a kernel larger than 1x1: high (`high_bits`), or low.
        weight_granularity: one pair of bounds for each output channel, or for the whole weight (as in the paper).
        float_dtype: storage type of float tensors in a checkpoint.
        high_bits: bits of the protected sites.
        high_sites: globs of site names that keep `high_bits`.
        sites: bits of single sites, by glob of their names, before all other rules; the first match wins.
        schemes: the scheme of operands by glob of `site.slot`, such as "*.qkv.input", or in an attention of
            `site.part`, such as "*.attention" (parts: query, key, attention, value); the first match wins. Operands
            that match none are uniform.
        zero_on_grid: whether every grid gives 0 a code, as other runtimes ask (scheme `zero_on_grid`), in place of
            `schemes`.
    """

    kinds: tuple[SiteKind, ...] = Field(default_factory=quantizable, strict=False)
    edges: Literal["high", "float", "low"] = "high"
    connective: Literal["high", "low"] = "high"
    weight_granularity: Literal["channel", "tensor"] = "channel"
    float_dtype: Literal["fp16", "fp32"] = "fp16"
    high_bits: Annotated[int, Field(ge=2, le=8)] = 8
    high_sites: Annotated[tuple[str, ...], Field(strict=False)] = ()
    sites: dict[str, SiteBits] = {}
    schemes: dict[str, str] = {}
    zero_on_grid: bool = False


class PassEntry(BaseModel):
    """One pass by its registered name; every further key is a setting, checked by the pass itself."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Annotated[str, Field(min_length=1)]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings given in the file."""
        return dict(self.model_extra or {})


class PresetTable(Frozen):
    """A preset as written.

    Attributes:
        images: number of calibration inputs that are made from pictures.
        passes: the passes to run, in order.
        quantize: the fields of [quantize] that the preset changes.
    """

    images: Positive = 32
    passes: Annotated[tuple[PassEntry, ...], Field(strict=False, min_length=1)]
    quantize: dict[str, Any] = {}


class Preset(Frozen):
    """A preset ready to use: see `PresetTable`; `quantize` is [quantize] with the preset's changes made."""

    name: str
    images: int
    passes: tuple[PassEntry, ...]
    quantize: QuantizeSettings


class Recipe(Frozen):
    """Everything fxptq knows about one network; see the tables' classes for the fields.

    Attributes:
        name: the name on the command line.
        title: one line for people.
        scale: ratio of the output's height and width to the input's.
        model: the network; None for settings that go with any network.
        presets: by name; one that is not there is taken from the recipe `default`.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    title: str
    scale: Positive = 1
    model: Model | None = None
    input: Input = Input()
    degradation: DegradationTable = DegradationTable()
    weights: Weights = Weights()
    quantize: QuantizeSettings = QuantizeSettings()
    presets: dict[PresetName, PresetTable] = {}

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        try:
            self.task  # noqa: B018  # the value checks itself
        except InputError as error:
            raise ValueError(str(error)) from error
        for name, table in self.presets.items():
            _changed(self.quantize, table.quantize, f"presets.{name}.quantize")
        return self

    @property
    def task(self) -> Degradation:
        """The degradation that makes the network's input from a clean picture."""
        table = self.degradation
        scale = self.scale if task_named(table.kind).level == "scale" else 1
        return Degradation(table.kind, scale=scale, sigma=table.sigma, quality=table.quality, amount=table.amount)

    @property
    def pictures(self) -> PictureFormat:
        """The pictures that go in and come out."""
        return PictureFormat(self.input.channels, self.input.range, self.scale, self.input.sizes)

    @classmethod
    def names(cls) -> list[str]:
        """The bundled recipes, in order of name."""
        files = resources.files("fxptq.recipes").iterdir()
        return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Loads a bundled recipe by its name, or any other by the path of its file, which ends in .toml.

        Raises:
            InputError: there is no such recipe, or a field of it is wrong.
        """
        if str(name_or_path).endswith(".toml"):
            return cls._read_path(Path(name_or_path))
        name = str(name_or_path)
        names = cls.names()
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"no recipe {name!r}; {hint}there are {', '.join(names)}, or give the path of a .toml file"
            )
        text = resources.files("fxptq.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8")
        return cls.parse(text, f"recipe {name}")

    @classmethod
    def _read_path(cls, path: Path) -> Self:
        try:
            if path.exists() and not (path.is_file() and path.stat().st_size <= _LONGEST):
                raise InputError(f"{path} is no recipe: expected a TOML file of {_LONGEST} bytes at most")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InputError(f"cannot read the recipe {path}: {reason}") from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, source: str) -> Self:
        """Reads the text of a TOML file; errors call it `source`.

        Raises:
            InputError: it is not TOML, or a field is missing, unknown or out of range.
        """
        try:
            fields = tomllib.loads(text)
        except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
            raise InputError(f"{source} is not a TOML file: {error}") from error
        except RecursionError as error:
            raise InputError(f"{source} is not a TOML file: its lists or tables are nested too deeply") from error
        return cls.checked(fields, source)

    @classmethod
    def checked(cls, fields: dict[str, Any], source: str) -> Self:
        """A recipe out of its tables; errors call it `source`.

        Raises:
            InputError: a field is missing, unknown or out of range.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise InputError(f"{source}: {_first_problem(error)}") from error

    def build_model(self) -> nn.Module:
        """Builds the network, with fresh weights, in eval mode.

        Raises:
            InputError: the recipe names no network, or its factory cannot be imported, does not accept `args`, or gives
                no nn.Module.
        """
        from torch import nn  # noqa: PLC0415  # a recipe is read and listed without torch

        if self.model is None:
            raise InputError(f"recipe {self.name} goes with any network and names none; give one (--model)")
        module_name, _, attribute = self.model.factory.partition(":")
        where = f"recipe {self.name}: model.factory {self.model.factory!r}"
        try:
            with _working_directory_importable():
                factory = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise InputError(f"{where} cannot be imported: {error}") from error
        try:
            model = factory(**self.model.args)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where} does not accept model.args: {error}") from error
        if not isinstance(model, nn.Module):
            raise InputError(f"{where} made a {type(model).__name__}; expected a torch.nn.Module")
        return model.eval()

    def _presets(self) -> dict[str, PresetTable]:
        shared = {} if self.name == DEFAULT else Recipe.load(DEFAULT).presets
        return {**shared, **self.presets}

    def with_zero_on_grid(self) -> Self:
        """The same recipe, whose every grid gives 0 a code; see `QuantizeSettings`."""
        return self.model_copy(update={"quantize": self.quantize.model_copy(update={"zero_on_grid": True})})

    @property
    def preset_names(self) -> list[str]:
        """The presets it has, its own and the shared ones."""
        return list(self._presets())

    def preset(self, name: str) -> Preset:
        """The passes of a preset, and [quantize] as the preset wants it.

        Raises:
            InputError: the recipe has no such preset.
        """
        table = self._presets().get(name)
        if table is None:
            raise InputError(f"no preset {name!r}; recipe {self.name} has {', '.join(self._presets())}")
        quantize = _changed(self.quantize, table.quantize, f"presets.{name}.quantize")
        return Preset(name=name, images=table.images, passes=table.passes, quantize=quantize)


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Within, the working directory is importable, for the network of a recipe in a file.

    It is searched last, so that no file in it hides an installed package.
    """
    before = list(sys.path)
    sys.path.append(str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _changed(settings: QuantizeSettings, changes: dict[str, Any], where: str) -> QuantizeSettings:
    try:
        return QuantizeSettings.model_validate({**settings.model_dump(), **changes})
    except ValidationError as error:
        raise ValueError(f"{where}.{_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    """The first thing pydantic found, as `field: what is wrong`, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"]) or "the file"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = textwrap.shorten(repr(first["input"]), _SHOWN)
    given = "" if first["type"] in {"missing", "value_error", "extra_forbidden"} else f", not {shown}"
    if first["type"] == "extra_forbidden":
        message = "no such field"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{field}: {message}{given}{more}"
