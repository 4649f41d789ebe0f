"""Integers equal the simulation for every pair of widths, because an allocation of bits may give any."""

from __future__ import annotations

import random

import pytest

from fxptq.kernels.lower import lower
from tests.kernels.networks import NETWORKS, quantized
from tests.kernels.test_lower import assert_equal_up_to_rounding, run

WIDTHS = range(2, 9)


@pytest.mark.parametrize("w", WIDTHS)
@pytest.mark.parametrize("name", ["plain", "windows", "channels"])
def test_every_width_of_weights_meets_every_width_of_activations(name: str, w: int) -> None:
    program, x = quantized(name, 4)
    for a in WIDTHS:
        # Products have two activations: the right one gets the width of the weights.
        rights = {operand.quantizer for site in program.sites for operand in site.operands if operand.slot == "rhs"}
        program.set_bits(
            {
                key: w if key in rights or program.weight_of(key) is not None else a
                for key, quantizer in program.quantizers.items()
            }
        )
        model = lower(program, compile=False)
        assert not model.lowering.simulated
        assert_equal_up_to_rounding(run(model, x), run(program, x))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_each_operand_may_have_a_width_of_its_own(name: str, seed: int) -> None:
    program, x = quantized(name, 4)
    draw = random.Random(seed)  # noqa: S311  # no secret
    program.set_bits({key: draw.choice(WIDTHS) for key in program.quantizers})
    model = lower(program, compile=False)
    assert not model.lowering.simulated
    assert_equal_up_to_rounding(run(model, x), run(program, x))
