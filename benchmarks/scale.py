"""The cost of quantizing against pictures, sites, parameters and processes; and the memory for a large network.

Each row is a run of its own in fresh processes with one thread each. Seconds are those of the processor in the slowest
process, by pass, so that other work on the machine does not count; memory is the largest of a process. Networks are
EDSR with random weights, calibrated on pictures of noise of 32 x 32. The large network is a SwinIR of 20 million
parameters; its memory is compared with a process that runs the same network in float on the same picture.

    python -m benchmarks.scale [--large] [--memory 4G]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

import fxptq
from fxptq.memory import peak_mb
from fxptq.models.edsr import EDSR
from fxptq.models.swinir import SwinIR
from fxptq.ranks import joined
from fxptq.recipe import Recipe

PASSES = ("observe", "dobi2d", "moments", "gptq", "dqc")
DQC = "steps = 4, batch = 8, patch = 16, holdout_crops = 8, eval_every = 4"


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        network: `edsr` or `swinir`, of `blocks` blocks and `width` channels.
        pictures: number of calibration inputs.
        processes: that share the work.
        passes: names of passes; none to run the network in float.
        memory: budget, as in 4G; empty for none.
    """

    network: str = "edsr"
    blocks: int = 4
    width: int = 32
    pictures: int = 16
    processes: int = 1
    passes: tuple[str, ...] = PASSES
    memory: str = ""


BASE = Case()
CASES = (
    BASE,
    replace(BASE, pictures=32),
    replace(BASE, pictures=64),
    replace(BASE, blocks=8),
    replace(BASE, blocks=16),
    replace(BASE, width=64),
    replace(BASE, width=96),
    replace(BASE, pictures=64, processes=2),
)
LARGE = Case("swinir", 6, 240, 4, 1, ("observe", "dobi2d", "refit"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the memory for a network of 20 million parameters alone")
    parser.add_argument("--memory", default="4G", help="budget for the large network")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        work(Case(**json.loads(options.case)))
    elif options.large:
        moments = replace(LARGE, pictures=2, passes=("observe", "dobi2d", "moments", "gptq"))
        show_memory(
            [
                replace(LARGE, passes=()),
                replace(LARGE, memory=options.memory),
                moments,
                replace(moments, memory="100M"),
            ]
        )
    else:
        show_seconds(CASES)


def show_seconds(cases: tuple[Case, ...]) -> None:
    """Prints a row for each case as it is done."""
    print(
        f"{'processes':>9} {'pictures':>8} {'sites':>5} {'parameters':>10}", *(f"{name:>8}" for name in PASSES), end=""
    )
    print(f" {'peak MB':>8}   (seconds of the processor)")
    for case in cases:
        found = measured(case)
        row = f"{case.processes:9} {case.pictures:8} {found['sites']:5} {found['parameters']:10,}"
        print(
            row, *(f"{found['seconds'].get(name, 0.0):8.2f}" for name in PASSES), f"{found['peak_mb']:8.0f}", flush=True
        )


def show_memory(cases: list[Case]) -> None:
    """Prints the largest memory of each case as it is done."""
    for case in cases:
        found = measured(case)
        what = "+".join(case.passes) or "float"
        budget = f" with --memory {case.memory}" if case.memory else ""
        seconds = ", ".join(f"{name} {value:.0f} s" for name, value in found["seconds"].items())
        print(f"{what}{budget}: {found['parameters']:,} parameters, {found['peak_mb']:.0f} MB; {seconds}", flush=True)


def measured(case: Case) -> dict[str, Any]:
    """Runs a case in processes of its own."""
    start = [] if case.processes == 1 else ["-m", "torch.distributed.run", "--standalone"]
    start += [] if case.processes == 1 else ["--nproc-per-node", str(case.processes)]
    command = [sys.executable, *start, "-m", "benchmarks.scale", "--case", json.dumps(asdict(case))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603  # our own
    if ran.returncode:
        raise SystemExit(ran.stderr)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def work(case: Case) -> None:
    """Runs a case in this process, one of `case.processes`; the first one prints the figures of all."""
    model, example = network_of(case), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "sites": 0, "seconds": {}}
    with joined() as ranks:
        if case.passes:
            images = torch.rand(case.pictures, 3, 32, 32, generator=torch.Generator().manual_seed(1))
            last = time.process_time()

            def after(name: str, _student: object) -> None:
                nonlocal last
                now = time.process_time()
                found["seconds"][name] = now - last
                last = now

            recipe = recipe_of(case.passes)
            memory = case.memory or None
            q = fxptq.quantize(
                model, example, 4, images, recipe, scale=4, value_range=1.0, after_pass=after, memory=memory
            )
            found["sites"] = len(q.sites)
        else:
            with torch.no_grad():
                model(example)
        found["peak_mb"] = peak_mb()
        parts = ranks.gather(found)
        if ranks.first:
            for other in parts:
                seconds = {name: max(value, other["seconds"][name]) for name, value in found["seconds"].items()}
                found |= {"seconds": seconds, "peak_mb": max(found["peak_mb"], other["peak_mb"])}
            print(json.dumps(found))


def network_of(case: Case) -> nn.Module:
    """The network of a case with random weights, which are small enough for outputs of the order of the input."""
    torch.manual_seed(0)
    if case.network == "edsr":
        return EDSR(n_resblocks=case.blocks, n_feats=case.width, scale=4).eval()
    return SwinIR(
        img_size=32,
        embed_dim=case.width,
        depths=(6,) * case.blocks,
        num_heads=(8,) * case.blocks,
        mlp_ratio=2.0,
        upscale=4,
        upsampler="pixelshuffle",
        resi_connection="1conv",
    ).eval()


def recipe_of(passes: tuple[str, ...]) -> Recipe:
    """A recipe of these passes."""
    entries = ", ".join(f'{{ name = "{name}"{f", {DQC}" if name == "dqc" else ""} }}' for name in passes)
    text = f'name = "scale"\ntitle = "Scale"\n[presets.standard]\npasses = [{entries}]\n'
    return Recipe.parse(text, "scale")


if __name__ == "__main__":
    main()
