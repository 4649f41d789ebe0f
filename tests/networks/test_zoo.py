"""Each small network goes the whole way: standard preset, file, another process, integers, batch 3, far sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fxptq
from fxptq import Bits, FxptqError, QuantizedModel, Recipe
from fxptq.engine import check_work, quantize_for
from fxptq.facts import gather_facts
from fxptq.graph import Program
from tests.networks.loader import Loader, tensors
from tests.networks.zoo import NETWORKS, WHITE, build, pictures

FAST = (
    "dense connections",
    "strided U-Net",
    "transposed convolution",
    "reflect padding",
    "BatchNorm",
    "channel attention over pixels",
    "shifted windows",
    "dynamic convolution",
    "output nested",
    "in-place operations",
    "shared modules and weights",
)
"""Those of the usual suite."""

FAR = ((16, 16), (64, 48), (24, 40), (23, 37))
"""Half the size of the capture, double, and odd multiples of eight and of one."""

SIMULATED: dict[str, set[str]] = {
    "dynamic convolution": {"conv2d_0"},
    "einsum": {"einsum_0", "einsum_1", "einsum_2"},
    "fixed kernels": {"conv2d_0"},
}
"""The sites that compute in float, of the networks that have some."""

DECOMPOSED = {"scaled_dot_product_attention", "MultiheadAttention"}
"""Networks of which the graph has other operations than torch's fused one, whose sums are in another order."""

GLOBAL = {"Fourier branch"}
"""Networks of which one value in the middle touches every pixel: of one input, a code beside a tie may move all."""

CUT = {"steps": 3, "batch": 2, "patch": 16, "holdout_crops": 2, "eval_every": 2, "work": 0.0}
"""The settings of dqc that make the standard preset a matter of seconds."""

EITHER = [pytest.param(name, marks=() if name in FAST else pytest.mark.networks) for name in NETWORKS]


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    with contextlib.closing(Loader()) as process:
        yield process


def standard(name: str, network: torch.nn.Module, bits: int = 4) -> QuantizedModel:
    """The network under the standard preset, with everything found that can be found, and few steps of training."""
    example, default = pictures(name), Recipe.load("default")
    facts = gather_facts(network, default, example)
    shared = default.presets["standard"]
    passes = tuple(p.model_copy(update=CUT) if p.name == "dqc" else p for p in shared.passes)
    presets = {"standard": shared.model_copy(update={"images": 4, "passes": passes})}
    facts = replace(facts, recipe=facts.recipe.model_copy(update={"presets": presets}))
    given = example if len(example) > 1 else example[0]
    calib = [pictures(name, seed=seed) for seed in range(4)] if len(example) > 1 else "synthetic"
    return quantize_for(facts, network, given, check_work(facts.recipe, Bits(bits, bits)), calib)


def outputs(model: torch.nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(*(x.clone() for x in inputs)))


def assert_same(found: list[Tensor], expected: list[Tensor], where: object) -> None:
    assert len(found) == len(expected), where
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), where
        assert torch.equal(a, b), (where, float((a - b).abs().max()))


def assert_equal_up_to_ties(found: list[Tensor], expected: list[Tensor], where: object) -> float:
    """Equal but for what one or two codes beside a tie may touch: rounding may put them on either side of it.

    Returns:
        The largest median of the error, as a part of the range.
    """
    assert len(found) == len(expected), where
    medians = [0.0]
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), where
        assert a.isfinite().all(), where
        error = (a - b).abs() / float(b.max() - b.min() if b.numel() > 1 else b.abs())
        assert float(error.mean()) < 1e-3, (where, float(error.mean()))
        medians.append(float(error.median()))
    return max(medians)


def taken(name: str, network: torch.nn.Module) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
    """Inputs that the float network takes, and inputs that it refuses."""
    good, bad = [], []
    for number, (height, width) in enumerate(((32, 32), *FAR)):
        for batch in (1, 3):
            inputs = pictures(name, height, width, batch, seed=10 + number)
            try:
                outputs(network, inputs)
            except Exception:  # noqa: BLE001  # whatever a network raises
                bad.append(inputs)
            else:
                good.append(inputs)
    return good, bad


@pytest.mark.parametrize("name", EITHER)
def test_the_whole_way(name: str, loader: Loader, tmp_path: Path) -> None:
    network = build(name)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    made = standard(name, network)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert made.task.input.range == WHITE.get(name, 1.0)

    good, bad = taken(name, network)
    assert len(good) >= 4, "a network of the zoo takes its own size and another, at both batches"
    captured = Program(network, pictures(name))
    for inputs in good:
        found, expected = outputs(captured, inputs), outputs(network, inputs)
        if name in DECOMPOSED:
            torch.testing.assert_close(found, expected)
        else:
            assert_same(found, expected, (tuple(inputs[0].shape), "captured"))

    integers = made.to_integer(compile=False, compare=False)
    quantized = {site.name for site in made.sites if not site.reason}
    assert quantized
    assert set(integers.lowering.kernels) | set(integers.lowering.simulated) == quantized
    assert all(reason for reason in integers.lowering.simulated.values())
    assert set(integers.lowering.simulated) == SIMULATED.get(name, set())
    assert all(site.reason for site in made.float_sites)

    simulated = [outputs(made, inputs) for inputs in good]
    lowered = [outputs(integers, inputs) for inputs in good]
    medians = {}
    for inputs, found, expected in zip(good, lowered, simulated, strict=True):
        where = tuple(inputs[0].shape)
        medians[where] = assert_equal_up_to_ties(found, expected, where)
    apart = {where: median for where, median in medians.items() if not median < 1e-4}
    assert len(apart) <= (name in GLOBAL), apart
    for inputs in bad:
        for model in (made, integers):
            with pytest.raises(FxptqError):
                model(*inputs)

    made.save(tmp_path / "made.safetensors")
    there = loader(name, tmp_path / "made.safetensors", good)
    for inputs, here, loaded in zip(good, simulated, there.simulated, strict=True):
        assert_same(loaded, here, (tuple(inputs[0].shape), "loaded"))
    for inputs, here, loaded in zip(good, lowered, there.integers, strict=True):
        assert_same(loaded, here, (tuple(inputs[0].shape), "integers loaded"))


def test_the_zoo_is_as_large_as_it_says() -> None:
    assert len(NETWORKS) >= 60
    assert set(FAST) <= set(NETWORKS)
    assert set(SIMULATED) <= set(NETWORKS)
    assert fxptq.__version__
