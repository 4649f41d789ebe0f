"""What the files of a network see while it is traced: an `int`, a `range`, a `math` that do not forget traced numbers.

Names are put into the globals of the files and taken out again, whatever happens in between.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

_FOREIGN = frozenset(("torch", "builtins", "einops", "numpy", "fxptq"))
"""Packages whose files are left alone."""


@contextlib.contextmanager
def substituted(model: nn.Module, twin: Callable[[Any], Any | None], builtins: Mapping[str, Any]) -> Iterator[None]:
    """For a while, gives the files that define `model` other globals.

    Args:
        model: the files of its classes, and those of the same packages, are meant.
        twin: what stands in for a global; None to leave it.
        builtins: what stands in for builtin functions, by name.
    """
    saved: list[tuple[dict[str, Any], str, Any, bool]] = []

    def put(namespace: dict[str, Any], name: str, value: Any) -> None:
        saved.append((namespace, name, namespace.get(name), name in namespace))
        namespace[name] = value

    try:
        for namespace in _namespaces(model):
            for name, value in list(namespace.items()):
                if (other := twin(value)) is not None:
                    put(namespace, name, other)
            for name, value in builtins.items():
                if name not in namespace:
                    put(namespace, name, value)
        recipes = getattr(sys.modules.get("einops.einops"), "__dict__", {})
        if "_reconstruct_from_shape_uncached" in recipes:
            # einops remembers a recipe by its sizes, and equal sizes are not the same size
            put(recipes, "_reconstruct_from_shape", recipes["_reconstruct_from_shape_uncached"])
        yield
    finally:
        for namespace, name, value, existed in reversed(saved):
            if existed:
                namespace[name] = value
            else:
                namespace.pop(name, None)


def _namespaces(model: nn.Module) -> list[dict[str, Any]]:
    """The globals of every file that defines a class of the model, and of the files of the same package."""
    files = {kind.__module__ for module in model.modules() for kind in type(module).__mro__}
    files = {name for name in files if name.split(".")[0] not in _FOREIGN or name.startswith("fxptq.models")}
    packages = {name.split(".")[0] for name in files} - {"__main__", "tests", "fxptq"}
    files |= {name for name in list(sys.modules) if name.split(".")[0] in packages}
    return [vars(sys.modules[name]) for name in sorted(files) if name in sys.modules]
