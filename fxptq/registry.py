"""Registries of plug-ins: classes by name, from a package of fxptq's own and from other people's entry points.

Promises: every module of the package is imported, so that adding a plug-in is adding a file. A plug-in of another
package is imported only when its name is asked for, so that a broken one stops nobody who does not use it.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from fxptq.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes by name.

    Args:
        kind: the word for them in messages: "pass", "scheme", "back end".
        group: the entry-point group through which other packages offer theirs.
        package: the package whose modules register the bundled ones.
    """

    def __init__(self, kind: str, group: str, package: str) -> None:
        self.kind, self.group, self.package = kind, group, package
        self._classes: dict[str, type[T]] = {}
        self._resolved: dict[str, type[T]] = {}

    def add(self, name: str, cls: type[T]) -> None:
        """Makes a class known.

        Raises:
            InputError: another class has that name; nothing is registered then.
        """
        if self._classes.setdefault(name, cls) is not cls:
            raise InputError(
                f"there are two {self._plural} named {name!r}: {where(self._classes[name])} and {where(cls)}"
            )

    def names(self) -> list[str]:
        """All names, those of other packages too, sorted."""
        self._import_bundled()
        return sorted({*self._classes, *(entry.name for entry in self._entries())})

    def apart(self) -> Registry[T]:
        """A registry with the same classes; classes that are added to it later are unknown to this one."""
        other: Registry[T] = Registry(self.kind, self.group, self.package)
        other._classes = self.bundled()
        return other

    def bundled(self) -> dict[str, type[T]]:
        """The classes that are imported already, and all of the bundled ones, by name."""
        self._import_bundled()
        return dict(self._classes)

    def get(self, name: str) -> type[T]:
        """The class of that name.

        Raises:
            InputError: no class or two have that name, or the package cannot be imported.
        """
        if name not in self._resolved:  # looking through the installed packages takes milliseconds
            self._import_bundled()
            for entry in self._entries():
                if entry.name == name:
                    self.add(name, self._load(entry))
            if name not in self._classes:
                raise InputError(f"there is no {self.kind} {name!r}{nearest(name, self.names())}")
            self._resolved[name] = self._classes[name]
        return self._resolved[name]

    @property
    def _plural(self) -> str:
        return self.kind + ("es" if self.kind.endswith("s") else "s")

    def _entries(self) -> list[EntryPoint]:
        return list(entry_points(group=self.group))

    def _load(self, entry: EntryPoint) -> type[T]:
        try:
            cls: type[T] = entry.load()
        except InputError:
            raise
        except Exception as error:  # whatever a package of somebody else's raises
            reason = str(error) or type(error).__name__
            raise InputError(f"{self.kind} {entry.name!r} cannot be loaded from {entry.value!r}: {reason}") from error
        return cls

    def _import_bundled(self) -> None:
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence that says `name` is unknown: the nearest name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def where(cls: type[object]) -> str:
    """The full name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"
