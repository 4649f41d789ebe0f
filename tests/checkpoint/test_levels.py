"""No tensor of a quantized network has more than 2**bits levels, in the simulation and in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fxptq
from fxptq.errors import CheckpointError
from fxptq.quant.scheme import make_quantizer
from fxptq.quant.schemes.uniform import Uniform
from tests.tiny import edsr, inputs, swinir

TASK = {"scale": 2, "value_range": 1.0, "multiple": 8}


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("make", [swinir, edsr], ids=["swinir", "edsr"])
def test_each_quantizer_gives_at_most_as_many_values_as_its_bits_have_codes(make: type, bits: int) -> None:
    q = fxptq.quantize(make(), inputs(1), fxptq.Bits(bits, bits), list(inputs(4).split(1)), preset="quick", **TASK)
    quantizers = q.program.quantizers
    met: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        quantizer.register_forward_hook(lambda _m, args, out, key=key: met.__setitem__(key, (args[0], out)))
        for key, quantizer in quantizers.items()
    ]
    with torch.no_grad():
        q(3 * inputs(2) - 1)  # far beyond the range of the calibration inputs
    for handle in handles:
        handle.remove()
    assert set(met) == set(quantizers)
    for key, (x, out) in met.items():
        quantizer, codes = quantizers[key], quantizers[key].encode(x)
        assert len(codes.unique()) <= 2**quantizer.bits, key
        assert torch.equal(quantizer.decode(codes), out), key  # so the values are those of the codes, and no others


@pytest.mark.parametrize("scheme", ["uniform", "affine", "shares"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_of_values_far_outside_the_bounds_are_clamped(scheme: str, bits: int) -> None:
    quantizer = make_quantizer(scheme, bits, ranges=1, axis=0, role="symmetric")
    quantizer.set_bounds(0.0, 0.5)
    codes = quantizer.encode(torch.linspace(-1e4, 1e4, 20001))
    assert int(codes.max()) == 2**bits - 1
    assert int(codes.min()) == 0


def test_a_scheme_that_does_not_clamp_is_refused_at_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    q = fxptq.quantize(edsr(), inputs(1), fxptq.Bits(2, 2), list(inputs(2).split(1)), preset="quick", **TASK)
    key = next(key for key in q.program.quantizers if key.endswith("weight") and q.program.quantizers[key].bits == 2)
    before = Uniform.encode

    def unclamped(self: Uniform, x: Tensor) -> Tensor:
        return before(self, x) + (7 if self is q.program.quantizers[key] else 0)

    monkeypatch.setattr(Uniform, "encode", unclamped)
    with pytest.raises(CheckpointError, match=r"made the code \d+, and 2 bits have the codes 0 to 3"):
        q.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_weights_off_their_grids_are_refused_at_save(tmp_path: Path) -> None:
    q = fxptq.quantize(edsr(), inputs(1), fxptq.Bits(2, 2), list(inputs(2).split(1)), preset="quick", **TASK)
    key = next(key for key in q.program.quantizers if key.endswith("weight"))
    weight = q.program.weight_of(key)
    assert weight is not None
    q.program.set_weight(key, weight + 0.3 * weight.std())
    with pytest.raises(CheckpointError, match="the weight is not on its grid"):
        q.save(tmp_path / "m.safetensors")
