"""A checkpoint rebuilds its own network or asks for it; equal shapes of tensors prove nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fxptq
from fxptq.errors import InputError
from fxptq.models.edsr import EDSR
from fxptq.origin import rebuilds
from fxptq.recipe import Recipe

QUICK = {"images": 1, "passes": [{"name": "minmax"}]}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """The bundled EDSR, quantized in a second."""
    return Recipe.model_validate({**Recipe.load("edsr_x2").model_dump(), "presets": {"quick": QUICK}})


def edsr(recipe: Recipe, **changes: object) -> EDSR:
    assert recipe.model is not None
    torch.manual_seed(0)
    return EDSR(**{**recipe.model.args, **changes}).eval()


X = torch.rand(1, 3, 16, 16)


def test_the_network_of_the_recipe_is_rebuilt_whatever_its_weights(recipe: Recipe) -> None:
    assert rebuilds(recipe, edsr(recipe), X)
    assert rebuilds(recipe, torch.compile(edsr(recipe)), X)  # type: ignore[arg-type]
    assert rebuilds(recipe, edsr(recipe).half(), X)


def test_a_network_with_equal_tensors_and_another_setting_is_not(recipe: Recipe) -> None:
    other = edsr(recipe, res_scale=0.1)
    names = {name: tensor.shape for name, tensor in other.state_dict().items()}
    assert names == {name: tensor.shape for name, tensor in edsr(recipe).state_dict().items()}
    assert not rebuilds(recipe, other, X)


def test_its_file_asks_for_the_network_and_then_gives_the_same_output(recipe: Recipe, tmp_path: Path) -> None:
    other = edsr(recipe, res_scale=0.1)
    q = fxptq.quantize(other, X, 8, recipe=recipe, preset="quick")
    q.save(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="holds a network of your own"):
        fxptq.load(tmp_path / "m.safetensors")
    assert torch.equal(fxptq.load(tmp_path / "m.safetensors", other)(X), q(X))


def test_the_file_of_the_recipe_s_own_network_needs_none(recipe: Recipe, tmp_path: Path) -> None:
    q = fxptq.quantize(edsr(recipe), X, 8, recipe=recipe, preset="quick")
    q.save(tmp_path / "m.safetensors")
    assert torch.equal(fxptq.load(tmp_path / "m.safetensors")(X), q(X))


def test_the_network_is_left_as_it_was(recipe: Recipe) -> None:
    network = edsr(recipe).half()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rebuilds(recipe, network, X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
