"""Takes every architecture spandrel knows through fxptq and prints a table: `python -m benchmarks.zoo`.

Each network runs in a process of its own with a limit of time and memory. Finished records are stored as JSON and not
made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.zoo.table import markdown

ROOT = Path(__file__).resolve().parents[2]


def networks() -> dict[str, str]:
    """The note on each network's configuration, by name."""
    from benchmarks.zoo.networks import NETWORKS, TRAINED  # noqa: PLC0415  # torch is not needed to print a table

    return {network.name: network.note for network in (*NETWORKS, *([TRAINED] if TRAINED.file.is_file() else []))}


def examine(name: str, note: str, seconds: int) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "benchmarks.zoo.one", name]
    try:
        done = subprocess.run(  # noqa: S603  # our own module
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        error = f"not done in {seconds} s on this machine; try a larger --seconds"
        return {"name": name, "note": note, "step": "time", "error": error}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return {"name": name, "error": f"ended with status {done.returncode}: {last}"}
    record: dict[str, Any] = json.loads(lines[-1])
    if "error" in record:
        record["log"] = done.stderr
    return record


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--only", nargs="*", help="names of networks; all by default")
    parser.add_argument("--again", action="store_true", help="also networks whose record is finished")
    parser.add_argument("--seconds", type=int, default=1200, help="limit for one network")
    parser.add_argument("--results", type=Path, default=ROOT / "out/zoo", help="folder of the records")
    parser.add_argument("--markdown", action="store_true", help="print docs/architectures.md, run nothing")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    records = []
    for name, note in networks().items():
        file = options.results / f"{name.replace(' ', '_')}.json"
        known = json.loads(file.read_text()) if file.is_file() else None
        chosen = options.only is None or name in options.only
        if not options.markdown and chosen and (options.again or known is None or "error" in known):
            known = examine(name, note, options.seconds)
            file.write_text(json.dumps(known, indent=1))
            sys.stdout.write(f"{name:16} {known.get('error', 'ok')}\n")
            sys.stdout.flush()
        records += [known] if known else []
    if options.markdown:
        sys.stdout.write(markdown(records))
    failed = [record["name"] for record in records if "error" in record]
    if not options.markdown:
        sys.stdout.write(f"{len(records) - len(failed)} of {len(records)} go through\n")
    return 1 if failed and not options.markdown else 0


if __name__ == "__main__":
    raise SystemExit(main())
