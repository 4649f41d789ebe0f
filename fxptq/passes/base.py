"""The interface of passes, their registry, and `run_passes`, which runs several one after the other.

A pass is a class with a frozen dataclass of settings and a `run` that works on a network's quantizers. Adding a method
is adding a file with a class under `@register("name")`; other packages use the entry-point group `fxptq.passes`. A pass
declares the statistics that it `needs`, and the pass that `provides` them runs before it.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from fxptq.data.sources import Inputs
from fxptq.errors import InputError
from fxptq.graph.geometry import Geometry
from fxptq.graph.outputs import WHOLE_OUTPUT, PictureOutput
from fxptq.graph.randomness import OwnRandomNumbers
from fxptq.passes.interim import Interim, NothingKept
from fxptq.progress import Progress, Silent
from fxptq.quant.distribution import Distribution
from fxptq.quant.quantizer import Quantizer
from fxptq.quant.sketch import Sketch
from fxptq.ranks import ALONE, Ranks
from fxptq.registry import Registry, nearest, where
from fxptq.sizes import ANY_SIZE, Sizes


class Operand(Protocol):
    """The part of an operand (fxptq.graph.sites.Operand) that passes read."""

    @property
    def role(self) -> str:
        """symmetric, one_sided or constant."""
        ...

    @property
    def lowest(self) -> float | None:
        """The known floor of a one-sided operand."""
        ...

    @property
    def slot(self) -> str:
        """input, weight, lhs or rhs."""
        ...

    @property
    def quantizer(self) -> str:
        """The key of its quantizer; empty for an operand in float."""
        ...

    @property
    def part(self) -> str:
        """query, key, attention or value in an attention; empty elsewhere."""
        ...


class Site(Protocol):
    """The part of a site (fxptq.graph.sites.Site) that passes read."""

    @property
    def name(self) -> str:
        """Its module path, with an ordinal for calls of functions."""
        ...

    @property
    def kind(self) -> str:
        """linear, conv2d, ..."""
        ...

    @property
    def operands(self) -> Sequence[Operand]:
        """Its factors."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each operand by slot, and of `output`."""
        ...

    @property
    def macs(self) -> int:
        """Multiply-accumulates at the example's size."""
        ...

    @property
    def edge(self) -> str:
        """`head`, `tail` or `trunk`, and empty elsewhere; see `fxptq.graph.sites.Site`."""
        ...

    @property
    def geometry(self) -> Geometry | None:
        """Stride, padding, dilation and groups of a convolution; None elsewhere, and where the network computes one."""
        ...


class QuantizedNetwork(Protocol):
    """The part of a captured network (fxptq.graph.program.Program) that passes use."""

    quantizers: dict[str, Quantizer]

    @property
    def sites(self) -> Sequence[Site]:
        """The sites of the network, in the order of execution."""
        ...

    def __call__(self, *inputs: Tensor) -> Any:
        """The network's output, quantized where quantizers are on."""
        ...

    def with_features(self, *inputs: Tensor) -> tuple[Any, list[Tensor]]:
        """The output, and the features: the values at the ends of the residual stages."""
        ...

    def operands(self) -> Mapping[str, Operand]:
        """The operand of each quantizer, by its key."""
        ...

    def set_bits(self, widths: Mapping[str, int]) -> None:
        """Give quantizers, by key, other widths; their bounds need to be set again."""
        ...

    def weight_of(self, key: str) -> Tensor | None:
        """The float weight that the quantizer reads; None if it reads an activation."""
        ...

    def has_other_readers(self, key: str) -> bool:
        """Whether anything but the quantizer reads its weight."""
        ...

    def set_weight(self, key: str, value: Tensor) -> None:
        """Overwrite the weight of the quantizer in place."""
        ...

    def bias_of(self, key: str) -> Tensor | None:
        """The bias of the layer whose weight the quantizer reads; None where no bias can be changed."""
        ...

    def tensors_in(self, twin: Any, key: str) -> tuple[Tensor, Tensor | None]:
        """The weight that the quantizer reads and its layer's bias, as a program of the same network has them."""
        ...

    def set_bias(self, key: str, value: Tensor) -> None:
        """Overwrite the bias of the layer whose weight the quantizer reads, in place."""
        ...

    def drawing(self, numbers: OwnRandomNumbers) -> AbstractContextManager[None]:
        """Within, a network that draws random numbers draws these."""
        ...

    def vectors(self) -> Mapping[str, nn.Parameter]:
        """The network's own parameters with one axis that no quantizer reads: biases, scales and shifts of norms."""
        ...


