"""Which of the kernels in a wheel a processor gets, and how they are checked before they are loaded."""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path

import pytest

from fxptq.errors import InputError
from fxptq.kernels import build, shipped, trial
from fxptq.kernels.targets import TARGETS, linux_features, mac_features, runnable

CPUINFO = {
    "Haswell": "fpu sse4_1 sse4_2 ssse3 popcnt cx16 movbe avx f16c fma avx2 bmi1 bmi2 abm",
    "Alder Lake": "fpu sse4_1 sse4_2 ssse3 popcnt cx16 movbe avx f16c fma avx2 bmi1 bmi2 abm avx_vnni",
    "Skylake-X": (
        "sse4_1 sse4_2 ssse3 popcnt cx16 movbe f16c fma avx2 bmi1 bmi2 abm avx512f avx512bw avx512cd avx512dq avx512vl"
    ),
    "Ice Lake": (
        "sse4_1 sse4_2 ssse3 popcnt cx16 movbe f16c fma avx2 bmi1 bmi2 abm "
        "avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni"
    ),
    "Ivy Bridge": "fpu sse4_1 sse4_2 ssse3 popcnt cx16 avx f16c",
}


@pytest.mark.parametrize(
    ("processor", "names"),
    [
        ("Haswell", ["avx2"]),
        ("Alder Lake", ["avx2-vnni", "avx2"]),
        ("Skylake-X", ["avx2"]),
        ("Ice Lake", ["avx512-vnni", "avx2"]),
        ("Ivy Bridge", []),
    ],
)
def test_targets_of_x86_processors(processor: str, names: list[str]) -> None:
    text = f"processor\t: 0\nmodel name\t: avx512_vnni in a name\nflags\t\t: {CPUINFO[processor]}\n"
    features = linux_features(text)
    assert [target.name for target in runnable(features, "x86_64")] == names
    assert runnable(features, "aarch64") == []


def test_targets_of_arm_processors() -> None:
    newer, older = (linux_features(f"Features\t: fp asimd asimddp{more}\n") for more in (" i8mm", ""))
    assert [target.name for target in runnable(newer, "aarch64")] == ["neon-i8mm", "neon-dotprod"]
    assert [target.name for target in runnable(older, "aarch64")] == ["neon-dotprod"]
    assert runnable(linux_features("Features\t: fp asimd\n"), "aarch64") == []
    mac = "hw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\n"
    assert [target.name for target in runnable(mac_features(mac), "arm64")] == ["neon-dotprod"]
    assert runnable(mac_features(mac.replace("DotProd: 1", "DotProd: 0")), "arm64") == []


def test_a_process_may_move_between_unlike_processors() -> None:
    text = f"flags\t: {CPUINFO['Alder Lake']}\n\nflags\t: {CPUINFO['Haswell']}\n"
    assert [target.name for target in runnable(linux_features(text), "x86_64")] == ["avx2"]


@pytest.mark.parametrize("text", ["", "flags", "nothing: here\n"])
def test_a_system_that_does_not_tell(text: str) -> None:
    assert runnable(linux_features(text), "x86_64") == []


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation whose library for this processor is a text with the right SHA-256; there is no compiler."""
    target = TARGETS[0]
    monkeypatch.setattr(build, "runnable_here", lambda: [target])
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CXX", build.CHOICE):
        monkeypatch.delenv(name, raising=False)
    library = tmp_path / f"{target.name}.so"
    library.write_bytes(b"a library")
    trial.record_of(library).write_text(hashlib.sha256(b"a library").hexdigest())
    return library


def test_a_trial_is_made_once(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = carried.parent / "tried"
    monkeypatch.setattr(trial, "PROGRAM", ("-c", f"open({str(tried)!r}, 'a').write('x')"))
    assert [shipped.library(TARGETS[0]) for _ in range(3)] == [carried] * 3
    assert tried.read_text() == "x"
    carried.write_bytes(b"another")
    trial.record_of(carried).write_text(hashlib.sha256(b"another").hexdigest())
    shipped.library(TARGETS[0])
    assert tried.read_text() == "xx"


def test_without_a_place_for_a_cache_each_process_tries(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (carried.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(carried.parent / "file"))
    tried = carried.parent / "tried"
    monkeypatch.setattr(trial, "PROGRAM", ("-c", f"open({str(tried)!r}, 'a').write('x')"))
    assert [shipped.library(TARGETS[0]) for _ in range(2)] == [carried] * 2
    assert tried.read_text() == "xx"


@pytest.mark.parametrize("damage", ["cut off", "without a record", "fatal"])
def test_a_library_that_cannot_be_used_is_compiled_instead(
    damage: str, carried: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trial, "PROGRAM", ("-c", "import os; os.abort()"))
    if damage == "cut off":
        carried.write_bytes(b"a lib")
    elif damage == "without a record":
        trial.record_of(carried).unlink()
    with caplog.at_level(logging.WARNING, "fxptq"):
        found = build.backend.__wrapped__()
    lines = [record.getMessage() for record in caplog.records]
    why = "cannot be loaded" if damage == "fatal" else f"{carried} is damaged"
    assert len(lines) == 2
    assert lines[0].startswith("the kernels are compiled here, because those of this installation cannot be used: ")
    assert why in lines[0]
    assert found.reason == "no C++ compiler found (set CXX, or install g++)"
    assert not [path for path in (carried.parent / "cache").rglob("*") if path.is_file()]


def test_no_kernels_by_choice(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.CHOICE, "none")
    found = build.backend.__wrapped__()
    assert (found.name, found.reason) == ("torch", "FXPTQ_KERNELS=none")


def test_compiled_kernels_by_choice(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.CHOICE, "compile")
    assert build.backend.__wrapped__().reason == "no C++ compiler found (set CXX, or install g++)"


@pytest.mark.parametrize(
    ("choice", "why"), [("avx1024", "unknown"), ("neon-dotprod", "this processor cannot run these kernels")]
)
def test_a_choice_that_is_none(choice: str, why: str, carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.CHOICE, choice)
    with pytest.raises(InputError) as caught:
        build.backend.__wrapped__()
    possible = "avx512-vnni, compile, none, or options of the compiler"
    assert str(caught.value) == f"FXPTQ_KERNELS={choice}: {why}; possible here: {possible}"


@pytest.mark.skipif(sys.platform != "linux", reason="the tags of Linux")
@pytest.mark.parametrize(
    ("symbols", "glibc"),
    [
        (b"\0GLIBC_2.14\0GLIBC_2.2.5\0GLIBCXX_3.4.21", 28),
        (b"\0GLIBC_2.32\0GLIBCXX_3.4.21", 32),
        (b"\0GLIBC_2.14\0GLIBCXX_3.4.29", 34),
        (b"\0GLIBC_2.38\0GLIBCXX_3.4.29", 38),
    ],
)
def test_the_tag_names_the_oldest_glibc(
    symbols: bytes, glibc: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped.sysconfig, "get_platform", lambda: "linux-x86_64")
    monkeypatch.setattr(shipped.platform, "libc_ver", lambda: ("glibc", "2.36"))
    (tmp_path / "a.so").write_bytes(symbols + b"\0")
    assert shipped.platform_tag([tmp_path / "a.so"]) == f"manylinux_2_{glibc}_x86_64"


def test_a_wheel_for_another_system_has_its_plain_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped.sysconfig, "get_platform", lambda: "macosx-11.0-arm64")
    assert shipped.platform_tag([]) == "macosx_11_0_arm64"
