"""Crops and the split into images to train on and to judge by."""

from __future__ import annotations

import pytest
import torch

from fxptq.data.sources import Inputs
from fxptq.errors import InputError
from fxptq.passes.crops import Batches, Crops, crops_in_turn, split
from fxptq.sizes import ANY_SIZE, Sizes


def numbered(height: int, width: int, start: int = 0) -> torch.Tensor:
    return (torch.arange(height * width).reshape(1, 1, height, width) + start).float()


def first_values(crops: list[Inputs]) -> list[int]:
    return [int(crop[0, 0, 0, 0]) for crop in crops if isinstance(crop, torch.Tensor)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("count", "fraction", "held"), [(10, 0.1, 1), (10, 0.3, 3), (3, 0.01, 1), (2, 0.99, 1), (100, 0.1, 10)]
)
def test_split_parts_the_images(count: int, fraction: float, held: int) -> None:
    images = [torch.full((1, 1, 2, 2), float(i)) for i in range(count)]
    training, judging = split(images, fraction, rng())
    assert len(judging) == held
    assert sorted(float(i[0, 0, 0, 0]) for i in training + judging) == list(range(count))


def test_a_single_image_is_both() -> None:
    image = torch.rand(1, 3, 8, 8)
    training, judging = split([image], 0.1, rng())
    assert training[0] is image
    assert judging[0] is image


def test_crops_are_parts_of_the_images_and_reach_every_place() -> None:
    image = numbered(6, 9)
    crops = crops_in_turn(ANY_SIZE, [image], 4, 18, seed=0)
    assert sorted(first_values(crops)) == sorted(row * 9 + column for row in range(3) for column in range(6))
    for crop in crops:
        assert isinstance(crop, torch.Tensor)
        row, column = divmod(int(crop[0, 0, 0, 0]), 9)
        assert torch.equal(crop, image[..., row : row + 4, column : column + 4])
    first = {first_values(crops_in_turn(ANY_SIZE, [image], 4, 1, seed=seed))[0] for seed in range(200)}
    assert len(first) == 18


