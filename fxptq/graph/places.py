"""Finds the file and the line of the user's code that is running, for messages."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import torch

_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def _is_users(file: str) -> bool:
    tools = ("contextlib.py", "functools.py", "einops.py", "_backends.py", "_torch_specific.py")
    return not file.startswith((*_NOT_THE_USERS, "<")) and Path(file).name not in tools


def running_line() -> str:
    """The file and line of the network's own code that is running: `swinir.py:123`."""
    frame = sys._getframe(1)  # noqa: SLF001  # walking a whole stack summary for every node would take ten times longer
    while frame.f_back is not None and not _is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def line_of_error(error: Exception) -> str:
    """The innermost file and line of the network's own code that an error went through."""
    lines = [
        f"{Path(frame.f_code.co_filename).name}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_users(frame.f_code.co_filename)
    ]
    return lines[-1] if lines else "?"


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0]
