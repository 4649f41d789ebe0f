"""A quantized network on integer kernels: the last arrow of the way.

`lower` gives a module that is called as the network is, for every size the network takes. For each graph of the program
it holds the same graph on codes (rewrite.py), for the device the network is on; what is between the kernels is left to
torch.compile. Any number of threads may run one model, or several.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxptq.errors import InputError
from fxptq.graph.exclusive import CAPTURING, OwnLock
from fxptq.graph.finite import warn_of_nan
from fxptq.graph.precision import in_precision, without_autocast
from fxptq.graph.program import Program, Variant
from fxptq.kernels.backend import Backend, Installed, backend_for
from fxptq.kernels.ops import NO_CODE
from fxptq.kernels.pace import (
    MOST_PIXELS,
    Pace,
    Setting,
    Sparing,
    alike,
    gains_on_simulation,
    losers,
    own_inputs,
    pace_of,
    pixels,
)
from fxptq.kernels.patterns import written
from fxptq.kernels.rewrite import Rewritten, rewrite

COMPILED_SIZES = 8
"""Sizes of the input for which one graph is compiled; at others it runs as it is, exactly and somewhat more slowly. As
torch.compile bounds itself by default: a size takes it seconds."""

_ELSEWHERE = "dynamo-optimized function"
"""In the error of compiled code that is called while another thread compiles; torch has no class for it."""

_log = logging.getLogger("fxptq")


@dataclass(frozen=True)
class Lowering:
    """What became of the sites of a network.

    Attributes:
        backend: what runs the operators on this machine.
        kernels: the operator that serves each site, by site name.
        simulated: quantized sites that still compute in float, with the reason.
        paces: how fast integers are beside float on this machine, at each size that was compared so far.
    """

    backend: Installed
    kernels: dict[str, str]
    simulated: dict[str, str]
    paces: tuple[Pace, ...] = ()


class IntegerModel(nn.Module):
    """A quantized network that computes in integers; see the module's description.

    Args:
        program: the network with its quantizers set. Later changes of it are not seen.
        compile: whether to hand what is between the kernels to torch.compile, where there is a compiler; for the first
            `COMPILED_SIZES` sizes of input of each graph, and for as many graphs as the program keeps.
        backend: what computes the sites; None for the bundled back end of the device the network is on.
        compare: whether to time integers beside float on this machine, once a network and size: kernels that lose are
            left to the simulation, and `lowering.paces` says what the network gains.
        pace: whether the whole network is timed beside float, too; None as `compare`.

    Attributes:
        task: the recipe of what the network restores, for `fxptq.restore`; None where nobody said.
        writer: writes the quantized network as a checkpoint; None for a program that has no metadata.
    """

    task: Any = None
    writer: Callable[[str | Path], None] | None = None

    def __init__(
        self,
        program: Program,
        *,
        compile: bool = True,  # noqa: A002  # the name torch uses for it
        backend: Backend | None = None,
        compare: bool = False,
        pace: bool | None = None,
    ) -> None:
        super().__init__()
        self.program = program
        self._compile, self._asked_for, self._compare = compile, backend, compare
        self._pace = compare if pace is None else pace
        self._paces: dict[tuple[int, int], Pace] = {}  # by pixels and threads; replaced, never changed
        self._comparing = OwnLock()
        self._lowered: dict[int, _Lowered] = {}  # replaced, never changed
        self._lowering = OwnLock()
        self._graphs = 0
        self.of(program.variants[0])

    @property
    def lowering(self) -> Lowering:
        """What became of the sites, in the first graph."""
        first = self.of(self.program.variants[0])
        return Lowering(self.backend.install(), first.kernels, first.simulated, tuple(self._paces.values()))

    def save(self, path: str | Path) -> None:
        """Writes the checkpoint of the quantized network, from which `fxptq.load` makes the same integers.

        Raises:
            CheckpointError: the file cannot be written.
            InputError: the model was lowered from a program alone, which has no metadata.
        """
        if self.writer is None:
            raise InputError("this integer model was made of a program alone; save the QuantizedModel it came from")
        self.writer(path)

    def __repr__(self) -> str:
        """The network in one line."""
        lowering = self.lowering
        name = f"{self.task.name}, {self.task.task}: " if self.task is not None else ""
        simulated = f", {len(lowering.simulated)} simulated" if lowering.simulated else ""
        return f"IntegerModel({name}{len(lowering.kernels)} sites on {lowering.backend.name} kernels{simulated})"

    @property
    def backend(self) -> Backend:
        """What computes the sites."""
        return self._asked_for or backend_for(device_of(self.program))

    def forward(self, *inputs: Tensor) -> Any:
        """The network's output; inputs are the network's own."""
        return in_precision(self.program.dtype, self._run, inputs)

    def _run(self, *inputs: Tensor) -> Any:
        with torch.no_grad():
            return self.program.run(inputs, lambda variant: self._run_graph(variant, inputs))

    def _run_graph(self, variant: Variant, inputs: tuple[Tensor, ...]) -> Any:
        if any(x.numel() == 0 or (x.is_floating_point() and bool(x.isnan().any())) for x in inputs):
            return self.program(*inputs)  # where NaN stays NaN, for which no code stands, and nothing is as in torch
        try:
            lowered = self._of(variant)
            if lowered.writes_inputs:
                inputs = tuple(x.clone() for x in inputs)
            output = lowered.run(inputs)
            if self._pace:
                self._compare_at(variant, lowered, inputs)
        except RuntimeError as error:
            if NO_CODE not in str(error):
                raise
            _log.warning("the network makes NaN on its way: this input runs in the simulation, where NaN is seen")
            return self.program(*inputs)
        warn_of_nan(self.program, inputs, output)
        return output

    def _compare_at(self, variant: Variant, lowered: _Lowered, inputs: tuple[Tensor, ...]) -> None:
        """Times a size unless one like it is known, or another thread is timing."""
        size = min(pixels(inputs), MOST_PIXELS + 1), torch.get_num_threads()
        if self._knows(size):
            return
        with self._comparing:
            if self._knows(size):  # or another thread has timed it meanwhile
                return
            setting = self._setting(compiled=lowered.limit > 0)
            run = lowered.run
            if size[0] > MOST_PIXELS:
                inputs, run = own_inputs(variant, setting.device), lowered.run_uncompiled
            pace = pace_of(variant, self.program.holder, run, inputs, setting)
            self._paces = self._paces | {size: pace}

    def beats_simulation(self) -> bool:
        """Whether integers run on compiled kernels here and take no longer than the simulation.

        It is timed once a network and machine, at the size that the network was captured at.
        """
        variant = self.program.variants[0]
        lowered = self._of(variant)
        setting = self._setting(compiled=False)
        return setting.installed.native and gains_on_simulation(
            variant, self.program.holder, lowered.run_uncompiled, setting
        )

    def _knows(self, size: tuple[int, int]) -> bool:
        return any(threads == size[1] and alike(many, size[0]) for many, threads in self._paces)

    def _setting(self, compiled: bool) -> Setting:
        return Setting(self.backend.install(), device_of(self.program), compiled)

    def of(self, variant: Variant) -> Rewritten:
        """The lowered graph of a variant of the program."""
        return self._of(variant).rewritten

    def _of(self, variant: Variant) -> _Lowered:
        found = self._lowered.get(id(variant))
        if found is None:
            with self._lowering:
                found = self._lowered.get(id(variant)) or self._lower(variant)
        return found

    def _lower(self, variant: Variant) -> _Lowered:
        backend = self.backend
        with torch.no_grad(), without_autocast():
            rewritten = self._rewritten(variant, backend)
        self._graphs += 1
        native = backend.install().native  # also where nothing is compiled: without it the operators run in plain torch
        compiled = native and self._compile and self._graphs <= self.program.limit
        found = _Lowered(variant, rewritten, COMPILED_SIZES if compiled else 0)
        # What the program has dropped goes here, too; what is kept keeps its variant, whose id stays its own.
        kept = {id(other) for other in self.program.variants}
        self._lowered = {key: value for key, value in self._lowered.items() if key in kept} | {id(variant): found}
        return found

    def _rewritten(self, variant: Variant, backend: Backend) -> Rewritten:
        holder = self.program.holder
        whole = rewrite(variant, holder, backend)
        if not self._compare or device_of(self.program).type != "cpu":
            return whole

        def without(reasons: Mapping[str, str]) -> Rewritten:
            return rewrite(variant, holder, Sparing(backend, reasons))

        slower = losers(variant, holder, whole, without, self._setting(compiled=False))
        return without(slower) if slower else whole

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> IntegerModel:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        self._paces = {}
        self._lowered = {}  # another device takes its weights in another form
        return self


class _Lowered:
    """A graph on codes, and the sizes it is compiled for."""

    def __init__(self, variant: Variant, rewritten: Rewritten, limit: int) -> None:
        self.variant, self.rewritten, self.limit = variant, rewritten, limit
        self.sizes: set[tuple[Any, ...]] = set()
        self.writes_inputs = any(node.op == "placeholder" for node in written(variant.inserted))
        if limit:
            rewritten.module.compile(dynamic=False)

    def run_uncompiled(self, inputs: tuple[Tensor, ...]) -> Any:
        """The output of the graph as it is."""
        return self.rewritten.module.forward(*inputs)

    def run(self, inputs: tuple[Tensor, ...]) -> Any:
        """The output: of the compiled form, where there is one for this size or it can be compiled now."""
        size, module = tuple((x.shape, x.dtype) for x in inputs), self.rewritten.module
        if size in self.sizes:
            try:
                return module(*inputs)
            except RuntimeError as error:
                if _ELSEWHERE not in str(error):
                    raise
        elif len(self.sizes) >= self.limit:
            if self.limit:
                _log.info("input %s: compiled for %d sizes already, runs uncompiled", size, self.limit)
        elif CAPTURING.acquire(blocking=False):  # like a capture, torch.compile is for one thread at a time
            try:
                output = module(*inputs)
                self.sizes.add(size)
                return output
            finally:
                CAPTURING.release()
        return self.run_uncompiled(inputs)


def device_of(program: Program) -> torch.device:
    """The device a program is on."""
    tensor = next(chain(program.parameters(), program.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def lower(
    program: Program,
    *,
    compile: bool = True,  # noqa: A002  # the name torch uses for it
    backend: Backend | None = None,
    compare: bool = False,
    pace: bool | None = None,
) -> IntegerModel:
    """The program on integer kernels; see `IntegerModel`."""
    return IntegerModel(program, compile=compile, backend=backend, compare=compare, pace=pace)
