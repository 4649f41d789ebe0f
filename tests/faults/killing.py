"""Kills a command at random moments and looks at what is left.

`python -m tests.faults.killing COMMAND KILLS SEED FOLDER`

The command runs in a fork of this process, which has imported everything, so that the moments fall into its work. Each
line on standard output is something that was wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fxptq.io.download import Patience, download
from tests.io.test_weights import CONTENT, SHA256, Server
from tests.tiny import picture, run, write_checkpoint, write_recipe

OWN = {"--json": "r.json", "page": "m.html"}  # with times in them, so that no two are equal


@dataclass(frozen=True)
class Victim:
    """A command: what it runs, and the files it leaves, relative to the working directory."""

    work: Callable[[], None]
    outputs: tuple[str, ...]


def quantize() -> Victim:
    """Quantizes the tiny network by its standard preset."""
    recipe, weights = write_recipe(Path.cwd())
    command = ["quantize", "--recipe", recipe, "--weights", weights, "--out", "m.safetensors", "--json", "r.json"]
    return Victim(lambda: _succeed(*command), ("m.safetensors", "m.html", "r.json"))


def upscale() -> Victim:
    """Restores a folder of pictures."""
    write_checkpoint(Path.cwd())
    names = [f"{index}.png" for index in range(12)]
    for name in names:
        picture(Path("in") / name, 24)
    command = ["upscale", "tiny.safetensors", "in", "out", "--model", "mod:tiny", "--overwrite"]
    return Victim(lambda: _succeed(*command), tuple(f"out/{name}" for name in names))


def fetch() -> Victim:
    """Downloads a file from a server on this machine."""
    os.environ["no_proxy"] = "*"
    told, tell = os.pipe()
    if not os.fork():
        server = Server("whole")
        os.write(tell, server.url.encode())
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.alarm(3600)
        while os.getppid() != 1:
            time.sleep(0.2)
        os._exit(0)
    url = os.read(told, 200).decode()
    target = Path("cache/w.pth")
    patience = Patience(stall=20, retries=2, pause=0.01)

    def work() -> None:
        download(url, SHA256, target, lambda *_: time.sleep(0.02), patience)  # long enough to be struck
        assert target.read_bytes() == CONTENT

    return Victim(work, (str(target),))


VICTIMS: dict[str, Callable[[], Victim]] = {"quantize": quantize, "upscale": upscale, "download": fetch}


def _succeed(*args: object) -> None:
    ran = run(*args)
    if ran.status:
        raise RuntimeError(f"status {ran.status}: {ran.err}")


def forked(work: Callable[[], None]) -> int:
    """Starts the work in a fork; the fork's process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001  # a fork must not go on as its parent
        traceback.print_exc()
        os._exit(1)


def state(victim: Victim) -> dict[str, str]:
    """The digests of the outputs that are there; of those that hold times, whether they are whole."""
    found = {}
    for name in victim.outputs:
        path = Path(name)
        if not path.exists():
            continue
        data = path.read_bytes()
        if path.suffix == ".json":
            json.loads(data)
            found[name] = "whole"
        elif path.suffix == ".html":
            found[name] = "whole" if data.endswith(b"</html>\n") else "half"
        else:
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def files() -> set[str]:
    """All files below the working directory, but for what Python keeps."""
    return {str(path) for path in Path().rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def main() -> None:
    """Kills, looks, runs again, looks again."""
    name, kills, seed, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    victim = VICTIMS[name]()
    rng = random.Random(seed)  # noqa: S311  # moments, no secrets
    durations = []
    for _ in range(2):
        started = time.monotonic()
        if os.waitpid(forked(victim.work), 0)[1]:
            sys.exit("the command fails although nobody kills it")
        durations.append(time.monotonic() - started)
    whole, there = state(victim), files()
    struck = 0
    for number in range(kills):
        if rng.random() < 0.7:  # else what was there before is to be replaced
            for output in victim.outputs:
                Path(output).unlink(missing_ok=True)
        child = forked(victim.work)
        time.sleep(rng.uniform(0, max(durations) * 1.05))
        os.kill(child, signal.SIGKILL)
        struck += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        try:
            left = state(victim)
        except ValueError as error:
            print(f"kill {number}: a half file: {error}", flush=True)
            continue
        for output in [output for output in left if left[output] != whole[output]]:
            print(f"kill {number}: {output} is half or another file", flush=True)
        status = os.waitpid(forked(victim.work), 0)[1]
        if status or state(victim) != whole:
            print(f"kill {number}: the next run ends with {status}, or gives other files", flush=True)
        if files() != there:
            print(f"kill {number}: left behind: {sorted(files() ^ there)}", flush=True)
    print(f"{struck} of {kills} struck within {max(durations):.2f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
