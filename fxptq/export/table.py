"""The table of torch's calls that have an ONNX form. Adding a call is adding a function to a module of `calls/`.

Such a function takes the builder and then the arguments of the torch call under the names that torch gives them, so
that Python itself reads positions and keywords. A call with arguments that the function does not take is refused.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from fxptq.export import calls

Form = Callable[..., Any]
F = TypeVar("F", bound=Form)

_FORMS: dict[str, Form] = {}


def form_of(*names: str) -> Callable[[F], F]:
    """Decorator of the ONNX form of the calls of these plain names (`fxptq.graph.calls.name_of`)."""

    def add(function: F) -> F:
        for name in names:
            _FORMS[name] = function
        return function

    return add


@cache
def forms() -> dict[str, Form]:
    """The forms by the names of the calls."""
    for module in pkgutil.iter_modules(calls.__path__):
        importlib.import_module(f"{calls.__name__}.{module.name}")
    return _FORMS
