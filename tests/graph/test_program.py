"""A program: graphs by size class over one set of weights and quantizers, plans, weights, moves."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxptq.errors import InputError
from fxptq.graph import Bits, Plan, Program
from fxptq.models.edsr import EDSR
from fxptq.models.swinir import SwinIR
from fxptq.quant.quantizer import Quantizer

FOUR = Plan(Bits(4, 4))


def swinir() -> SwinIR:
    small: dict[str, Any] = {"img_size": 16, "embed_dim": 8, "depths": (2,), "num_heads": (2,), "mlp_ratio": 2.0}
    return SwinIR(**small, window_size=8, upscale=2, upsampler="pixelshuffledirect").eval()


def edsr() -> EDSR:
    return EDSR(n_resblocks=2, n_feats=4, scale=2).eval()


def switch_on(program: Program) -> Program:
    """Bounds by minimum and maximum of each weight; activations in -2..2."""
    for key, quantizer in program.quantizers.items():
        weight = program.weight_of(key)
        low, high = (-2.0, 2.0) if weight is None else (float(weight.min()), float(weight.max()))
        quantizer.set_bounds(low, high)
        quantizer.mode = "on"
    return program


class Unrolled(nn.Module):
    """Loops over the rows of blocks, so that each height needs a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for row in range(0, x.shape[2], 4):
            out[:, :, row : row + 4] = x[:, :, row : row + 4] * (row + 1)
        return self.conv(out)  # type: ignore[no-any-return]


def test_captured_again_where_the_graph_does_not_hold() -> None:
    model = swinir()
    program = switch_on(Program(model, torch.rand(1, 3, 24, 16), FOUR))
    quantizers = dict(program.quantizers)
    for shape in ((1, 3, 24, 16), (1, 3, 40, 8)):
        program(torch.rand(shape))
    assert len(program.variants) == 1
    program(torch.rand(1, 3, 16, 16))
    assert len(program.variants) == 2
    assert program.quantizers == quantizers
    assert [site.name for site in program.variants[1].sites] == [site.name for site in program.sites]
    modules = {id(m) for v in program.variants for m in v.module.modules() if isinstance(m, Quantizer)}
    assert modules == {id(quantizer) for quantizer in quantizers.values()}


def test_quantized_everywhere_alike() -> None:
    """The graph for 16 x 16, where the stored mask is read, equals the one that computes it."""
    program = switch_on(Program(swinir(), torch.rand(1, 3, 24, 16), FOUR))
    x = torch.rand(1, 3, 16, 16)
    y = program(x)
    program.holder.model.img_size = 0
    again = switch_on(Program(program.holder.model, torch.rand(1, 3, 24, 16), FOUR))
    assert torch.equal(again(x), y)
    assert not torch.equal(y, program.holder.model(x))


def test_cache_is_bounded_and_least_recently_used_goes() -> None:
    program = Program(Unrolled().eval(), torch.rand(1, 3, 8, 8), Plan(Bits(4, 4), edges=None), limit=2)
    keys = list(program.quantizers)
    weight = program.weight_of("conv.weight")
    for height in (12, 8, 16):
        x = torch.rand(1, 3, height, 8)
        assert torch.equal(program(x), program.holder.model(x))
    assert len(program.variants) == 2
    assert {variant.capture.expected[0] for variant in program.variants} == {True}
    assert program.variant((torch.rand(1, 3, 8, 8),)) in program.variants
    assert list(program.quantizers) == keys
    assert weight is not None
    again = program.weight_of("conv.weight")
    assert again is not None
    assert torch.equal(again, weight)


def test_sizes_are_remembered() -> None:
    program = Program(edsr(), torch.rand(1, 3, 8, 8))
    x = torch.rand(1, 3, 9, 7)
    assert program.variant((x,)) is program.variant((x,)) is program.variants[0]


def test_operands_that_only_a_later_graph_has_stay_in_float() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, 1, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if x.shape[2] > 8:
                x = self.b(x)
            return self.c(x)  # type: ignore[no-any-return]

    program = Program(Wide().eval(), torch.rand(1, 3, 8, 8), Plan(Bits(4, 4), edges=None))
    later = program.variant((torch.rand(1, 3, 12, 8),))
    assert [site.name for site in program.sites] == ["a", "c"]
    assert {site.name: site.reason for site in later.sites if site.reason} == {
        "b": "not met at the size the network was calibrated at"
    }
    assert len(program.quantizers) == 4


def test_off_is_the_network_and_on_is_not() -> None:
    model = swinir()
    x = torch.rand(1, 3, 24, 16)
    program = Program(model, x, FOUR)
    assert torch.equal(program(x), model(x))
    assert not torch.equal(switch_on(program)(x), model(x))


def test_gradients_reach_the_bounds() -> None:
    program = switch_on(Program(swinir(), torch.rand(1, 3, 16, 24), FOUR))
    program(torch.rand(2, 3, 16, 24)).square().mean().backward()
    for key, quantizer in program.quantizers.items():
        assert quantizer.shift.grad is not None, key
    assert all(parameter.grad is None for parameter in program.holder.model.parameters())


