"""Schemes are open: one file of another package is observed, searched, distilled, saved, loaded and run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import fxptq
from fxptq.errors import CheckpointError, InputError
from fxptq.quant.scheme import get_scheme, make_quantizer, scheme_names
from fxptq.quantized import QuantizedModel
from fxptq.recipe import Recipe

PACKAGES = Path(__file__).parents[1] / "packages"
SCHEMES = {"*.input": "row_dynamic"}


class Mlp(nn.Module):
    """Two linear layers for each pixel, and the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x.movedim(1, 3)))).movedim(3, 1)


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of the scheme, installed as pip would."""
    monkeypatch.syspath_prepend(str(PACKAGES))


def recipe(*passes: dict[str, object]) -> Recipe:
    base = Recipe.load("default").model_dump()
    base["presets"] = {"quick": {"images": 3, "passes": [{"name": "observe"}, {"name": "dobi2d", "k": 20}, *passes]}}
    base["quantize"] |= {"edges": "low", "schemes": SCHEMES}
    return Recipe.model_validate(base)


def quantized(*passes: dict[str, object]) -> QuantizedModel:
    torch.manual_seed(0)
    model = Mlp().eval()
    return fxptq.quantize(model, torch.rand(1, 3, 16, 16), fxptq.Bits(3, 3), recipe=recipe(*passes), preset="quick")


DQC = {"name": "dqc", "steps": 4, "batch": 2, "patch": 16, "eval_every": 1, "holdout_crops": 2}


def test_it_is_found_by_its_entry_point_and_a_broken_one_stops_nobody() -> None:
    assert {"absent", "row_dynamic", "uniform"} <= set(scheme_names())
    assert get_scheme("row_dynamic").__name__ == "RowDynamic"
    with pytest.raises(InputError, match="scheme 'absent' cannot be loaded from 'no_such_package:Scheme'"):
        get_scheme("absent")


def test_an_unknown_scheme_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="there is no scheme 'unifrom'; did you mean 'uniform'"):
        make_quantizer("unifrom", 4)


def test_a_pattern_that_matches_no_operand_is_refused() -> None:
    settings = recipe().model_copy(deep=True)
    changed = settings.model_dump()
    changed["quantize"]["schemes"] = {"nowhere.*": "row_dynamic"}
    with pytest.raises(InputError, match=r"pattern 'nowhere\.\*' matches no operand"):
        fxptq.quantize(
            Mlp(), torch.rand(1, 3, 8, 8), fxptq.Bits(4, 4), recipe=Recipe.model_validate(changed), preset="quick"
        )


def test_it_is_planned_observed_searched_and_quantizes_row_by_row() -> None:
    q = quantized()
    assert {o.slot: o.scheme for site in q.sites for o in site.operands} == {
        "input": "row_dynamic",
        "weight": "uniform",
    }
    searched = next(report for report in q.report if report.name == "dobi2d")
    assert searched.quantizers["second.input"]["upper"] > searched.quantizers["second.input"]["lower"]
    values = q.program.quantizers["second.input"](torch.rand(50, 24) * torch.linspace(0.01, 0.2, 50)[:, None])
    assert max(len(row.unique()) for row in values) <= 8
    assert len(values.unique()) > 8  # a uniform quantizer has 8 values in all


def test_distillation_trains_its_parameter_and_lowers_the_loss() -> None:
    q = quantized(DQC)
    assert any(bool(q.program.quantizers[key].stretch.any()) for key in ("first.input", "second.input"))
    held_out = q.report[-1].series["held_out_loss"]
    assert min(held_out) < held_out[0]


def test_a_file_gives_it_back_bit_for_bit_and_says_so_in_its_version(tmp_path: Path) -> None:
    q, x = quantized(DQC, {"name": "gptq"}), torch.rand(2, 3, 24, 20)
    q.save(tmp_path / "m.safetensors")
    loaded = fxptq.load(tmp_path / "m.safetensors", Mlp())
    assert torch.equal(loaded(x), q(x))
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert '"format": 2' in file.metadata()["fxptq"]


def test_a_file_of_a_scheme_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized().save(tmp_path / "m.safetensors")
    monkeypatch.setattr("fxptq.quant.scheme._SCHEMES._resolved", {})
    monkeypatch.setattr("fxptq.quant.scheme._SCHEMES._classes", {"uniform": get_scheme("uniform")})
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p != str(PACKAGES)])
    with pytest.raises(CheckpointError, match=r"m\.safetensors.*there is no scheme 'row_dynamic'"):
        fxptq.load(tmp_path / "m.safetensors", Mlp())


def test_integers_leave_its_sites_to_the_simulation_and_list_them() -> None:
    q, x = quantized(), torch.rand(2, 3, 16, 16)
    fast = q.to_integer(compile=False)
    reason = "row_dynamic: the range of each row is found at run time"
    assert fast.lowering.simulated == {"first": reason, "second": reason}
    with torch.no_grad():
        assert torch.equal(fast(x), q(x))


def test_weights_without_codes_stay_in_float_and_are_loaded_as_such(tmp_path: Path) -> None:
    settings = recipe().model_dump()
    settings["quantize"]["schemes"] = {"*.weight": "row_dynamic"}
    torch.manual_seed(0)
    q = fxptq.quantize(
        Mlp().eval(), torch.rand(1, 3, 16, 16), fxptq.Bits(4, 4), recipe=Recipe.model_validate(settings), preset="quick"
    )
    q.save(tmp_path / "m.safetensors")
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(fxptq.load(tmp_path / "m.safetensors", Mlp())(x), q(x))