@pytest.mark.parametrize(("count", "of_each"), [(1, [1, 1, 1]), (3, [1, 1, 1]), (5, [2, 2, 1]), (8, [3, 3, 2])])
def test_every_input_gives_a_crop_before_any_gives_another(count: int, of_each: list[int]) -> None:
    items = [numbered(20, 30, 0), numbered(24, 16, 1000), numbered(40, 40, 2000)]
    crops = crops_in_turn(ANY_SIZE, items, 16, count, seed=1)
    assert {tuple(crop.shape) for crop in crops if isinstance(crop, torch.Tensor)} == {(1, 1, 16, 16)}
    values = first_values(crops)
    assert [sum(value // 1000 == i or (i == 2 and value > 2000) for value in values) for i in range(3)] == of_each
    assert len(set(values)) == len(values)
    assert first_values(crops_in_turn(ANY_SIZE, items, 16, count, seed=1)) == values
    assert [value // 1000 for value in values[:2]] == [0, 1]


def test_no_crop_is_there_twice() -> None:
    small, large = numbered(12, 16, 0), numbered(17, 16, 1000)
    crops = crops_in_turn(ANY_SIZE, [small, large], 16, 8, seed=0)
    sides = [crop.shape[-1] for crop in crops if isinstance(crop, torch.Tensor)]
    assert sides == [12, 16, 12, 16, 12, 12]  # the large one has two crops, and of the small one four are needed
    assert all(
        crop.shape[-2] == side for crop, side in zip(crops, sides, strict=True) if isinstance(crop, torch.Tensor)
    )
    assert len(set(first_values(crops))) == len(crops)


def test_inputs_that_are_used_whole_are_there_once() -> None:
    pairs = [(numbered(20, 30, 0), torch.ones(1)), (numbered(20, 30, 0), torch.zeros(1))]
    assert crops_in_turn(ANY_SIZE, pairs, 16, 8, seed=0) == pairs
    picture = numbered(20, 30, 0)
    assert crops_in_turn(Sizes(minimum=24), [picture], 16, 8, seed=0) == [picture]


def test_augmented_crops_take_all_eight_orientations() -> None:
    image = numbered(3, 3)
    turned = [torch.rot90(image, k, (2, 3)) for k in range(4)]
    expected = {tuple(t.flatten().tolist()) for t in turned + [t.flip(3) for t in turned]}
    seen = {tuple(c.flatten().tolist()) for c in Crops([image], (3, 3), rng()).augmented(200)}
    assert len(expected) == 8
    assert seen == expected


def test_size_is_that_of_the_smallest_side() -> None:
    batches = Batches([numbered(20, 30), numbered(40, 12)], size=16, batch=5, fraction=0.5, crops=3, generator=rng())
    assert batches.draw().shape == (5, 1, 12, 12)
    assert [held.shape for held in batches.held] == [(3, 1, 12, 12)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (Sizes(multiple=5), (15, 15)),
        (Sizes(multiple=7, minimum=20), (21, 21)),
        (Sizes(minimum=22), (22, 22)),
        (Sizes(square=True), (16, 16)),
        (Sizes(fixed=(22, 31)), (22, 31)),
        (Sizes(fixed=(8, 10)), (8, 10)),
    ],
    ids=str,
)
def test_crops_have_a_size_that_the_network_takes(sizes: Sizes, expected: tuple[int, int]) -> None:
    images = [numbered(22, 31, 1000 * i) for i in range(3)]
    batches = Batches(images, size=16, sizes=sizes, batch=2, fraction=0.3, crops=2, generator=rng())
    assert sizes.takes(*expected)
    assert {tuple(batches.draw().shape[2:]) for _ in range(20)} == {expected}
    assert {tuple(held.shape[2:]) for held in batches.held} == {expected}


def test_oblong_crops_take_the_four_orientations_that_keep_their_size() -> None:
    image = numbered(3, 4)
    expected = {tuple(image.flip(axes).flatten().tolist()) for axes in ((), (2,), (3,), (2, 3))}
    assert {tuple(c.flatten().tolist()) for c in Crops([image], (3, 4), rng()).augmented(100)} == expected


@pytest.mark.parametrize("sizes", [Sizes(minimum=40), Sizes(multiple=32), Sizes(fixed=(22, 64))], ids=str)
def test_pictures_without_such_a_crop_are_used_whole(sizes: Sizes) -> None:
    images = [numbered(22, 31), numbered(23, 37)]
    batches = Batches(images, size=16, sizes=sizes, batch=4, fraction=0.5, crops=2, generator=rng())
    shapes = {tuple(x.shape) for x in (batches.draw(), *batches.held)}
    assert shapes == {(1, 1, 22, 31), (1, 1, 23, 37)}


def of_each(crops: torch.Tensor) -> list[int]:
    """The number of crops out of each of five images, whose values begin with their numbers in thousands."""
    return torch.bincount(crops[:, 0, 0, 0].long() // 1000, minlength=5).tolist()


def test_every_image_gives_a_crop_to_train_on_before_any_gives_another() -> None:
    images = [numbered(12, 10 + i, 1000 * i) for i in range(5)]
    for seed in range(20):
        few, many = (of_each(Crops(images, (8, 8), rng(seed)).augmented(count)) for count in (4, 12))
        assert sorted(few) == [0, 1, 1, 1, 1]
        assert sorted(many) == [2, 2, 2, 3, 3]


def test_images_in_turn_are_in_random_order() -> None:
    images = [numbered(12, 10, 1000 * i) for i in range(5)]
    order = {tuple((Crops(images, (8, 8), rng(seed)).augmented(5)[:, 0, 0, 0] // 1000).tolist()) for seed in range(20)}
    assert len(order) > 10


def test_fixed_batches_take_the_images_in_turn() -> None:
    images = [numbered(20, 30, 1000 * i) for i in range(6)]
    batches = Batches(images, size=8, batch=2, fraction=0.2, crops=1, generator=rng())
    fixed = batches.fixed(9)
    assert [batch.shape for batch in fixed] == [(2, 1, 8, 8)] * 5
    number = torch.bincount(torch.cat(fixed)[:, 0, 0, 0].long() // 1000, minlength=6).tolist()
    assert sorted(number) == [0, 2, 2, 2, 2, 2]  # one image is there to judge by


def test_crops_to_judge_by_are_not_the_same_one_again() -> None:
    images = [numbered(16, 16, 1000 * i) for i in range(10)]
    batches = Batches(images, size=8, batch=1, fraction=0.4, crops=8, generator=rng(), held_size=16)
    assert sorted(int(held[0, 0, 0, 0]) for held in batches.held) == sorted({int(x[0, 0, 0, 0]) for x in batches.held})
    assert len(batches.held) == 4


def test_crops_repeat_with_the_seed() -> None:
    images = [numbered(20, 30), numbered(40, 22, 1000)]
    a, b, c = (Crops(images, (8, 8), rng(seed)).augmented(6) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_batches_of_pictures_are_crops() -> None:
    images = [numbered(20, 30, 1000 * i) for i in range(4)]
    batches = Batches(images, size=8, batch=3, fraction=0.5, crops=5, generator=rng())
    assert [batch.shape for batch in batches.held] == [(3, 1, 8, 8), (2, 1, 8, 8)]
    drawn = [batches.draw() for _ in range(20)]
    assert {batch.shape for batch in drawn} == {(3, 1, 8, 8)}
    taught, judged = ({int(x) // 1000 for batch in part for x in batch.flatten()} for part in (drawn, batches.held))
    assert not taught & judged


def test_held_out_crops_may_have_a_side_of_their_own() -> None:
    images = [numbered(20, 30, 1000 * i) for i in range(4)]
    batches = Batches(images, size=8, batch=3, fraction=0.5, crops=5, generator=rng(), held_size=16)
    assert batches.draw().shape == (3, 1, 8, 8)
    assert [batch.shape for batch in batches.held] == [(3, 1, 16, 16), (2, 1, 16, 16)]


def test_held_out_crops_are_no_larger_than_the_pictures() -> None:
    batches = Batches([numbered(12, 30)], size=8, batch=3, fraction=0.5, crops=2, generator=rng(), held_size=64)
    assert batches.draw().shape == (3, 1, 8, 8)
    assert [batch.shape for batch in batches.held] == [(2, 1, 12, 12)]


def test_batches_of_several_inputs_are_whole() -> None:
    pairs = [(numbered(6, 9), torch.tensor([i])) for i in range(10)]
    batches = Batches(pairs, size=4, batch=3, fraction=0.2, crops=5, generator=rng())
    held, drawn = [int(b[1]) for b in batches.held], [batches.draw() for _ in range(200)]
    assert len(held) == 2
    assert {int(b[1]) for b in drawn} == set(range(10)) - set(held)
    assert all(torch.equal(b[0], numbered(6, 9)) for b in drawn)


def test_images_that_are_not_single_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[1, C, H, W\], not \(2, 3, 8, 8\)"):
        Batches([torch.rand(2, 3, 8, 8)], size=4, batch=1, fraction=0.5, crops=1, generator=rng())
