"""The random numbers of fxptq's own runs: the same each time, and never out of the caller's generators."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import fxptq
from fxptq.bits import Bits
from fxptq.graph import Program
from fxptq.graph.plan import Plan
from fxptq.graph.randomness import OwnRandomNumbers
from fxptq.passes.base import Context, run_passes
from fxptq.recipe import Recipe
from tests.tiny import inputs, settings

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "rand": lambda x: x + torch.rand(x.shape),
    "randn_like": lambda x: x + torch.randn_like(x),
    "normal_": lambda x: x + torch.empty_like(x).normal_(),
    "cauchy_": lambda x: x + torch.empty_like(x).cauchy_(),
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "rrelu": lambda x: F.rrelu(x - 0.5, 0.1, 0.9, True),
    "gumbel_softmax": lambda x: F.gumbel_softmax(x, dim=1),
    "distribution": lambda x: torch.distributions.Normal(x, 1.0).sample(),
    "layer": lambda x: x + nn.Conv2d(3, 3, 1)(x),
    "nothing": lambda x: x * 2,
}


class Draws(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.draw = nn.Conv2d(3, 3, 3, padding=1), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.draw(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_numbers_repeat_and_the_generator_stays(draw: Callable[[Tensor], Tensor]) -> None:
    x, before = inputs(2), torch.random.get_rng_state()
    with torch.no_grad():
        with OwnRandomNumbers(3):
            first = draw(x)
        with OwnRandomNumbers(3):
            assert torch.equal(draw(x), first)
            assert draw is DRAWS["nothing"] or not torch.equal(draw(x), first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_numbers_go_on_when_they_are_entered_again() -> None:
    with OwnRandomNumbers(3):
        expected = [torch.rand(2), torch.rand(2)]
    numbers, before = OwnRandomNumbers(3), torch.random.get_rng_state()
    for once in expected:
        with numbers:
            assert torch.equal(torch.rand(2), once)
        assert torch.equal(torch.random.get_rng_state(), before)
        with numbers:
            torch.ones(2) * 2  # draws nothing, and loses nothing


@pytest.mark.parametrize("draw", ["randn_like", "dropout", "layer", "nothing"])
def test_a_capture_knows_whether_the_network_draws(draw: str) -> None:
    first = Program(Draws(DRAWS[draw]).eval(), inputs(1))
    for program in (first, Program(Draws(DRAWS[draw]).eval(), inputs(1), twin=first)):
        assert program.variants[0].capture.draws == (draw != "nothing")


def test_a_program_draws_numbers_that_it_is_given() -> None:
    program, x = Program(Draws(DRAWS["randn_like"]).eval(), inputs(1)), inputs(1)
    before = torch.random.get_rng_state()
    with torch.no_grad(), program.drawing(OwnRandomNumbers(3)):
        first = [program(x), program.with_features(x)[0]]
    with torch.no_grad(), OwnRandomNumbers(3):
        assert [torch.equal(program(x), own) for own in first] == [True, True]
    assert not torch.equal(*first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_passes_do_not_look_at_each_call_of_a_network_that_draws_nothing() -> None:
    """Looking takes a tenth of the time of a quantization."""
    modes: list[int] = []

    def note(*_: object) -> None:
        modes.append(len(_get_current_function_mode_stack()))

    passes = [("observe", {}), ("dobi2d", {}), ("dqc", {"steps": 1, "batch": 1, "patch": 12})]
    for draw in ("nothing", "randn_like"):
        pictures = list(inputs(4).split(1))
        student = Program(Draws(DRAWS[draw]).eval(), pictures[0], Plan(Bits(4, 4)))
        ctx = Context(student, Program(Draws(DRAWS[draw]).eval(), pictures[0], twin=student), pictures)
        for quantizer in student.quantizers.values():
            quantizer.register_forward_hook(note)
        run_passes(passes, ctx)
        assert set(modes) == {0 if draw == "nothing" else 1}
        modes.clear()


def test_within_one_another() -> None:
    before = torch.random.get_rng_state()
    with OwnRandomNumbers(3):
        with OwnRandomNumbers(4):
            inner = torch.rand(2)
        first = torch.rand(2)
        with OwnRandomNumbers(4):
            assert torch.equal(torch.rand(2), inner)
        second = torch.rand(2)
    assert torch.equal(torch.random.get_rng_state(), before)
    with OwnRandomNumbers(3):
        assert torch.equal(torch.rand(2), first)
        assert torch.equal(torch.rand(2), second)


@pytest.mark.parametrize("draw", [DRAWS["randn_like"], DRAWS["nothing"]], ids=["drawing", "usual"])
def test_the_callers_stream_is_the_same_behind_quantize_and_load(
    draw: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    passes = '{ name = "observe" }, { name = "dobi2d" }, { name = "dqc", steps = 1, batch = 1, patch = 12 }'
    model, before = Draws(draw).eval(), torch.random.get_rng_state()
    made = fxptq.quantize(model, inputs(1), 4, list(inputs().split(1)), settings(passes))
    made.save(tmp_path / "a.safetensors")
    loaded = fxptq.load(tmp_path / "a.safetensors", model)
    loaded.program.variant((torch.rand(1, 3, 20, 28, generator=torch.Generator()),))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_bundled_network_is_rebuilt_without_the_callers_numbers(tmp_path: Path) -> None:
    settings = Recipe.load("edsr_x4").model_dump()
    settings["presets"] = {"quick": {"images": 1, "passes": [{"name": "observe"}, {"name": "minmax"}]}}
    recipe = Recipe.model_validate(settings)
    made = fxptq.quantize(recipe.build_model().eval(), inputs(1), 4, [inputs(1)], recipe, preset="quick")
    made.save(tmp_path / "a.safetensors")
    before = torch.random.get_rng_state()
    fxptq.load(tmp_path / "a.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_numbers_that_the_callers_iterable_draws_are_the_callers() -> None:
    def pictures() -> list[Tensor]:
        torch.manual_seed(11)
        return [torch.rand(1, 3, 16, 16) for _ in range(2)]

    expected = [image.clone() for image in pictures()]
    seen: list[Tensor] = []

    def noted() -> list[Tensor]:
        seen.extend(pictures())
        return seen

    fxptq.quantize(Draws(DRAWS["nothing"]).eval(), inputs(1), 4, iter(noted()), preset="quick")
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_another_thread_draws_on_while_networks_are_captured() -> None:
    """Every number of the other thread is a new one: nobody sets the generator back behind its back."""
    done, drawn = threading.Event(), []

    def draw() -> None:
        while not done.is_set() or len(drawn) < 100:
            drawn.append(float(torch.rand((), dtype=torch.float64)))

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for side in (8, 10, 12):
            Program(Draws(DRAWS["nothing"]).eval(), torch.ones(1, 3, side, side))
    finally:
        done.set()
        thread.join()
    assert len(set(drawn)) == len(drawn)


def test_devices_of_cuda_that_are_not_in_use_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", asked.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", asked.append)
    Program(Draws(DRAWS["rand"]).eval(), inputs(1))
    assert not asked


@pytest.mark.cuda
def test_the_generators_of_cuda_stay() -> None:
    x = inputs(1).cuda()
    before = torch.cuda.get_rng_state_all()
    with OwnRandomNumbers():
        first = torch.rand_like(x)
    with OwnRandomNumbers():
        assert torch.equal(torch.rand_like(x), first)
    Program(nn.Conv2d(3, 3, 1).cuda().eval(), x)
    assert all(map(torch.equal, torch.cuda.get_rng_state_all(), before))
