"""The network a command works on: of a recipe, of the user, or whatever a community weights file turns out to be."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fxptq.bits import Bits, parse_bits
from fxptq.commands.community import recognised
from fxptq.commands.weights import weights_source
from fxptq.errors import InputError
from fxptq.io.state_dict import load_state, read_state
from fxptq.io.weights import locate
from fxptq.recipe import DEFAULT, Recipe

WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt")
"""What names of weights files end in."""


@dataclass(frozen=True)
class Source:
    """A trained network and what goes with it.

    Attributes:
        name: what to call it.
        model: the network in evaluation mode.
        recipe: its recipe; the default one for a network without a recipe.
    """

    name: str
    model: nn.Module
    recipe: Recipe


def example_of(recipe: Recipe) -> Tensor:
    """An input of the recipe's size and range: a soft ramp, [1, C, H, W]."""
    height, width = recipe.input.sizes.near(*recipe.input.size)
    channels = recipe.input.channels
    return torch.linspace(0, recipe.input.range, channels * height * width).reshape(1, channels, height, width)


def device_of(name: str) -> torch.device:
    """The device called auto, cpu or cuda.

    Raises:
        InputError: there is no such device here.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name!r}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA device; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def parse_site(option: str) -> tuple[str, Bits | Literal["float"]]:
    """Split `GLOB=W3A4` or `GLOB=float`.

    Raises:
        InputError: it is neither.
    """
    pattern, _, bits = option.rpartition("=")
    if not pattern:
        raise InputError(f"{option!r}: expected GLOB=W3A4 or GLOB=float, such as 'body.*=W3A4'")
    return pattern, parse_bits(bits)


def open_network(recipe: str | None, factory: str | None = None, weights: Path | None = None) -> Source:
    """Builds a network and loads its trained weights.

    Args:
        recipe: name or path of a recipe; with `factory`, the settings to use.
        factory: what builds a network of the user's own, trained unless `weights` is given; see `from_factory`.
        weights: a weights file instead of the recipe's.

    Raises:
        InputError: nothing was named, or something named cannot be found, imported or loaded.
    """
    if factory is not None and factory.endswith(WEIGHTS):
        found = recognised(Path(factory))
        return Source(found.recipe.name, found.model, Recipe.load(recipe) if recipe else found.recipe)
    if factory is not None:
        model = from_factory(factory)
        if weights is not None:
            load_state(model, read_state(weights))
        own = factory if factory.endswith(".toml") else DEFAULT
        return Source(factory, model.eval(), Recipe.load(recipe or own))
    if recipe is None:
        if weights is None:
            raise InputError("name a network: --recipe NAME, --model package.module:factory, or --weights FILE")
        found = recognised(weights)
        return Source(found.recipe.name, found.model, found.recipe)
    chosen = Recipe.load(recipe)
    model = chosen.build_model()
    path = weights or locate(weights_source(chosen))
    load_state(model, read_state(path, chosen.weights.key if weights is None else ""))
    return Source(chosen.name, model.eval(), chosen)


def from_factory(factory: str) -> nn.Module:
    """The network that "package.module:callable" builds, or a recipe's file, or whose weights spandrel recognises.

    The working directory is importable.

    Raises:
        InputError: it cannot be imported or called, or gives no nn.Module.
    """
    if factory.endswith(".toml"):
        return Recipe.load(factory).build_model()
    if factory.endswith(WEIGHTS):
        return recognised(Path(factory)).model
    module_name, _, attribute = factory.partition(":")
    if not module_name or not attribute:
        raise InputError(f"--model {factory!r}: expected package.module:factory, a recipe's .toml file, or weights")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        make = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever a module of the user's raises
        raise InputError(f"--model {factory!r} cannot be imported: {type(error).__name__}: {error}") from error
    else:
        model = _made(make, factory)
    finally:
        sys.path.remove(here)
    return model


def _made(make: Callable[[], object], factory: str) -> nn.Module:
    try:
        model = make()
    except Exception as error:
        raise InputError(
            f"--model {factory!r}: it is called without arguments, and failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"--model {factory!r} made a {type(model).__name__}; expected a torch.nn.Module")
    return model.eval()