@dataclass
class Context:
    """The networks, inputs and statistics that all passes of a run share.

    Attributes:
        student: the network whose quantizers are set.
        teacher: the same network in float.
        images: calibration inputs, [1, C, H, W] each, in the network's own range; a tuple each for a network of several
            inputs.
        sizes: the input sizes that the network takes.
        elsewhere: inputs of another origin than `images`, of their form, where there are any: a training that does well
            on these has learned more than its own pictures.
        batches: whether the network takes several pictures at once.
        picture: where the restored picture stands in the networks' outputs.
        fixed: the quantizers whose width somebody has chosen by name, so that no pass changes it.
        nominal: the other quantizers that have the width asked for; the plan gave the rest a width of its own.
        overhead: bytes that a checkpoint of the student takes beside its codes; None where no file is made.
        drop: measures by how many dB the student's pictures are worse than the teacher's, on pictures that are not
            used for calibration; None where there are no such pictures.
        statistics: by quantizer key, the distribution of the tensor it sees in float; filled by `observe`.
        moments: by key of a weight's quantizer, the sum of x x^T over the inputs x that its rows multiply,
            [groups, inputs, inputs] with the groups of a grouped convolution; filled by `moments`. On disk where they
            take more than `memory`.
        collected: names of the statistics gathered so far.
        references: crops of held-out inputs and the teacher's pictures of them, by the share of these inputs, and the
            side and number of the crops; filled by `Judge`, and the same for every pass.
        seed: seed of everything random.
        progress: shows the progress of the passes.
        ranks: the processes that work on these networks; each of them has its own copies of all that is here.
        install_kernels: installs compiled kernels behind the operators that quantizers call, where there are any. A
            pass that runs them many times calls it first; it may take a while, once a machine.
        interim: takes the state of a long pass while it works.
        memory: bytes that moments, samples and answers of the teacher may each take at a time; None for no limit. No
            result depends on it.
    """

    student: QuantizedNetwork
    teacher: QuantizedNetwork
    images: Sequence[Inputs]
    elsewhere: Sequence[Inputs] = ()
    sizes: Sizes = ANY_SIZE
    batches: bool = True
    picture: PictureOutput = WHOLE_OUTPUT
    fixed: frozenset[str] = frozenset()
    nominal: frozenset[str] = frozenset()
    overhead: Callable[[], int] | None = None
    drop: Callable[[], float] | None = None
    statistics: dict[str, Distribution] = field(default_factory=dict)
    moments: MutableMapping[str, Tensor] = field(default_factory=dict)
    collected: set[str] = field(default_factory=set)
    references: dict[tuple[float, int, int], list[tuple[tuple[Tensor, ...], Tensor]]] = field(default_factory=dict)
    seed: int = 0
    progress: Progress = field(default_factory=Silent)
    ranks: Ranks = ALONE
    install_kernels: Callable[[], object] = lambda: None
    interim: Interim = field(default_factory=NothingKept)
    memory: int | None = None

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        quantizer = next(iter(self.student.quantizers.values()), None)
        return torch.device("cpu") if quantizer is None else quantizer.lower.device

    @property
    def white(self) -> float:
        """The largest magnitude in the calibration pictures, which stands for white; 1 where all are black."""
        first = (image[0] if isinstance(image, tuple) else image for image in self.images)
        return max((float(x.abs().max()) for x in first if x.numel() and x.is_floating_point()), default=0.0) or 1.0

    def placed(self, image: Inputs) -> tuple[Tensor, ...]:
        """A calibration input as the tuple of arguments for the networks, on their device."""
        return tuple(x.to(self.device) for x in (image if isinstance(image, tuple) else (image,)))


