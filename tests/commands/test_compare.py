"""`fxptq compare`: two checkpoints, or a checkpoint and float, on the same pictures; and the report of `quantize`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.tiny import picture, run, write_recipe


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.toml, its weights, a.safetensors at W3A3 and b.safetensors at W8A8."""
    folder = tmp_path_factory.mktemp("compare")
    recipe, weights = write_recipe(folder)
    for name, bits, report in (("a", 3, "--report"), ("b", 8, "--no-report")):
        options = ["--preset", "quick", "--w", bits, "--a", bits, report, "--out", folder / f"{name}.safetensors"]
        ran = run("quantize", "--recipe", recipe, "--weights", weights, *options)
        assert (ran.status, ran.err) == (0, "")
    return folder


def test_a_report_beside_the_checkpoint_unless_it_is_not_wanted(made: Path) -> None:
    assert (made / "a.html").exists()
    assert not (made / "b.html").exists()


def test_the_checkpoint_is_the_same_with_and_without_a_report(made: Path, tmp_path: Path) -> None:
    options = ["--preset", "quick", "--w", 3, "--a", 3, "--no-report", "--out", tmp_path / "a.safetensors"]
    ran = run("quantize", "--recipe", made / "tiny.toml", "--weights", made / "tiny_weights.safetensors", *options)
    assert ran.status == 0
    assert "report" not in ran.out
    assert (tmp_path / "a.safetensors").read_bytes() == (made / "a.safetensors").read_bytes()


def test_two_checkpoints(made: Path, tmp_path: Path) -> None:
    a, b = made / "a.safetensors", made / "b.safetensors"
    options = ["--model", made / "tiny.toml", "--out", tmp_path / "c.html", "--json", tmp_path / "c.json"]
    ran = run("compare", b, a, *options)
    assert (ran.status, ran.err) == (0, "")
    result = json.loads((tmp_path / "c.json").read_text())
    assert (result["first"], result["second"]) == ("b", "a")
    for name, path in (("a", a), ("b", b)):
        model = ["--model", made / "tiny.toml", "--json", tmp_path / "e.json"]
        assert run("evaluate", path, *model).status == 0
        assert result["eval"][name] == json.loads((tmp_path / "e.json").read_text())
    page = (tmp_path / "c.html").read_text()
    assert "bits in b" in page
    assert f"fxptq compare {b} {a}" in page
    assert len(re.findall(r"<img ", page)) == 5 * len(re.findall('<figure class="patch">', page)) > 0


def test_a_checkpoint_and_float(made: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "set" / "HR" / f"{name}.png", 48)
        picture(tmp_path / "set" / "LR_bicubic" / "X2" / f"{name}x2.png", 24)
    model = ["--model", made / "tiny.toml", "--weights", made / "tiny_weights.safetensors"]
    data = ["--data", f"Mine={tmp_path / 'set'}", "--out", tmp_path / "c.html", "--json", tmp_path / "c.json"]
    ran = run("compare", made / "a.safetensors", *model, *data)
    assert (ran.status, ran.err) == (0, "")
    result = json.loads((tmp_path / "c.json").read_text())
    assert list(result["eval"]) == ["float", "a"]
    assert list(result["eval"]["a"]) == ["Mine"]
    assert "a compared with float" in (tmp_path / "c.html").read_text()
    swapped = run("compare", made / "a.safetensors", "float", *model, *data)
    assert swapped.status == 0
    again = json.loads((tmp_path / "c.json").read_text())
    assert again["eval"] == result["eval"]
    assert (again["first"], again["second"]) == ("a", "float")


def test_float_has_the_weights_that_the_recipe_names(made: Path, tmp_path: Path) -> None:
    options = ["--out", tmp_path / "c.html", "--json", tmp_path / "c.json"]
    ran = run("compare", made / "a.safetensors", "--model", made / "tiny.toml", *options)
    assert ran.status == 2  # it names none, and a network without trained weights is none to compare with
    assert "tiny" in ran.line
    assert not (tmp_path / "c.html").exists()


@pytest.mark.parametrize(
    ("subjects", "message"),
    [
        (["float", "float"], "float is compared with float; name a checkpoint"),
        (["a.safetensors", "./a.safetensors"], "is compared with itself; name another checkpoint, or float"),
        (["a.safetensors"], "holds a network of your own"),
        (["a.safetensors", "missing.safetensors"], "holds a network of your own"),
    ],
    ids=["float-float", "itself", "no-model", "missing"],
)
def test_what_cannot_be_compared(
    made: Path, monkeypatch: pytest.MonkeyPatch, subjects: list[str], message: str
) -> None:
    monkeypatch.chdir(made)
    ran = run("compare", *subjects)
    assert ran.status == 2
    assert message in ran.line
    assert not Path("comparison.html").exists()
