"""`fxptq inspect`: the table of a network's sites, its graph as GraphML, and the tensors of a checkpoint's file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxptq.bits import Bits
from fxptq.checkpoint import file as checkpoints
from fxptq.checkpoint.tensors import StoredTensor, tensor_table
from fxptq.commands.evaluate import open_checkpoint
from fxptq.commands.source import example_of, from_factory, parse_site
from fxptq.errors import InputError
from fxptq.facts import gather_facts
from fxptq.graph import Program, Site, as_graphml
from fxptq.io.files import check_writable, write_bytes
from fxptq.planning import plan_of
from fxptq.recipe import DEFAULT, PAIRS, Recipe


def run(
    subject: str | None, bits: Bits, factory: str | None, graphml: Path | None, sites: Sequence[str] = ()
) -> tuple[Site, ...]:
    """The sites of a checkpoint, or of a network as a recipe would plan them at `bits`, with exceptions by name.

    Raises:
        InputError: there is no such recipe or file.
        CaptureError: the network cannot be captured.
    """
    if graphml is not None:
        check_writable(graphml)
    program = _program(subject or _default(factory), bits, factory, sites)
    if graphml is not None:
        write_bytes(graphml, as_graphml(program.variants[0].capture.graph, program.sites))
    return program.sites


def _default(factory: str | None) -> str:
    if factory is None:
        raise InputError("name what to inspect: a recipe, a checkpoint, or --model package.module:factory")
    return factory if factory.endswith(".toml") else "default"


def _program(subject: str, bits: Bits, factory: str | None, sites: Sequence[str]) -> Program:
    exceptions = dict(map(parse_site, sites))
    if subject.endswith(".safetensors") or (Path(subject).is_file() and not subject.endswith(".toml")):
        return open_checkpoint(Path(subject), factory).program
    recipe = Recipe.load(subject)
    model = from_factory(factory) if factory is not None else recipe.build_model()
    if recipe.name in (DEFAULT, PAIRS):
        recipe = gather_facts(model, recipe).recipe
    return Program(model, example_of(recipe), plan_of(recipe.quantize, bits, exceptions))


def as_json(sites: Sequence[Site]) -> dict[str, Any]:
    """The shape scripts rely on."""
    return {
        "sites": [
            {
                "name": site.name,
                "kind": site.kind,
                "role": site.role,
                "macs": site.macs,
                "bits_w": site.bits[0],
                "bits_a": site.bits[1],
                "shapes": {slot: list(shape) for slot, shape in site.shapes.items()},
            }
            for site in sites
        ],
        "float_sites": [{"name": site.name, "reason": site.reason} for site in sites if site.reason],
    }


@dataclass(frozen=True)
class Contents:
    """The tensors of a checkpoint's file, and the bytes of each of its parts."""

    tensors: tuple[StoredTensor, ...]
    sizes: checkpoints.ByteCounts

    def as_json(self) -> dict[str, Any]:
        """The shape scripts rely on."""
        return {
            "tensors": [asdict(one) for one in self.tensors],
            "bytes": asdict(self.sizes) | {"file": self.sizes.total},
        }


def tensors(subject: str | None, graphml: Path | None) -> Contents:
    """The tensors of a checkpoint's file; no network is built.

    Raises:
        InputError: no file is named, or a graph is asked for as well.
        CheckpointError: the file is no checkpoint.
    """
    if subject is None or subject.endswith(".toml"):
        raise InputError("--tensors: name a checkpoint, as in fxptq inspect small.safetensors --tensors")
    if graphml is not None:
        raise InputError("--tensors reads the file alone and makes no graph: leave --graphml out")
    return Contents(tensor_table(checkpoints.read(subject)), checkpoints.byte_counts(subject))