@dataclass(frozen=True)
class PassReport:
    """The results of a pass.

    Attributes:
        quantizers: by key, named figures: bounds, mean squared `error`, `snr_db`, ...
        series: named figures over the course of the pass, such as a loss.
        notes: sentences for a person.
        figures: named figures of the whole network.
        warnings: sentences for a person on faults, with what to do.
        sketches: by quantizer key, a histogram of the values that it sees, in the unit of its bounds.
        name: the name of the pass; filled in by `run_passes`.
        seconds: the duration of the pass; filled in by `run_passes`.
    """

    quantizers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    series: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    sketches: Mapping[str, Sketch] = field(default_factory=dict)
    name: str = ""
    seconds: float = 0.0


NO_REPORT = PassReport()
"""The report of a pass that did not run."""


class Pass(ABC):
    """One step of quantizing a network.

    Attributes:
        Settings: a frozen dataclass whose fields are the settings a recipe may give; it raises InputError for values
            out of range.
        needs: names of the statistics that it reads.
        provides: names of the statistics that it gathers.
        sets_bounds: whether it sets the first bounds of quantizers; reports score the network after the last such pass.
        settings: an instance of `Settings`.
    """

    Settings: ClassVar[type[Any]]
    needs: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()
    sets_bounds: ClassVar[bool] = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def run(self, ctx: Context) -> PassReport:
        """Run the pass on the networks of `ctx` and report its figures."""


P = TypeVar("P", bound=type[Pass])

_PASSES: Registry[Pass] = Registry("pass", "fxptq.passes", "fxptq.passes")


def register(name: str) -> Callable[[P], P]:
    """Class decorator that makes a pass known under `name`.

    Raises:
        InputError: if the name is taken, or the class has no frozen dataclass `Settings`; nothing is registered then.
    """

    def add(cls: P) -> P:
        _PASSES.add(name, _checked(name, cls))
        return cls

    return add


def _checked(name: str, cls: P) -> P:
    parameters = getattr(getattr(cls, "Settings", None), "__dataclass_params__", None)
    if not (parameters and parameters.frozen):
        raise InputError(f"pass {name!r} ({where(cls)}) needs a frozen dataclass `Settings`")
    return cls


def pass_names() -> list[str]:
    """Names of all passes, those of other packages too, sorted."""
    return _PASSES.names()


def get_pass(name: str) -> type[Pass]:
    """The pass of that name; a package that offers a pass of another name is not imported.

    Raises:
        InputError: if no pass or two have that name, or the package that offers it cannot be imported.
    """
    return _checked(name, _PASSES.get(name))


