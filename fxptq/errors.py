"""Errors for people: every message names what was met, what was expected and what to do.

The command line prints the message alone, on one line, and exits with `exit_status`.
"""

from __future__ import annotations

from typing import ClassVar


class FxptqError(Exception):
    """Base of every error fxptq raises on purpose; a failure of the work itself (exit status 1)."""

    exit_status: ClassVar[int] = 1


class InputError(FxptqError):
    """Bad input or bad usage: an option, a file, an image, a recipe (exit status 2)."""

    exit_status: ClassVar[int] = 2


class CaptureError(FxptqError):
    """A network that cannot be captured; the message names the module path, the source line and the reason."""


class CheckpointError(InputError):
    """A checkpoint that is truncated, tampered with, of another architecture or of a newer format."""


class CalibrationError(FxptqError):
    """A pass that could not go on: a loss or a bound that is not finite."""


class MemoryEndedError(FxptqError):
    """A network that needs more memory than there is; on smaller pictures it may succeed."""
