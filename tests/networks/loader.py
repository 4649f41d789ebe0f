"""Another process, which loads checkpoints of the zoo: torch is imported once for many networks.

Each line of its input names a network, a checkpoint, a file of inputs and a file for outputs; it answers each with one
line, `ok` or an error. It builds networks with weights of another seed, which loading must replace.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fxptq
from tests.networks.zoo import build
from tests.tiny import environment

OTHER_SEED = 1


def tensors(output: Any) -> list[Tensor]:
    """The tensors of an output of any form."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Loaded:
    """What the other process computed: outputs of the simulation and of the integers, by number of the input."""

    simulated: list[list[Tensor]]
    integers: list[list[Tensor]]


class Loader:
    """The other process, seen from here."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.networks.loader"],
            cwd=Path(__file__).parents[2],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, name: str, checkpoint: Path, inputs: list[tuple[Tensor, ...]]) -> Loaded:
        """Loads a checkpoint there and runs it on inputs."""
        given, made = checkpoint.with_suffix(".inputs"), checkpoint.with_suffix(".outputs")
        save_file({f"{i}.{j}": x.contiguous() for i, one in enumerate(inputs) for j, x in enumerate(one)}, given)
        line = json.dumps([name, str(checkpoint), str(given), str(made)])
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer == "ok", f"another process could not load the checkpoint: {answer or 'it died'}"
        found = load_file(made)
        outputs = {
            way: [_in_order(found, f"{way}.{i}.") for i in range(len(inputs))] for way in ("simulated", "integers")
        }
        return Loaded(**outputs)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def _in_order(found: dict[str, Tensor], prefix: str) -> list[Tensor]:
    keys = sorted((key for key in found if key.startswith(prefix)), key=lambda key: int(key.rsplit(".", 1)[1]))
    return [found[key] for key in keys]


def _answer(name: str, checkpoint: str, given: str, made: str) -> None:
    inputs: dict[int, dict[int, Tensor]] = {}
    for key, x in load_file(given).items():
        number, place = map(int, key.split("."))
        inputs.setdefault(number, {})[place] = x
    model = fxptq.load(checkpoint, build(name, OTHER_SEED))
    ways = {"simulated": model, "integers": model.to_integer(compile=False, compare=False)}
    outputs = {}
    with torch.no_grad():
        for way, run in ways.items():
            for number, one in inputs.items():
                for place, y in enumerate(tensors(run(*(one[j] for j in sorted(one))))):
                    outputs[f"{way}.{number}.{place}"] = y.contiguous().clone()
    save_file(outputs, made)


def main() -> None:
    """Answers lines until there are no more."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        try:
            _answer(*json.loads(line))
            print("ok", flush=True)
        except Exception as error:  # noqa: BLE001  # whatever it is, the test shows it
            print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)


if __name__ == "__main__":
    main()
