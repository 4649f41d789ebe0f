"""The comparison of calibration sources: what it keeps, what it measures again, and what its rows say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import calibration, exactness
from benchmarks.study import FigureStore, Study, inputs_of, parsed, scores
from fxptq.api import load
from fxptq.commands.source import Source
from fxptq.evaluate.sets import BenchmarkSet, samples
from fxptq.passes.base import run_passes
from fxptq.progress import Silent
from fxptq.recipe import PassEntry, Recipe
from tests.tiny import RECIPE, swinir

BITS = 4


@pytest.fixture(scope="module")
def source() -> Source:
    return Source("tiny", swinir(), Recipe.parse(RECIPE, "tiny"))


@pytest.fixture(scope="module")
def sets(source: Source) -> list[BenchmarkSet]:
    return [samples(source.recipe.task, count=2, size=16)]


@pytest.fixture(autouse=True)
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(calibration, "OUT", tmp_path)
    return tmp_path


def study(source: Source, seed: int = 0) -> Study:
    inputs = inputs_of(source.recipe, "synthetic", 2, seed)
    return Study(source, inputs, source.recipe.preset("standard"), 0, Silent())


def test_a_stored_network_scores_what_the_row_says(source: Source, sets: list[BenchmarkSet], out: Path) -> None:
    rows = calibration.measured(study(source), "synthetic", BITS, sets, FigureStore(out / "rows.json"))
    assert list(rows) == ["bounds", "DQC"]
    for row in rows.values():
        again = load(out / row["checkpoint"], swinir(seed=1)).to_integer(compile=False)
        assert scores(again, sets, source) == row["scores"]
    assert rows["bounds"]["simulated"]["samples"]["psnr_y"] == pytest.approx(
        rows["bounds"]["scores"]["samples"]["psnr_y"], abs=calibration.AGREEMENT
    )


def test_what_is_finished_is_not_measured_again(
    source: Source, sets: list[BenchmarkSet], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = calibration.measured(study(source), "synthetic", BITS, sets, FigureStore(out / "rows.json"))
    monkeypatch.setattr(Study, "at", lambda *_: pytest.fail("calibrated again"))
    assert calibration.measured(study(source), "synthetic", BITS, sets, FigureStore(out / "rows.json")) == rows
    with pytest.raises(pytest.fail.Exception, match="calibrated again"):
        calibration.measured(study(source, seed=1), "other inputs", BITS, sets, FigureStore(out / "rows.json"))


def test_a_row_that_was_cut_off_is_the_one_of_a_whole_run(
    source: Source, sets: list[BenchmarkSet], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = calibration.measured(study(source), "synthetic", BITS, sets, FigureStore(out / "whole.json"))
    put = FigureStore.put

    def stop_after_bounds(store: FigureStore, key: dict, figures: dict) -> dict:
        if figures["after"] == "DQC":
            raise KeyboardInterrupt
        return put(store, key, figures)

    with monkeypatch.context() as patch:
        patch.setattr(FigureStore, "put", stop_after_bounds)
        with pytest.raises(KeyboardInterrupt):
            calibration.measured(study(source), "synthetic", BITS, sets, FigureStore(out / "cut.json"))
    rows = calibration.measured(study(source), "synthetic", BITS, sets, FigureStore(out / "cut.json"))
    assert {step: row["scores"] for step, row in rows.items()} == {step: row["scores"] for step, row in whole.items()}


def test_storing_a_network_does_not_change_what_is_calibrated_next(source: Source) -> None:
    measuring = study(source)
    context, x = measuring.at(BITS), measuring.images[0]
    run_passes([("dobi", {})], context)

    def weights() -> dict[str, list[float]]:
        tensors = ((key, context.student.weight_of(key)) for key in context.student.quantizers)
        return {key: tensor.flatten().tolist() for key, tensor in tensors if tensor is not None}

    def bounds() -> dict[str, list[float]]:
        return {key: torch.cat([q.lower, q.width]).tolist() for key, q in context.student.quantizers.items()}

    trained, found = weights(), bounds()
    with torch.no_grad():
        before, teacher = context.student(x), context.teacher(x)
        with measuring.finished(context, BITS, measuring.steps[0][1]) as quantized:
            # Bounds of output channels are rounded in a file, which makes the error no larger.
            assert (quantized(x) - teacher).norm() < 1.05 * (before - teacher).norm()
            assert weights() != trained
            assert bounds() != found
    assert (weights(), bounds()) == (trained, found)
    with torch.no_grad():
        assert torch.equal(context.student(x), before)


def test_one_observation_serves_every_width(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, fresh = study(source), study(source)
    shared.at(8)
    monkeypatch.setattr(shared, "images", [])  # observing again would fail
    bounds = []
    for one in (shared, fresh):
        context = one.at(BITS)
        one.run(context, [PassEntry(name="observe"), PassEntry(name="dobi")])
        bounds.append({key: torch.cat([q.lower0, q.width0]).tolist() for key, q in context.student.quantizers.items()})
    assert bounds[0] == bounds[1]


def test_settings_of_dqc_are_the_presets_but_for_those_given(source: Source) -> None:
    preset = calibration.with_dqc(source.recipe.preset("standard"), parsed("steps=7,lr=1e-2"))
    assert preset.passes[0] == source.recipe.preset("standard").passes[0]
    assert preset.passes[1].settings == {
        **source.recipe.preset("standard").passes[1].settings, "steps": 7, "lr": 0.01,
    }  # fmt: skip


def test_a_row_gives_both_sources_and_their_difference() -> None:
    ours = {"Set5": {"psnr_y": 30.444}, "B100": {"psnr_y": 27.0}}
    theirs = {"Set5": {"psnr_y": 30.531}, "B100": {"psnr_y": 27.001}}
    expected = "| W3A3 | DQC | 30.44 / 30.53 (-0.09) | 27.00 / 27.00 (+0.00) |"
    assert calibration.line(3, "DQC", ours, theirs) == expected


def test_disagreement_of_integers_and_simulation_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for integer, said in ((30.449, False), (30.46, True)):
        calibration.compare(3, {"Set5": {"psnr_y": 30.444}}, {"Set5": {"psnr_y": integer}})
        assert ("apart" in capsys.readouterr().err) is said


def test_runs_that_share_a_file_keep_each_others_figures(tmp_path: Path) -> None:
    first, second = FigureStore(tmp_path / "rows.json"), FigureStore(tmp_path / "rows.json")
    first.put({"bits": 4}, {"psnr": 1.0})
    second.put({"bits": 3}, {"psnr": 2.0})
    assert FigureStore(tmp_path / "rows.json").get({"bits": 4}) == {"psnr": 1.0}
    assert FigureStore(tmp_path / "rows.json").get({"bits": 3}) == {"psnr": 2.0}


def test_a_set_is_cut_to_its_first_pictures_and_says_so(sets: list[BenchmarkSet]) -> None:
    short = exactness.cut(sets[0], 1)
    assert (short.name, len(short)) == ("samples, first 1", 1)
    np.testing.assert_array_equal(next(iter(short)).hr, next(iter(sets[0])).hr)
    assert exactness.cut(sets[0], 2) is sets[0]


def test_exactness_uses_the_checkpoint_that_is_there(
    source: Source, sets: list[BenchmarkSet], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration.measured(study(source), "synthetic", BITS, sets, FigureStore(out / "rows.json"))
    monkeypatch.setattr(Study, "at", lambda *_: pytest.fail("calibrated again"))
    store = FigureStore(out / "exactness.json")
    cell = exactness.measured(study(source), BITS, sets[0], 0.0, store)
    simulated, integer = (float(word) for word in cell.split("(")[0].split("/"))
    assert simulated == pytest.approx(integer, abs=calibration.AGREEMENT)
    nudged = exactness.measured(study(source), BITS, sets[0], 0.5, store).split("nudged ")[1]
    assert all(float(moved) != 0.0 for moved in nudged.split(", "))


def test_a_nudge_leaves_weights_and_quantizers(source: Source, sets: list[BenchmarkSet], out: Path) -> None:
    calibration.measured(study(source), "synthetic", BITS, sets, FigureStore(out / "rows.json"))
    before = exactness.calibrated(study(source), BITS)
    after = exactness.nudged(exactness.calibrated(study(source), BITS), 0.5)
    moved = {
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert moved
    assert all(name.endswith(("bias", "norm.weight", "norm1.weight", "norm2.weight")) for name in moved)


def test_photographs_are_taken_from_their_folder(source: Source, tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(np.full((64, 64, 3), 60 * i + 60, np.uint8)).save(tmp_path / f"{i}.png")
    images, said = inputs_of(source.recipe, tmp_path, 3, 0)
    assert sorted(round(float(x.mean() * 255)) for x in images) == [60, 120, 180]
    assert "3 crops" in said
