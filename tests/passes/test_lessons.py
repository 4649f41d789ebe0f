"""Lessons that are kept: the teacher answers once for each batch, and the budget of memory changes no result."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor

from fxptq.passes.crops import Batches
from fxptq.passes.lessons import Lesson, fresh_lessons, repeated_lessons


class Teacher:
    """Answers with twice the input, and counts its answers."""

    def __init__(self) -> None:
        self.answers = 0

    def teach(self, batch: Tensor) -> Lesson:
        self.answers += 1
        return Lesson((batch,), 2 * batch, ())


def batches(seed: int = 0) -> Batches:
    images = [torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    return Batches(images, size=8, batch=2, fraction=0.3, crops=2, generator=torch.Generator().manual_seed(seed))


def lessons(teacher: Teacher, *, memory: int = 10**9, seed: int = 0) -> list[Lesson]:
    generator = torch.Generator().manual_seed(seed)
    endless = repeated_lessons(batches(), teacher.teach, crops=7, memory=memory, generator=generator)
    return list(islice(endless, 12))


def test_each_batch_is_taught_once_and_comes_once_a_round() -> None:
    teacher = Teacher()
    seen = [lesson.picture for lesson in lessons(teacher)]
    assert teacher.answers == 4  # 7 crops in batches of 2
    for start in (0, 4, 8):
        assert {x.data_ptr() for x in seen[start : start + 4]} == {x.data_ptr() for x in seen[:4]}
    orders = [[x.data_ptr() for x in seen[start : start + 4]] for start in (0, 4, 8)]
    assert orders[0] != orders[1] or orders[1] != orders[2]


@pytest.mark.parametrize(("kept", "answers"), [(0, 12), (1, 10), (3, 6)])
def test_the_budget_changes_no_lesson(kept: int, answers: int) -> None:
    size = 2 * (2 * 3 * 8 * 8 * 4)  # inputs and answers of a batch in bytes
    teacher = Teacher()
    found = lessons(teacher, memory=kept * size + 1)
    assert teacher.answers == answers
    assert all(torch.equal(a.picture, b.picture) for a, b in zip(found, lessons(Teacher()), strict=True))


def test_fresh_lessons_are_new_each_time() -> None:
    teacher = Teacher()
    first, second = islice(fresh_lessons(batches(), teacher.teach), 2)
    assert teacher.answers == 2
    assert not torch.equal(first.picture, second.picture)


def test_inputs_that_are_used_whole_come_once_a_round() -> None:
    pairs = [(torch.full((1, 3, 8, 8), float(i)), torch.zeros(1, 1)) for i in range(5)]
    whole = Batches(pairs, size=8, batch=1, fraction=0.2, crops=1, generator=torch.Generator().manual_seed(0))
    assert len(whole.fixed(1)) == 4
    assert len({float(x[0].max()) for x in whole.fixed(1)}) == 4
