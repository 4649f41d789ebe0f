"""`python -m fxptq` and the command `fxptq`: the command line, which may be interrupted while it is being loaded."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Loads the command line and runs it."""
    try:
        from fxptq.cli import main as run  # noqa: PLC0415  # within reach of Ctrl-C

        run()
    except KeyboardInterrupt:
        print("fxptq: interrupted", file=sys.stderr, flush=True)
        os._exit(130)


if __name__ == "__main__":
    main()