def test_with_features_gives_the_output_and_the_values_at_stage_ends() -> None:
    model, x = edsr(), torch.rand(1, 3, 8, 8)
    program = Program(model, x, FOUR)
    seen: list[Tensor] = []
    for block in model.body[:2]:
        block.register_forward_hook(lambda _module, _args, output: seen.append(output))
    y, features = program.with_features(x)
    assert torch.equal(y, model(x))
    assert len(features) == len(program.stage_ends) == 2
    assert all(torch.equal(a, b) for a, b in zip(features, seen, strict=True))


# -- plans -------------------------------------------------------------------------------------------------------------


def test_plan_by_pattern() -> None:
    overrides = (("body.0.*", "float"), ("body.*", Bits(2, 8)), ("head.0", Bits(5, 6)))
    program = Program(edsr(), torch.rand(1, 3, 8, 8), Plan(Bits(4, 4), overrides=overrides))
    bits = {site.name: site.bits for site in program.sites}
    assert bits["body.0.body.0"] == bits["sub_mean"] == (None, None)
    assert bits["body.1.body.0"] == (2, 8)
    assert bits["head.0"] == (5, 6)
    assert bits["tail.1"] == (8, 8)
    assert program.quantizers["body.1.body.0.weight"].bits == 2
    assert program.quantizers["body.1.body.0.weight"].ranges == 4
    left = {site.name: site.reason for site in program.sites if site.reason}
    assert left["body.0.body.0"] == "left out by the pattern 'body.0.*'"


