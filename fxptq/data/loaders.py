"""What data loaders of training code yield, as the inputs of a network: BasicSR's dictionaries, and pairs.

A dictionary has the input under `lq`; a pair is the input and its clean picture, of which the input is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fxptq.errors import InputError

LOW_QUALITY = "lq"
"""The key of the input in BasicSR's dictionaries; the clean picture is under `gt`."""


def is_loader(given: object) -> bool:
    """Whether a source yields pairs as tuples: a data loader or data set of torch."""
    return isinstance(given, DataLoader | Dataset)


def network_inputs(given: Iterable[Any], inputs: int) -> Iterator[tuple[Any, bool]]:
    """The inputs of a network out of each item, and whether the item was one of training code.

    Args:
        given: yields tensors; tuples of tensors for a network of several inputs; dictionaries with `lq`; pairs: lists
            of two, as a data loader makes them of tuples, or tuples that a data loader or data set yields.
        inputs: the number of tensors that the network takes.

    Raises:
        InputError: a dictionary has no tensor `lq`.
    """
    loader = is_loader(given)
    for index, item in enumerate(given):
        if isinstance(item, Mapping):
            if not isinstance(item.get(LOW_QUALITY), Tensor):
                keys = ", ".join(map(repr, item)) or "none"
                raise InputError(f"calibration input {index} has the keys {keys}; expected a tensor under 'lq'")
            yield _batched(item[LOW_QUALITY]), True
        elif isinstance(item, list) or (loader and isinstance(item, tuple)):
            if len(item) == inputs > 1:
                yield tuple(map(_batched, item)), True
            elif len(item) in (1, 2) and inputs == 1:
                yield _batched(item[0]), True
            else:
                raise InputError(
                    f"calibration input {index} is a list of {len(item)}; expected the input and its clean picture"
                    + (f", or the {inputs} inputs of the network" if inputs > 1 else "")
                )
        else:
            yield (_batched(item) if loader else item), loader


def _batched(item: Any) -> Any:
    """A picture [C, H, W] of a data set as a batch of one."""
    return item[None] if isinstance(item, Tensor) and item.ndim == 3 else item
