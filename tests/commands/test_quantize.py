"""`fxptq quantize`: what it reports, and what it refuses in one line before it works for long."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fxptq
from fxptq.commands.scores import score_sets
from tests.tiny import OWN, RECIPE, Ran, edsr, picture, run, swinir, write_recipe


def quantize(folder: Path, *options: object, preset: str = "quick", text: str = RECIPE) -> Ran:
    recipe, weights = write_recipe(folder, text)
    chosen = ["--weights", weights] if "--weights" not in options else []
    out = ["--out", folder / "m.safetensors"] if "--out" not in options else []
    return run("quantize", "--recipe", recipe, *chosen, *out, "--preset", preset, *options)


# -- what it reports -------------------------------------------------------------------------------------------------


def test_json_has_the_shape_scripts_rely_on(tmp_path: Path) -> None:
    ran = quantize(tmp_path, "--w", 3, "--a", 5, "--json", tmp_path / "r.json", preset="standard")
    assert (ran.status, ran.err) == (0, "")
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["recipe"] == "tiny"
    assert result["bits"] == {"w": 3, "a": 5}
    assert list(result["eval"]) == ["samples"]
    assert list(result["eval"]["samples"]) == ["fp", "dobi", "final"]
    for score in result["eval"]["samples"].values():
        assert set(score) == {"psnr_y", "ssim_y", "psnr"}
        assert all(isinstance(value, float) for value in score.values())
    whole = sum(p.numel() for p in swinir().parameters())
    assert result["bytes"] == {"fp32": 4 * whole, "checkpoint": (tmp_path / "m.safetensors").stat().st_size}
    assert result["sites"] == 29
    assert result["float_sites"] == []
    assert set(result["seconds"]) == {"evaluate", "observe", "dobi", "dqc", "capture"}
    assert all(value >= 0 for value in result["seconds"].values())
    assert result["peak_mb"] > 50
    meta = fxptq.load(tmp_path / "m.safetensors", swinir(1)).meta
    assert [step.name for step in meta.passes] == ["dobi", "dqc"]


@pytest.mark.parametrize(
    ("preset", "scored"), [("quick", ["float", "quantized"]), ("standard", ["float", "bounds", "quantized"])]
)
def test_no_scores_are_computed_twice(
    preset: str, scored: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args[4])
        return score_sets(*args, **options)

    monkeypatch.setattr("fxptq.commands.quantize.score_sets", counted)
    assert quantize(tmp_path, "--json", tmp_path / "r.json", preset=preset).status == 0
    assert calls == scored
    scores = json.loads((tmp_path / "r.json").read_text())["eval"]["samples"]
    assert list(scores) == ["fp", "dobi", "final"]
    assert (scores["dobi"] == scores["final"]) == (preset == "quick")


def test_float_sites_are_listed_everywhere_by_name_and_reason(tmp_path: Path) -> None:
    text = RECIPE + '[quantize]\nkinds = ["linear", "matmul"]\n'
    ran = quantize(tmp_path, "--json", tmp_path / "r.json", text=text)
    assert (ran.status, ran.err) == (0, "")
    left = json.loads((tmp_path / "r.json").read_text())["float_sites"]
    assert [site["name"] for site in left] == [
        "conv_first", "layers.0.conv", "layers.1.conv", "conv_after_body", "upsample.0",
    ]  # fmt: skip
    page = (tmp_path / "m.html").read_text()
    for site in left:
        assert site["reason"] == "conv2d sites are left in float by the plan"
        assert f"{site['name']}: {site['reason']}" in ran.out
        assert f"<td>{site['name']}</td>" in page
        assert site["reason"] in page
    assert "5 sites in float:" in ran.out


def test_sets_of_the_user_are_scored(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "set" / "HR" / f"{name}.png", 48)
        picture(tmp_path / "set" / "LR_bicubic" / "X2" / f"{name}x2.png", 24)
    ran = quantize(tmp_path, "--eval", f"Mine={tmp_path / 'set'}", "--json", tmp_path / "r.json")
    assert (ran.status, ran.err) == (0, "")
    result = json.loads((tmp_path / "r.json").read_text())
    assert list(result["eval"]) == ["Mine"]
    assert set(result["eval"]["Mine"]) == {"fp", "dobi", "final"}


def test_network_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_network.py").write_text(OWN)
    before = list(sys.path)
    ran = run("quantize", "--model", "own_network:Net", "--preset", "quick", "--json", "r.json")
    assert (ran.status, ran.err) == (0, "")
    assert json.loads(Path("r.json").read_text())["recipe"] == "own_network:Net"
    assert run("evaluate", "Net_w4a4.safetensors", "--model", "own_network:Net").status == 0
    assert sys.path == before
    assert "holds a network of your own" in run("evaluate", "Net_w4a4.safetensors").line


def test_bits_by_name(tmp_path: Path) -> None:
    options = ["--site", "layers.0.*=W2A3", "--site", "upsample.0=float", "--site", "*.fc1=W5A6"]
    ran = quantize(tmp_path, *options, "--json", tmp_path / "r.json")
    assert (ran.status, ran.err) == (0, "")
    left = json.loads((tmp_path / "r.json").read_text())["float_sites"]
    assert left == [{"name": "upsample.0", "reason": "left out by the pattern 'upsample.0'"}]
    bits = {site.name: site.bits for site in fxptq.load(tmp_path / "m.safetensors", swinir(1)).sites}
    assert bits["layers.0.residual_group.blocks.0.mlp.fc1"] == (2, 3)
    assert bits["layers.1.residual_group.blocks.0.mlp.fc1"] == (5, 6)
    assert bits["layers.1.residual_group.blocks.0.mlp.fc2"] == (4, 4)


def test_bits_by_name_in_the_recipe(tmp_path: Path) -> None:
    text = RECIPE + '[quantize]\nsites = { "layers.1.*" = "W2A3", "upsample.0" = "float" }\n'
    assert quantize(tmp_path, "--site", "layers.1.conv=W6A7", text=text).status == 0
    bits = {site.name: site.bits for site in fxptq.load(tmp_path / "m.safetensors", swinir(1)).sites}
    assert bits["layers.1.conv"] == (6, 7)
    assert bits["layers.1.residual_group.blocks.0.mlp.fc1"] == (2, 3)
    assert bits["upsample.0"] == (None, None)


def test_recipe_in_a_file_is_a_model(tmp_path: Path) -> None:
    assert quantize(tmp_path).status == 0
    ran = run("evaluate", tmp_path / "m.safetensors", "--model", tmp_path / "tiny.toml")
    assert (ran.status, ran.err) == (0, "")
    assert run("inspect", "--model", tmp_path / "tiny.toml", "--w", 3).out.count(" 3/4 ") > 10


# -- calibration pictures --------------------------------------------------------------------------------------------


def test_pictures_of_any_kind_calibrate(tmp_path: Path) -> None:
    for index, mode in enumerate(("L", "RGBA", "I;16")):
        picture(tmp_path / "calib" / f"{index}.png", mode=mode)
    ran = quantize(tmp_path, "--calib", tmp_path / "calib", text=RECIPE.replace("images = 2", "images = 3"))
    assert (ran.status, ran.err) == (0, "")
    assert "3 crops of the pictures in calib" in (tmp_path / "m.html").read_text()


def test_unfit_calibration_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "p.png").write_text("not a picture")
    picture(tmp_path / "dot" / "p.png", 1)
    for calib, message in {
        "missing": "missing: there is no such folder",
        "empty": "empty: holds no pictures; expected files named",
        "text/p.png": "p.png: is a file; expected a folder of pictures",
    }.items():
        ran = quantize(tmp_path, "--calib", tmp_path / calib)
        assert ran.status == 2
        assert message in ran.line
    monkeypatch.setattr("fxptq.commands.quantize.score_sets", lambda *_: [])
    for calib, message in {
        "text": "p.png: not a picture in a format that can be read",
        "dot": "p.png: is 1x1; pictures to calibrate with need at least 16 pixels each way",
    }.items():
        ran = quantize(tmp_path, "--calib", tmp_path / calib)
        assert ran.status == 2
        assert message in ran.line
    assert not (tmp_path / "m.safetensors").exists()


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--w", 1], "bits w=1 is out of range: expected a whole number from 2 to 8"),
        (["--a", 9], "bits a=9 is out of range: expected a whole number from 2 to 8"),
        (["--preset", "fast"], "no preset 'fast'; recipe tiny has quick, standard, best, paper"),
        (["--out", "m.html"], "--out m.html: checkpoints are written as .safetensors"),
        (["--device", "tpu"], "--device 'tpu': expected auto, cpu or cuda"),
        (["--eval", "Set5"], "'Set5': expected NAME=DIR, such as Set5=data/Set5"),
        (["--eval", "=x"], "'=x': expected NAME=DIR"),
        (["--eval", "Set5=/nowhere"], "Set5: /nowhere has no folder HR; expected HR/NAME.png and LR_bicubic/X2/"),
        (["--eval", "A=/x", "--eval", "A=/y"], "there are two sets named 'A'; give each a name of its own"),
        (["--site", "W3A4"], "'W3A4': expected GLOB=W3A4 or GLOB=float"),
        (["--site", "*=3"], "'3': expected bits as in W3A4, or float"),
        (["--site", "*=W1A4"], "bits w=1 is out of range"),
        (["--site", "none=W3A4"], "the pattern 'none' matches no site; `fxptq inspect` lists their names"),
        (["--seed", -1], "the seed is -1; expected a number from 0"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_unfit_option(options: list[object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxptq.commands.quantize.score_sets", lambda *_: [])
    ran = quantize(tmp_path, *options)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.line
    assert not (tmp_path / "m.safetensors").exists()


def test_folder_in_the_place_of_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").mkdir()
    assert quantize(tmp_path).line == f"{tmp_path / 'm.safetensors'}: is a folder; expected the name of a file"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(tmp_path: Path) -> None:
    ran = quantize(tmp_path, "--device", "cuda")
    assert (ran.status, ran.line) == (2, "--device cuda: PyTorch finds no CUDA device; use --device cpu")


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    save_file(edsr().state_dict(), tmp_path / "other.safetensors")
    ran = quantize(tmp_path, "--weights", tmp_path / "other.safetensors")
    assert ran.status == 2
    assert "the weights do not fit SwinIR: conv_first.weight: nothing instead of [12, 3, 3, 3]" in ran.line


def test_missing_weights_name_url_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ran = run("quantize", "--recipe", "swinir_x3", "--out", tmp_path / "m.safetensors")
    weights = fxptq.Recipe.load("swinir_x3").weights
    assert ran.status == 2
    assert weights.url in ran.line
    assert str(tmp_path / "fxptq" / weights.file) in ran.line


def test_no_such_weights_file(tmp_path: Path) -> None:
    ran = run("quantize", "--weights", tmp_path / "no.pth", "--out", tmp_path / "m.safetensors")
    assert (ran.status, ran.line) == (2, f"no weights file at {tmp_path / 'no.pth'}")


def test_nothing_named(tmp_path: Path) -> None:
    ran = run("quantize", "--out", tmp_path / "m.safetensors")
    assert ran.status == 2
    assert ran.line == "name a network: --recipe NAME, --model package.module:factory, or --weights FILE"


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("own_module", "expected package.module:factory"),
        ("no.such:thing", "cannot be imported: ModuleNotFoundError: No module named 'no'"),
        ("own_module:nothing", "cannot be imported: AttributeError: module 'own_module' has no attribute 'nothing'"),
        ("broken_module:Net", "cannot be imported: SyntaxError"),
        ("own_module:needy", "called without arguments, and failed: TypeError: needy() missing 1 required"),
        ("own_module:wrong", "called without arguments, and failed: OSError: no such file"),
        ("own_module:number", "made a int; expected a torch.nn.Module"),
        ("own_module:torch", "called without arguments, and failed: TypeError: 'module' object is not callable"),
    ],
)
def test_model_that_cannot_be_made(factory: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_module.py").write_text(OWN)
    (tmp_path / "broken_module.py").write_text("def Net(:")
    ran = run("quantize", "--model", factory)
    assert (ran.status, ran.out) == (2, "")
    assert f"--model {factory!r}" in ran.line
    assert message in ran.line
    sys.modules.pop("own_module", None)
