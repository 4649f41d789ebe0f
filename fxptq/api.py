"""The public face: `quantize` a network, `load` a checkpoint, and the `QuantizedModel` both give."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fxptq.checkpoint import file as checkpoints
from fxptq.checkpoint.metadata import MOST_EXAMPLE, ExampleRecord, FloatSite, Metadata, PassRecord, fits
from fxptq.checkpoint.state import (
    check_fits,
    program_of,
    put_weights_on_grid,
    round_floats,
    site_records,
    to_checkpoint,
)
from fxptq.data.sources import Inputs, calibration_images
from fxptq.errors import CheckpointError, InputError
from fxptq.graph import Bits, Plan, Program, Site
from fxptq.graph.copies import independent_copy
from fxptq.graph.parametrized import make_weights_plain
from fxptq.passes.base import Context, PassReport, build_pass, run_passes
from fxptq.progress import Progress, Silent
from fxptq.recipe import PassEntry, QuantizeSettings, Recipe, parse_bits

BEYOND_WHITE = 16
"""An example this many times whiter than white is no noise: the network takes another range."""

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
        meta: how it was made, as the checkpoint holds it.
        report: what each pass did.
    """

    def __init__(self, program: Program, meta: Metadata, report: tuple[PassReport, ...] = ()) -> None:
        super().__init__()
        self.program = program
        self.meta = meta
        self.report = report

    def forward(self, *inputs: Tensor) -> Any:
        """The simulated low-bit output; the inputs are the network's own."""
        return self.program(*inputs)

    @property
    def task(self) -> Recipe:
        """What goes in and what comes out: scale, input and degradation, as a recipe without presets."""
        return Recipe.model_validate(self.meta.task)

    @property
    def sites(self) -> list[Site]:
        """Every site of the network, quantized or not, in the order of execution."""
        return list(self.program.sites)

    @property
    def float_sites(self) -> list[FloatLeft]:
        """What was left in float, by name and reason."""
        return [FloatLeft(site.name, site.reason) for site in self.program.sites if site.reason]

    def save(self, path: str | Path) -> None:
        """Writes the network as one .safetensors file, atomically; the same network gives the same bytes.

        Raises:
            CheckpointError: the file cannot be written.
        """
        dtype = getattr(torch, self.meta.float_dtype)
        checkpoints.write(path, to_checkpoint(self.program, self.meta, dtype))

    def to_integer(self, *, compile: bool = True) -> nn.Module:  # noqa: A002  # the name torch uses for it
        """The network on integer kernels.

        Args:
            compile: whether to hand what is between the kernels to torch.compile.
        """
        from fxptq.kernels.lower import lower  # noqa: PLC0415  # building kernels is only for those who ask

        return lower(self.program, compile=compile)


def load(path: str | Path, model: nn.Module | None = None) -> QuantizedModel:
    """Loads a checkpoint; its simulated output equals the saved network's bit for bit.

    Args:
        path: a file that `QuantizedModel.save` wrote.
        model: a network of the same architecture, whose values do not matter; not needed for a bundled recipe. It is
            copied and left as it was.

    Raises:
        CheckpointError: the file is damaged, of a newer format, or of another architecture.
        InputError: the network is not a bundled one and `model` was not given.
    """
    stored = checkpoints.open_file(path)
    meta = stored.index.meta
    _task_of(meta, str(path))
    name = meta.recipe
    if model is None:
        if name is None:
            raise InputError(f"{path} holds a network of your own: pass it, as in fxptq.load(path, model=MyNetwork())")
        if name not in Recipe.names():  # never a path: a file that was sent to you must not choose what is imported
            raise CheckpointError(f"{path}: no recipe {name!r} in this fxptq; update fxptq, or pass the network")
        model = Recipe.load(name).build_model()
    plain = make_weights_plain(independent_copy(model))
    check_fits(plain, stored.index, str(path))
    return QuantizedModel(program_of(plain, stored.content(), str(path)), meta)


def _task_of(meta: Metadata, source: str) -> Recipe:
    try:
        return Recipe.model_validate(meta.task)
    except ValidationError as error:
        raise CheckpointError(f"{source}: damaged: its task cannot be understood") from error


