"""Published weights into our networks: reading the files, and a strict load with an error for people.

Files are data only: safetensors, or what torch.save wrote through torch's weights-only reader; the content says which.
Prefixes, wrappers and spellings in which people keep the same weights are seen through (see `fxptq.io.alignment`).
Tensors that follow from a network's configuration (attention masks, position indices) may be absent, and stay as the
network made them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fxptq.errors import InputError
from fxptq.io.alignment import aligned, may_lack
from fxptq.io.identify import identify, refusal

# Fixed by the configuration, and large: half of a published light SwinIR file is masks.
DERIVED = ("attn_mask", "relative_position_index")
AVERAGED = ("params_ema", "ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "net_g_ema", "g_ema")
CURRENT = (
    *("params", "state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "net_g"),
    *("netG", "generator", "weights", "shadow"),
)
WRAPPERS = (*AVERAGED, *CURRENT)
"""Entries below which training programs keep a state dict; averaged weights, which score better, come first."""

SHOWN = 4
_DEEPEST = 4
_TRAINING = re.compile("optim|sched|scaler", re.IGNORECASE)  # what else training programs keep


def is_derived(key: str) -> bool:
    """Whether a state-dict entry of a bundled network follows from its configuration and need not be stored."""
    return key.rpartition(".")[2] in DERIVED


def unwrap(mapping: Mapping[str, Any], key: str = "") -> dict[str, Tensor]:
    """The state dict within a loaded file.

    Args:
        mapping: a bare state dict, or one below `params_ema`, `params`, `state_dict` and the like (see `WRAPPERS`,
            tried in this order), or below the only entry that is one.
        key: the entry to take; "" finds it.

    Raises:
        InputError: no such entry, several that could be meant, or something in it is not a tensor.
    """
    if key:
        chosen = mapping.get(key)
        if not isinstance(chosen, Mapping):
            found = ", ".join(sorted(map(str, mapping))[:SHOWN])
            raise InputError(f"the weights have no entry {key!r}; they start with: {found}")
        mapping = chosen
    if not mapping:
        return {}
    found_state = _state_within(mapping)
    if found_state is None:
        strange = [(name, x) for name, x in mapping.items() if not (isinstance(name, str) and _belongs(name, x))]
        name, value = strange[0]
        raise InputError(f"the weights are no state dict: {str(name)!r} is a {type(value).__name__}")
    return {name: value for name, value in found_state.items() if isinstance(value, Tensor)}


def read_state(path: Path, key: str = "") -> dict[str, Tensor]:
    """Reads a state dict from a file, on the CPU.

    Args:
        path: a safetensors or torch file, of whatever suffix.
        key: the entry of a torch file that holds it; "" finds it (see `unwrap`).

    Raises:
        InputError: the file is missing, not a weights file, or holds more than tensors.
    """
    kind = identify(path)
    try:
        # The readers warn of damage before they fail on it; the one line of the error is enough.
        with warnings.catch_warnings(action="ignore"):
            if kind == "safetensors":
                loaded: Any = safetensors.torch.load_file(path)
            else:
                with path.open("rb") as stream:  # not the path, whose suffix torch.load would believe
                    loaded = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers raise on damage
        raise InputError(refusal(path, _reason(error))) from error
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds a {type(loaded).__name__}; expected a state dict")
    try:
        state = unwrap(loaded, key)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    _check_claims(state, path)
    return state


def load_state(model: nn.Module, mapping: Mapping[str, Any]) -> None:
    """Loads weights into a model; every learned tensor must be there, with its shape, and none too many.

    Args:
        model: changed in place; keeps its dtype and device.
        mapping: a state dict, bare or wrapped (see `unwrap`), under the model's names or under those that wrappers make
            of them. Buffers that follow from the configuration may be absent or of another size.

    Raises:
        InputError: the entries differ; lists the first of them with their shapes. The model is then unchanged.
    """
    expected = model.state_dict()
    given = aligned(unwrap(mapping), model)
    optional = may_lack(model, given)
    differences = [
        f"{key}: {_described(given, key, expected)} instead of {_described(expected, key, expected)}"
        for key in [*expected, *(key for key in given if key not in expected)]
        if _described(given, key, expected) != _described(expected, key, expected)
        and not (key in optional and key not in given)
    ]
    if differences:
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise InputError(
            f"the weights do not fit {type(model).__name__}: {'; '.join(differences[:SHOWN])}{more}. "
            "Check that the recipe describes the network these weights were trained for."
        )
    # load_state_dict copies into the model's own tensors, whatever the dtype of the file.
    model.load_state_dict({**expected, **given}, strict=True)


def _state_within(mapping: Mapping[Any, Any], depth: int = _DEEPEST) -> Mapping[str, Any] | None:
    """The state dict that a mapping is, or holds; None for none."""
    if not mapping or not all(isinstance(name, str) for name in mapping):
        return None
    if all(_belongs(name, value) for name, value in mapping.items()):
        return mapping
    if depth == 0:
        return None
    inner = {
        name: found
        for name, value in mapping.items()
        if isinstance(value, Mapping) and not _TRAINING.search(name)
        if (found := _state_within(value, depth - 1)) is not None
    }
    known = [name for name in WRAPPERS if name in inner]
    if not known and len(inner) > 1:
        raise InputError(
            f"the weights have several state dicts: {', '.join(sorted(inner))}; "
            "name one as `key` under [weights] of a recipe"
        )
    return inner[known[0]] if known else next(iter(inner.values()), None)


def _belongs(name: object, value: object) -> bool:
    """Whether an entry may stand in a state dict: a tensor, or what a module adds of its own."""
    return isinstance(value, Tensor) or str(name).endswith("_extra_state")


def _check_claims(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuses tensors without values of their own, before anybody allocates what they claim to hold."""
    size = path.stat().st_size
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise InputError(f"{path}: {name} is a sparse, quantized or empty-handed tensor; save plain ones")
        if tensor.numel() * tensor.element_size() > size:
            raise InputError(f"{path}: {name} claims the shape {list(tensor.shape)}, and the file has {size} bytes")


def _reason(error: Exception) -> str:
    """What went wrong, in one line; of code in the file, what it is."""
    text = str(error)
    code = re.search(r"(?:GLOBAL|class|function|global:?)\s+`?([A-Za-z_][\w]*(?:\.[\w]+)+)", text)
    if code and "weights" in text.lower():
        return (
            f"it holds {code[1]}, which is code (a pickled model, or settings beside the weights); where you trust it, "
            "save its state dict alone with torch.save and give that"
        )
    lines = text.strip().splitlines()
    return (
        f"it is damaged: {lines[0][:200]}" if lines and lines[0].strip() else f"it is damaged ({type(error).__name__})"
    )


def _described(state: Mapping[str, Any], key: str, expected: Mapping[str, Any]) -> str:
    """The shape of an entry, and its type where that is of another kind than what is expected."""
    if key not in state:
        return "nothing"
    value, other = state[key], expected.get(key)
    if not isinstance(value, Tensor):
        return type(value).__name__
    same_kind = not isinstance(other, Tensor) or _number(value) >= _number(other) or not _learned(other)
    fits = same_kind and not (value.is_complex() and isinstance(other, Tensor) and not other.is_complex())
    return str(list(value.shape)) + ("" if fits else f" of {str(value.dtype).removeprefix('torch.')}")


def _learned(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _number(tensor: Tensor) -> int:
    """How much a type of numbers can express: integers, reals, complex numbers."""
    return 2 if tensor.is_complex() else int(tensor.is_floating_point())
