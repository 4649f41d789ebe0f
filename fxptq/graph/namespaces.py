"""Gives the files of a network other globals while it is traced: an `int`, a `range`, a `math` that record calls.

The former globals are put back at the end, also after an error.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

_FOREIGN = sys.stdlib_module_names | {"torch", "torchvision", "einops", "numpy", "scipy", "fxptq"} - {"__main__"}
"""Packages whose files are left alone."""


@contextlib.contextmanager
def substituted(model: nn.Module, twin: Callable[[Any], Any | None], builtins: Mapping[str, Any]) -> Iterator[None]:
    """For a while, gives the files that define `model` other globals.

    Args:
        model: the network; the files of its classes, and all files of their packages, get other globals.
        twin: gives the replacement of a global; None to leave it.
        builtins: replacements of builtin functions, by name.
    """
    with contextlib.ExitStack() as undo:
        for namespace in _namespaces(model):
            for name, value in list(namespace.items()):
                if (other := twin(value)) is not None:
                    _put(undo, namespace, name, other)
            for name, value in builtins.items():
                if name not in namespace:
                    _put(undo, namespace, name, value)
        for kind in {kind for module in model.modules() for kind in type(module).__mro__ if _is_own(kind.__module__)}:
            for name, value in list(vars(kind).items()):
                if (other := twin(value)) is not None:
                    setattr(kind, name, other)
                    undo.callback(setattr, kind, name, value)
        recipes = getattr(sys.modules.get("einops.einops"), "__dict__", {})
        if "_reconstruct_from_shape_uncached" in recipes:
            # einops remembers a recipe by its sizes, and equal sizes are not the same size
            _put(undo, recipes, "_reconstruct_from_shape", recipes["_reconstruct_from_shape_uncached"])
        yield


def _put(undo: contextlib.ExitStack, namespace: dict[str, Any], name: str, value: Any) -> None:
    if name in namespace:
        undo.callback(namespace.__setitem__, name, namespace[name])
    else:
        undo.callback(namespace.pop, name, None)
    namespace[name] = value


def _namespaces(model: nn.Module) -> list[dict[str, Any]]:
    """The globals of every file that defines a class of the model, of its package, and of what these files import."""
    files = {kind.__module__ for module in model.modules() for kind in type(module).__mro__ if _is_own(kind.__module__)}
    packages = {name.split(".")[0] for name in files} - {"__main__", "tests", "fxptq"}
    files |= {name for name in list(sys.modules) if name.split(".")[0] in packages}
    for name in list(files):
        files |= set(filter(_is_own, map(_file_of, list(vars(sys.modules.get(name, contextlib)).values()))))
    return [vars(sys.modules[name]) for name in sorted(files) if isinstance(sys.modules.get(name), ModuleType)]


def _is_own(name: str) -> bool:
    """Whether a file of that name may belong to a network, and not to Python or a library that knows no sizes."""
    return name.split(".", maxsplit=1)[0] not in _FOREIGN or name.startswith("fxptq.models")


def _file_of(value: Any) -> str:
    """The name of the file that a global of another one comes from."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return (
        name if isinstance(name, str) and isinstance(value, (ModuleType, FunctionType, type)) and name else "builtins"
    )
