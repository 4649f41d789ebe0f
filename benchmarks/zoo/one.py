"""Takes one network through all of fxptq and prints a JSON record: captured, compared, quantized, trained, stored.

`benchmarks.zoo` runs this program in a process of its own, so that a crash, a hang or too much memory costs one line of
the table.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import fxptq
from benchmarks.zoo.networks import NETWORKS, TRAINED, ZooNetwork
from fxptq.graph import Bits, Program
from fxptq.planning import plan_of
from fxptq.recipe import Recipe

GIGABYTES = 12
LIBRARIES: list[torch.library.Library] = []
"""Libraries of declared operators; an operator exists as long as its library."""


def declare_missing_operators() -> None:
    """Makes torchvision importable beside a torch of another build.

    The published torchvision is built for CUDA. Beside a CPU torch, its compiled operators do not load, and its import
    stops at two operators that it describes. This function declares the two without code; no network calls them.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        LIBRARIES.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            LIBRARIES[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]


def picture(channels: int, size: tuple[int, int], multiple: int, seed: int) -> Tensor:
    """Makes smooth noise in 0..1, [1, channels, H, W], reflect-padded to the multiple."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, channels, size[0] // 3 + 2, size[1] // 3 + 2, generator=generator)
    x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return F.pad(x, (0, -size[1] % multiple, 0, -size[0] % multiple), "reflect")


def images_of(output: Any) -> list[Tensor]:
    """Collects the floating-point tensors of a network's output."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def seeded(run: Callable[..., Any], x: Tensor) -> Any:
    """Runs a network with the same random numbers each time."""
    torch.manual_seed(1)
    return run(x.clone())


def largest_difference(ours: Any, theirs: Any) -> float:
    """Computes the largest difference, relative to the largest value; 0 is bit for bit."""
    pairs = list(zip(images_of(ours), images_of(theirs), strict=True))
    assert pairs
    assert all(b.isfinite().all() for _, b in pairs), "the network's own output is not finite"
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)


def gradient(run: Callable[..., Any], x: Tensor) -> Tensor | None:
    """Computes the gradient of the output's mean square at the input; returns None if the output has no gradient."""
    x = x.clone().requires_grad_(True)
    torch.stack([y.square().mean() for y in images_of(seeded(run, x)) if y.requires_grad]).sum().backward()
    return x.grad


def dobi_alone() -> Recipe:
    """Makes the default recipe with the bound search of 2DQuant as its only pass."""
    data = Recipe.load("default").model_dump(exclude_unset=True)
    data["presets"]["standard"] = {"images": 1, "passes": [{"name": "observe"}, {"name": "dobi"}]}
    return Recipe.model_validate(data)


class Examination:
    """The examination of one network, step by step; `record` holds the results and the name of the last step."""

    def __init__(self, network: ZooNetwork) -> None:
        self.network = network
        self.record: dict[str, Any] = {"name": network.name, "note": network.note, "seconds": {}}

    def run(self) -> None:
        """Takes all steps; the first step that fails raises."""
        started = time.perf_counter()
        for step in (self.build, self.capture, self.compare, self.gradient, self.quantize, self.train, self.store):
            self.record["step"] = step.__name__
            self.record["seconds"][step.__name__] = round(time.perf_counter() - started, 2)
            step()
        self.record["seconds"]["done"] = round(time.perf_counter() - started, 2)

    def build(self) -> None:
        """Builds the network and pictures of its sizes, and counts its cost as PyTorch does."""
        network = self.network
        self.model = network.build()
        self.pictures = [picture(network.channels, size, network.multiple, i) for i, size in enumerate(network.sizes)]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            seeded(self.model, self.pictures[0])
        self.record |= {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "sizes": [list(x.shape[2:]) for x in self.pictures],
            "macs": counter.get_total_flops() // 2,
        }

    def capture(self) -> None:
        """Captures the program, with quantizers that are off."""
        settings = Recipe.load("default").preset("quick")
        self.program = Program(self.model, self.pictures[0], plan_of(settings.quantize, Bits(4, 4)))

    def compare(self) -> None:
        """Compares program and network at every size."""
        with torch.no_grad():
            differences = [largest_difference(seeded(self.program, x), seeded(self.model, x)) for x in self.pictures]
        first, sites = self.program.variants[0], self.program.sites
        self.record |= {
            "difference": differences,
            "nodes": len(first.capture.graph.nodes),
            "sites": dict(Counter(site.kind for site in sites)),
            "float": dict(Counter(site.reason for site in sites if site.reason)),
            "guards": len(first.capture.expected),
            "graphs": len(self.program.variants),
            "decomposed": first.capture.decomposed,
            "macs_sites": sum(site.macs for site in sites),
            "macs_quantized": sum(site.macs for site in sites if not site.reason),
        }
        assert max(differences) <= (1e-4 if first.capture.decomposed else 0.0), "differs from eager"

    def gradient(self) -> None:
        """Compares the gradients of program and network, if the network has one."""
        try:
            theirs = gradient(self.model, self.pictures[0])
        except RuntimeError as error:
            self.record["eager_gradient"] = str(error).splitlines()[0]
            return
        if theirs is None:
            self.record["eager_gradient"] = "none reaches the input"
            return
        self.record["gradient_difference"] = largest_difference(gradient(self.program, self.pictures[0]), theirs)
        assert self.record["gradient_difference"] <= 1e-3, "gradient differs from eager's"

    def quantize(self) -> None:
        """Quantizes by DOBI at W4A4."""
        x = self.pictures[0]
        self.quantized = fxptq.quantize(self.network.build(), x, Bits(4, 4), calib=[x], recipe=dobi_alone())
        with torch.no_grad():
            low, full = images_of(seeded(self.quantized, x))[0], images_of(seeded(self.model, x))[0]
        assert low.isfinite().all(), "the quantized output is not finite"
        self.record["snr_db"] = round(float(10 * torch.log10(full.square().mean() / (low - full).square().mean())), 1)

    def train(self) -> None:
        """Finds the bounds that a gradient reaches."""
        gradient(self.quantized, self.pictures[0])
        quantizers = self.quantized.program.quantizers
        unreached = [
            key
            for key, quantizer in quantizers.items()
            if all(one.parameter.grad is None for one in quantizer.trainables())
        ]
        self.record |= {"quantizers": len(quantizers), "reached": len(quantizers) - len(unreached)}
        self.record["unreached"] = unreached
        assert self.record["reached"], "no gradient reaches any quantizer"

    def store(self) -> None:
        """Saves and loads the network, and compares at every size."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.safetensors"
            self.quantized.save(file)
            self.record["bytes"] = file.stat().st_size
            loaded = fxptq.load(file, model=self.network.build())
        with torch.no_grad():
            for x in self.pictures:
                same = largest_difference(seeded(loaded, x), seeded(self.quantized, x)) == 0
                assert same, f"the loaded network differs at {tuple(x.shape)}"


def main(name: str) -> None:
    """Prints the record of the network of that name."""
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    torch.set_num_threads(1)
    declare_missing_operators()
    examination = Examination(next(one for one in (*NETWORKS, TRAINED) if one.name == name))
    try:
        examination.run()
    except Exception as error:  # noqa: BLE001  # the error becomes this network's line of the table
        traceback.print_exc()
        examination.record["error"] = f"{type(error).__name__}: {error}"
    examination.record["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(json.dumps(examination.record) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
