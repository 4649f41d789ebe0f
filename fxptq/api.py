"""The public functions: `quantize` a network, `load` a checkpoint, and the `QuantizedModel` that both return."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fxptq.bits import FLOAT, Bits, BitsLike, BudgetLike, as_bits, as_budget, parse_bits
from fxptq.budget import drop_of, overhead, widths_asked, with_budget
from fxptq.checkpoint import file as checkpoints
from fxptq.checkpoint.metadata import (
    MOST_EXAMPLE,
    Metadata,
    fits,
)
from fxptq.checkpoint.state import (
    check_fits,
    example_of,
    make_storable,
    program_of,
    round_floats,
    to_checkpoint,
)
from fxptq.data.degrade import Degradation
from fxptq.data.sources import SYNTHETIC, Inputs, calibration_images
from fxptq.errors import CaptureError, CheckpointError, InputError
from fxptq.evaluate.restore import Picture
from fxptq.evaluate.restore import restore as restore_picture
from fxptq.evaluate.tiles import OVERLAP
from fxptq.evaluate.tiling import Tiling
from fxptq.facts import BEYOND_WHITE, Facts, Overrides, gather_facts
from fxptq.formats import PictureFormat
from fxptq.graph import Plan, Program, Site
from fxptq.graph.copies import independent_copy
from fxptq.graph.finite import damaged_tensor, warn_of_nan
from fxptq.graph.outputs import trained_output
from fxptq.graph.parametrized import make_weights_plain
from fxptq.graph.precision import (
    OTHERS,
    converted_inputs,
    in_precision,
    precision_of,
    to_float32,
    without_autocast,
)
from fxptq.graph.randomness import OwnRandomNumbers
from fxptq.graph.summary import as_html, in_one_line
from fxptq.graph.tensors import lazy_tensors
from fxptq.graph.wrappers import network_of
from fxptq.memory import parse_bytes
from fxptq.origin import dtype_name, inputs_digest, metadata_of, weights_digest
from fxptq.passes.base import NO_REPORT, Context, PassReport, build_pass, run_passes
from fxptq.passes.gate import check_quality
from fxptq.progress import Progress, Silent
from fxptq.ranks import Ranks, current
from fxptq.recipe import DEFAULT, PassEntry, QuantizeSettings, Recipe
from fxptq.resume import RunFolder, digest
from fxptq.sizes import Sizes

if TYPE_CHECKING:
    from fxptq.export.write import Exported

_log = logging.getLogger("fxptq")

_ELSEWHERE = 8
"""Number of inputs of another origin that a training is evaluated on."""

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class FloatLeft:
    """A site left in float."""

    name: str
    reason: str


class QuantizedModel(nn.Module):
    """A quantized network: its call is the simulated low-bit network, for inputs of every size the network takes.

    Attributes:
        program: the captured network with its quantizers.
        meta: the metadata of its checkpoint.
        report: the report of each pass.
        quality: figures and warnings of the quality gate (`fxptq.passes.gate`); empty for a network that was loaded.

    Examples:
        >>> q = fxptq.quantize(model, example, bits=4)
        >>> q(x)  # the simulated low-bit output; in a notebook, q alone shows the table of sites
        >>> q.save("network.safetensors")
        >>> q.train()(x).mean().backward()  # gradients, for training of your own
    """

    def __init__(
        self, program: Program, meta: Metadata, report: tuple[PassReport, ...] = (), quality: PassReport = NO_REPORT
    ) -> None:
        super().__init__()
        self.program = program
        self.meta = meta
        self.report = report
        self.quality = quality
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """The simulated low-bit output for the inputs of the network, in the dtype of the inputs.

        In evaluation mode, in which a quantized network begins, gradients are kept only for an input that asks for
        them. A warning names the place where the network makes NaN of a finite input.
        """
        keeps = torch.is_grad_enabled() and (self.training or any(x.requires_grad for x in inputs))
        with torch.set_grad_enabled(keeps):
            return in_precision(self.program.dtype, self._run, inputs)

    def __repr__(self) -> str:
        """The network in one line."""
        return f"QuantizedModel({self._title}: {in_one_line(self.sites)})"

    def _repr_html_(self) -> str:
        """The table of sites, for notebooks."""
        return as_html(self._title, self.sites)

    @property
    def _title(self) -> str:
        return f"{self.meta.recipe or self.task.name}, W{self.meta.bits_w}A{self.meta.bits_a}, {self.task.task}"

    def _run(self, *inputs: Tensor) -> Any:
        output = self.program(*inputs)
        warn_of_nan(self.program, inputs, output)
        return output

    @property
    def task(self) -> Recipe:
        """Scale, input and degradation of the network, as a recipe without presets."""
        return Recipe.model_validate(self.meta.task)

    @property
    def sites(self) -> list[Site]:
        """Every site of the network, quantized or not, in the order of execution."""
        return list(self.program.sites)

    @property
    def float_sites(self) -> list[FloatLeft]:
        """The sites that were left in float, by name and reason."""
        return [FloatLeft(site.name, site.reason) for site in self.program.sites if site.reason]

    def save(self, path: str | Path) -> None:
        """Writes the network as one .safetensors file, atomically; the same network gives the same bytes.

        Raises:
            CheckpointError: the file cannot be written.
        """
        dtype = getattr(torch, self.meta.float_dtype)
        checkpoints.write(path, to_checkpoint(self.program, self.meta, dtype))

    def to_integer(
        self,
        *,
        compile: bool = True,  # noqa: A002  # the name torch uses for it
        backend: str | None = None,
        compare: bool = True,
    ) -> nn.Module:
        """The network on integer kernels.

        `lowering` of the result says which kernel serves each site, which sites stay simulated in float and why, and
        how fast integers are beside float at the sizes that the model has met.

        Args:
            compile: whether torch.compile compiles the operations between the kernels.
            backend: the name of a back end (`cpu`, `triton`, `torch`, or another package's); None for the back end of
                the network's device.
            compare: whether to time integers beside float, once a network and machine when it is lowered, and once at
                the first call of a size. The times are kept in the user's cache. Kernels that lose are left to the
                simulation, and a warning says so where the whole network is slower than in float.

        Raises:
            InputError: there is no such back end.

        Examples:
            >>> fast = q.to_integer()
            >>> fast.lowering.simulated  # the sites that no integer kernel serves, with the reason
            >>> fast.save("network.safetensors")
        """
        from fxptq.kernels.backend import get_backend  # noqa: PLC0415  # building kernels is only for those who ask
        from fxptq.kernels.lower import lower  # noqa: PLC0415

        chosen = None if backend is None else get_backend(backend)
        integer = lower(self.program, compile=compile, backend=chosen, compare=compare)
        integer.task, integer.writer = self.task, self.save
        return integer

    def export(
        self, path: str | Path, *, size: tuple[int, int] | None = None, opset: int = 21, integers: bool = False
    ) -> Exported:
        """Writes the network for other runtimes: .onnx with quantize-dequantize nodes, or .pt2 for torch.export.

        Args:
            path: the path of the file; its ending chooses the format.
            size: height and width of a file for one size. None exports an .onnx file for every size, where the network
                has a graph of many sizes, and a .pt2 file for the size of the example.
            opset: the version of ONNX's operators, 21 to 25.
            integers: whether to refuse a network with sites that runtimes compute in float.

        Returns:
            What was written, and ONNX Runtime's outputs beside the simulation where it is installed.

        Raises:
            InputError: a call of the network has no ONNX form, an option does not fit, a package is missing, or the
                file cannot be written.
            FxptqError: ONNX Runtime or torch.export fails on the network.

        Examples:
            >>> q.export("network.onnx").onnx.in_float  # the sites that a runtime computes in float, with the reason
        """
        from fxptq.export.write import Settings, export  # noqa: PLC0415  # only for those who ask

        task = self.task
        facts = {
            "scale": str(task.scale),
            "range": f"{task.input.range:g}",
            "channels": str(task.input.channels),
            "sizes": str(task.input.sizes),
            "bits": f"W{self.meta.bits_w}A{self.meta.bits_a}",
            "task": str(task.task),
        }
        return export(
            self.program, example_of(self.meta), Path(path), Settings(size, opset, integers),
            sizes=task.input.sizes, white=task.input.range, facts=facts,
        )  # fmt: skip


@torch.inference_mode(mode=False)
@torch.enable_grad()
@without_autocast()
def load(path: str | Path, model: nn.Module | None = None) -> QuantizedModel:
    """Loads a checkpoint; its simulated output equals the saved network's bit for bit.

    Args:
        path: a file that `QuantizedModel.save` wrote.
        model: a network of the same architecture, whose values do not matter; not needed for a bundled recipe. It is
            copied and left as it was.

    Raises:
        CheckpointError: the file is damaged, of a newer format, or of another architecture.
        InputError: the network is not a bundled one and `model` was not given.

    Examples:
        >>> fast = fxptq.load("swinir_x4_w4a4.safetensors").to_integer()
        >>> q = fxptq.load("mine.safetensors", model=MyNetwork())
    """
    if model is not None:
        check_network(model, "load")
    stored = checkpoints.open_file(path)
    meta = stored.index.meta
    _task_of(meta, str(path))
    name = meta.recipe
    if model is None:
        if name is None:
            raise InputError(f"{path} holds a network of your own: pass it, as in fxptq.load(path, model=MyNetwork())")
        if name not in Recipe.names():  # never a path: a file that was sent to you must not choose what is imported
            raise CheckpointError(f"{path}: no recipe {name!r} in this fxptq; update fxptq, or pass the network")
        with OwnRandomNumbers():
            model = Recipe.load(name).build_model()
    own = independent_copy(model)
    _make_lazy_layers(own, meta, str(path))
    if meta.example_dtype == "float32":
        own = to_float32(own, precision_of(own))
    plain = make_weights_plain(own)
    check_fits(plain, stored.index, str(path))
    return QuantizedModel(program_of(plain, stored.content(), str(path)), meta)


def _make_lazy_layers(model: nn.Module, meta: Metadata, source: str) -> None:
    """Gives the lazy layers of a copy their tensors, whose values the checkpoint overwrites."""
    if not any(lazy_tensors(model)):
        return
    example = example_of(meta)
    try:
        with torch.no_grad(), OwnRandomNumbers():
            model.eval()(*example)
    except Exception as error:
        raise CheckpointError(
            f"{source}: the network has lazy layers, and fails on an input of shape {tuple(example[0].shape)} "
            f"({type(error).__name__}); pass it after it has been called once"
        ) from error


def restore(
    model: nn.Module,
    picture: Picture,
    tile: int | None = None,
    *,
    overlap: int = OVERLAP,
    scale: int | None = None,
    value_range: float | None = None,
    channels: int | None = None,
    multiple: int | None = None,
) -> Picture:
    """Restores one picture: pads it to a size that the network takes, runs the network, and crops the result.

    Args:
        model: a `QuantizedModel`, its integer model, or any network; it is run in evaluation mode.
        picture: a Pillow image; an array [H, W] or [H, W, C], of uint8, uint16 or floating point with white at 1; or a
            tensor [N, C, H, W] in the network's own range.
        tile: height and width of overlapping tiles in pixels, to bound memory; 0 for the whole picture at once; None
            for the whole picture where the free memory suffices, and else for the largest tiles that it holds. Where
            memory ends all the same, tiles become smaller. A network of one size runs in tiles of that size.
        overlap: context in pixels that neighbouring tiles share on each side.
        scale: ratio of the output's height and width to the input's; by default the scale of the quantized network,
            and 1 for any other network. The next three arguments have such defaults, too.
        value_range: the value of white in the network's input, 1 or 255; 1 for any other network.
        channels: number of channels of the network's input; 3 for any other network.
        multiple: height and width are padded to multiples of it; 1 for any other network.

    Returns:
        The restored picture, of the type and dtype of `picture`, `scale` times as high and wide.

    Raises:
        InputError: the picture or the tile does not fit the network.
        FxptqError: the network fails, or gives no finite picture of the right size.

    Examples:
        >>> large = fxptq.restore(fxptq.load("swinir_x4_w4a4.safetensors"), Image.open("small.png"))
        >>> array = fxptq.restore(model, np.asarray(Image.open("small.png")), tile=256)
    """
    check_network(model, "restore")
    task = getattr(model, "task", None)
    default = task.pictures if isinstance(task, Recipe) else PictureFormat()
    pictures = PictureFormat(
        channels=default.channels if channels is None else channels,
        value_range=default.value_range if value_range is None else value_range,
        scale=default.scale if scale is None else scale,
        sizes=default.sizes if multiple is None else Sizes(multiple),
    )
    with _evaluating(model):
        return restore_picture(model, picture, pictures, Tiling(tile, overlap))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within, the network is in evaluation mode; afterwards each of its modules is in its own mode."""
    # A quantized network computes the same in either mode, and it may be running in other threads.
    quantized = isinstance(model, QuantizedModel) or isinstance(getattr(model, "task", None), Recipe)
    training = [] if quantized else [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def check_network(model: object, call: str) -> None:
    """Checks that an argument is a network, and not a class or a function that makes one.

    Args:
        model: the argument.
        call: the name of the public function that got it, for the message.

    Raises:
        InputError: `model` is a class, a function or anything else that is no module.
    """
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        what = f"the class {model.__name__}; pass an instance of it, as in {model.__name__}()"
    elif callable(model):
        name = getattr(model, "__name__", type(model).__name__)
        what = f"the function {name}; pass a torch.nn.Module, and if {name} makes one, what it returns"
    else:
        what = f"of type {type(model).__name__}; pass a torch.nn.Module"
    raise InputError(f"fxptq.{call}: the network is {what}")


def _task_of(meta: Metadata, source: str) -> Recipe:
    try:
        return Recipe.model_validate(meta.task)
    except ValidationError as error:
        raise CheckpointError(f"{source}: damaged: its task cannot be understood") from error


@torch.inference_mode(mode=False)  # calibration takes gradients, whatever the caller's mode
@torch.enable_grad()
@without_autocast()
def quantize(
    model: nn.Module,
    example: Inputs,
    bits: BitsLike = 4,
    calib: str | Path | Iterable[Inputs] = "synthetic",
    recipe: str | Path | Recipe | None = None,
    *,
    preset: str = "standard",
    budget: BudgetLike | None = None,
    uniform: bool = False,
    zero_on_grid: bool = False,
    sites: Mapping[str, BitsLike] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    after_pass: Callable[[str, Program], None] | None = None,
    scale: int | None = None,
    value_range: float | None = None,
    multiple: int | None = None,
    degradation: str | Degradation | None = None,
    resume: str | Path | None = None,
    memory: int | str | None = None,
) -> QuantizedModel:
    """Quantizes a trained network.

    Within a process group of torch.distributed, all processes must make the same call: they share the work, and all of
    them return the same network, which one of them should save.

    Without a recipe the network's scale, value range and sizes are found by trying it on small pictures; they are in
    `task` of the result.

    Args:
        model: any network for image restoration; it is copied and stays unchanged.
        example: one input that it accepts, [1, C, H, W], of floating point (64 x 64 is plenty); a tuple of tensors for
            a network of several inputs, the picture first.
        bits: bit widths of weights and activations: Bits(w=4, a=4), 4 for both, (4, 4), or "W4A4". A budget of average
            bits takes their place.
        calib: a folder of pictures or of pairs (`input/` and `target/`), "synthetic" for generated ones, input tensors
            in the model's own range (tuples of them, if the example is one), or a data loader that yields BasicSR's
            dictionaries (`lq`, `gt`) or pairs.
        recipe: a recipe's name, file or object; None for the settings that suit most networks.
        preset: the name of a preset: quick, standard, best, paper, or one of the recipe's own.
        budget: gives each operand its own bits within a budget: 3.0 for average bits, "600k" for the bytes of the
            checkpoint, "12Gbop" for bit operations, or Budget(max_drop=0.1) for the fewest bits that lose so many dB.
        uniform: whether sites keep the planned bits, also where the preset would allocate them; those that cost next to
            nothing may get more, for one per cent more bit operations together.
        zero_on_grid: whether every grid gives 0 a code, so that other runtimes can compute on integers (`export`).
        sites: exceptions: bits, or "float", by glob pattern of site names; the first match wins.
        seed: seed of everything random; the same seed gives the same network on the same machine.
        progress: shows the progress of the work.
        after_pass: called with the name of each pass and the student when the pass is done; in a run that goes on, all
            passes that are done have the student behind the last of them.
        scale: ratio of the output's height and width to the input's. This and the next three arguments replace the
            facts of the recipe, or the facts that trying the network would find.
        value_range: the value of white in the input, 1 or 255.
        multiple: height and width of the input are multiples of this.
        degradation: the degradation of the input: bicubic, noise:SIGMA, jpeg:QUALITY or none.
        resume: a folder for the state of the run after each pass and within distillation. The same call goes on where
            a run that was killed has ended, and returns the same network. None keeps no state.
        memory: bytes, as in 500M or 4G, that moments, samples and answers of the float network may each take at a time
            beside the networks; None for no limit. The result does not depend on it.

    Raises:
        InputError: bits, recipe, pattern or calibration source are not valid for the network, a weight holds NaN, or
            the folder `resume` belongs to another run or holds a damaged file.
        CaptureError: the network cannot be captured; the message says where and why.
        CalibrationError: a pass met a value that is not finite.

    Examples:
        >>> q = fxptq.quantize(MyNetwork().eval(), torch.rand(1, 3, 64, 64), bits=4)
        >>> q = fxptq.quantize(model, example, "W3A4", calib="photographs/", sites={"head": 8, "*.attn": "float"})
        >>> q = fxptq.quantize(model, example, 4, calib=DataLoader(train_set, batch_size=4), preset="best")
    """
    check_network(model, "quantize")
    _check_example(example)
    overrides = Overrides(scale, value_range, multiple, degradation)
    settings = recipe if isinstance(recipe, Recipe) else Recipe.load(DEFAULT if recipe is None else recipe)
    settings = settings.with_zero_on_grid() if zero_on_grid else settings
    checked = check_work(settings, bits, preset=preset, budget=budget, uniform=uniform, sites=sites, seed=seed)
    inputs = example if isinstance(example, tuple) else (example,)
    facts = gather_facts(make_weights_plain(independent_copy(model)), settings, inputs, overrides)
    _log.log(logging.WARNING if facts.fault else logging.INFO, "%s", facts.fault or facts.inferred or settings.title)
    folder = None if resume is None else RunFolder(Path(resume), current())
    most = None if memory is None else parse_bytes(memory)
    quantized = quantize_for(
        facts, model, example, checked, calib, progress=progress, after_pass=after_pass, folder=folder, memory=most
    )
    for warning in quantized.quality.warnings if current().first else ():
        _log.warning("%s", warning)
    return quantized


@dataclass(frozen=True)
class Work:
    """The checked settings of a quantization.

    Attributes:
        bits: bit widths by default.
        preset: the name of a preset of the recipe.
        sites: exceptions by glob pattern of site names.
        seed: seed of everything random.
        passes: the passes to run.
    """

    bits: Bits
    preset: str
    sites: Mapping[str, Bits | Literal["float"]]
    seed: int
    passes: tuple[PassEntry, ...]


def check_work(
    recipe: Recipe,
    bits: BitsLike,
    *,
    preset: str = "standard",
    budget: BudgetLike | None = None,
    uniform: bool = False,
    sites: Mapping[str, BitsLike] | None = None,
    seed: int = 0,
) -> Work:
    """Checks the settings that do not depend on the network; for the arguments see `quantize`.

    Raises:
        InputError: bits, a preset, its passes or a seed are not valid.
    """
    if not 0 <= seed < 1 << 63:
        raise InputError(f"the seed is {seed}; expected a number from 0 to 2**63 - 1")
    asked = None if budget is None else as_budget(budget)
    if uniform and asked is not None:
        raise InputError("a budget gives each operand its own bits, and uniform forbids that: leave one of them out")
    chosen = as_bits(bits)
    if asked is not None and asked.average is not None:
        chosen = Bits(*[math.floor(asked.average + 0.5)] * 2)
    passes = with_budget(recipe.preset(preset).passes, asked, uniform=uniform)
    for step in passes:
        build_pass(step.name, step.settings)
    exceptions = {pattern: FLOAT if each == FLOAT else as_bits(each) for pattern, each in (sites or {}).items()}
    return Work(chosen, preset, exceptions, seed, passes)


def quantize_for(
    facts: Facts,
    model: nn.Module,
    example: Inputs,
    work: Work,
    calib: str | Path | Iterable[Inputs] = "synthetic",
    *,
    progress: Progress | None = None,
    after_pass: Callable[[str, Program], None] | None = None,
    folder: RunFolder | None = None,
    memory: int | None = None,
) -> QuantizedModel:
    """Quantizes a network whose facts are known.

    Args:
        facts: the facts about the network, from `fxptq.facts.gather_facts`.
        model: the network; it is copied and stays unchanged.
        example: see `quantize`.
        work: the settings, from `check_work`.
        calib: see `quantize`.
        progress: see `quantize`.
        after_pass: see `quantize`.
        folder: keeps the state of the run; None for no state.
        memory: see `quantize`; in bytes.

    Raises:
        FxptqError: as `quantize`.
    """
    settings, bits, seed = facts.recipe, work.bits, work.seed
    chosen = settings.preset(work.preset)
    dtype = _DTYPES[chosen.quantize.float_dtype]
    ranks = current()
    progress = progress if progress is not None and ranks.first else Silent()
    model = network_of(model)
    lazy = next(lazy_tensors(model), None)
    if lazy is not None:
        raise InputError(f"{lazy} does not exist yet: its lazy layer was never run; load weights or call the network")
    own_dtype = (example[0] if isinstance(example, tuple) else example).dtype
    example = converted_inputs(example)
    inputs = example if isinstance(example, tuple) else (example,)
    images, described = _images(calib, facts, inputs, chosen.images, seed)
    images = [converted_inputs(image) for image in images]
    _check_alike(ranks, (work, chosen), images, model)
    with progress.task("capture", 2) as advance:
        plain = make_weights_plain(independent_copy(model))
        if own_dtype in OTHERS:
            _log.warning(
                "a network in %s is quantized in float32; it still takes and gives %s", *[dtype_name(own_dtype)] * 2
            )
            to_float32(plain, own_dtype)
        rounded = independent_copy(plain)
        round_floats(rounded, dtype)
        try:
            student = Program(rounded, inputs, plan_of(chosen.quantize, bits, work.sites))
        except CaptureError as error:
            if own_dtype not in OTHERS:
                raise
            raise CaptureError(
                f"a network in {dtype_name(own_dtype)} is quantized in float32, which this one refuses: {error}. "
                "Let it take float32, and pass model.float() and example.float()"
            ) from error
        damage = damaged_tensor(student)
        if damage:
            raise InputError(f"{damage}: its weights are damaged or were never set; load them again")
        advance()
        teacher = Program(plain, inputs, twin=student)
        advance()
    with torch.no_grad(), OwnRandomNumbers(seed):
        picture = trained_output(inputs[0], teacher(*inputs), settings.scale)
    context = Context(
        student=student,
        teacher=teacher,
        images=images,
        elsewhere=_elsewhere(calib, facts, inputs, seed),
        sizes=facts.sizes,
        batches=facts.batches,
        picture=picture,
        seed=seed,
        progress=progress,
        ranks=ranks,
        install_kernels=install_kernels,
        memory=memory,
    )
    patterns = (*work.sites, *chosen.quantize.sites)
    context.fixed, context.nominal = widths_asked(student, bits, patterns)

    def metadata() -> Metadata:
        return metadata_of(
            student, model, example, bits, settings, work.passes, dtype=dtype, seed=seed, calibration=described
        )

    context.overhead = lambda: overhead(student, metadata(), dtype)
    context.drop = drop_of(facts, context, calib)
    if folder is not None:
        folder.open(_identity(context, student, work, facts, described, inputs, model))
    reports = _run(work.passes, context, student, folder, after_pass or (lambda _name, _student: None))
    make_storable(student, dtype)
    with OwnRandomNumbers(seed):
        quality = check_quality(context, settings.input.range)
    return QuantizedModel(student, metadata(), reports, quality)


def _check_alike(ranks: Ranks, settings: object, images: list[Inputs], model: nn.Module) -> None:
    """Checks that all processes were given the same."""
    if ranks.world > 1:
        ranks.check_same("bits, settings or a seed", settings)
        ranks.check_same("calibration inputs", inputs_digest(images))
        ranks.check_same("weights", weights_digest(model))


def _run(
    passes: tuple[PassEntry, ...],
    context: Context,
    student: Program,
    folder: RunFolder | None,
    after_pass: Callable[[str, Program], None],
) -> tuple[PassReport, ...]:
    """Runs the passes that the folder of the run has not behind it, and keeps the state after each of them there."""
    names = [step.name for step in passes]
    reports: list[PassReport] = []
    start = 0
    if folder is not None:
        earlier, start = folder.go_on(context, student)
        reports += earlier
        context.interim = folder.interim(start)
    for name in names[:start]:
        after_pass(name, student)
    finished = start

    def after(report: PassReport, done: int) -> None:
        nonlocal finished
        reports.append(report)
        if folder is not None:
            folder.save(context, student, reports, done, names[done:])
            context.interim = folder.interim(done)
        if done > finished:
            finished = done
            after_pass(report.name, student)

    run_passes([(step.name, step.settings) for step in passes], context, start=start, after=after)
    return tuple(reports)


def _identity(
    context: Context,
    student: Program,
    work: Work,
    facts: Facts,
    described: str,
    example: tuple[Tensor, ...],
    model: nn.Module,
) -> dict[str, str]:
    """All that decides the result of a run, by its name for people; see `RunFolder.open`."""
    graph = re.sub("0x[0-9a-f]+", "", str(student.variants[0].capture.graph))  # addresses differ between processes
    return {
        "seed": str(work.seed),
        "bits": f"W{work.bits.w}A{work.bits.a}",
        "preset": work.preset,
        "passes": digest([(step.name, sorted(step.settings.items())) for step in work.passes]),
        "settings": digest((facts.recipe.model_dump_json(), sorted(work.sites.items()), facts.sizes, facts.batches)),
        "calibration": described,
        "calibration inputs": inputs_digest([*context.images, *context.elsewhere]),
        "example": inputs_digest([example]),
        "weights": weights_digest(model),
        "network": digest(graph),
        "device": context.device.type,
    }


def install_kernels() -> None:
    """Installs the compiled kernels of the CPU, also behind the operators that quantizers call."""
    from fxptq.kernels.backend import get_backend  # noqa: PLC0415  # building kernels is only for those who ask

    get_backend("cpu").install()


def plan_of(settings: QuantizeSettings, bits: Bits, sites: Mapping[str, Bits | Literal["float"]] | None = None) -> Plan:
    """The plan of a recipe's settings.

    Args:
        settings: the recipe's [quantize] table.
        bits: the bits of sites by default.
        sites: exceptions by glob pattern, before the recipe's own.
    """
    high = Bits(settings.high_bits, settings.high_bits)
    edges: dict[str, Bits | Literal["float"] | None] = {"high": high, "float": "float", "low": None}
    return Plan(
        bits,
        kinds=tuple(settings.kinds),
        granularity=settings.weight_granularity,
        edges=edges[settings.edges],
        connective=high if settings.connective == "high" else None,
        overrides=(
            *(sites or {}).items(),
            *((pattern, parse_bits(text)) for pattern, text in settings.sites.items()),
            *((pattern, high) for pattern in settings.high_sites),
        ),
        schemes=(("*", "zero_on_grid"),) if settings.zero_on_grid else tuple(settings.schemes.items()),
    )


def _check_example(example: Inputs) -> None:
    inputs = example if isinstance(example, tuple) else (example,)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        kinds = ", ".join(type(x).__name__ for x in inputs) or "nothing"
        raise InputError(
            f"the example is {kinds}; expected a tensor [1, C, H, W], or a tuple of them if the network takes several"
        )
    first = inputs[0]
    if first.dim() != 4 or 0 in first.shape or not first.is_floating_point():
        raise InputError(
            f"the example has shape {tuple(first.shape)}, {first.dtype}; expected [1, C, H, W] of floating point"
        )
    for x in inputs:
        if not fits(x.shape):
            raise InputError(
                f"the example has shape {tuple(x.shape)}; expected {MOST_EXAMPLE} elements at most: 64 x 64 is plenty"
            )


def _images(
    calib: str | Path | Iterable[Inputs], facts: Facts, example: tuple[Tensor, ...], count: int, seed: int
) -> tuple[list[Inputs], str]:
    picture, recipe = example[0], facts.recipe
    if isinstance(calib, str | Path):
        _check_pictures_will_do(example, recipe.input.range)
    images, described = calibration_images(
        calib,
        recipe.task,
        channels=picture.shape[1],
        value_range=recipe.input.range,
        sizes=facts.sizes,
        count=count,
        size=min(picture.shape[-2:]),
        seed=seed,
        tensors=len(example),
    )
    for index, image in enumerate(images):
        tensors = len(image) if isinstance(image, tuple) else 1
        if tensors != len(example):
            raise InputError(f"calibration input {index} has {tensors} tensors, and the example has {len(example)}")
    return images, described


def _elsewhere(
    calib: str | Path | Iterable[Inputs], facts: Facts, example: tuple[Tensor, ...], seed: int
) -> list[Inputs]:
    """Generated inputs for a network that is calibrated on a folder of pictures; none otherwise."""
    if not isinstance(calib, str | Path) or calib == SYNTHETIC:
        return []
    return _images(SYNTHETIC, facts, example, _ELSEWHERE, seed)[0]


def _check_pictures_will_do(example: tuple[Tensor, ...], white: float) -> None:
    if len(example) > 1:
        raise InputError(
            f"the example has {len(example)} inputs, and pictures make one: calibrate with tuples of tensors, as in "
            "fxptq.quantize(model, (x, level), bits, calib=[(x, level), ...])"
        )
    highest = float(example[0].max())
    if highest > BEYOND_WHITE * white:
        raise InputError(
            f"the example reaches {highest:.4g}, and pictures to calibrate with would be made in 0..{white:g}, the "
            "recipe's range: give a recipe with `range = 255.0` under [input], or calibrate with tensors of your own"
        )