def quantize(
    model: nn.Module,
    example: Inputs,
    bits: Bits,
    calib: str | Path | Iterable[Inputs] = "synthetic",
    recipe: str | Path | Recipe | None = None,
    *,
    preset: str = "standard",
    sites: Mapping[str, Bits | Literal["float"]] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    after_pass: Callable[[str, Program], None] | None = None,
) -> QuantizedModel:
    """Quantizes a trained network.

    Args:
        model: any network for image restoration; it is copied and left as it was.
        example: one input it accepts, [1, C, H, W], of floating point (64 x 64 is plenty); a tuple of tensors for a
            network of several inputs, the picture first.
        bits: bit widths of weights and activations.
        calib: a folder of pictures, "synthetic" for generated ones, or input tensors in the model's own range
            (tuples of them, if the example is one).
        recipe: a recipe's name, file or object; None for the settings that suit most networks.
        preset: which of the recipe's presets: quick, standard or paper.
        sites: exceptions: bits, or "float", by glob pattern of site names; the first match wins.
        seed: of everything random; the same seed gives the same network on the same machine.
        progress: shows how far the work is.
        after_pass: called with the name of each pass and the student when the pass is done.

    Raises:
        InputError: bits, recipe, pattern or calibration source unfit.
        CaptureError: the network cannot be captured; the message says where and why.
        CalibrationError: a pass met a value that is not finite.
    """
    _check_example(example)
    if not 0 <= seed < 1 << 63:
        raise InputError(f"the seed is {seed}; expected a number from 0 to 2**63 - 1")
    settings = recipe if isinstance(recipe, Recipe) else Recipe.load("default" if recipe is None else recipe)
    chosen = settings.preset(preset)
    for step in chosen.passes:
        build_pass(step.name, step.settings)
    dtype = _DTYPES[chosen.quantize.float_dtype]
    progress = progress or Silent()
    inputs = example if isinstance(example, tuple) else (example,)
    images, described = _images(calib, settings, inputs, chosen.images, seed)
    with progress.task("capture", 2) as advance:
        plain = make_weights_plain(independent_copy(model))
        rounded = independent_copy(plain)
        round_floats(rounded, dtype)
        student = Program(rounded, inputs, plan_of(chosen.quantize, bits, sites))
        advance()
        teacher = Program(plain, inputs, twin=student)
        advance()
    context = Context(student=student, teacher=teacher, images=images, seed=seed, progress=progress)
    reports: tuple[PassReport, ...] = ()
    for step in chosen.passes:
        reports += run_passes([(step.name, step.settings)], context)
        if after_pass is not None:
            after_pass(step.name, student)
    put_weights_on_grid(student)
    meta = metadata_of(
        student, model, example, bits, settings, chosen.passes, dtype=dtype, seed=seed, calibration=described
    )
    return QuantizedModel(student, meta, reports)


def plan_of(settings: QuantizeSettings, bits: Bits, sites: Mapping[str, Bits | Literal["float"]] | None = None) -> Plan:
    """The plan of a recipe's settings.

    Args:
        settings: the recipe's [quantize] table.
        bits: what sites get by default.
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
    )


def metadata_of(
    student: Program,
    model: nn.Module,
    example: Inputs,
    bits: Bits,
    recipe: Recipe,
    passes: Sequence[PassEntry],
    *,
    dtype: torch.dtype,
    seed: int,
    calibration: str,
) -> Metadata:
    """How a quantized network was made, as its checkpoint says.

    Args:
        student: the network with its quantizers set.
        model: the network it was made from.
        example: what it was captured with.
        bits: the widths asked for.
        recipe: what goes in and comes out, and which network a bundled one rebuilds.
        passes: those that were run, in order.
        dtype: what floats are stored as.
        seed: of everything random.
        calibration: one line on the images.
    """
    first, *more = example if isinstance(example, tuple) else (example,)
    return Metadata(
        created_by=f"fxptq {version('fxptq')}",
        recipe=recipe.name if _rebuilds(recipe, model) else None,
        task=recipe.model_dump(mode="json", include={"name", "title", "scale", "input", "degradation"}),
        bits_w=bits.w,
        bits_a=bits.a,
        sites=site_records(student),
        float_sites=[FloatSite(name=site.name, reason=site.reason) for site in student.sites if site.reason],
        example_shape=list(first.shape),
        example_dtype=_name(first.dtype),
        more_examples=[ExampleRecord(shape=list(x.shape), dtype=_name(x.dtype)) for x in more],
        seed=seed,
        calibration=calibration,
        passes=[PassRecord(name=step.name, settings=dict(step.settings)) for step in passes],
        float_dtype=_name(dtype),
        versions={"python": platform.python_version(), "torch": torch.__version__},
        source_sha256=weights_digest(model),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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


def _rebuilds(recipe: Recipe, model: nn.Module) -> bool:
    """Whether the bundled recipe of that name makes this architecture, so that a checkpoint needs no model to load."""
    if recipe.model is None or recipe.name not in Recipe.names() or recipe.model != Recipe.load(recipe.name).model:
        return False
    built = recipe.build_model().state_dict()
    return {name: x.shape for name, x in built.items()} == {name: x.shape for name, x in model.state_dict().items()}


def _images(
    calib: str | Path | Iterable[Inputs], recipe: Recipe, example: tuple[Tensor, ...], count: int, seed: int
) -> tuple[list[Inputs], str]:
    picture = example[0]
    if isinstance(calib, str | Path):
        _check_pictures_will_do(example, recipe.input.range)
    images, described = calibration_images(
        calib,
        recipe.task,
        channels=picture.shape[1],
        value_range=recipe.input.range,
        multiple=recipe.input.multiple,
        count=count,
        size=min(picture.shape[-2:]),
        seed=seed,
    )
    for index, image in enumerate(images):
        given = len(image) if isinstance(image, tuple) else 1
        if given != len(example):
            raise InputError(f"calibration input {index} has {given} tensors, and the example has {len(example)}")
    return images, described


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


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names and values of a network's state, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
