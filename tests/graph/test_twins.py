"""A student takes over what was proved of its teacher's graphs, and only what holds."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from fxptq.bits import Bits
from fxptq.graph import Program
from fxptq.graph import program as program_module
from fxptq.graph.plan import Plan
from fxptq.graph.twins import Twins, example_of


class Padding(nn.Module):
    """Two classes of sizes: multiples of 8, and others, which are padded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        missing = -x.shape[-1] % 8
        if missing:
            x = nn.functional.pad(x, (0, missing, 0, 0), mode="replicate")
        return self.conv(x) * x.shape[-1]


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], bool]]:
    """The sizes of each capture, and whether a proof was taken over."""
    made: list[tuple[tuple[int, ...], bool]] = []
    capture = program_module.capture

    def noted(model: nn.Module, example: tuple[Tensor, ...], proved: object = None) -> object:
        made.append((tuple(example[0].shape), proved is not None))
        return capture(model, example, proved)  # type: ignore[arg-type]

    monkeypatch.setattr(program_module, "capture", noted)
    return made


def twins() -> tuple[nn.Module, Program, nn.Module, Program]:
    torch.manual_seed(0)
    teacher, student = Padding().eval(), Padding().eval()
    example = torch.rand(1, 3, 16, 16)
    first = Program(teacher, example)
    return teacher, first, student, Program(student, example, twin=first)


def test_a_size_of_another_class_is_proved_once_for_both(proofs: list[tuple[tuple[int, ...], bool]]) -> None:
    teacher, first, student, second = twins()
    a, b = torch.rand(1, 3, 8, 21), torch.rand(4, 3, 9, 13)
    with torch.no_grad():
        assert torch.equal(first(a), teacher(a))
        assert torch.equal(second(b), student(b))
        assert torch.equal(first(b), teacher(b))
        assert torch.equal(second(a), student(a))
    assert proofs == [
        ((1, 3, 16, 16), False), ((1, 3, 16, 16), True), ((1, 3, 8, 21), False), ((1, 3, 8, 21), True),
    ]  # fmt: skip


def test_what_a_student_finds_first_serves_its_teacher(proofs: list[tuple[tuple[int, ...], bool]]) -> None:
    teacher, first, student, second = twins()
    b = torch.rand(2, 3, 9, 13)
    with torch.no_grad():
        assert torch.equal(second(b), student(b))
        assert torch.equal(first(b), teacher(b))
    assert [taken for _, taken in proofs] == [False, True, False, True]


def test_other_widths_take_no_graph_away(proofs: list[tuple[tuple[int, ...], bool]]) -> None:
    example, b = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 9, 13)
    student = Program(Padding().eval(), example, Plan(Bits(4, 4)))
    teacher = Program(Padding().eval(), example, twin=student)
    with torch.no_grad():
        student(b)
        student.set_bits(dict.fromkeys(student.quantizers, 6))
        teacher(b)
    assert [taken for _, taken in proofs] == [False, True, False, True]


def test_a_copy_has_twins_of_its_own(proofs: list[tuple[tuple[int, ...], bool]]) -> None:
    made = copy.deepcopy(twins()[3])
    twin = Program(Padding().eval(), torch.rand(1, 3, 16, 16), twin=made)
    with torch.no_grad():
        twin(b := torch.rand(2, 3, 9, 13))
        made(b)
    assert [taken for _, taken in proofs[-3:]] == [True, False, True]


def test_another_network_s_graph_is_not_taken_over() -> None:
    class Other(Padding):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    example = torch.rand(1, 3, 16, 16)
    first, other = Program(Padding().eval(), example), Other().eval()
    second = Program(other, example, twin=first)
    with torch.no_grad():
        assert torch.equal(second(example), other(example))


def test_copies_have_no_twin_and_are_the_network() -> None:
    _, _, student, second = twins()
    b = torch.rand(2, 3, 9, 13)
    for made in (copy.deepcopy(Twins()), pickle.loads(pickle.dumps(Twins()))):  # noqa: S301  # our own bytes
        assert not made.of(())
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(second)(b), student(b))


def test_an_example_of_other_sizes_repeats_the_inputs() -> None:
    x = torch.arange(6.0).view(1, 1, 2, 3)
    (found,) = example_of((((2, 1, 3, 2), torch.float32),), (x,))
    assert torch.equal(found, torch.tensor([[0.0, 1], [3, 4], [0, 1]]).expand(2, 1, 3, 2))
