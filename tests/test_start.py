"""What needs no network answers without loading torch: importing fxptq, every help, the version, the recipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fxptq import __version__
from tests.tiny import environment

COMMANDS = ("quantize", "evaluate", "compare", "passes", "doctor", "upscale", "inspect", "bench", "recipes", "weights")
HEAVY = ("torch", "networkx", "safetensors")
"""Libraries that only work on a network needs."""

PROGRAM = """
import sys
arguments = sys.argv[1:]
if arguments == ["import fxptq"]:
    import fxptq
else:
    from fxptq.__main__ import main
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def started(folder: Path, *arguments: str) -> tuple[str, set[str]]:
    """What a fresh process writes, and the packages it has loaded at its end."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    ran = subprocess.run(  # noqa: S603  # our own
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=True
    )
    said, _, loaded = ran.stdout.rpartition("loaded:")
    return said, set(loaded.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import fxptq"], ""),
        (["--version"], f"fxptq {__version__}"),
        (["--help"], "quantize"),
        (["recipes"], "swinir_x4"),
        (["weights"], "swinir_x4"),
        *(([command, "--help"], f"fxptq {command}") for command in COMMANDS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_starts_without_torch(arguments: list[str], said: str, tmp_path: Path) -> None:
    output, loaded = started(tmp_path, *arguments)
    assert said in output
    assert "fxptq" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_work_on_a_network_is_seen_to_load_torch(tmp_path: Path) -> None:
    """The list that the test above looks at is not empty for another reason."""
    _, loaded = started(tmp_path, "inspect", "dncnn_s25")
    assert set(HEAVY) <= loaded
