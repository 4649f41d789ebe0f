"""Networks of other people, recognised from their weights by spandrel, an extra that is imported when asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxptq.errors import InputError
from fxptq.io.state_dict import read_state
from fxptq.recipe import Recipe
from fxptq.sizes import Sizes


@dataclass(frozen=True)
class Recognised:
    """A network, trained, in evaluation mode, and the default recipe with its scale, channels and sizes."""

    model: nn.Module
    recipe: Recipe


class Called(nn.Module):
    """A network that spandrel calls in a way of its own: one of several outputs, another range."""

    def __init__(self, network: nn.Module, call: Any) -> None:
        super().__init__()
        self.network, self._call = network, call

    def forward(self, x: Tensor) -> Any:
        """[1, C, H, W] -> [1, C, H * scale, W * scale], both in 0..1."""
        return self._call(self.network, x)


def recognised(weights: Path) -> Recognised:
    """The network whose weights a file holds.

    Raises:
        InputError: there is no such file, spandrel is not installed or does not know the network, or the network takes
            more than a picture.
    """
    if not weights.is_file():
        raise InputError(f"no weights file at {weights}")
    try:
        import spandrel  # noqa: PLC0415  # an optional extra
    except ImportError as error:
        raise InputError(
            f"{weights}: without --recipe or --model its architecture must be recognised, which needs spandrel: "
            "pip install 'fxptq[zoo]'"
        ) from error
    except RuntimeError as error:  # torchvision's, beside a torch of another build
        raise InputError(
            f"{weights}: spandrel cannot be imported ({error}); install torch and torchvision of the same build"
        ) from error
    _install_more_architectures()
    state = read_state(weights)
    try:
        found: Any = spandrel.ModelLoader().load_from_state_dict(state)
    except Exception as error:
        raise InputError(
            f"{weights}: spandrel does not recognise its architecture ({str(error) or type(error).__name__})"
        ) from error
    name = found.architecture.name
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.input_channels not in (1, 3):
        raise InputError(
            f"{weights}: {name} takes more than a picture; quantize it from Python, as in "
            "fxptq.quantize(network, (picture, mask), bits, calib=[(picture, mask), ...])"
        )
    recipe = _recipe(found)
    channels, (height, width) = recipe.input.channels, recipe.input.size
    return Recognised(_as_called(found, torch.rand(1, channels, height, width)), recipe)


def _install_more_architectures() -> None:
    """Those whose licences are less free; the extra brings them along, and without them the others remain."""
    try:
        more: Any = importlib.import_module("spandrel_extra_arches")
    except ImportError:
        return
    more.install(ignore_duplicates=True)


def _recipe(found: Any) -> Recipe:
    """The default recipe with what spandrel knows of a network."""
    asked = found.size_requirements
    sizes = Sizes(max(1, asked.multiple_of), max(1, asked.minimum or 0), bool(asked.square))
    changes = {
        "name": found.architecture.id.lower(),
        "title": f"{found.architecture.name}, recognised by spandrel",
        "scale": found.scale,
        "input": {
            "channels": found.input_channels,
            "multiple": sizes.multiple,
            "minimum": sizes.minimum,
            "square": sizes.square,
            "size": sizes.near(64, 64),
        },
        "degradation": {"kind": "bicubic" if found.scale > 1 else "none"},
    }
    base = Recipe.load("default")
    return Recipe.model_validate({**base.model_dump(exclude={"input", "degradation"}), **changes})


def _as_called(found: Any, example: Tensor) -> nn.Module:
    """The network itself where calling it is all that spandrel does, so that its sites keep their names."""
    model: nn.Module = found.model.eval()
    with torch.no_grad():
        direct, meant = model(example), found(example)
    if isinstance(direct, Tensor) and torch.equal(direct.clamp(0, 1), meant):
        return model
    return Called(model, found._call_fn).eval()  # noqa: SLF001  # calling `found` itself would clamp, without gradients
