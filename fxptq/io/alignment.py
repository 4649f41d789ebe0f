"""The many ways in which people store the same weights, brought to the names and forms of a network at hand.

Wrappers leave prefixes (`module.`, `_orig_mod.`, `model.`, `net_g.`), weight normalisation has two spellings and may
have been removed, tied weights are stored once, and what follows from the configuration (attention masks, position
indices, counters) is stored or not, in one size or another. Promises: only names change, and the one computation is
that of weight normalisation; every learned tensor of the network comes from the file, or the caller reports it missing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

_WRAPPING = frozenset({"module", "_orig_mod"})  # DataParallel and torch.compile put these in the middle of names, too
_SPELLINGS = (
    (re.compile(r"(^|\.)parametrizations\.(\w+)\.original0$"), r"\1\2_g"),
    (re.compile(r"(^|\.)parametrizations\.(\w+)\.original1$"), r"\1\2_v"),
    (re.compile(r"(^|\.)parametrizations\.(\w+)\.original$"), r"\1\2_orig"),
    (re.compile(r"(^|\.)parametrizations\.(\w+)\.0\._([uv])$"), r"\1\2_\3"),
)
_DERIVED_NAME = re.compile(r"(^|_)(masks?|index|indices|idx|ids|coords|coordinates|rpi)(_|$)|num_batches_tracked$")
_COUNTS = frozenset({torch.int16, torch.int32, torch.int64, torch.bool})  # not int8 and uint8, which may be codes
_PROBES = 4


def aligned(given: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a file under the names and in the forms of a network.

    Args:
        given: a state dict.
        model: the network; not changed.

    Returns:
        What to load: some of the network's names are absent where the network's own value stands (see `may_lack`), and
        names of the file that fit nothing are kept, so that the caller can report them.
    """
    expected = {name: x for name, x in model.state_dict().items() if isinstance(x, Tensor)}
    state = _with_prefix_of({_spelled(name): x for name, x in given.items()}, {_spelled(name) for name in expected})
    names = _canonical(expected)
    state = {canonical: state[name] for canonical, name in _canonical(state).items()}
    state = _without_weight_norm(state, names)
    state = _with_prefix_of(state, names)
    state = _with_weight_norm(state, {canonical: expected[name] for canonical, name in names.items()})
    renamed = {names.get(name, name): tensor for name, tensor in state.items()}
    derived = _derived_buffers(model)
    return {
        name: tensor
        for name, tensor in renamed.items()
        if not (name in derived and tensor.shape != expected[name].shape)
        and not (name not in expected and _is_surplus(name, tensor))
    }


def may_lack(model: nn.Module, given: Iterable[str]) -> set[str]:
    """Names of a network's state that a file with the names `given` may lack.

    These are buffers that follow from the configuration, and further names of tensors that are given under another.
    Parameters are learned, whatever they are called.
    """
    state = {name: x for name, x in model.state_dict().items() if isinstance(x, Tensor)}
    there = {_identity(state[name]) for name in given if name in state}
    tied = {name for name, tensor in state.items() if tensor.numel() and _identity(tensor) in there}
    extra = {name for name, x in model.state_dict().items() if not isinstance(x, Tensor)}
    return _derived_buffers(model) | tied | extra


def _identity(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def _derived_buffers(model: nn.Module) -> set[str]:
    return {
        name
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if buffer is not None and (buffer.dtype in _COUNTS or _DERIVED_NAME.search(name.rpartition(".")[2]))
    }


def _is_surplus(name: str, tensor: Tensor) -> bool:
    """Whether a tensor that the network has no place for can be done without: a counter, an index or a mask."""
    if tensor.dtype in _COUNTS:
        return True
    if not _DERIVED_NAME.search(name.rpartition(".")[2].lower()):
        return False
    return bool(((tensor == tensor.min()) | (tensor == tensor.max())).all()) if tensor.numel() else True


def _canonical(names: Iterable[str]) -> dict[str, str]:
    """Each name by its form without wrappers in one spelling; as it is where two would become the same."""
    names = list(names)
    found = {_plain(name): name for name in names}
    return found if len(found) == len(names) else {name: name for name in names}


def _plain(name: str) -> str:
    return _spelled(".".join(part for part in name.split(".") if part not in _WRAPPING))


def _spelled(name: str) -> str:
    for spelling, replacement in _SPELLINGS:
        name = spelling.sub(replacement, name)
    return name


def _with_prefix_of(state: dict[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """The names of a file without, or with, the prefix that makes most of them fit; what has another is left out."""
    candidates = {_prefix(name, probe) for probe in sorted(expected)[:_PROBES] for name in state} - {None}
    stripped = [
        (
            "ema" not in str(prefix),
            {name.removeprefix(str(prefix)): x for name, x in state.items() if name.startswith(str(prefix))},
        )
        for prefix in candidates
    ]
    added = [
        (True, {f"{prefix}{name}": tensor for name, tensor in state.items()})
        for prefix in {_prefix(name, probe) for probe in list(state)[:_PROBES] for name in expected} - {None}
    ]
    best, most = state, len(state.keys() & set(expected))
    for _, renamed in sorted([*stripped, *added], key=lambda found: (found[0], len(found[1]))):
        fitting = len(renamed.keys() & set(expected))
        if fitting > most:
            best, most = renamed, fitting
    return best


def _prefix(name: str, ending: str) -> str | None:
    return name.removesuffix(ending) if name.endswith(f".{ending}") else None


def _without_weight_norm(state: dict[str, Tensor], expected: Mapping[str, object]) -> dict[str, Tensor]:
    """Weights computed from magnitude and direction, for a network that has no weight normalisation."""
    pairs = [
        name[:-2]
        for name, magnitude in state.items()
        if name.endswith("_g") and _belong_together(magnitude, state.get(f"{name[:-2]}_v"))
    ]
    if not pairs or any(name.endswith("_g") and f"{name[:-2]}_v" in expected for name in expected):
        return state
    result = dict(state)
    for name in pairs:
        magnitude, direction = result.pop(f"{name}_g"), result.pop(f"{name}_v")
        result[name] = direction * (magnitude / _norm(direction, magnitude.shape))
    return result


def _belong_together(magnitude: Tensor, direction: Tensor | None) -> bool:
    """Whether two tensors can be parts of one weight: a magnitude for each slice of the direction, or one for all."""
    if direction is None or not (magnitude.is_floating_point() and direction.is_floating_point()):
        return False
    sides = zip(magnitude.shape, direction.shape, strict=False)
    return magnitude.dim() in {0, direction.dim()} and all(one in {1, other} for one, other in sides)


def _with_weight_norm(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Magnitudes and directions of plain weights, for a network that has weight normalisation."""
    result = dict(state)
    for name in expected:
        weight = name[:-2]
        if name.endswith("_g") and f"{weight}_v" in expected and weight in state and weight not in expected:
            direction = result.pop(weight)
            if direction.shape == expected[f"{weight}_v"].shape:
                result[name], result[f"{weight}_v"] = _norm(direction, expected[name].shape), direction
    return result


def _norm(weight: Tensor, shape: torch.Size) -> Tensor:
    """The Euclidean norm over the axes in which a magnitude of this shape has one element."""
    same = weight.dim() == len(shape)
    axes = [axis for axis, side in enumerate(shape) if same and side == 1 and weight.shape[axis] != 1]
    norm: Tensor = weight.abs()
    if axes or not same:
        norm = torch.linalg.vector_norm(weight, dim=axes or None, keepdim=same)
    return norm