def test_plan_by_kind_and_edges() -> None:
    plan = Plan(Bits(4, 4), kinds=("linear", "matmul"), edges="float", granularity="tensor")
    program = Program(swinir(), torch.rand(1, 3, 16, 24), plan)
    assert {site.kind for site in program.sites if not site.reason} == {"linear", "matmul"}
    assert "left in float by the plan" in program.sites[0].reason
    assert {quantizer.ranges for quantizer in program.quantizers.values()} == {1, 3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bits(9, 4), r"bits w=9 is out of range"),
        (lambda: Bits(4, 1), r"bits a=1 is out of range"),
        (lambda: Plan(Bits(4, 4), kinds=("convolution",)), r"unknown kind of site 'convolution'"),
        (
            lambda: Program(edsr(), torch.rand(1, 3, 8, 8), Plan(Bits(4, 4), overrides=(("boddy.*", "float"),))),
            r"the pattern 'boddy\.\*' matches no site",
        ),
    ],
    ids=["weight bits", "activation bits", "kind", "pattern"],
)
def test_plans_that_do_not_fit(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# -- tensors -----------------------------------------------------------------------------------------------------------


def test_weights_are_read_and_set_for_every_graph() -> None:
    program = Program(swinir(), torch.rand(1, 3, 24, 16), FOUR)
    x = torch.rand(1, 3, 16, 16)
    before = program(x)
    key = "layers.0.residual_group.blocks.0.mlp.fc1.weight"
    weight = program.weight_of(key)
    assert weight is not None
    assert program.weight_target(key) == f"model.{key}"
    program.set_weight(key, torch.zeros_like(weight))
    assert torch.equal(program(torch.rand(1, 3, 24, 16))[0, 0, 0, :0], torch.zeros(0))
    assert not torch.equal(program(x), before)
    assert not any(program.weight_of(key).flatten())  # type: ignore[union-attr]  # it is a weight's


class Norm(nn.Module):
    """A weight computed in the forward, and a graph for each height."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3, 1, 1))
        self.unrolled = Unrolled()

    def forward(self, x: Tensor) -> Tensor:
        return self.unrolled(self.conv(x))  # type: ignore[no-any-return]


def test_a_computed_weight_stays_set_when_the_network_is_captured_again() -> None:
    program = Program(Norm().eval(), torch.rand(1, 3, 8, 8), Plan(Bits(4, 4), edges=None))
    weight = program.weight_of("conv.weight")
    assert weight is not None
    program.set_weight("conv.weight", weight * 0)
    bias = program.holder.model.conv.bias
    for height in (8, 12):
        x = torch.rand(1, 3, height, 8)
        constant = bias.view(1, 3, 1, 1).expand(x.shape).contiguous()
        torch.testing.assert_close(program(x), program.holder.model.unrolled(constant))
    assert len(program.variants) == 2


def test_weights_of_what_has_none() -> None:
    program = Program(edsr(), torch.rand(1, 3, 8, 8), FOUR)
    assert program.weight_of("head.0.input") is None
    with pytest.raises(InputError, match="quantizes an activation"):
        program.set_weight("head.0.input", torch.zeros(1))
    with pytest.raises(InputError, match="there is no quantizer 'nothing'"):
        program.weight_of("nothing")


class ReadTwice(nn.Module):
    """One weight is also summed, one is also added, one is read by its layer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.summed, self.added, self.alone = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.alone(self.added(self.summed(x)))
        return y * self.summed.weight.sum() + self.added.weight  # type: ignore[no-any-return]


def test_weights_with_other_readers() -> None:
    program = Program(ReadTwice().eval(), torch.rand(1, 6, 6), Plan(Bits(4, 4), edges=None))
    weights = [key for key in program.quantizers if program.weight_of(key) is not None]
    assert {key: program.has_other_readers(key) for key in weights} == {
        "summed.weight": True,
        "added.weight": True,
        "alone.weight": False,
    }


def test_operands_by_quantizer() -> None:
    program = Program(edsr(), torch.rand(1, 3, 8, 8), FOUR)
    operands = program.operands()
    assert operands.keys() == program.quantizers.keys()
    assert {(o.bits, o.role, o.ranges, o.axis) for o in operands.values()} == {
        (q.bits, q.role, q.ranges, q.axis) for q in program.quantizers.values()
    }


# -- moves -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_to_another_precision(dtype: torch.dtype) -> None:
    model = edsr()
    program = Program(model, torch.rand(1, 3, 8, 8)).to(dtype)
    x = torch.rand(1, 3, 8, 8, dtype=dtype)
    assert torch.equal(program(x), copy.deepcopy(model).to(dtype)(x))
    assert program.with_features(x)[1][0].dtype == dtype


def test_quantized_in_half_precision() -> None:
    program = switch_on(Program(edsr().bfloat16(), torch.rand(1, 3, 8, 8).bfloat16(), FOUR))
    y = program(torch.rand(1, 3, 8, 8).bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


def test_to_another_device() -> None:
    program = Program(swinir(), torch.rand(1, 3, 16, 24), FOUR).to("meta")
    y = program.variants[0].module(torch.rand(1, 3, 16, 24, device="meta"))
    assert (y.device.type, y.shape) == ("meta", (1, 3, 32, 48))


def test_copies_are_independent() -> None:
    program = switch_on(Program(edsr(), torch.rand(1, 3, 8, 8), FOUR))
    x = torch.rand(1, 3, 8, 8)
    y = program(x)
    other = copy.deepcopy(program)
    for quantizer in other.quantizers.values():
        quantizer.mode = "off"
    other.set_weight("head.0.weight", torch.zeros(4, 3, 3, 3))
    assert torch.equal(program(x), y)
    assert not torch.equal(other(x), y)
    assert {id(m) for m in other.modules() if isinstance(m, Quantizer)} == {id(q) for q in other.quantizers.values()}


def test_state_holds_weights_and_quantizers_once() -> None:
    program = Program(edsr(), torch.rand(1, 3, 8, 8), FOUR)
    state = program.state_dict()
    assert {key.split(".")[1] for key in state} == {"model", "quantizers"}
    assert "holder.quantizers.head/0/weight.lower0" in state


def test_nothing_keeps_the_trace_alive() -> None:
    model = edsr()
    program = Program(model, torch.rand(1, 3, 8, 8))
    reference = weakref.ref(program)
    del program
    gc.collect()
    assert reference() is None


class Branches(nn.Module):
    """Another layer reads the features where the picture is larger, and a shared one reads other tensors there."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.a, self.b = (nn.Conv2d(3, 3, 3, 1, 1) for _ in range(3))
        self.large = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x).relu()
        if x.shape[2] > 8:
            return self.a(y) + self.b(self.large(y))  # type: ignore[no-any-return]
        return self.a(y) + self.b(y)  # type: ignore[no-any-return]


def test_sites_of_later_graphs_are_planned_as_in_the_first() -> None:
    plan = Plan(Bits(4, 4), edges=None, overrides=(("b", Bits(3, 4)), ("*", Bits(4, 4))))
    program = Program(Branches().eval(), torch.rand(1, 3, 8, 8), plan)
    first = {site.name: [(o.quantizer, o.bits) for o in site.operands] for site in program.sites}
    later = {site.name: site for site in program.variant((torch.rand(1, 3, 12, 8),)).sites}
    assert set(later) == {*first, "large"}
    assert later.pop("large").reason == "not met at the size the network was calibrated at"
    assert {name: [(o.quantizer, o.bits) for o in site.operands] for name, site in later.items()} == first
    assert {name for name, site in later.items() if site.reason} == set()


def test_exceptions_need_match_only_where_the_network_is_calibrated() -> None:
    class Either(Branches):
        def forward(self, x: Tensor) -> Tensor:
            return self.large(self.head(x)) if x.shape[2] > 8 else self.b(self.head(x))  # type: ignore[no-any-return]

    program = Program(Either().eval(), torch.rand(1, 3, 8, 8), Plan(Bits(4, 4), overrides=(("b", "float"),)))
    assert [site.reason for site in program.variant((torch.rand(1, 3, 12, 8),)).sites][1:] == [
        "not met at the size the network was calibrated at"
    ]
