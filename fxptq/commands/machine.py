"""The machine and the software of a run, in words."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

from fxptq._version import __version__
from fxptq.kernels.targets import processor_here, runnable_here

PACKAGES = ("torch", "numpy", "pillow", "networkx", "safetensors")


def described() -> dict[str, str]:
    """Processor, system and versions, by name; nothing is compiled or measured for it."""
    target = next((target.name for target in runnable_here()), "none of the known ones")
    cores = os.cpu_count() or 1
    return {
        "Processor": f"{processor_here()}, {cores} core{'s' * (cores > 1)}, {torch.get_num_threads()} used by torch",
        "Fastest integer kernels for it": target,
        "System": f"{platform.system()} {platform.machine()}",
        "Versions": ", ".join(
            [f"fxptq {__version__}", f"Python {platform.python_version()}", *map(" ".join, versions().items())]
        ),
    }


def versions() -> dict[str, str]:
    """The versions of the packages that fxptq stands on."""
    return {name: version for name in PACKAGES if (version := installed(name))}


def installed(package: str) -> str:
    """The version of a package; empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
