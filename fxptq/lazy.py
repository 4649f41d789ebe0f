"""Packages that import a module when one of its names is asked for, and not before.

Promises: importing such a package loads nothing; so the command line shows its help without waiting for PyTorch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any


def attribute(package: str, homes: Mapping[str, str], name: str) -> Any:
    """The value of a package's attribute: a public name, which the package then keeps, or one of its modules.

    Args:
        package: full name of the package, whose `__getattr__` asks.
        homes: the module of the package that defines each public name.
        name: the attribute.

    Raises:
        AttributeError: the package has no such name.
    """
    if name in homes:
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value
    try:
        return import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{package}.{name}":
            raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
