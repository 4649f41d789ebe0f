"""`fxptq doctor` and `fxptq passes`: what there is, what is missing, and every setting with its meaning."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fxptq.commands import doctor, passes
from fxptq.commands.doctor import Check
from fxptq.kernels import build
from fxptq.kernels.compiler import UnavailableError
from fxptq.passes.base import get_pass, pass_names
from tests.tiny import run


def found(subject: str) -> Check:
    return next(check for check in doctor.run() if check.subject == subject)


def test_one_screen_and_the_same_as_json(tmp_path: Path) -> None:
    ran = run("doctor", "--json", tmp_path / "d.json")
    assert (ran.status, ran.err) == (0, "")
    assert len(ran.out.splitlines()) <= 24
    checks = json.loads((tmp_path / "d.json").read_text())["checks"]
    for check in checks:
        assert check["subject"] in ran.out
        assert check["advice"] in ran.out
        assert check["state"] in ("good", "missing", "bad")


def test_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(build.CHOICE, raising=False)
    monkeypatch.setattr(doctor.shipped, "path_of", lambda _: Path("/missing"))
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("it compiles"))
    monkeypatch.setattr(build, "is_sound", lambda _: False)
    assert "the first use compiles them" in found("integer kernels").found


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> str:
        raise UnavailableError("no C++ compiler found")

    monkeypatch.delenv(build.CHOICE, raising=False)
    monkeypatch.setattr(doctor.shipped, "path_of", lambda _: Path("/missing"))
    monkeypatch.setattr("fxptq.kernels.compiler.find", find)
    kernels = found("integer kernels")
    assert (kernels.state, kernels.found) == ("bad", "none: integers run in plain torch, exact but slow")
    assert "make wheel" in kernels.advice
    assert found("C++ compiler").state == "missing"


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "cache"))
    assert found("cache") == Check("cache", "good", str(tmp_path / "new" / "cache" / "fxptq"))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert found("cache").state == "bad"


def test_an_extra_that_is_missing_names_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda package: "" if package == "onnx" else "1.0")
    check = found("extra bench")
    assert (check.state, check.found) == ("missing", "without onnx")
    assert "pip install 'fxptq[bench]'" in check.advice
    assert found("extra cuda") == Check("extra cuda", "good", "triton 1.0")


@pytest.mark.parametrize("name", pass_names())
def test_every_setting_has_a_meaning(name: str) -> None:
    (info,) = passes.run(name)
    assert [setting.name for setting in info.settings] == [f.name for f in dataclasses.fields(get_pass(name).Settings)]
    for setting in info.settings:
        assert len(setting.meaning) > 10, f"{name}.{setting.name} has no line under Attributes"


def test_passes_are_listed_and_one_is_explained() -> None:
    listed = run("passes")
    assert listed.status == 0
    for name in pass_names():
        assert f" {name} " in listed.out
    one = run("passes", "percentile")
    assert "99.9" in one.out
    assert "the upper bound is the p-th percentile" in one.out
    assert "The pass minmax has no settings." in run("passes", "minmax").out
    assert "percentile" in run("passes", "percentil").line


def test_attributes_of_a_docstring() -> None:
    text = "Head.\n\nAttributes:\n    a: one,\n        two.\n    b, c: three.\n\nRaises:\n    E: never.\n"
    assert passes.attributes(text) == {"a": "one, two.", "b": "three.", "c": "three."}
    assert passes.attributes("Nothing.") == {}
