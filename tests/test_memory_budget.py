"""`memory`: statistics in groups that fit, and the same network as without a limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fxptq
from fxptq.errors import InputError
from fxptq.memory import parse_bytes
from fxptq.passes import moments, samples, training
from fxptq.passes.lessons import KeptLessons, Lesson
from fxptq.passes.shelf import Shelf
from tests.tiny import Medley, edsr, inputs, settings, swinir

AFFINE = {"*.attention": "shares", "*.query": "affine", "*.key": "affine", "*.value": "affine", "*.input": "affine"}
DQC = '{ name = "dqc", steps = 4, batch = 2, patch = 8, crops = 6, holdout_crops = 4, eval_every = 1, lr = 0.1 }'


def saved(path: Path, model: torch.nn.Module, passes: str, memory: int | None, **quantize: object) -> bytes:
    recipe = settings(passes)
    own = recipe.quantize.model_copy(update=quantize)
    q = fxptq.quantize(
        model, inputs(1), 4, inputs(3), recipe.model_copy(update={"quantize": own}), scale=2, memory=memory
    )
    q.save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("model", "passes", "quantize"),
    [
        (edsr(), f'{{ name = "dobi", k = 20 }}, {{ name = "gptq" }}, {DQC}', {}),
        (Medley(), '{ name = "minmax" }, { name = "gptq" }', {}),
        (swinir(), '{ name = "minmax" }, { name = "channels" }, { name = "attention" }', {"schemes": AFFINE}),
    ],
    ids=["moments-and-answers", "shared-and-grouped-weights", "samples"],
)
def test_a_tiny_budget_gives_the_same_bytes(
    tmp_path: Path, model: torch.nn.Module, passes: str, quantize: dict[str, object]
) -> None:
    free = saved(tmp_path / "free.safetensors", model, passes, None, **quantize)
    assert saved(tmp_path / "tiny.safetensors", model, passes, 5000, **quantize) == free


def test_moments_take_no_more_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 5 kB each weight is a group of its own, and their sums are on disk when the next group begins."""
    groups: list[list[str]] = []
    sums_of = moments.Moments._sums

    def watched(self: moments.Moments, ctx: object, sites: list[object], *rest: object) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = sums_of(self, ctx, sites, *rest)  # type: ignore[arg-type]
        groups.append(list(sums))
        assert isinstance(ctx.moments, Shelf) == (number > 1)  # type: ignore[attr-defined]
        return sums

    monkeypatch.setattr(moments.Moments, "_sums", watched)
    for memory, number in ((None, 1), (5000, 8), (10**9, 1)):
        groups.clear()
        q = fxptq.quantize(
            edsr(), inputs(1), 4, inputs(2), settings('{ name = "minmax" }, { name = "gptq" }'), scale=2, memory=memory
        )
        assert len(groups) == number
        assert sum(map(len, groups)) == int(next(r for r in q.report if r.name == "moments").notes[0].split()[0])


def test_groups_of_samples_and_answers_follow_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(part) for part in samples.in_memory([3, 3, 5, 1], lambda x: x, 6)] == [2, 2]
    taught: list[int] = []

    def teach(batch: Tensor) -> Lesson:
        taught.append(int(batch[0]))
        return Lesson((batch,), batch, ())  # 8 bytes

    batches = [torch.full((1,), float(i)) for i in range(3)]
    kept = KeptLessons(batches, teach, 17)
    assert [[int(x.picture) for x in kept] for _ in range(2)] == [[0, 1, 2]] * 2
    assert taught == [0, 1, 2, 2]
    assert kept.left == 1
    assert KeptLessons(batches, teach, None).left is None
    assert training.KeptLessons is KeptLessons


def test_a_shelf_gives_back_every_bit() -> None:
    shelf = Shelf()
    tensors = {"a": torch.randn(3, 4, dtype=torch.float64).t(), "b": torch.zeros(0, 2), "c": torch.tensor(float("nan"))}
    shelf.update(tensors)
    shelf["b"] = torch.arange(5)
    assert (list(shelf), len(shelf)) == (["a", "b", "c"], 3)
    assert torch.equal(shelf["a"], tensors["a"])
    assert shelf["b"].tolist() == [0, 1, 2, 3, 4]
    assert bool(shelf["c"].isnan())
    del shelf["a"]
    assert "a" not in shelf
    with pytest.raises(KeyError):
        shelf["a"]


@pytest.mark.parametrize(
    ("text", "number"), [("4G", 4 * 10**9), ("500M", 5 * 10**8), ("1.5kB", 1500), (7, 7), ("8", 8)], ids=str
)
def test_sizes_are_read(text: str | int, number: int) -> None:
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "4 apples", "-1", "0", "0.1", "4g", True], ids=str)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a number of bytes, as in 500M or 4G"):
        parse_bytes(text)
