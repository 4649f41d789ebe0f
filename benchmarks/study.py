"""A network under study: captured once, observed once, then calibrated at any number of bits, stored and scored.

Several measurements share this module. Promises: a network quantized here equals the network that `fxptq quantize`
makes with the same images and settings; finished figures are stored under everything that they depend on except the
code, so that a run that was cut off continues where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.one import declare_missing_operators
from fxptq.checkpoint.state import as_stored, round_floats
from fxptq.commands.scores import score_sets
from fxptq.commands.source import Source, example_of, open_network
from fxptq.data.sources import calibration_images
from fxptq.engine import install_kernels
from fxptq.evaluate.sets import BenchmarkSet
from fxptq.evaluate.tiles import Run
from fxptq.graph import Bits, Program
from fxptq.io.files import write_json
from fxptq.kernels.lower import lower
from fxptq.origin import metadata_of, weights_digest
from fxptq.passes.base import Context, PassReport, get_pass, run_passes
from fxptq.planning import plan_of
from fxptq.progress import Progress, Silent
from fxptq.quant.distribution import Distribution
from fxptq.quantized import QuantizedModel
from fxptq.recipe import PassEntry, Preset, Recipe

Scores = Mapping[str, Mapping[str, float]]
"""By set, PSNR in dB and SSIM on Y."""

ROOT = Path(__file__).resolve().parents[1]
SETS = ("Set5", "Set14", "B100")


def open_study_network(name: str) -> Source:
    """Opens the network of a recipe, or of a weights file that spandrel recognises."""
    if not Path(name).is_file():
        return open_network(name)
    declare_missing_operators()
    return open_network(None, weights=Path(name))


def common_options(description: str | None, networks: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Makes a parser with the options that every study has.

    Args:
        description: the text of the help.
        networks: the networks of a study of several, by default; none for a study of one.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "a recipe's name, or a weights file that spandrel recognises"
    if networks:
        parser.add_argument("networks", nargs="*", default=networks, metavar="NETWORK", help=what)
    else:
        parser.add_argument("network", help=what)
    parser.add_argument("--benchmarks", type=Path, default=ROOT / "../shared/data/benchmarks", metavar="DIR")
    parser.add_argument("--sets", nargs="*", default=list(SETS), help="folders of DIR")
    parser.add_argument("--images", type=int, default=100, help="calibration inputs, one from a picture")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def inputs_of(recipe: Recipe, origin: str | Path, count: int, seed: int) -> tuple[list[Tensor], str]:
    """Makes calibration inputs of the recipe's size, and one line that describes them."""
    task = recipe.input
    return calibration_images(
        origin,
        recipe.task,
        channels=task.channels,
        value_range=task.range,
        sizes=task.sizes,
        count=count,
        size=min(task.size),
        seed=seed,
    )


def preset_on_plan(recipe: Recipe, name: str, plan: str, granularity: str = "channel") -> Preset:
    """The passes and schemes of one preset with the sites and bits of another.

    Args:
        recipe: the recipe of both.
        name: the preset whose passes and schemes are used.
        plan: the preset whose sites and bits are used; that of `name` if it is empty.
        granularity: whether weights have bounds by "channel" or "tensor".
    """
    preset = recipe.preset(name)
    changes = {"schemes": preset.quantize.schemes, "weight_granularity": granularity}
    settings = recipe.preset(plan or name).quantize.model_copy(update=changes)
    return preset.model_copy(update={"quantize": settings})


