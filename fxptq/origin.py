"""The origin of a checkpoint: its metadata, whether a bundled recipe rebuilds its network, the weights' digest."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fxptq._version import __version__
from fxptq.bits import Bits
from fxptq.checkpoint.metadata import ExampleRecord, FloatSite, Metadata, PassRecord, version_for
from fxptq.checkpoint.state import site_records
from fxptq.data.sources import Inputs
from fxptq.graph import Program
from fxptq.graph.copies import independent_copy
from fxptq.graph.randomness import OwnRandomNumbers
from fxptq.graph.tensors import stored_tensors
from fxptq.graph.verify import difference, run_network
from fxptq.recipe import PassEntry, Recipe


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
    own = independent_copy(model).float().eval()
    with OwnRandomNumbers():
        built = recipe.build_model().to(picture.device)
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
    return _digest(sorted(_own_tensors(model).items()))


def inputs_digest(inputs: Iterable[Inputs]) -> str:
    """SHA-256 over calibration inputs, hexadecimal."""
    tuples = [item if isinstance(item, tuple) else (item,) for item in inputs]
    return _digest([(str(index), tensor) for index, item in enumerate(tuples) for tensor in item])


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    """The metadata of a quantized network.

    Args:
        student: the network with its quantizers set.
        model: the network that it was made from.
        example: the inputs that it was captured with.
        bits: the requested widths.
        recipe: the recipe, with the task and perhaps the network.
        passes: the passes that were run, in order.
        dtype: the storage type of float tensors.
        seed: seed of everything random.
        calibration: one line on the images.
    """
    first, *more = example if isinstance(example, tuple) else (example,)
    records = site_records(student)
    return Metadata(
        created_by=f"fxptq {__version__}",
        recipe=recipe.name if rebuilds(recipe, model, first) else None,
        task=recipe.model_dump(mode="json", include={"name", "title", "scale", "input", "degradation"}),
        bits_w=bits.w,
        bits_a=bits.a,
        sites=records,
        float_sites=[FloatSite(name=site.name, reason=site.reason) for site in student.sites if site.reason],
        example_shape=list(first.shape),
        example_dtype=dtype_name(first.dtype),
        more_examples=[ExampleRecord(shape=list(x.shape), dtype=dtype_name(x.dtype)) for x in more],
        seed=seed,
        calibration=calibration,
        passes=[PassRecord(name=step.name, settings=dict(step.settings)) for step in passes],
        float_dtype=dtype_name(dtype),
        format_version=version_for(records),
        versions={"python": platform.python_version(), "torch": torch.__version__},
        source_sha256=weights_digest(model),
    )


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a type as checkpoints write it: `float32`."""
    return str(dtype).removeprefix("torch.")