def build_pass(name: str, options: Mapping[str, object] | None = None) -> Pass:
    """The pass of that name with settings as a recipe gives them; a setting that is left out keeps its default.

    Raises:
        InputError: for an unknown pass or setting (naming the nearest), a value of the wrong type or out of range.
    """
    cls = get_pass(name)
    hints = get_type_hints(cls.Settings)
    fields = [f.name for f in dataclasses.fields(cls.Settings)]
    values: dict[str, object] = {}
    for key, value in (options or {}).items():
        if key not in fields:
            raise InputError(f"pass {name!r} has no setting {key!r}{nearest(key, fields)}")
        # TOML has lists and no tuples.
        setting = tuple(value) if isinstance(value, list) else value
        try:
            values[key] = TypeAdapter(hints[key]).validate_python(setting, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise InputError(f"pass {name!r}, setting {key!r}: {value!r} will not do; {problem}") from None
    try:
        return cls(cls.Settings(**values))
    except InputError as error:
        raise InputError(f"pass {name!r}: {error}") from None


AfterPass = Callable[[PassReport, int], None]
"""Called after a pass with its report and the number of entries of the list that are done."""


def run_passes(
    passes: Iterable[tuple[str, Mapping[str, object]]],
    ctx: Context,
    *,
    start: int = 0,
    after: AfterPass = lambda _report, _done: None,
) -> tuple[PassReport, ...]:
    """Run passes in order. Before a pass, run the passes that gather the statistics that it needs and nobody gathered.

    Each pass draws the same random numbers, whatever the passes before it drew.

    Args:
        passes: (name, settings) of each pass, as in a recipe; all are checked before the first runs.
        ctx: the networks and inputs that they work on.
        start: the number of passes, from the first on, that `ctx` has behind it.
        after: called after every pass that ran, also one that gathered statistics.

    Returns:
        The report of every pass that ran, also of the passes that gathered statistics.

    Raises:
        InputError: for an unknown pass, setting or statistic.
        CalibrationError: from a pass that could not go on.
    """
    reports: list[PassReport] = []

    def run(name: str, step: Pass, done: int) -> None:
        reports.append(_run(name, step, ctx))
        after(reports[-1], done)

    steps = [(name, build_pass(name, options)) for name, options in passes]
    for index, (name, step) in enumerate(steps[start:], start):
        for statistic in sorted(step.needs - ctx.collected):
            provider = _provider(statistic, name)
            run(provider, build_pass(provider), index)
        run(name, step, index + 1)
    return tuple(reports)


def _run(name: str, step: Pass, ctx: Context) -> PassReport:
    start = time.perf_counter()
    with _own_numbers(step, ctx):
        report = step.run(ctx)
    _agree(ctx)
    ctx.collected |= step.provides
    return replace(report, name=name, seconds=time.perf_counter() - start)


@contextmanager
def _own_numbers(step: Pass, ctx: Context) -> Iterator[None]:
    """Within, the networks draw the random numbers of the seed, and so does a pass of another package.

    The passes of this package draw from generators of their own.
    """
    numbers = OwnRandomNumbers(ctx.seed)
    if type(step).__module__.partition(".")[0] != __name__.partition(".")[0]:
        with numbers:
            yield
    else:
        with ctx.student.drawing(numbers), ctx.teacher.drawing(numbers):
            yield


def _agree(ctx: Context) -> None:
    """Gives all processes the first one's student: work that each of them did for itself may differ by rounding."""
    if ctx.ranks.world == 1:
        return
    student = ctx.student
    on = {key: quantizer for key, quantizer in student.quantizers.items() if quantizer.mode == "on"}
    states = {key: {name: x.cpu() for name, x in quantizer.stored().items()} for key, quantizer in on.items()}
    layers = {key: (student.weight_of(key), student.bias_of(key)) for key in student.quantizers}
    tensors = {key: tuple(None if x is None else x.detach().cpu() for x in pair) for key, pair in layers.items()}
    states, tensors = ctx.ranks.from_first((states, tensors))
    if ctx.ranks.first:
        return
    for key, state in states.items():
        student.quantizers[key].restore({name: x.to(ctx.device) for name, x in state.items()})
    for key, (weight, bias) in tensors.items():
        if weight is not None:
            student.set_weight(key, weight.to(ctx.device))
        if bias is not None:
            student.set_bias(key, bias.to(ctx.device))


def _provider(statistic: str, wanted_by: str) -> str:
    """The name of a pass that gathers a statistic; other packages are imported only if no loaded pass gathers it."""
    broken = []
    loaded = _PASSES.bundled()
    for name in (*sorted(loaded), *pass_names()):
        try:
            cls = loaded[name] if name in loaded else get_pass(name)
        except InputError as error:
            broken.append(str(error))
        else:
            if statistic in cls.provides:
                return name
    without = f" ({'; '.join(broken)})" if broken else ""
    raise InputError(f"pass {wanted_by!r} needs the statistic {statistic!r}, which no pass provides{without}")
