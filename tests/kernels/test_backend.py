"""Back ends are open: the bundled ones by name, and one of another package in one file."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from fxptq.errors import InputError
from fxptq.kernels.backend import Installed, backend_for, backend_names, get_backend
from fxptq.kernels.lower import lower
from fxptq.quant.grid import Grid
from fxptq.refusal import Refusal
from tests.kernels.networks import NETWORKS, quantized
from tests.kernels.test_lower import assert_equal_up_to_rounding, run

PACKAGES = Path(__file__).parents[1] / "packages"


def test_the_bundled_ones_are_found_and_chosen_by_device() -> None:
    assert {"cpu", "torch", "triton"} <= set(backend_names())
    assert backend_for(torch.device("cpu")).name == "cpu"
    assert backend_for(torch.device("cuda", 1)).name == "triton"
    assert backend_for(torch.device("mps")).name == "cpu"


def test_an_unknown_one_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="there is no back end 'tritn'; did you mean 'triton'"):
        get_backend("tritn")


@pytest.mark.parametrize("name", NETWORKS)
def test_plain_torch_computes_the_same_sites_and_the_same_output(name: str) -> None:
    program, x = quantized(name, 4)
    plain, native = lower(program, compile=False, backend=get_backend("torch")), lower(program, compile=False)
    assert plain.lowering.kernels == native.lowering.kernels
    assert plain.lowering.backend.name == "torch"
    assert not plain.lowering.backend.native
    assert_equal_up_to_rounding(run(plain, x), run(native, x))


def test_one_of_another_package_serves_what_it_can_and_the_rest_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGES))
    program, x = quantized("windows", 4)
    model = lower(program, compile=False, backend=get_backend("linear_only"))
    calls = importlib.import_module("linear_only").CALLS
    calls.clear()
    assert_equal_up_to_rounding(run(model, x), run(program, x))
    assert set(model.lowering.kernels) == {"qkv", "proj", "fc1", "fc2"}
    assert model.lowering.simulated == {
        "embed": "linear_only has no conv2d",
        "matmul_0": "linear_only has no matmul",
        "matmul_1": "linear_only has no matmul",
        "last": "linear_only has no conv2d",
    }
    assert calls.count("linear") == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"kind": "conv3d"}, "no integer kernel for conv3d", id="kind"),
        pytest.param({"dtype": torch.float64}, "computes in torch.float64", id="dtype"),
        pytest.param(
            {"shapes": {"input": (1, 70_000), "weight": (4, 70_000)}}, "its sums do not fit 32 bits", id="depth"
        ),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "triton", "torch"])
def test_limits_are_reasons_by_name(backend: str, change: dict[str, object], reason: str) -> None:
    program, _ = quantized("windows", 4)
    site = next(site for site in program.sites if site.name == "fc1")
    grids = {"input": (Grid(0.1, 0.0, 4),), "weight": (Grid(0.1, -0.75, 4),)}
    asked = type(site)(**{**vars(site), **change})
    assert get_backend(backend).serves(asked, grids) == Refusal(reason)


def test_an_input_of_several_ranges_is_refused() -> None:
    program, _ = quantized("windows", 4)
    site = next(site for site in program.sites if site.name == "fc1")
    grids = {"input": (Grid(0.1, 0.0, 4), Grid(0.2, 0.0, 4)), "weight": (Grid(0.1, -0.75, 4),)}
    found = get_backend("cpu").serves(site, grids)
    assert found == Refusal("the input has several ranges, or one of zero width")


class Recording(get_backend("torch").__class__):  # type: ignore[misc]
    """Counts how often its kernels are asked for."""

    installs = 0

    def install(self) -> Installed:
        type(self).installs += 1
        return super().install()


@pytest.mark.parametrize("compiling", [True, False])
def test_kernels_are_installed_before_the_first_call_whether_or_not_torch_compiles(compiling: bool) -> None:
    program, _ = quantized("plain", 4)
    Recording.installs = 0
    lower(program, compile=compiling, backend=Recording())
    assert Recording.installs > 0
