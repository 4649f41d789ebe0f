"""Published weights into our networks: reading the files, and a strict load with an error for people.

Files are data only: `.safetensors`, or `.pt`/`.pth`/`.ckpt` through torch's weights-only reader. Tensors that follow
from a network's configuration (attention masks, position indices) may be absent, and stay as the network made them.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fxptq.errors import InputError

# Fixed by the configuration, and large: half of a published light SwinIR file is masks.
DERIVED = ("attn_mask", "relative_position_index")
WRAPPERS = ("params_ema", "params", "state_dict")
SHOWN = 4


def is_derived(key: str) -> bool:
    """Whether a state-dict entry follows from the configuration and need not be stored."""
    return key.rpartition(".")[2] in DERIVED


def unwrap(mapping: Mapping[str, Any], key: str = "") -> dict[str, Tensor]:
    """The state dict within a loaded file.

    Args:
        mapping: a bare state dict, or one below `params_ema`, `params` or `state_dict` (tried in this order).
        key: the entry to take; "" finds it.

    Raises:
        InputError: no such entry, or something in it is not a tensor.
    """
    names = [key] if key else [name for name in WRAPPERS if isinstance(mapping.get(name), Mapping)][:1]
    if key and not isinstance(mapping.get(key), Mapping):
        found = ", ".join(sorted(map(str, mapping))[:SHOWN])
        raise InputError(f"the weights have no entry {key!r}; they start with: {found}")
    inner = mapping[names[0]] if names else mapping
    strangers = [name for name, value in inner.items() if not isinstance(value, Tensor)]
    if strangers:
        raise InputError(f"the weights are no state dict: {strangers[0]!r} is a {type(inner[strangers[0]]).__name__}")
    return dict(inner)


def read_state(path: Path, key: str = "") -> dict[str, Tensor]:
    """Reads a state dict from a file, on the CPU.

    Args:
        path: `.safetensors`, or a torch file (`.pt`, `.pth`, `.ckpt`).
        key: the entry of a torch file that holds it; "" finds it (see `unwrap`).

    Raises:
        InputError: the file is missing, not a weights file, or holds more than tensors.
    """
    if not path.is_file():
        raise InputError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            loaded: Any = safetensors.torch.load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} is not a weights file that can be read as data alone: {reason}") from error
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds a {type(loaded).__name__}; expected a state dict")
    return unwrap(loaded, key)


def load_state(model: nn.Module, mapping: Mapping[str, Any]) -> None:
    """Loads weights into a model; every entry must be there, with its shape, and none too many.

    Args:
        model: changed in place; keeps its dtype and device.
        mapping: a state dict, bare or below `params` / `params_ema`; derived entries may be absent, and all names may
            begin with the `module.` of DataParallel.

    Raises:
        InputError: the entries differ; lists the first of them with their shapes. The model is then unchanged.
    """
    expected = model.state_dict()
    given = _without_wrapper(unwrap(mapping), expected)
    differences = [
        f"{key}: {_shape(given, key)} instead of {_shape(expected, key)}"
        for key in [*expected, *(key for key in given if key not in expected)]
        if _shape(given, key) != _shape(expected, key) and not (is_derived(key) and key not in given)
    ]
    if differences:
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise InputError(
            f"the weights do not fit {type(model).__name__}: {'; '.join(differences[:SHOWN])}{more}. "
            "Check that the recipe describes the network these weights were trained for."
        )
    # load_state_dict copies into the model's own tensors, whatever the dtype of the file.
    model.load_state_dict({**expected, **given}, strict=True)


def _without_wrapper(given: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    wrapped = "module."
    if all(name.startswith(wrapped) for name in given) and not any(name.startswith(wrapped) for name in expected):
        return {name.removeprefix(wrapped): value for name, value in given.items()}
    return given


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    return str(list(state[key].shape)) if key in state else "nothing"
