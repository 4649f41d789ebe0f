"""Budgets on the command line and in Python: what they give, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fxptq
from fxptq.bits import Budget, as_budget
from fxptq.errors import InputError
from tests.tiny import RECIPE, Ran, edsr, inputs, run, swinir, write_recipe

ALLOCATED = RECIPE.replace(
    '[presets.quick]\nimages = 2\npasses = [{ name = "minmax" }]',
    '[presets.quick]\nimages = 4\npasses = [{ name = "minmax" }, { name = "allocate", crops = 1, draws = 2, k = 20 }]',
)


def quantize(folder: Path, *options: object, text: str = ALLOCATED) -> Ran:
    recipe, weights = write_recipe(folder, text)
    out = ["--out", folder / "m.safetensors", "--json", folder / "m.json"]
    return run("quantize", "--recipe", recipe, "--weights", weights, "--preset", "quick", *out, *options)


def result(folder: Path) -> dict:
    return json.loads((folder / "m.json").read_text())


@pytest.mark.parametrize(
    ("written", "budget"),
    [
        (3, Budget(average=3.0)),
        ("3.5", Budget(average=3.5)),
        ("600k", Budget(file_bytes=600_000)),
        ("1.5MB", Budget(file_bytes=1_500_000)),
        ("700000B", Budget(file_bytes=700_000)),
        ("12Gbop", Budget(operations=12e9)),
        (Budget(max_drop=0.1), Budget(max_drop=0.1)),
    ],
)
def test_budgets_are_read_as_people_write_them(written: Budget | float | str, budget: Budget) -> None:
    assert as_budget(written) == budget


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("lots", "budget 'lots'; expected average bits as in 3.0"),
        ("9", "an average of 9 bits is out of range"),
        ("600000", "an average of 600000 bits is out of range: expected 2 to 8"),
        ("0k", "expected a number above 0"),
        (True, "budget True"),
    ],
)
def test_other_budgets_are_refused(written: float | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_budget(written)


def test_an_average_gives_operands_their_own_bits_and_inspect_shows_them(tmp_path: Path) -> None:
    ran = quantize(tmp_path, "--budget", "3.5")
    assert (ran.status, ran.err) == (0, "")
    loaded = fxptq.load(tmp_path / "m.safetensors", swinir(1))
    widths = {q.bits for q in loaded.program.quantizers.values()}
    assert len(widths) > 2
    recipe = write_recipe(tmp_path, ALLOCATED)[0]
    shown = run("inspect", tmp_path / "m.safetensors", "--model", recipe, "--json", tmp_path / "i.json")
    assert shown.status == 0
    sites = json.loads((tmp_path / "i.json").read_text())["sites"]
    assert [(site["bits_w"], site["bits_a"]) for site in sites] == [site.bits for site in loaded.sites]
    assert result(tmp_path)["average_bits"]["w"] == pytest.approx(
        sum(site.operands[1].bits * _size(site) for site in loaded.sites if _size(site))
        / sum(_size(site) for site in loaded.sites)
    )


def _size(site: object) -> int:
    """The number of values of a site's weight; 0 for a product."""
    shape = site.shapes.get("weight")  # type: ignore[attr-defined]
    return int(torch.Size(shape).numel()) if shape else 0


def test_the_file_is_no_larger_than_asked_for(tmp_path: Path) -> None:
    assert quantize(tmp_path, "--w", 2, "--a", 4).status == 0
    smallest = (tmp_path / "m.safetensors").stat().st_size
    most = smallest + 4000
    ran = quantize(tmp_path, "--target-bytes", most)
    assert (ran.status, ran.err) == (0, "")
    size = (tmp_path / "m.safetensors").stat().st_size
    assert smallest < size <= most


def test_a_drop_is_measured_on_held_out_pictures(tmp_path: Path) -> None:
    ran = quantize(tmp_path, "--max-drop", 30)
    assert (ran.status, ran.err) == (0, "")
    assert result(tmp_path)["average_bits"]["a"] < 4


def test_uniform_keeps_the_planned_bits_up_to_one_per_cent_of_the_work(tmp_path: Path) -> None:
    assert quantize(tmp_path, "--w", 3, "--a", 3, "--uniform").status == 0
    sites = fxptq.load(tmp_path / "m.safetensors", swinir(1)).sites
    assert quantize(tmp_path, "--w", 3, "--a", 3, text=RECIPE).status == 0  # no allocation
    planned = fxptq.load(tmp_path / "m.safetensors", swinir(1)).sites
    pairs = [(one.bits, other.bits, other.macs) for one, other in zip(sites, planned, strict=True) if other.bits]
    assert all(w >= least[0] and a >= least[1] for (w, a), least, _ in pairs)
    spent, most = (sum(pair[i][0] * pair[i][1] * pair[2] for pair in pairs) for i in (0, 1))
    assert spent <= 1.01 * most


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "lots"), "--budget: budget 'lots'; expected average bits as in 3.0"),
        (("--budget", "3", "--max-drop", 1), "--budget and --max-drop are both budgets: leave one of them out"),
        (("--target-bits", 1), "--target-bits: an average of 1 bits is out of range: expected 2 to 8"),
        (("--target-bytes", "12Gbop"), "--target-bytes: budget '12GbopB'"),
        (("--target-bytes", 5000), "a file of 5,000 bytes is too small: 2 bits take"),
        (("--max-drop", -1), "--max-drop: the budget is -1; expected a number above 0"),
        (("--budget", "3", "--uniform"), "a budget gives each operand its own bits, and uniform forbids that"),
        (("--budget", "1kbop"), "bit operations: 1,000 cannot be met; the fewest bits take"),
    ],
)
def test_a_budget_that_cannot_be_met_is_one_line_and_leaves_no_file(
    tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    ran = quantize(tmp_path, *options)
    assert ran.status == 2
    assert ran.line.startswith(message)
    assert not (tmp_path / "m.safetensors").exists()


def test_python_takes_the_same_budgets_and_keeps_bits_chosen_by_name() -> None:
    images = list(inputs(4).split(1))
    task = {"scale": 2, "value_range": 1.0, "multiple": 1}
    q = fxptq.quantize(edsr(), inputs(1), calib=images, preset="quick", budget=5.0, sites={"body.0.*": "W3A3"}, **task)
    by_name = {site.name: site.bits for site in q.sites}
    assert by_name["body.0.body.0"] == (3, 3)
    assert len({bits for name, bits in by_name.items() if not name.startswith("body.0.")}) > 1
    x = inputs(1, 24)
    with torch.no_grad():
        integer = q.to_integer(compile=False, compare=False)
        apart = integer(x) - q(x)
        assert float(apart.square().mean().sqrt()) < 0.01 * float(q(x).std())
