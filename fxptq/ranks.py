"""The processes of one run: which of them this is, what they share out, and the sums that they make together.

`torchrun` starts the processes, and torch.distributed connects them: gloo between CPUs, nccl between GPUs. For one
process, `ALONE`, every method is the identity, so that a pass asks `Context.ranks` and never counts processes.

Promises: after a sum, an average or an exchange every process has the same bits. An error that one process meets within
`together` is raised by all. A process that is gone, or does not answer in time, ends the others with one line that
names its rank; nothing waits for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fxptq.errors import FxptqError, InputError
from fxptq.shell import one_line

T = TypeVar("T")

TIMEOUT = "FXPTQ_RANKS_TIMEOUT"
"""The variable of the environment that gives the seconds after which a process that does not answer ends the run."""

_USUAL_TIMEOUT = 1800.0  # seconds: the shares of a run are alike, and a process waits for the difference
_LAST_WORD = 3.0  # seconds that processes have to report that they are still there
_BLOCK = 1 << 22  # elements that travel at a time

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}


class RankError(FxptqError):
    """A process of the run has died, does not answer, or was given other work."""


@dataclass(frozen=True)
class Ranks:
    """The processes that work on one network.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, reports and shows bars."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this process: every `world`-th one. The shares of all processes are all items."""
        return items if self.world == 1 else items[self.rank :: self.world]

    def share_by_size(self, sizes: Sequence[float]) -> list[int]:
        """The numbers of the items of this process, so that the sums of all processes' sizes are nearly equal.

        The largest item that is left goes to the process with the least so far.
        """
        loads = [0.0] * self.world
        own: list[int] = []
        for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            rank = loads.index(min(loads))
            loads[rank] += max(sizes[index], 1)
            if rank == self.rank:
                own.append(index)
        return sorted(own)

    def part(self, batch: Tensor) -> Tensor:
        """The entries of the first axis for this process, in one block; none where there are too few."""
        return batch if self.world == 1 else torch.tensor_split(batch, self.world)[self.rank].clone()

    def reduce(self, tensors: Sequence[Tensor], operation: Literal["sum", "min", "max"] = "sum") -> None:
        """Replaces tensors by their sums, minima or maxima over all processes.

        Args:
            tensors: of the same shapes, types and devices everywhere.
            operation: of the elements.
        """
        if self.world == 1:
            return
        with self._alive():
            for like in _alike(tensors):
                for block in _blocks(like):
                    flat = torch.cat([x.detach().reshape(-1) for x in block])
                    dist.all_reduce(flat, _OPERATIONS[operation])
                    for x, value in zip(block, torch.split(flat, [x.numel() for x in block]), strict=True):
                        x.detach().copy_(value.view_as(x))

    def totals(self, *numbers: float) -> tuple[float, ...]:
        """The sums of some numbers over all processes, in float64."""
        if self.world == 1:
            return numbers
        sums = torch.tensor(numbers, dtype=torch.float64)
        self.reduce([sums])
        return tuple(sums.tolist())

    def largest(self, number: float) -> float:
        """The largest of the processes' numbers."""
        if self.world == 1:
            return number
        value = torch.tensor([number], dtype=torch.float64)
        self.reduce([value], "max")
        return float(value)

    def average(self, tensors: Sequence[Tensor], weight: float) -> None:
        """Replaces tensors by their means over the processes, weighted; one process's tensors keep their bits.

        Args:
            tensors: floating point.
            weight: of the tensors of this process, such as the number of crops behind a gradient; not 0 everywhere.
        """
        if self.world == 1:
            return
        (total,) = self.totals(weight)
        for x in tensors:
            x.detach().mul_(weight / total)
        self.reduce(tensors)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with self._alive():
            dist.all_gather_object(values, value)
        return values

    def exchange(self, results: Mapping[str, T]) -> dict[str, T]:
        """Joins the results by key that each process has for its share."""
        return {key: value for part in self.gather(dict(results)) for key, value in part.items()}

    def mean(self, number: float, weight: float) -> float:
        """The mean of the processes' numbers, weighted."""
        if self.world == 1:
            return number
        total, weights = self.totals(number * weight, weight)
        return total / weights

    def from_first(self, value: T) -> T:
        """The value that the first process has."""
        if self.world == 1:
            return value
        values = [value if self.first else None]
        with self._alive():
            dist.broadcast_object_list(values, 0)
        return cast("T", values[0])

    def together(self, work: Callable[[], T]) -> T:
        """Does work that no other process waits for; an error of one process is raised by all.

        Raises:
            FxptqError: of the work here or elsewhere; the message then names the rank.
        """
        if self.world == 1:
            return work()
        result, failure = None, None
        try:
            result = work()
        except FxptqError as error:
            failure = error
        failures = [(rank, found) for rank, found in enumerate(self.gather(failure)) if found is not None]
        if failures:
            rank, first = failures[0]
            raise type(first)(f"rank {rank} of {self.world}: {first}") from failure
        return result  # type: ignore[return-value]  # the work's, if nothing failed

    def check_same(self, what: str, value: object) -> None:
        """Checks that the processes were given the same thing.

        Raises:
            RankError: one of them has another value than the first; the message names its rank.
        """
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise RankError(f"rank {rank} of {self.world} has {what} other than rank 0; give all the same")

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Turns a failure to reach the other processes into a line that names them."""
        try:
            yield
        except RuntimeError as error:
            missing = _obituary(self, _missing(self))
            reason = one_line(str(error))[:200]
            if missing:
                raise RankError(missing) from error
            raise RankError(f"rank {self.rank} of {self.world} cannot reach the others: {reason}") from error


ALONE = Ranks()
"""One process."""


def current() -> Ranks:
    """The processes of torch's default group, or one process where there is none."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())


