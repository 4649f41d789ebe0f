"""The parts of attentions are found in every form that has a softmax over the keys, and in nothing else."""

from __future__ import annotations

import pytest
import torch

from fxptq.errors import InputError
from fxptq.graph import Bits, Plan, Program
from tests.networks.zoo import build, pictures
from tests.tiny import swinir

PARTS = {("lhs", "query"), ("rhs", "key"), ("lhs", "attention"), ("rhs", "value")}


def parts_of(name: str) -> list[tuple[str, str]]:
    program = Program(build(name), pictures(name))
    return [(operand.slot, operand.part) for site in program.sites for operand in site.operands if operand.part]


@pytest.mark.parametrize(
    ("name", "attentions"),
    [
        ("shifted windows", 2),
        ("channel attention over pixels", 1),
        ("scaled_dot_product_attention", 1),
        ("MultiheadAttention", 1),
        ("cross attention", 1),
        ("learned tokens", 1),
        ("summary tokens", 2),
    ],
)
def test_they_are_found(name: str, attentions: int) -> None:
    found = parts_of(name)
    assert set(found) == PARTS
    assert len(found) == 4 * attentions


@pytest.mark.parametrize("name", ["linear attention", "kernel prediction", "softmax over channels"])
def test_products_without_a_softmax_over_keys_have_none(name: str) -> None:
    assert parts_of(name) == []


def test_schemes_are_given_by_part_and_a_general_pattern_may_match_nothing() -> None:
    schemes = (("*.attention", "shares"), ("*.query", "affine"), ("*.weight", "affine"))
    sites = Program(swinir(), torch.rand(1, 3, 16, 16), Plan(Bits(4, 4), schemes=schemes)).sites
    by_part = {o.part or o.slot: o.scheme for site in sites for o in site.operands if o.bits}
    assert by_part == {
        "attention": "shares",
        "query": "affine",
        "key": "uniform",
        "value": "uniform",
        "input": "uniform",
        "weight": "affine",
    }
    convolutions = build("dense connections")
    Program(convolutions, pictures("dense connections"), Plan(Bits(4, 4), schemes=schemes))
    with pytest.raises(InputError, match=r"pattern 'body\.\*\.attention' matches no operand"):
        Program(
            convolutions,
            pictures("dense connections"),
            Plan(Bits(4, 4), schemes=(("body.*.attention", "shares"),)),
        )