class Study:
    """A network with calibration inputs.

    Args:
        source: the network.
        inputs: calibration inputs, and the line that describes them.
        preset: the choice of sites and widths.
        seed: seed of all random numbers.
        progress: shows the state of the work.
    """

    def __init__(
        self, source: Source, inputs: tuple[list[Tensor], str], preset: Preset, seed: int, progress: Progress
    ) -> None:
        self.source, self.preset, self.seed, self.progress = source, preset, seed, progress
        self.images, self.described = inputs
        self.example = example_of(source.recipe)
        self.dtype = {"fp16": torch.float16, "fp32": torch.float32}[preset.quantize.float_dtype]
        self._statistics: dict[str, Distribution] = {}

    @cached_property
    def teacher(self) -> Program:
        """The float network."""
        return Program(self.source.model, self.example)

    @cached_property
    def _rounded(self) -> nn.Module:
        rounded = copy.deepcopy(self.source.model)
        round_floats(rounded, self.dtype)
        return rounded

    @property
    def steps(self) -> tuple[tuple[str, tuple[PassEntry, ...]], ...]:
        """The preset's passes in two steps: `bounds`, and `DQC`, which distils."""
        passes = self.preset.passes
        first = next((i for i, entry in enumerate(passes) if entry.name == "dqc"), len(passes))
        return tuple((name, part) for name, part in (("bounds", passes[:first]), ("DQC", passes[first:])) if part)

    @cached_property
    def key(self) -> dict[str, Any]:
        """The settings that every figure of this study depends on."""
        return {
            "network": self.source.name,
            "weights": weights_digest(self.source.model)[:12],
            "inputs": _digest(self.images),
            "seed": self.seed,
            "quantize": self.preset.quantize.model_dump(mode="json"),
        }

    def at(self, bits: int, *, observe: bool = True) -> Context:
        """Makes a student of that many bits, without bounds yet, and the statistics of its operands if asked."""
        plan = plan_of(self.preset.quantize, Bits(bits, bits))
        student = Program(self._rounded, self.example, plan, twin=self.teacher)
        context = Context(
            student,
            self.teacher,
            self.images,
            sizes=self.source.recipe.input.sizes,
            seed=self.seed,
            progress=self.progress,
            install_kernels=install_kernels,
        )
        if not observe:
            return context
        # The values of an operand in float do not depend on bits; the choice of operands that share a quantizer may.
        activations = {key for key in student.quantizers if student.weight_of(key) is None}
        if activations <= self._statistics.keys():
            context.statistics, context.collected = dict(self._statistics), {"histogram"}
        else:
            run_passes([("observe", {})], context)
            self._statistics |= context.statistics
        return context

    def run(self, context: Context, passes: Sequence[PassEntry]) -> tuple[PassReport, ...]:
        """Runs the passes, except the passes whose statistics are already gathered."""
        known = ((entry, get_pass(entry.name).provides) for entry in passes)
        missing = [entry for entry, provides in known if not provides or not provides <= context.collected]
        return run_passes([(entry.name, entry.settings) for entry in missing], context)

    def integer(self, context: Context) -> nn.Module:
        """Lowers the student to integer kernels, not compiled, because benchmark pictures have many sizes."""
        assert isinstance(context.student, Program)
        return lower(context.student, compile=False)

    @contextmanager
    def finished(self, context: Context, bits: int, passes: Sequence[PassEntry]) -> Iterator[QuantizedModel]:
        """Gives the student as `quantize` would return it; later passes find its float weights restored."""
        student = context.student
        assert isinstance(student, Program)
        meta = metadata_of(
            student,
            self.source.model,
            self.example,
            Bits(bits, bits),
            self.source.recipe,
            passes,
            dtype=self.dtype,
            seed=self.seed,
            calibration=self.described,
        )
        with as_stored(student):
            yield QuantizedModel(student, meta)


def scores(run: Run, sets: Sequence[BenchmarkSet], source: Source) -> dict[str, dict[str, float]]:
    """Computes PSNR in dB and SSIM on Y, by set."""
    return {
        score.name: {"psnr_y": score.mean.psnr_y, "ssim_y": score.mean.ssim_y}
        for score in score_sets(run, sets, source.recipe, Silent(), source.name)
    }


def _digest(tensors: Sequence[Tensor]) -> str:
    """The first 12 hexadecimal digits of a SHA-256 over values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().data)
    return digest.hexdigest()[:12]


class FigureStore:
    """Finished figures in a JSON file, by the settings that they depend on.

    Args:
        path: path of the file, which is written whole after each figure.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the figures stored for these settings, or None."""
        return self._rows.get(_key(settings))

    @staticmethod
    def digest(settings: Mapping[str, Any]) -> str:
        """Returns a short name for settings, which files may have."""
        return hashlib.sha256(_key(settings).encode()).hexdigest()[:16]

    def put(self, settings: Mapping[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
        """Stores figures; figures of another run that shares the file stay."""
        others = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self._rows = {**others, **self._rows, _key(settings): figures}
        write_json(self.path, self._rows)
        return figures


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def parsed(text: str) -> dict[str, int | float]:
    """Reads settings written as KEY=NUMBER,..."""
    pairs = (part.split("=", 1) for part in text.split(",") if part)
    return {key: float(value) if "." in value or "e" in value else int(value) for key, value in pairs}
