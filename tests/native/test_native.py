"""Every kernel header against plain loops over 64-bit integers, without torch, on each instruction set that runs here.

The driver beside this file is compiled for each target. ARM needs `apt-get install g++-aarch64-linux-gnu qemu-user`
on another processor; without them its tests are skipped. `make test-native` runs all of it.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HEADERS = HERE.parents[1] / "fxptq" / "kernels" / "native"
FAMILIES = ("vectors", "linear", "convolution", "attention", "elementwise", "fakequant")
X86, ARM = "x86_64", "aarch64"
OPTIONS = ("-std=c++20", "-O3", "-ffp-contract=fast")
"""The options of fxptq/kernels/build.py that change the code of a kernel."""


@dataclass(frozen=True)
class Target:
    """An instruction set, the options that choose it, and the processor that an emulator imitates for it.

    Attributes:
        isa: the name that the kernels give it.
        machine: its family of processors.
        options: for the compiler.
        features: flags of /proc/cpuinfo that the code needs.
        cpu: the processor for qemu, which stops at every instruction that this processor lacks.
    """

    isa: str
    machine: str
    options: tuple[str, ...]
    features: frozenset[str] = frozenset()
    cpu: str = ""


TARGETS = {
    "x86-64": Target("generic", X86, ("-march=x86-64",)),
    "avx2": Target("avx2", X86, ("-march=x86-64-v3",), frozenset({"avx2", "fma"})),
    "avx-vnni": Target("avx2-vnni", X86, ("-march=x86-64-v3", "-mavxvnni"), frozenset({"avx2", "fma", "avx_vnni"})),
    "avx512-vnni": Target(
        "avx512-vnni", X86, ("-march=x86-64-v4", "-mavx512vnni"), frozenset({"avx512bw", "avx512vl", "avx512_vnni"})
    ),
    "armv8": Target("neon", ARM, ("-march=armv8-a",), frozenset({"asimd"}), "cortex-a53"),
    "armv8-dotprod": Target("neon-dotprod", ARM, ("-march=armv8.2-a+dotprod",), frozenset({"asimddp"}), "neoverse-n1"),
    "armv8-i8mm": Target("neon-i8mm", ARM, ("-march=armv8.6-a+i8mm",), frozenset({"i8mm"}), "max"),
}
ARMS = tuple(name for name, target in TARGETS.items() if target.machine == ARM)

Build = Callable[..., list[str]]


def tool(*names: str) -> str:
    """The first of these programs that is installed; else the test is skipped."""
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip(f"needs {' or '.join(names)}")


def features() -> frozenset[str]:
    """The extensions of this processor, in the words of Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), ":")
    return frozenset(flags.split(":", 1)[1].split())


def runner(target: Target, cpu: str = "") -> list[str]:
    """The command in front of a program of this target: none on its own processor, an emulator for ARM elsewhere."""
    if platform.machine() == target.machine and not cpu:
        missing = target.features - features()
        if missing:
            pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
        return []
    if target.machine != ARM:
        pytest.skip(f"needs a processor of the family {target.machine}")
    return [tool("qemu-aarch64", "qemu-aarch64-static"), "-cpu", cpu or target.cpu]


def compiler(target: Target, clang: bool = False) -> list[str]:
    """The compiler for a target. A program for another processor is static, because its libraries may be missing."""
    native = platform.machine() == target.machine
    if clang:
        tool("aarch64-linux-gnu-g++") if target.machine == ARM and not native else None
        return [tool("clang++"), *([] if native else [f"--target={target.machine}-linux-gnu", "-static"])]
    if native:
        return [tool("g++", "c++")]
    if target.machine != ARM:
        pytest.skip(f"needs a compiler for {target.machine}")
    return [tool("aarch64-linux-gnu-g++"), "-static"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    # The compiler, the emulator, and the driver that was just compiled.
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)  # noqa: S603


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compiles the driver with a compiler and options, once in a session."""
    folder, built = tmp_path_factory.mktemp("native"), {}

    def build(command: list[str], options: tuple[str, ...], headers: Path = HEADERS) -> list[str]:
        key = (*command, *options, str(headers))
        if key not in built:
            program = folder / f"driver{len(built)}"
            sources = [str(path) for path in sorted(HERE.glob("*.cpp"))]
            done = run([*command, *OPTIONS, *options, f"-I{headers}", f"-I{HERE}", *sources, "-o", str(program)])
            assert done.returncode == 0, done.stderr
            built[key] = program
        return [str(built[key])]

    return build


def assert_passes(command: list[str], isa: str) -> None:
    done = run(command)
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
    counts = dict(re.findall(r"^(\w+): (\d+) checks, 0 failed$", done.stdout, re.MULTILINE))
    assert tuple(counts) == FAMILIES
    assert all(int(count) > 100 for count in counts.values())
    assert done.stdout.startswith(f"isa {isa}\n")


def test_plain_processor(build: Build) -> None:
    target = TARGETS["x86-64" if platform.machine() == X86 else "armv8"]
    quick = (*target.options, "-O1")  # half the time to compile
    assert_passes([*runner(target), *build(compiler(target), quick)], target.isa)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_instruction_set(build: Build, name: str) -> None:
    target = TARGETS[name]
    before = runner(target)
    assert_passes([*before, *build(compiler(target), target.options)], target.isa)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARMS)
def test_arm_with_every_extension(build: Build, name: str) -> None:
    target = TARGETS[name]
    before = runner(target, cpu="max")
    assert_passes([*before, *build(compiler(target), target.options)], target.isa)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_clang(build: Build, name: str) -> None:
    target = TARGETS[name]
    before = runner(target)
    assert_passes([*before, *build(compiler(target, clang=True), target.options)], target.isa)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x86-64", "avx2", "avx-vnni", "avx512-vnni"])
def test_memory_is_in_bounds(build: Build, name: str) -> None:
    target = TARGETS[name]
    before = runner(target)
    sanitizers = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=alignment")
    assert_passes([*before, *build(compiler(target), (*target.options, *sanitizers))], target.isa)


STORE = "p[v * kLanes + i] = (uint8_t)codes[i];"
FAULTS = {
    "bytes are signed": ("& 255u)", "& 127u)", {"vectors", "linear", "convolution", "attention"}),
    "numbers round up": ("return (Ints)(v + magic)", "return (Ints)(v + 0.25f + magic)", {"vectors", "elementwise"}),
    "a code too far": (STORE, STORE.replace("+ i]", "+ i + 1]"), {"vectors", "linear", "convolution", "elementwise"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_header_fails(build: Build, tmp_path: Path, fault: str) -> None:
    """The checks themselves: a header with a fault fails them in every family that reads it."""
    right, wrong, families = FAULTS[fault]
    target = TARGETS["x86-64"]
    headers = shutil.copytree(HEADERS, tmp_path / "native")
    header = headers / "simd" / "portable.h"
    text = header.read_text(encoding="utf-8")
    assert right in text
    header.write_text(text.replace(right, wrong), encoding="utf-8")
    done = run([*runner(target), *build(compiler(target), (*target.options, "-O1"), headers)])
    assert done.returncode == 1
    counts = re.findall(r"^(\w+): \d+ checks, (\d+) failed$", done.stdout, re.MULTILINE)
    assert {name for name, failed in counts if int(failed)} >= families
