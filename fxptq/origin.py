"""The origin of a checkpoint's network: whether a bundled recipe rebuilds it, and the digest of its weights."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from fxptq.graph.copies import independent_copy
from fxptq.graph.tensors import stored_tensors
from fxptq.graph.verify import difference, run_network
from fxptq.recipe import Recipe


def rebuilds(recipe: Recipe, model: nn.Module, picture: Tensor) -> bool:
    """Whether the bundled recipe of that name makes this very network, so that a checkpoint needs no model to load.

    Equal tensors are not enough: a setting without a tensor (a residual scale, an activation) makes another network. So
    the rebuilt network gets the weights of this one, and both are run on noise of two sizes.

    Args:
        recipe: the recipe that the network was quantized with.
        model: the network; it stays unchanged.
        picture: a picture that the network takes, [1, C, H, W].
    """
    if recipe.model is None or recipe.name not in Recipe.names() or recipe.model != Recipe.load(recipe.name).model:
        return False
    own, built = independent_copy(model).float().eval(), recipe.build_model().to(picture.device)
    tensors, wanted = _own_tensors(own), stored_tensors(built)
    if {name: x.shape for name, x in wanted.items()} != {name: x.shape for name, x in tensors.items()}:
        return False
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
    return all(difference(run_network(built, (x,)), run_network(own, (x,))) == 0 for x in _noise(recipe, picture))


def _noise(recipe: Recipe, picture: Tensor) -> list[Tensor]:
    """Two pictures of noise: one of the size of `picture`, and one of the next larger size that the network takes."""
    height, width = picture.shape[-2:]
    sizes, channels = recipe.input.sizes, picture.shape[1]
    generator = torch.Generator().manual_seed(0)
    both = {(height, width), sizes.near(height + 1, width + 1)}
    noise = [torch.rand(1, channels, *size, generator=generator) for size in sorted(both)]
    return [(recipe.input.range * x).to(picture.device) for x in noise]


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network under the names they have where no part of it is compiled."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in stored_tensors(model).items()}


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names and values of a network's state, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_own_tensors(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
