"""Runs a range of cases of one kind and says which went wrong: `python -m tests.fuzz.worker KIND FIRST COUNT FOLDER`.

Each line on standard output is a seed with what went wrong; before each case its seed is written to `FOLDER/seed`, so
that a crash is found out, too. A case is right if it ends within SECONDS, within MEGABYTES more than the process had,
with a result or with one line for people, and if nothing was run.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fxptq
from fxptq.commands.source import example_of
from fxptq.errors import FxptqError
from fxptq.graph import Bits
from fxptq.io.images import read_image, read_picture
from fxptq.io.state_dict import load_state, read_state
from fxptq.passes.base import build_pass
from fxptq.planning import plan_of
from fxptq.recipe import Recipe
from tests.fuzz import checkpoints, pictures, recipes, weights

SECONDS = 10
MEGABYTES = 600
RUNS = frozenset(
    {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pty.spawn"}
)

ran: list[str] = []


def watch(event: str, _: Any) -> None:
    """Notes what would run another program."""
    if event in RUNS:
        ran.append(event)


def load_checkpoint(seed: int, folder: Path) -> None:
    """A tampered checkpoint, loaded around its network."""
    name = ("medley", "masked")[seed % 2]
    path = folder / "case.safetensors"
    path.write_bytes(checkpoints.forged(name, seed))
    q = fxptq.load(path, checkpoints.MODELS[name]())
    with torch.no_grad():
        q(torch.rand(1, 3, 8, 8))


def read_recipe(seed: int, folder: Path) -> None:
    """A recipe, everything that is done with it before its network is built."""
    path = folder / "case.toml"
    path.write_bytes(recipes.forged(seed))
    recipe = Recipe.load(path)
    example_of(recipe)
    for name in recipe.preset_names:
        preset = recipe.preset(name)
        plan_of(preset.quantize, Bits(4, 4))
        for step in preset.passes:
            build_pass(step.name, step.settings)


def read_one_picture(seed: int, folder: Path) -> None:
    """A picture, as it looks and as it is."""
    path = folder / "case.png"
    path.write_bytes(pictures.forged(seed))
    read_image(path, 3 if seed % 3 else 1)
    read_picture(path)


def read_weights(seed: int, folder: Path) -> None:
    """Weights, loaded into their network."""
    path = folder / ("case.pth", "case.safetensors", "case")[seed % 3]
    path.write_bytes(weights.forged(seed))
    load_state(weights.network(), read_state(path))


KINDS: dict[str, Callable[[int, Path], None]] = {
    "checkpoints": load_checkpoint,
    "recipes": read_recipe,
    "pictures": read_one_picture,
    "weights": read_weights,
}


class TooLongError(BaseException):
    """A case took longer than it may."""


def _alarm(*_: object) -> None:
    raise TooLongError


def wrong(kind: str, seed: int, folder: Path) -> str:
    """What went wrong with a case, "" for nothing."""
    before, started = _peak(), time.monotonic()
    signal.alarm(SECONDS)
    problem = ""
    try:
        KINDS[kind](seed, folder)
    except FxptqError as error:
        problem = "a message of several lines" if "\n" in str(error).strip() else ""
    except TooLongError:
        problem = f"took longer than {SECONDS} s"
    except Exception as error:  # noqa: BLE001  # this is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    if _peak() - before > MEGABYTES:
        problem = problem or f"took {_peak() - before:.0f} MB"
    if ran or Path(weights.CANARY).exists():
        problem = f"ran something: {ran}"
        ran.clear()
    return problem or (f"took {time.monotonic() - started:.0f} s" if time.monotonic() - started > SECONDS else "")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Runs the cases."""
    kind, first, count, place = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    os.chdir(place)
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _alarm)
    for name in checkpoints.MODELS if kind == "checkpoints" else ():
        fxptq.load(_written(place, checkpoints.original(name)), checkpoints.MODELS[name]())
    if kind == "weights":
        weights.originals()
    sys.addaudithook(watch)
    for seed in range(first, first + count):
        (place / "seed").write_text(str(seed))
        problem = wrong(kind, seed, place)
        if problem:
            print(json.dumps([seed, problem]), flush=True)
    (place / "seed").write_text("done")


def _written(folder: Path, data: bytes) -> Path:
    path = folder / "case.safetensors"
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    main()
