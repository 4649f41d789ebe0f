"""`fxptq inspect`: the table of a network's sites, and its graph as GraphML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxptq.api import plan_of
from fxptq.commands.evaluate import open_checkpoint
from fxptq.commands.network import example_of, from_factory
from fxptq.graph import Bits, Program, Site, write_graphml
from fxptq.io.files import check_writable
from fxptq.recipe import Recipe


def run(subject: str, bits: Bits, factory: str | None, graphml: Path | None) -> tuple[Site, ...]:
    """The sites of a checkpoint, or of a recipe's network as it would be planned at `bits`.

    Raises:
        InputError: there is no such recipe or file.
        CaptureError: the network cannot be captured.
    """
    if graphml is not None:
        check_writable(graphml)
    program = _program(subject, bits, factory)
    if graphml is not None:
        write_graphml(program.variants[0].capture.graph, program.sites, graphml)
    return program.sites


def _program(subject: str, bits: Bits, factory: str | None) -> Program:
    if subject.endswith(".safetensors") or (Path(subject).is_file() and not subject.endswith(".toml")):
        return open_checkpoint(Path(subject), factory).program
    recipe = Recipe.load(subject)
    model = from_factory(factory) if factory is not None else recipe.build_model()
    return Program(model, example_of(recipe), plan_of(recipe.quantize, bits))


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
