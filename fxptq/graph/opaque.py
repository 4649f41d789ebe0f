"""Opaque parts of a network, which run without being traced: its own autograd functions, TorchScript, torch.compile."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Recorder = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Runs `function(*args, **kwargs)` and records it."""

unseen = torch._C.DisableTorchFunction  # noqa: SLF001  # documented in "Extending PyTorch"; has no other name
"""While it is entered, no torch call is recorded."""


@contextlib.contextmanager
def compiled_pieces_run_eagerly() -> Iterator[None]:
    """For a while, functions and modules that went through torch.compile run as they were written."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled, and importing it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextlib.contextmanager
def autograd_functions_go_through(record: Recorder) -> Iterator[None]:
    """For a while, `MyFunction.apply(...)` is handed to `record` as a plain function of its arguments.

    A function with any other arguments than tensors, numbers and such (the functions of `torch.utils.checkpoint` take a
    part of the network) runs as usual, and the calls inside it are recorded. Other threads call the function itself.
    """
    original, owner = Function.__dict__["apply"], threading.get_ident()

    def apply(kind: type[Function], *args: Any, **kwargs: Any) -> Any:
        bound = original.__get__(None, kind)
        if threading.get_ident() != owner or not _is_data(args):
            return bound(*args, **kwargs)
        return record(_function_of(kind, bound), args, kwargs)

    Function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]  # undone below
    try:
        yield
    finally:
        Function.apply = original  # type: ignore[method-assign]  # as it was


def recorded_twin(value: Any, record: Recorder) -> Callable[..., Any] | None:
    """A replacement that is recorded, for a global that calls an opaque part (`f = MyFunction.apply`, TorchScript)."""
    owner = getattr(value, "__self__", None)
    if isinstance(value, torch.jit.ScriptFunction):
        function = _named(value, str(value.name))
    elif isinstance(owner, type) and issubclass(owner, Function) and getattr(value, "__name__", "") == "apply":
        function = _function_of(owner, value)
    else:
        return None

    def recorded(*args: Any, **kwargs: Any) -> Any:
        return record(function, args, kwargs)

    return recorded


def _function_of(kind: type[Function], apply: Callable[..., Any]) -> Callable[..., Any]:
    return _named(apply, kind.__name__)


def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`function` as a plain function with a name, as graphs need it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    return call


def _is_data(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_data, value))
    return value is None or isinstance(value, (Tensor, int, float, str, torch.dtype, torch.device, torch.Size))
