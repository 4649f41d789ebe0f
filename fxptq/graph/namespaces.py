"""Gives the files of a network other globals while it is traced: an `int`, a `range`, a `math` that record calls.

Only the thread that traces sees these globals. For a while, each function of the files is led to one of two functions
of the same code: in the thread that traces to a function with other globals, in every other thread to one with its own.
The former state is put back at the end, also after an error.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from fxptq.graph.exclusive import ChosenByThread, here_or

_FOREIGN = sys.stdlib_module_names | {"torch", "torchvision", "einops", "numpy", "scipy", "fxptq"} - {"__main__"}
"""Packages whose files are left alone."""


@contextlib.contextmanager
def substituted(model: nn.Module, twin: Callable[[Any], Any | None], builtins: Mapping[str, Any]) -> Iterator[None]:
    """For a while, gives the files that define `model` other globals, in this thread alone.

    Args:
        model: the network; the files of its classes, and all files of their packages, get other globals.
        twin: gives the replacement of a global; None to leave it.
        builtins: replacements of builtin functions, by name.
    """
    with contextlib.ExitStack() as undo:
        globals_here: dict[int, dict[str, Any]] = {}
        namespaces = _namespaces(model)
        for namespace in namespaces:
            found = {name: other for name, value in list(namespace.items()) if (other := twin(value)) is not None}
            found |= {name: value for name, value in builtins.items() if name not in namespace}
            globals_here[id(namespace)] = undo.enter_context(_with_others(namespace, found))
        for function in gc.get_referrers(*namespaces) if namespaces else ():
            if type(function) is FunctionType and id(function.__globals__) in globals_here:
                _lead(undo, function, globals_here[id(function.__globals__)])
        for kind in {kind for module in model.modules() for kind in type(module).__mro__ if _is_own(kind.__module__)}:
            for name, value in list(vars(kind).items()):
                if (other := twin(value)) is not None:
                    setattr(kind, name, ChosenByThread(here_or(other, value)))
                    undo.callback(setattr, kind, name, value)
        recipes = getattr(sys.modules.get("einops.einops"), "__dict__", {})
        if "_reconstruct_from_shape_uncached" in recipes:
            # einops remembers a recipe by its sizes, and equal sizes are not the same size
            undo.callback(recipes.__setitem__, "_reconstruct_from_shape", recipes["_reconstruct_from_shape"])
            recipes["_reconstruct_from_shape"] = recipes["_reconstruct_from_shape_uncached"]
        yield


@contextlib.contextmanager
def _with_others(namespace: dict[str, Any], others: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A copy of a namespace with other values; what is assigned in it is in the namespace afterwards."""
    copied = {**namespace, **others}
    before = dict(copied)
    try:
        yield copied
    finally:
        assigned = {name: value for name, value in copied.items() if name not in before or before[name] is not value}
        namespace.update(assigned)
        copied.clear()
        copied.update(namespace)  # functions that the network has made meanwhile keep it


def _lead(undo: contextlib.ExitStack, function: FunctionType, globals_here: dict[str, Any]) -> None:
    """Leads the calls of a function to one of the same code: with other globals here, as it is in other threads."""
    code = function.__code__
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return
    choose = here_or(_remade(function, globals_here), _remade(function, function.__globals__))
    leading = (_led_lazily if inspect.isgeneratorfunction(function) else _led).__code__
    undo.callback(setattr, function, "__code__", code)
    function.__code__ = leading.replace(
        co_consts=tuple(choose if constant == _CHOOSE else constant for constant in leading.co_consts),
        co_freevars=code.co_freevars,  # Python asks for as many as the function has; they are not read
        co_filename=code.co_filename,
        co_firstlineno=code.co_firstlineno,
        co_name=code.co_name,
    )


def _remade(function: FunctionType, namespace: dict[str, Any]) -> FunctionType:
    name, defaults, closure = function.__name__, function.__defaults__, function.__closure__
    made = FunctionType(function.__code__, namespace, name, defaults, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__qualname__ = function.__qualname__
    return made


_CHOOSE = "<choose>"
"""Stands in the two functions below for the function that chooses by thread."""


def _led(*args: Any, **kwargs: Any) -> Any:
    choose: Any = "<choose>"
    return choose()(*args, **kwargs)


def _led_lazily(*args: Any, **kwargs: Any) -> Any:
    choose: Any = "<choose>"
    return (yield from choose()(*args, **kwargs))


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
