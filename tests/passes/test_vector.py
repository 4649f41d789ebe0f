"""Parameters in one vector learn as they do alone, and come out with their values and their own memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxptq.passes.vector import as_vector


def parameters() -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=g)) for shape in ((), (3,), (2, 5))]


def loss(own: list[nn.Parameter]) -> Tensor:
    # Some parameters are read twice, so that gradients add up.
    return sum(((p * (i + 1) - 0.3) ** 2).sum() + p.sin().sum() for i, p in enumerate(own))  # type: ignore[return-value]


def train(own: list[nn.Parameter], learners: list[nn.Parameter]) -> None:
    adam = torch.optim.Adam(learners, lr=0.05)
    for _ in range(20):
        adam.zero_grad(set_to_none=False)
        loss(own).backward()  # type: ignore[no-untyped-call]
        adam.step()


def test_adam_on_the_vector_is_adam_on_the_parameters() -> None:
    alone, together = parameters(), parameters()
    train(alone, alone)
    with as_vector(together) as vector:
        train(together, [vector])
        inside = [p.detach().clone() for p in together]
    for expected, found, before in zip(alone, together, inside, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(found, before)


def test_afterwards_each_parameter_has_memory_of_its_own() -> None:
    own = parameters()
    with as_vector(own):
        assert len({p.untyped_storage().data_ptr() for p in own}) == 1
        loss(own).backward()  # type: ignore[no-untyped-call]
    assert len({p.untyped_storage().data_ptr() for p in own}) == len(own)
    assert all(p.grad is None and p.requires_grad for p in own)
    assert [p.untyped_storage().nbytes() for p in own] == [4, 12, 40]


def test_a_parameter_that_the_loss_does_not_read_stays() -> None:
    own = parameters()
    before = own[1].detach().clone()
    with as_vector(own) as vector:
        train([own[0], own[2]], [vector])
    assert torch.equal(own[1], before)
