"""Where downloads and compiled kernels are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

from fxptq.errors import InputError


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/fxptq, or ~/.cache/fxptq where that is unset (or relative: the standard says to ignore it).

    Raises:
        InputError: there is neither, as for a user id without an entry in the list of users.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "fxptq"
    try:
        home = Path.home()
    except RuntimeError:
        home = Path()
    if not home.is_absolute():
        raise InputError("this user has no home folder to keep a cache in; set XDG_CACHE_HOME to a folder")
    return home / ".cache" / "fxptq"
