"""The public functions: `quantize` a network, `load` a checkpoint, and `restore` a picture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from fxptq.bits import BitsLike, BudgetLike
from fxptq.calibration import check_example
from fxptq.checkpoint import file as checkpoints
from fxptq.checkpoint.metadata import Metadata
from fxptq.checkpoint.state import check_fits, example_of, program_of
from fxptq.data.degrade import Degradation
from fxptq.data.sources import Inputs
from fxptq.engine import check_work, quantize_for
from fxptq.errors import CheckpointError, InputError
from fxptq.evaluate.restore import Picture
from fxptq.evaluate.restore import restore as restore_picture
from fxptq.evaluate.tiles import OVERLAP
from fxptq.evaluate.tiling import Tiling
from fxptq.facts import Overrides, gather_facts
from fxptq.formats import PictureFormat
from fxptq.graph import Program
from fxptq.graph.copies import independent_copy
from fxptq.graph.parametrized import make_weights_plain
from fxptq.graph.precision import precision_of, to_float32, without_autocast
from fxptq.graph.randomness import OwnRandomNumbers
from fxptq.graph.tensors import lazy_tensors
from fxptq.memory import parse_bytes
from fxptq.progress import Progress
from fxptq.quantized import QuantizedModel
from fxptq.ranks import current
from fxptq.recipe import DEFAULT, Recipe
from fxptq.resume import RunFolder
from fxptq.sizes import Sizes

_log = logging.getLogger("fxptq")


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
    check_example(example)
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
