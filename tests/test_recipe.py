"""Recipes: the bundled ones are sound, and whatever is wrong with others is said in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from fxptq.bits import Bits, parse_bits
from fxptq.data.degrade import Degradation
from fxptq.errors import InputError
from fxptq.formats import PictureFormat
from fxptq.passes.base import build_pass
from fxptq.recipe import Recipe
from fxptq.sizes import Sizes

NETWORKS = [
    "dncnn_s25",
    "edsr_x2",
    "edsr_x3",
    "edsr_x4",
    "nafnet_q10",
    "swinir_denoise25",
    "swinir_jpeg40",
    "swinir_x2",
    "swinir_x3",
    "swinir_x4",
]
OWN = {"dncnn_s25", "nafnet_q10"}
"""Made for this project, published nowhere else."""

MINIMAL = """
name = "tiny"
title = "Tiny"
scale = 2
[model]
factory = "torch.nn:Identity"
[degradation]
kind = "bicubic"
[quantize]
high_sites = ["head*"]
[presets.quick]
passes = [{ name = "observe", bins = 64 }, { name = "minmax" }]
[presets.paper]
images = 8
quantize = { weight_granularity = "tensor" }
passes = [{ name = "observe" }]
"""


def test_names_are_the_files() -> None:
    assert Recipe.names() == sorted(["default", "pairs", *NETWORKS])


@pytest.mark.parametrize("name", ["default", "pairs", *NETWORKS])
def test_bundled_recipe_is_called_what_its_file_is_and_has_every_preset(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    for preset in ("quick", "standard", "best", "paper"):
        assert recipe.preset(preset).passes[0].name == "observe"


@pytest.mark.parametrize("name", ["default", "pairs", *NETWORKS])
@pytest.mark.parametrize("preset", ["quick", "standard", "best", "paper"])
def test_every_pass_knows_its_settings(name: str, preset: str) -> None:
    for entry in Recipe.load(name).preset(preset).passes:
        build_pass(entry.name, entry.settings)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in {"swinir_denoise25", "swinir_jpeg40"}])
def test_network_scales_its_example_as_the_recipe_says(name: str) -> None:
    recipe = Recipe.load(name)
    side = 2 * recipe.input.multiple + (0 if name in OWN else 1)  # the published ones pad themselves
    with torch.inference_mode():
        output = recipe.build_model()(torch.zeros(1, recipe.input.channels, side, side))
    assert output.shape == (1, recipe.input.channels, side * recipe.scale, side * recipe.scale)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in OWN])
def test_network_and_address_are_the_published_ones(shared: Path, name: str) -> None:
    recipe = Recipe.load(name)
    published = json.loads((shared / "reference" / "published_weights.json").read_text())
    entry = published[Path(recipe.weights.file).stem]
    assert recipe.model is not None
    assert recipe.model.args == entry["config"]
    assert recipe.weights.url == entry["url"]
    assert recipe.weights.sha256 == entry.get("sha256_prefix", "")


def test_tasks() -> None:
    assert Recipe.load("swinir_x3").task == Degradation("bicubic", scale=3)
    assert Recipe.load("swinir_denoise25").task == Degradation("noise", sigma=25)
    assert Recipe.load("swinir_jpeg40").task == Degradation("jpeg", quality=40)
    assert Recipe.load("default").task == Degradation("none")


def test_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    recipe = Recipe.load(path)
    assert recipe == Recipe.load(str(path))
    assert isinstance(recipe.build_model(), torch.nn.Identity)


def test_preset_changes_what_it_names_and_nothing_else() -> None:
    recipe = Recipe.parse(MINIMAL, "mine")
    quick, paper = recipe.preset("quick"), recipe.preset("paper")
    assert quick.quantize == recipe.quantize
    assert paper.quantize == recipe.quantize.model_copy(update={"weight_granularity": "tensor"})
    assert (quick.images, paper.images) == (32, 8)
    assert [(entry.name, entry.settings) for entry in quick.passes] == [("observe", {"bins": 64}), ("minmax", {})]


def test_presets_have_names_of_ones_own() -> None:
    recipe = Recipe.parse(MINIMAL.replace("[presets.quick]", "[presets.over-night_2]"), "mine")
    assert recipe.preset_names == ["quick", "standard", "best", "paper", "over-night_2"]
    assert [entry.name for entry in recipe.preset("over-night_2").passes] == ["observe", "minmax"]
    with pytest.raises(
        InputError, match="no preset 'night'; recipe tiny has quick, standard, best, paper, over-night_2"
    ):
        recipe.preset("night")


def test_sizes_that_are_not_said_are_not_written() -> None:
    plain = Recipe.parse(MINIMAL, "mine")
    assert plain.model_dump(mode="json")["input"] == {"channels": 3, "range": 1.0, "multiple": 1, "size": [64, 64]}
    said = Recipe.parse(MINIMAL + "[input]\nminimum = 32\nsquare = true\nmultiple = 8\n", "mine")
    assert said.input.sizes == Sizes(8, 32, square=True)
    assert Recipe.model_validate(said.model_dump(mode="json")) == said
    fixed = Recipe.parse(MINIMAL + "[input]\nfixed = [32, 64]\n", "mine")
    assert fixed.pictures == PictureFormat(3, 1.0, 2, Sizes(fixed=(32, 64)))
    assert fixed.model_dump(mode="json")["input"]["fixed"] == [32, 64]


def test_recipe_cannot_be_changed() -> None:
    recipe = Recipe.parse(MINIMAL, "mine")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.quantize.high_bits = 4


def test_bits_of_sites() -> None:
    text = MINIMAL.replace('high_sites = ["head*"]', 'sites = { "head*" = "W3A8", "*" = "float" }')
    assert list(Recipe.parse(text, "mine").quantize.sites.items()) == [("head*", "W3A8"), ("*", "float")]
    assert Recipe.parse(text, "mine").preset("paper").quantize.sites == {"head*": "W3A8", "*": "float"}


@pytest.mark.parametrize("text", ["W3A8", "float"])
def test_bits_are_read(text: str) -> None:
    assert parse_bits(text) == (Bits(3, 8) if text != "float" else "float")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w3a8", "'w3a8': expected bits as in W3A4, or float"),
        ("W1A8", "bits w=1 is out of range"),
        ("", "expected bits"),
    ],
)
def test_bits_that_are_none(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_bits(text)


def test_network_beside_the_recipe_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_me.py").write_text("from torch import nn\ndef make(): return nn.Identity()\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('hides what is installed')\n")
    before = list(sys.path)
    recipe = Recipe.parse(MINIMAL.replace("torch.nn:Identity", "beside_me:make"), "mine")
    assert isinstance(recipe.build_model(), torch.nn.Identity)
    assert sys.path == before


def test_missing_preset_is_named() -> None:
    with pytest.raises(InputError, match="no preset 'fast'; recipe tiny has quick, standard, best, paper"):
        Recipe.parse(MINIMAL, "mine").preset("fast")


def test_preset_that_is_not_given_is_the_shared_one() -> None:
    own, shared = Recipe.parse(MINIMAL, "mine").preset("standard"), Recipe.load("default").preset("standard")
    assert own.passes == shared.passes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swinir_4x", "no recipe 'swinir_4x'; did you mean 'swinir_x4'"),
        ("zzz", "no recipe 'zzz'; there are default, dncnn_s25, edsr_x2"),
        ("no/such.toml", "cannot read the recipe no/such.toml: No such file"),
    ],
)
def test_unknown_name(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.load(name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Tiny"', "", "mine: title: field required"),
        ("scale = 2", "scale = 0", "mine: scale: .* greater than 0, not 0"),
        ("scale = 2", 'scale = "2"', "mine: scale: .* valid integer, not '2'"),
        ("scale = 2", "scale = 2\nsise = 3", "mine: sise: no such field"),
        ("scale = 2", "scale = ", "mine is not a TOML file: .* line 4"),
        ("[quantize]", "[input]\nrange = 128.0\n[quantize]", "mine: input.range: expected 1 or 255, not 128"),
        ("[quantize]", "[input]\nsize = [64]\n[quantize]", r"mine: input.size.1: field required"),
        ("[quantize]", '[quantize]\nsites = { "a" = "W9A4" }', "mine: quantize.sites.a: .* not 'W9A4'"),
        ("[quantize]", "[quantize]\nhigh_bits = 9", "mine: quantize.high_bits: .* 8, not 9"),
        ("[quantize]", '[quantize]\nkinds = ["rnn"]', "mine: quantize.kinds.0: .* not 'rnn'"),
        ('"tensor"', '"row"', "presets.paper.quantize.weight_granularity: .* not 'row'"),
        ("[presets.quick]", '[presets."so fast"]', r"mine: presets.so fast.\[key\]: .*not 'so fast'"),
        ("[quantize]", "[input]\nmultiple = 8\nfixed = [32, 60]\n[quantize]", "mine: input: the fixed size 32x60 is"),
        ("[quantize]", "[input]\nsquare = true\nfixed = [32, 64]\n[quantize]", "the fixed size 32x64 is not square"),
        ("[quantize]", "[input]\nminimum = 0\n[quantize]", "mine: input.minimum: .* greater than 0, not 0"),
        ('{ name = "minmax" }', "{ bins = 3 }", r"mine: presets.quick.passes.1.name: field required"),
        ('kind = "bicubic"', 'kind = "noise"', r"mine: the file: degradation 'noise' cannot have sigma"),
        ('kind = "bicubic"', 'kind = "bicubic"\nquality = 40', "'bicubic' cannot have quality 40"),
        ("torch.nn:Identity", "torch.nn.Identity", "mine: model.factory: .* pattern"),
    ],
)
def test_mistake_is_one_line_that_names_file_and_field(old: str, new: str, message: str) -> None:
    assert old in MINIMAL
    with pytest.raises(InputError, match=message) as caught:
        Recipe.parse(MINIMAL.replace(old, new), "mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "args", "message"),
    [
        ("no.such:thing", "{}", "recipe tiny: model.factory 'no.such:thing' cannot be imported: No module named 'no'"),
        ("torch.nn:Nothing", "{}", "'torch.nn:Nothing' cannot be imported"),
        ("torch.nn:Linear", "{ sides = 3 }", "'torch.nn:Linear' does not accept model.args: .*sides"),
        ("fxptq.models.swinir:SwinIR", '{ upsampler = "magic" }', "does not accept model.args: upsampler is 'magic'"),
        ("builtins:dict", "{}", "made a dict; expected a torch.nn.Module"),
    ],
)
def test_network_that_cannot_be_built(factory: str, args: str, message: str) -> None:
    text = MINIMAL.replace('factory = "torch.nn:Identity"', f'factory = "{factory}"\nargs = {args}')
    with pytest.raises(InputError, match=message):
        Recipe.parse(text, "mine").build_model()


def test_default_recipe_asks_for_a_network() -> None:
    with pytest.raises(InputError, match="give one"):
        Recipe.load("default").build_model()
