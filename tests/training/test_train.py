"""Training: pairs that fit, a schedule that ends, a run that can be interrupted, a file that can be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from fxptq.data.degrade import Degradation
from fxptq.data.resize import imresize
from fxptq.errors import InputError
from fxptq.io.state_dict import load_state, read_state
from fxptq.models.edsr import EDSR
from fxptq.recipe import Recipe
from fxptq.training import export, train
from fxptq.training.backward import Eager, Graphed
from fxptq.training.blocks import compile_blocks
from fxptq.training.loop import AVERAGE, CHECKPOINT, LOG, Trainer, TrainSettings
from fxptq.training.patches import PatchSampler, TrainingPair, make_pair, read_pairs

X2, X4 = (Degradation("bicubic", scale=scale) for scale in (2, 4))
SETTINGS = TrainSettings(steps=6, warmup=2, patches=(8, 12), pixels=144, bf16=False, lr=1e-3)
TINY = """
name = "tiny"
title = "Tiny EDSR x2"
scale = 2
[model]
factory = "fxptq.models.edsr:EDSR"
args = { n_resblocks = 1, n_feats = 16, scale = 2 }
[input]
range = 255.0
[degradation]
kind = "bicubic"
"""


def photographs(count: int) -> list[npt.NDArray[np.uint8]]:
    """Smooth random pictures, 40 by 52."""
    generator = np.random.default_rng(0)
    return [imresize(generator.integers(0, 256, (10, 13, 3), dtype=np.uint8), 4) for _ in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "photographs"
    path.mkdir()
    for index, image in enumerate(photographs(3)):
        Image.fromarray(image).save(path / f"{index}.png")
    return path


def trainer(out: Path, settings: TrainSettings = SETTINGS, features: int = 8) -> Trainer:
    torch.manual_seed(0)
    model = EDSR(n_resblocks=1, n_feats=features, scale=2)
    pairs = [make_pair(image, X2) for image in photographs(3)]
    return Trainer(model, pairs[1:], pairs[:1], degradation=X2, value_range=255, settings=settings, out=out)


def test_low_side_is_matlab_bicubic_of_the_cropped_high_side() -> None:
    image = photographs(1)[0][:39]
    pair = make_pair(image, X4)
    assert pair.high.shape == (3, 36, 52)
    np.testing.assert_array_equal(pair.low.permute(1, 2, 0).numpy(), imresize(image[:36], 1 / 4))


def test_patches_lie_over_each_other_whatever_the_turn() -> None:
    generator = torch.Generator().manual_seed(0)
    high = torch.randint(256, (3, 40, 60), dtype=torch.uint8, generator=generator)
    low, high = PatchSampler([TrainingPair(low=high[:, ::4, ::4], high=high)], X4, seed=0).draw(64, 6)
    assert low.shape == (64, 3, 6, 6)
    assert high.shape == (64, 3, 24, 24)
    # The low pixel is a corner of its 4 x 4 block of high ones; which of the four depends on the turn.
    fits = torch.stack([(high[:, :, y::4, x::4] == low).flatten(1).all(1) for y in (0, 3) for x in (0, 3)])
    assert (fits.sum(0) == 1).all()
    assert fits.any(1).all()


def test_same_seed_same_patches() -> None:
    pairs = [make_pair(image, X4) for image in photographs(3)]
    first, second, other = (PatchSampler(pairs, X4, seed).draw(4, 8)[1] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        read_pairs(tmp_path / "none", X4)


def test_progress_is_the_further_of_updates_and_clock() -> None:
    settings = TrainSettings(steps=100, minutes=10)
    assert settings.progress(50, 60) == 0.5
    assert settings.progress(10, 300) == 0.5
    assert settings.progress(500, 0) == 1
    assert TrainSettings(steps=100).progress(1, 1e9) == 0.01


def test_learning_rate_rises_then_falls() -> None:
    settings = TrainSettings(steps=1000, lr=1.0, warmup=10)
    rates = [settings.learning_rate(step, step / 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[500] == pytest.approx(0.505)
    assert rates[1000] == pytest.approx(0.01)


def test_patches_grow_over_equal_parts() -> None:
    settings = TrainSettings(patches=(24, 32, 48))
    assert [settings.patch(part) for part in (0, 0.33, 0.34, 0.66, 0.67, 1.0)] == [24, 24, 32, 32, 48, 48]


def test_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    trainer(tmp_path / "whole").run()
    part = trainer(tmp_path / "parts")
    for _ in range(3):
        part._update(SETTINGS.progress(part.step, 0))
    part._snapshot([])
    rest = trainer(tmp_path / "parts")
    assert rest.step == 3
    rest.run()
    whole, parts = (read_state(tmp_path / run / AVERAGE) for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_training_raises_the_score_and_says_so(tmp_path: Path, bf16: bool) -> None:
    settings = TrainSettings(steps=60, warmup=4, patches=(8,), pixels=256, bf16=bf16, lr=2e-3, decay=0.8)
    run = trainer(tmp_path, settings)
    before = run.held_out_psnr()
    run.run()
    line = json.loads((tmp_path / LOG).read_text().splitlines()[-1])
    assert (line["step"], line["progress"]) == (60, 1.0)
    assert line["held_out_psnr"] > before + 1


def test_fixed_layers_stay_fixed_and_files_are_whole(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run()
    assert torch.equal(run.model.sub_mean.weight, torch.eye(3).view(3, 3, 1, 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CHECKPOINT, AVERAGE, LOG])


def test_folder_of_another_network(tmp_path: Path) -> None:
    trainer(tmp_path)._snapshot([])
    with pytest.raises(InputError, match="of another network; choose another folder"):
        trainer(tmp_path, features=4)


def test_train_then_export(tmp_path: Path, folder: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(TINY)
    run, out, benchmark = tmp_path / "run", tmp_path / "tiny.safetensors", tmp_path / "Bench"
    options = {"data": folder, "out": run, "steps": 3, "patches": 8, "pixels": 128, "held-out": 1}
    trained = CliRunner().invoke(train.app, as_options(recipe=recipe, **options))
    assert trained.exit_code == 0, trained.output
    for image in folder.iterdir():
        pair = make_pair(np.array(Image.open(image)), X2)
        for name, pixels in ((f"HR/{image.name}", pair.high), (f"LR_bicubic/X2/{image.stem}x2.png", pair.low)):
            (benchmark / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(benchmark / name)
    options = {"run": run, "out": out, "measure": f"Bench={benchmark}", "data": "three pictures."}
    exported = CliRunner().invoke(export.app, as_options(recipe=recipe, **options))
    assert exported.exit_code == 0, exported.output
    state = read_state(out)
    assert {t.dtype for t in state.values()} == {torch.float16}
    load_state(Recipe.load(recipe).build_model(), state)
    card = out.with_suffix(".md").read_text()
    assert "- Data: three pictures." in card
    assert "3 updates" in card
    assert "| Bench | " in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"recipe": "default"},
            "recipe default has no [degradation]; training makes the network's inputs by it",
        ),
        ({"recipe": "edsr_x4", "held-out": 3}, "holds 3 images; with --held-out 3 none is left to train on"),
        ({"recipe": "edsr_x4", "patches": "a,b"}, "--patches 'a,b': expected whole numbers"),
        ({"recipe": "edsr_x4", "patches": 64, "held-out": 0}, "smaller than the patch of 64"),
        ({"recipe": "edsr_5x"}, "no recipe 'edsr_5x'"),
        ({"recipe": "edsr_x4", "device": "tpu"}, "--device 'tpu': expected auto, cpu or cuda"),
        ({"recipe": "edsr_x4", "held-out": 0, "start": "none.safetensors"}, "no weights file at none.safetensors"),
    ],
)
def test_mistake_is_one_line(tmp_path: Path, folder: Path, options: dict[str, object], message: str) -> None:
    arguments = as_options(**options, data=folder, out=tmp_path / "run", seed=1)
    run = CliRunner().invoke(train.app, arguments)
    assert run.exit_code == 2
    assert message in run.output
    assert len(run.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("out", "message"), [("w.safetensors", "no weights file at"), ("w.pth", "ends in .safetensors")]
)
def test_export_says_what_is_wrong(tmp_path: Path, out: str, message: str) -> None:
    run = CliRunner().invoke(export.app, as_options(recipe="edsr_x4", run=tmp_path, out=tmp_path / out))
    assert run.exit_code == 2
    assert message in run.output


def test_start_takes_what_the_networks_share_and_the_card_names_it(tmp_path: Path, folder: Path) -> None:
    recipe, other = tmp_path / "tiny.toml", tmp_path / "tiny_x4.toml"
    recipe.write_text(TINY)
    other.write_text(TINY.replace("scale = 2", "scale = 4"))
    x4 = {"data": folder, "out": tmp_path / "x4", "steps": 3, "patches": 8, "pixels": 64, "held-out": 1}
    assert CliRunner().invoke(train.app, as_options(recipe=other, **x4)).exit_code == 0
    start = tmp_path / "x4" / AVERAGE
    # With a rate of 0 the file holds the first weights.
    x2 = {**x4, "out": tmp_path / "x2", "steps": 1, "lr": 0}
    arguments = [*as_options(recipe=recipe, **x2), "--start", str(start)]
    begun = CliRunner().invoke(train.app, arguments)
    assert begun.exit_code == 0, begun.output
    given, first = read_state(start), read_state(tmp_path / "x2" / AVERAGE)
    shared = {name for name in first if name in given and given[name].shape == first[name].shape}
    assert {"head.0.weight", "body.0.body.0.weight", "tail.0.0.weight"} <= shared
    assert all(torch.equal(first[name], given[name]) for name in shared)
    options = {"run": tmp_path / "x2", "out": tmp_path / "x2.safetensors"}
    exported = CliRunner().invoke(export.app, as_options(recipe=recipe, **options))
    assert exported.exit_code == 0, exported.output
    assert f"--start {AVERAGE}" in (tmp_path / "x2.md").read_text()


def test_start_of_a_network_that_shares_nothing(tmp_path: Path, folder: Path) -> None:
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    options = {"data": folder, "out": tmp_path / "run", "start": tmp_path / "other.safetensors"}
    arguments = [*as_options(recipe="edsr_x4", **options), "--held-out", "1"]
    run = CliRunner().invoke(train.app, arguments)
    assert run.exit_code == 2
    assert "no tensor has the name and shape of one of the network's" in run.output


def test_graph_needs_a_gpu(tmp_path: Path, folder: Path) -> None:
    run = CliRunner().invoke(train.app, [*as_options(recipe="edsr_x4", data=folder, out=tmp_path / "run"), "--graph"])
    assert run.exit_code == 2
    assert "--graph: CUDA graphs need --device cuda; the device is cpu" in run.output


@pytest.mark.parametrize(
    ("recipe", "count", "kind"),
    [("swinir_x4", 24, "SwinTransformerBlock"), ("edsr_x4", 16, "ResBlock"), ("nafnet_q10", 10, "NAFBlock")],
)
def test_repeated_blocks_are_compiled(monkeypatch: pytest.MonkeyPatch, recipe: str, count: int, kind: str) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__))
    compile_blocks(Recipe.load(recipe).build_model())
    assert compiled == [kind] * count


def test_network_without_repeated_blocks_is_compiled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(module))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1))
    compile_blocks(model)
    assert compiled == [model]


def test_larger_images_are_drawn_more_often() -> None:
    images = [torch.full((3, side, side), value, dtype=torch.uint8) for side, value in ((10, 0), (20, 255))]
    pairs = [TrainingPair(low, low.repeat_interleave(4, 1).repeat_interleave(4, 2)) for low in images]
    low, high = PatchSampler(pairs, X4, seed=0).draw(4000, 2)
    assert low.mean().item() == pytest.approx(0.8, abs=0.02)  # 400 of 500 pixels
    assert torch.equal(low[:, 0, 0, 0], high[:, 0, 0, 0])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_replayed_gradients_are_those_of_a_plain_run() -> None:
    torch.manual_seed(0)
    model = EDSR(n_resblocks=1, n_feats=8, scale=2).cuda()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        return (model(low) - high).square().mean()

    plain, graphed = Eager(loss, trained), Graphed(loss, trained)
    for side in (8, 8, 12):
        low, high = torch.rand(2, 3, side, side, device="cuda"), torch.rand(2, 3, 2 * side, 2 * side, device="cuda")
        expected = plain(low, high)
        gradients = [parameter.grad.clone() for parameter in trained]
        assert torch.allclose(graphed(low, high), expected)
        for parameter, gradient in zip(trained, gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def as_options(**options: object) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]