def launched() -> Ranks:
    """This process among those that `torchrun` has started, also before they are connected."""
    try:
        return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    except (KeyError, ValueError):
        return ALONE


@contextmanager
def joined(device: str = "cpu") -> Iterator[Ranks]:
    """Within, the processes that `torchrun` has started are connected; a group that is there already stays.

    An error leaves as a `RankError` with the exit status of its cause. The process that fails first has the line; the
    error of every other process has an empty message.

    Args:
        device: "cpu" if no tensor lives on a GPU; otherwise each process of a host takes a GPU of its own, if it can.

    Raises:
        RankError: the other processes cannot be reached, or the work failed.
        InputError: the timeout is no number of seconds.
    """
    ranks = launched()
    if ranks.world == 1 or dist.is_initialized():
        yield current()
        return
    gpus = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % gpus)
    # nccl refuses two processes on one GPU; gloo takes tensors of GPUs by way of the host.
    on_gpus = 0 < int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= gpus and dist.is_nccl_available()
    timeout = timedelta(seconds=_timeout())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"rank {ranks.rank} of {ranks.world} cannot reach the others: {one_line(str(error))}"
        ) from error
    try:
        with _asked_to_end():
            yield ranks
    except _AskedToEndError:
        raise _reported(ranks, _obituary(ranks, _missing(ranks)) or "ended by a signal", 1) from None
    except Exception as error:
        said = str(error) if isinstance(error, FxptqError) else f"{type(error).__name__}: {error}"
        raise _reported(ranks, said, getattr(error, "exit_status", 1)) from error
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


class _AskedToEndError(Exception):
    """The process got the signal by which `torchrun` ends the others when one has died."""


@contextmanager
def _asked_to_end() -> Iterator[None]:
    """Within, the first SIGTERM raises an error, so that the process may leave a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _AskedToEndError

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _reported(ranks: Ranks, said: str, status: int) -> RankError:
    """The error of this process: with a line if it is the first one to fail."""
    error = RankError("")
    if _is_first_to_fail():
        error = RankError(said if said.startswith("rank") else f"rank {ranks.rank} of {ranks.world}: {said}")
    error.exit_status = status  # type: ignore[misc]  # of this error, whose cause decides
    _await_others(ranks)
    return error


def _await_others(ranks: Ranks) -> None:
    """Lets the others ask who has failed first, where this process has the store and `torchrun` has not."""
    with contextlib.suppress(RuntimeError):
        ended = _store().add("fxptq/ended", 1)
        deadline = time.monotonic() + 3 * _LAST_WORD
        while ranks.first and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ and time.monotonic() < deadline:
            if ended >= ranks.world:
                return
            time.sleep(0.05)
            ended = _store().add("fxptq/ended", 0)


def _is_first_to_fail() -> bool:
    try:
        return bool(_store().add("fxptq/failures", 1) == 1)
    except RuntimeError:  # the process that had the store is gone, and so is every other one that could speak
        return True


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()  # noqa: SLF001  # the only way to the group's store


def _obituary(ranks: Ranks, missing: Sequence[int]) -> str:
    """One line on the processes that are gone; empty if all are there."""
    if not missing:
        return ""
    named = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))}"
    return (
        f"{named} of {ranks.world} died or hangs, and left no word: killed by a signal (the system kills when memory "
        "is short) or stopped"
    )


def _timeout() -> float:
    text = os.environ.get(TIMEOUT, str(_USUAL_TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise InputError(f"{TIMEOUT}={text}: expected a number of seconds above 0")
    return seconds


def _missing(ranks: Ranks) -> list[int]:
    """The processes that do not report that they are still there."""
    try:
        store = _store()
        store.set(f"fxptq/there/{ranks.rank}", "yes")
        deadline = time.monotonic() + _LAST_WORD
        others = [rank for rank in range(ranks.world) if rank != ranks.rank]
        while others and time.monotonic() < deadline:
            others = [rank for rank in others if not store.check([f"fxptq/there/{rank}"])]
            time.sleep(0.05)
    except RuntimeError:  # the store died with the process that had it
        return [0] if not ranks.first else []
    return others


def _alike(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors by type and device, in their order."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for x in tensors:
        groups.setdefault((x.dtype, x.device), []).append(x)
    return list(groups.values())


def _blocks(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in their order, in lists of up to `_BLOCK` elements, or one larger tensor."""
    block: list[Tensor] = []
    for x in tensors:
        if block and sum(y.numel() for y in block) + x.numel() > _BLOCK:
            yield block
            block = []
        block.append(x)
    if block:
        yield block
