"""Standard streams and arguments as shells leave them: closed, full, ASCII, a reader that has gone, a `~` not expanded.

Promises: a command's work does not end because its words cannot be shown; what could not be shown is reported once.
"""

from __future__ import annotations

import _thread
import contextlib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

_MOMENT = 0.02  # seconds
_POSTPONED = 500  # moments, after which an import is left in the middle
_COMPILED = {"numpy", "torch"}  # as they load, their C code calls Python, and dies of an exception


class Output(io.TextIOBase):
    """Standard output, whatever `sys.stdout` is at the time; what cannot be written to it is noted and dropped.

    Attributes:
        error: the first failure; None as long as there was none.
    """

    error: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return getattr(sys.stdout, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return sys.stdout is not None and sys.stdout.isatty()

    def fileno(self) -> int:
        """The descriptor of the stream."""
        return sys.stdout.fileno()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Writes, or drops `text` once writing has failed."""
        if self.error is None and sys.stdout is not None:
            try:
                sys.stdout.write(text)
            except OSError as error:
                self.error = error
        return len(text)

    def flush(self) -> None:
        """Flushes, and notes a failure."""
        if self.error is None and sys.stdout is not None:
            try:
                sys.stdout.flush()
            except OSError as error:
                self.error = error

    def close_quietly(self) -> str:
        """Flushes for the last time; why the output was lost, "" if it was not, or if its reader wanted no more."""
        self.flush()
        if self.error is None:
            return ""
        with contextlib.suppress(OSError, ValueError):  # so that Python does not try again as it ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        return "" if isinstance(self.error, BrokenPipeError) else self.error.strerror or str(self.error)


class Interrupts:
    """Notes Ctrl-C, which an import of compiled code may turn into another error, report and forget, or die of.

    It strikes once the import of such a package is over.

    Attributes:
        struck: whether it was pressed.
    """

    struck = False
    _postponed = 0

    def __enter__(self) -> Interrupts:
        """Begins to note, where nobody else handles interrupts."""
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is signal.default_int_handler and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._strike)
        self._report, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, *_: object) -> None:
        """Puts back what was there."""
        if signal.getsignal(signal.SIGINT) == self._strike:
            signal.signal(signal.SIGINT, self._before)
        if sys.unraisablehook == self._unraisable:
            sys.unraisablehook = self._report

    def _unraisable(self, report: sys.UnraisableHookArgs) -> None:
        """Passes on reports of errors that no code can catch; a Ctrl-C among them strikes again a moment later."""
        if issubclass(report.exc_type, KeyboardInterrupt):
            threading.Timer(_MOMENT, _strike_again).start()
        else:
            self._report(report)

    def _strike(self, number: int, frame: FrameType | None) -> None:
        self.struck = True
        if _loads_compiled(frame) and self._postponed < _POSTPONED:
            self._postponed += 1
            threading.Timer(_MOMENT, _strike_again).start()
        else:
            signal.default_int_handler(number, frame)


def _strike_again() -> None:
    """Interrupts the main thread, also where it waits in a call of the system."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()


def _loads_compiled(frame: FrameType | None) -> bool:
    """Whether one of the calls that lead to `frame` is the import of a compiled package."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__", "").split(".")[0] in _COMPILED:
            return True
        frame = frame.f_back
    return False


def prepare_streams() -> None:
    """Opens the standard streams that are closed, onto nothing, and lets every character pass.

    A closed one would become the next file that is opened, and receive what libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  # to the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def expanded(arguments: Iterable[str]) -> list[str]:
    """Arguments with a leading `~`, also after `NAME=` and `--option=`, expanded as most shells do it."""
    return [re.sub(r"^([^=/~]*=)?(~[^/]*)", _with_home, argument) for argument in arguments]


def _with_home(found: re.Match[str]) -> str:
    try:
        return (found[1] or "") + str(Path(found[2]).expanduser())
    except RuntimeError:  # no such user, or one without a home
        return found[0]


def one_line(message: str) -> str:
    """A message on one line, without the characters that would move a terminal's cursor or change its colours."""
    joined = " ".join(line.strip() for line in message.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in joined)
