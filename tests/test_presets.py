"""The presets with maps, from the call to the file and the integer model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxptq
from fxptq.bits import Budget
from fxptq.budget import with_budget
from fxptq.commands.source import open_network
from fxptq.quant.schemes.affine import Affine
from fxptq.quant.schemes.shares import Shares
from fxptq.recipe import Recipe
from tests.tiny import Medley, edsr, inputs, swinir

TASK = {"scale": 2, "value_range": 1.0, "multiple": 8}
SCHEMES = Recipe.load("default").preset("quick").quantize.schemes


def lively(model: nn.Module) -> nn.Module:
    """A network whose layers have more to say than at the start of a training."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4 if "table" in name else 2)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(torch.logspace(-1, 0.5, len(parameter)))
    return model


def plain(schemes: dict[str, str]) -> Recipe:
    """A recipe whose preset `quick` searches bounds and does nothing else."""
    settings = Recipe.load("default").model_dump()
    settings["quantize"]["schemes"] = schemes
    settings["presets"] = {"quick": {"images": 2, "passes": [{"name": "observe"}, {"name": "dobi2d", "k": 20}]}}
    return Recipe.model_validate(settings)


@pytest.mark.parametrize(
    ("preset", "budget", "uniform", "widths_move"),
    [
        ("standard", None, False, True),
        ("standard", None, True, False),
        ("best", None, False, True),
        ("quick", None, False, False),
        ("quick", Budget(average=3.0), False, True),
    ],
    ids=["standard", "standard uniform", "best", "quick", "quick with a budget"],
)
def test_maps_are_chosen_for_widths_that_move_where_the_allocation_moves_them(
    preset: str, budget: Budget | None, uniform: bool, widths_move: bool
) -> None:
    passes = with_budget(Recipe.load("default").preset(preset).passes, budget, uniform=uniform)
    settings = {step.name: step.settings for step in passes}
    assert settings["channels"].get("widths_move", False) is widths_move
    assert settings["allocate"].get("raise_only", False) is not widths_move
    names = [step.name for step in passes]
    again = "attention" in names[names.index("allocate") :]
    assert again is (preset != "quick" and not uniform)  # at the widths that came out


@pytest.mark.parametrize("make", [swinir, edsr, Medley], ids=["swinir", "edsr", "medley"])
def test_a_file_gives_the_network_back_bit_for_bit_and_integers_agree(make: type, tmp_path: Path) -> None:
    model = lively(make())
    q = fxptq.quantize(model, inputs(1), fxptq.Bits(3, 3), list(inputs(6).split(1)), preset="quick", **TASK)
    assert [report.name for report in q.report] == ["observe", "dobi2d", "channels", "attention", "allocate", "refit"]
    q.save(tmp_path / "m.safetensors")
    loaded = fxptq.load(tmp_path / "m.safetensors", make())
    x = torch.rand(2, 3, 24, 16)
    with torch.no_grad():
        expected = q(x)
        assert torch.equal(loaded(x), expected)
        integer = loaded.to_integer(compile=False, compare=False)
        apart = integer(x) - expected  # a code on a tie may flip, and moves a few values by its step
        assert float(apart.square().mean().sqrt()) < 0.01 * float(expected.std())
    assert any(
        isinstance(quantizer, Shares) or (isinstance(quantizer, Affine) and not quantizer.is_identity)
        for quantizer in q.program.quantizers.values()
    )
    assert not [reason for reason in integer.lowering.simulated.values() if "map" in reason or "shares" in reason]
    assert set(integer.lowering.kernels) | set(integer.lowering.simulated) == {s.name for s in q.sites if s.bits[0]}


def test_a_network_of_tamed_channels_is_served_by_integers_as_with_the_plain_scheme() -> None:
    def quantized(schemes: dict[str, str]) -> fxptq.QuantizedModel:
        return fxptq.quantize(swinir(), inputs(1), 4, list(inputs(2).split(1)), plain(schemes), preset="quick", **TASK)

    uniform = quantized({})
    affine = quantized({name: scheme for name, scheme in SCHEMES.items() if scheme == "affine"})
    x = inputs(1, 24)
    with torch.no_grad():
        assert torch.equal(affine(x), uniform(x))
        ours, theirs = (q.to_integer(compile=False, compare=False) for q in (affine, uniform))
        assert torch.equal(ours(x), theirs(x))
    assert ours.lowering.simulated == theirs.lowering.simulated


def test_eight_bits_lose_nothing_to_it() -> None:
    model, images = lively(swinir()), list(inputs(6).split(1))
    x = inputs(4, 32, seed=9)
    errors = {}
    with torch.no_grad():
        for name, recipe in (("plain", plain({})), ("maps", None)):
            q = fxptq.quantize(model, inputs(1), 8, images, recipe, preset="quick", **TASK)
            errors[name] = float((q(x) - model(x)).square().mean())
    assert errors["maps"] < 1.1 * errors["plain"]


@pytest.mark.slow
def test_a_bundled_network_keeps_its_maps_in_integers() -> None:
    source = open_network("edsr_x4")
    noise = torch.rand(7, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    pictures = source.recipe.input.range * F.interpolate(noise, scale_factor=4, mode="bicubic").clamp(0, 1)
    q = fxptq.quantize(
        source.model, pictures[:1], fxptq.Bits(3, 3), list(pictures[:6].split(1)), source.recipe, preset="quick"
    )
    integer = q.to_integer(compile=False, compare=False)
    assert any(
        isinstance(quantizer, Affine) and not quantizer.is_identity for quantizer in q.program.quantizers.values()
    )
    assert not integer.lowering.simulated
    with torch.no_grad():
        expected = q(pictures[6:])
        apart = (integer(pictures[6:]) - expected).abs() / float(expected.max() - expected.min())
    assert float(apart.median()) < 1e-3  # codes beside ties, which every site of a deep network has
    assert float(apart.mean()) < 3e-3


def brief() -> Recipe:
    """A recipe whose preset `standard` has four steps of distillation; a tiny network would get 768."""
    settings = Recipe.load("default").model_dump()
    for step in settings["presets"]["standard"]["passes"]:
        if step["name"] == "dqc":
            step |= {"steps": 4, "eval_every": 2, "work": 0.0}
    return Recipe.model_validate(settings)


@pytest.mark.parametrize("preset", ["quick", "standard"])
def test_torch_s_default_type_changes_nothing(preset: str) -> None:
    model, x, many, recipe = swinir(), inputs(1), inputs(), brief()
    usual = fxptq.quantize(model, x, 4, many, recipe, preset=preset)(x)
    torch.set_default_dtype(torch.float64)
    try:
        found = fxptq.quantize(model, x, 4, many, recipe, preset=preset)(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, usual)
