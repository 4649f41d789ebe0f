"""The largest memory of the process, on systems with and without the module `resource`."""

from __future__ import annotations

import subprocess
import sys


def _printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603  # ours
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_peak_grows_by_what_is_held() -> None:
    # A process begins with the peak of the one that started it, so that more than that must be held.
    code = "from fxptq.memory import peak_mb; a = peak_mb(); x = b'1' * (int(a + 100) << 20); print(a, peak_mb())"
    before, after = map(float, _printed(code).split())
    assert before > 20
    assert before + 90 < after < 2 * before + 500


def test_commands_can_be_imported_where_there_is_no_resource() -> None:
    _printed(
        "import sys; sys.modules['resource'] = None; import fxptq.commands.quantize, fxptq.bench.memory, fxptq.cli"
    )
