"""The kinds of processors that a wheel carries kernels for, and which of them this processor is.

What a processor has is read from the system, which also knows whether it saves the wide registers at a switch of
tasks; no instruction is tried. On systems without a row here kernels are compiled at the first use.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

X86, ARM = ("x86_64", "AMD64"), ("aarch64", "arm64")


@dataclass(frozen=True)
class Target:
    """A kind of processor.

    Attributes:
        name: as the kernels compiled for it call themselves.
        machines: names of the architecture, as of `platform.machine()`.
        flags: the compiler options.
        needs: what the processor must have, as Linux names it in /proc/cpuinfo.
    """

    name: str
    machines: tuple[str, ...]
    flags: tuple[str, ...]
    needs: frozenset[str]


_V3 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe", "popcnt", "ssse3", "sse4_1", "sse4_2", "cx16"})
_VNNI = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"})

TARGETS = (
    Target("avx512-vnni", X86, ("-march=x86-64-v4", "-mavx512vnni"), _V3 | _VNNI),
    Target("avx2-vnni", X86, ("-march=x86-64-v3", "-mavxvnni"), _V3 | {"avx_vnni"}),
    Target("avx2", X86, ("-march=x86-64-v3",), _V3),
    Target("neon-i8mm", ARM, ("-march=armv8.2-a+dotprod+i8mm",), frozenset({"asimd", "asimddp", "i8mm"})),
    Target("neon-dotprod", ARM, ("-march=armv8.2-a+dotprod",), frozenset({"asimd", "asimddp"})),
)
"""All kinds, the fastest first."""


def runnable(features: frozenset[str], machine: str) -> list[Target]:
    """The targets whose kernels a processor can run, the fastest first.

    Args:
        features: what the processor has.
        machine: its architecture.
    """
    return [target for target in TARGETS if machine in target.machines and target.needs <= features]


def runnable_here() -> list[Target]:
    """The targets whose kernels this processor can run, the fastest first."""
    return runnable(features_here(), platform.machine())


@cache
def processor_here() -> str:
    """The name of this processor, as far as the system tells."""
    for line in _cpuinfo().splitlines():
        if line.lower().startswith(("model name", "cpu part")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpuinfo() -> str:
    """What Linux says of its processors; nothing on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@cache
def features_here() -> frozenset[str]:
    """What this processor has; nothing where that cannot be told."""
    if sys.platform == "linux":
        return linux_features(_cpuinfo())
    if sys.platform == "darwin":
        try:
            done = subprocess.run(  # the system's own program
                ["/usr/sbin/sysctl", "hw.optional"], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return frozenset()
        return mac_features(done.stdout)
    return frozenset()


def linux_features(cpuinfo: str) -> frozenset[str]:
    """The features that all processors of a /proc/cpuinfo have: a process may move from one to another."""
    lines = [line.partition(":") for line in cpuinfo.splitlines()]
    each = [frozenset(values.split()) for name, _, values in lines if name.strip() in ("flags", "Features")]
    return frozenset.intersection(*each) if each else frozenset()


def mac_features(sysctl: str) -> frozenset[str]:
    """The features in the answer of `sysctl hw.optional` on an ARM Mac, by their names in Linux."""
    names = {
        "hw.optional.AdvSIMD": "asimd",
        "hw.optional.arm.FEAT_DotProd": "asimddp",
        "hw.optional.arm.FEAT_I8MM": "i8mm",
    }
    pairs = [line.partition(": ") for line in sysctl.splitlines()]
    return frozenset(names[name] for name, _, value in pairs if name in names and value.strip() == "1")
