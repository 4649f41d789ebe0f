"""A program's state as checkpoint content, and back: codes for weights on a grid, floats for the rest, the plan.

The network rebuilt from a checkpoint gives the simulated output of the saved one bit for bit, because the stored values
are the values the saved program computes with: float tensors are rounded to the storage type before calibration, and
again after it where passes have changed them; weights are put on their grid after it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from fxptq.checkpoint.file import Checkpoint, PackedCodes
from fxptq.checkpoint.index import Index, check_names, check_sites
from fxptq.checkpoint.metadata import Metadata, OperandRecord, SiteRecord
from fxptq.errors import CalibrationError, CheckpointError, InputError
from fxptq.graph import Program, Site
from fxptq.graph.constants import attribute
from fxptq.graph.kinds import weight_axis
from fxptq.graph.tensors import stored_tensors
from fxptq.quant.bitstream import pack, unpack
from fxptq.quant.quantizer import Quantizer
from fxptq.quant.scheme import get_scheme, make_quantizer

_MODEL = "model."
_BEYOND = 1 << 24, 16  # values, and times the network's: what a checkpoint may hold beside the network's own tensors
_RANGE = {"lower", "width"}  # quantizers that store these tensors have a section of their own in a checkpoint


def round_floats(model: nn.Module, dtype: torch.dtype, *, but: Collection[str] = ()) -> None:
    """Rounds the float32 parameters of a network to values that `dtype` can hold; they keep their own type.

    A tensor that `dtype` would change by more than rounding stays as it is; see `_bears_rounding`.

    Args:
        model: the network.
        dtype: the type in which a checkpoint stores them.
        but: names of parameters that stay as they are.
    """
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dtype is torch.float32 and name not in but and _bears_rounding(tensor, dtype):
                tensor.copy_(tensor.to(dtype))
        # No buffer is rounded, because buffers are small, and often tables, coordinates or small constants.


def _bears_rounding(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a parameter keeps its meaning when it is rounded to `dtype`.

    It does not if a value exceeds the largest of `dtype`, or if its small values matter, as in an epsilon or a
    LayerScale of 3e-8. The gates, scales and biases of layers (one axis) must keep every value to one part in 64. A
    matrix must keep its values to one part in 2048 of its largest, because its smallest weights hardly count.
    """
    finite = tensor[tensor.isfinite()].abs()
    if finite.numel() == 0:
        return True
    largest = float(finite.max())
    if largest > torch.finfo(dtype).max:
        return False
    off = (finite - finite.to(dtype).float()).abs()
    single = tensor.dim() <= 1 or tensor.numel() == max(tensor.shape)
    return bool((off <= finite / 64).all()) if single else float(off.max()) <= largest / 2048


def put_weights_on_grid(program: Program) -> None:
    """Replaces every weight that is stored as codes by its values on the grid, whose numbers a file holds in few bytes.

    The program computes with these values from then on. Its output moves by less than rounding a bound to half
    precision does, and not at all if the weights were on such grids already.
    """
    with torch.no_grad():
        for quantizer in program.quantizers.values():
            quantizer.absorb()
        for key in coded_weights(program):
            weight = program.weight_of(key)
            assert weight is not None  # a coded key names a weight  # noqa: S101
            program.quantizers[key].shorten()
            program.set_weight(key, program.quantizers[key](weight))


@contextmanager
def as_stored(program: Program) -> Iterator[None]:
    """Within, weights and bounds have the values that a checkpoint holds; afterwards they are as before."""
    for quantizer in program.quantizers.values():
        quantizer.absorb()
    weights = {key: weight.clone() for key in coded_weights(program) if (weight := program.weight_of(key)) is not None}
    bounds = {key: {n: x.clone() for n, x in program.quantizers[key].stored().items()} for key in weights}
    put_weights_on_grid(program)
    try:
        yield
    finally:
        with torch.no_grad():
            for key, weight in weights.items():
                program.set_weight(key, weight)
                program.quantizers[key].restore(bounds[key])


def make_storable(program: Program, dtype: torch.dtype) -> None:
    """Gives the tensors of a program the values that a checkpoint holds: codes of weights, and `dtype` for the rest.

    Passes change biases and other vectors in float32.
    """
    put_weights_on_grid(program)
    coded = {name.removeprefix(_MODEL) for name in coded_weights(program).values()}
    round_floats(program.holder.model, dtype, but=coded)


def coded_weights(program: Program) -> dict[str, str]:
    """The weights that are stored as codes: the tensor's name in the holder, by quantizer key.

    A weight that something else reads too (another layer at another width, a sum over a codebook) stays in float, and
    so does a weight whose scheme stores no codes.
    """
    own = {id(tensor): _MODEL + name for name, tensor in model_tensors(program.holder.model).items()}
    targets = {key: program.weight_target(key) for key in program.quantizers}
    names = {
        key: own.get(id(attribute(program.holder, target)), target)
        for key, target in targets.items()
        if target is not None
    }
    readers = Counter(names.values())
    alone = {key: name for key, name in names.items() if readers[name] == 1 and not program.has_other_readers(key)}
    on = {key for key, quantizer in program.quantizers.items() if quantizer.mode == "on" and quantizer.stores_codes}
    return {key: name for key, name in alone.items() if key in on}


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers; a tensor with several names stands under the first of them."""
    persistent = stored_tensors(model)
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in persistent}
    return {**dict(model.named_parameters()), **buffers}


def to_checkpoint(program: Program, meta: Metadata, dtype: torch.dtype) -> Checkpoint:
    """The content of a calibrated program.

    Args:
        program: a calibrated program with its weights on their grids.
        meta: the metadata of the checkpoint.
        dtype: the storage type of float32 tensors whose values it holds exactly.
    """
    coded = coded_weights(program)
    codes = {}
    for key, target in coded.items():
        weight, quantizer = program.weight_of(key), program.quantizers[key]
        assert weight is not None  # a coded key names a weight  # noqa: S101
        codes[target] = PackedCodes(
            pack(_codes_of(quantizer, weight, key), quantizer.bits), quantizer.bits, tuple(weight.shape)
        )
    stored = set(coded.values())
    floats = {
        name: _compact(tensor.detach(), dtype)
        for name, tensor in model_tensors(program.holder.model).items()
        if _MODEL + name not in stored
    }
    bounds: dict[str, tuple[Tensor, Tensor]] = {}
    for key, quantizer in program.quantizers.items():
        tensors = quantizer.stored()
        short = {name: _compact(tensor.detach(), torch.float16) for name, tensor in tensors.items()}
        in_full = quantizer.ranges == 1 or any(tensor.dtype is torch.float32 for tensor in short.values())
        if set(tensors) == _RANGE and in_full:
            bounds[key] = tensors["lower"], tensors["width"]
        else:
            floats |= {_name_of(key, name): tensor for name, tensor in short.items()}
    return Checkpoint(meta, codes, bounds, floats)


def _codes_of(quantizer: Quantizer, weight: Tensor, key: str) -> Tensor:
    """The codes of a weight, which are no more than its bits allow.

    Raises:
        CheckpointError: a code is beyond 2**bits - 1, or the weight is none of the values that its codes stand for, so
            that the network computes with more levels than its bits say.
    """
    codes, bits = quantizer.encode(weight), quantizer.bits
    highest = int(codes.max())
    if highest >> bits:
        raise CheckpointError(
            f"{key}: the scheme {quantizer.scheme!r} made the code {highest}, and {bits} bits have the codes 0 to "
            f"{2**bits - 1}: a scheme must clamp its codes"
        )
    if not torch.equal(quantizer.quantize(weight), weight):
        raise CheckpointError(
            f"{key}: the weight is not on its grid; save a network that `quantize` or `load` returned"
        )
    return codes


def _name_of(key: str, name: str) -> str:
    """The name of a quantizer's tensor among the floats; no name of a network's own begins with a dot."""
    return f".{key}.{name}"


def _tensors_of(checkpoint: Checkpoint, key: str, source: str) -> dict[str, Tensor]:
    """The tensors that a quantizer stored, by name."""
    if key in checkpoint.bounds:
        lower, width = checkpoint.bounds[key]
        return {"lower": lower, "width": width}
    prefix = _name_of(key, "")
    named = {name: tensor for name, tensor in checkpoint.floats.items() if name.startswith(prefix)}
    if not named:
        raise CheckpointError(f"{source}: damaged: it has no bounds for {key}")
    return {name.removeprefix(prefix): tensor for name, tensor in named.items()}


def _restored(quantizer: Quantizer, checkpoint: Checkpoint, key: str, source: str) -> Quantizer:
    try:
        quantizer.restore(_tensors_of(checkpoint, key, source))
    except (CalibrationError, InputError) as error:
        raise CheckpointError(f"{source}: damaged: {key}: {error}") from error
    return quantizer


def _compact(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype is not torch.float32:
        return tensor
    small = tensor.to(dtype)
    return small if torch.equal(small.float(), tensor) else tensor


def site_records(program: Program) -> list[SiteRecord]:
    """The sites as a checkpoint holds them."""
    coded = coded_weights(program)
    return [
        SiteRecord(
            name=site.name,
            kind=site.kind,
            operands=[
                OperandRecord(
                    slot=operand.slot,
                    quantizer=operand.quantizer,
                    bits=operand.bits,
                    groups=operand.ranges,
                    codes=coded.get(operand.quantizer, ""),
                    scheme=operand.scheme,
                )
                for operand in site.operands
            ],
            reason=site.reason,
        )
        for site in program.sites
    ]


@dataclass(frozen=True)
class StoredPlan:
    """The plan of a checkpoint: every site gets the bits and quantizers of the site table, and none may be missing."""

    records: tuple[SiteRecord, ...]
    source: str

    def apply(self, sites: Iterable[Site]) -> tuple[Site, ...]:
        """Gives sites the stored bits and quantizers.

        Raises:
            CheckpointError: a site of the checkpoint is not in the network, or differs.
        """
        stored = {record.name: record for record in self.records}
        sites = tuple(sites)
        missing = [name for name in stored if name not in {site.name for site in sites}]
        if missing:
            raise CheckpointError(
                f"{self.source}: it holds the site {missing[0]} ({len(missing)} such), which this network lacks; "
                "pass the architecture it was made from"
            )
        return tuple(self._planned(site, stored.get(site.name)) for site in sites)

    def _planned(self, site: Site, record: SiteRecord | None) -> Site:
        if record is None:
            return replace(site, reason="not in the checkpoint")
        if site.kind != record.kind or [o.slot for o in site.operands] != [o.slot for o in record.operands]:
            raise CheckpointError(
                f"{self.source}: the site {site.name} is a {record.kind} there and a {site.kind} in this network"
            )
        operands = tuple(
            replace(
                operand,
                quantizer=stored.quantizer,
                bits=stored.bits,
                ranges=stored.groups,
                scheme=stored.scheme,
            )
            for operand, stored in zip(site.operands, record.operands, strict=True)
        )
        return replace(site, reason=record.reason, operands=operands)


def check_fits(model: nn.Module, index: Index, source: str) -> None:
    """Compares a checkpoint's index with a network, before anything it claims is allocated.

    Args:
        model: the network that will hold the checkpoint's tensors.
        index: of the checkpoint.
        source: the file's name, for messages.

    Raises:
        CheckpointError: another architecture, or a site table that does not fit the stored tensors.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model_tensors(model).items()}
    floats = {name: tuple(shape) for name, (_, shape) in index.floats.items() if not name.startswith(".")}
    codes = {
        name.removeprefix(_MODEL): tuple(shape) for name, (_, shape) in index.codes.items() if name.startswith(_MODEL)
    }
    check_names(wanted, {**floats, **codes}, source)
    check_sites(index, source)
    own = sum(map(prod, wanted.values()))
    others = [shape for name, (_, shape) in index.floats.items() if name not in floats]
    others += [shape for name, (_, shape) in index.codes.items() if not name.startswith(_MODEL)]
    claimed, (least, times) = sum(map(prod, others)), _BEYOND
    if claimed > max(least, times * own):
        raise CheckpointError(f"{source}: damaged: it claims {claimed} values beside the {own} of the network")


def load_floats(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Puts the float tensors of a checkpoint into a network that it fits (see `check_fits`)."""
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            if name in checkpoint.floats:
                tensor.copy_(checkpoint.floats[name])


def _check_schemes(checkpoint: Checkpoint, source: str) -> None:
    for scheme in sorted({operand.scheme for record in checkpoint.meta.sites for operand in record.operands}):
        try:
            get_scheme(scheme)
        except InputError as error:
            raise CheckpointError(f"{source}: {error}; install the package it comes from") from error


def program_of(model: nn.Module, checkpoint: Checkpoint, source: str) -> Program:
    """The calibrated program of a checkpoint, around a network of its architecture.

    Args:
        model: a network that the checkpoint fits (see `check_fits`); its values are overwritten.
        checkpoint: the content of the file.
        source: the file's name, for messages.

    Raises:
        CheckpointError: the network is of another architecture, or a scheme is not installed.
    """
    _check_schemes(checkpoint, source)
    round_floats(model, getattr(torch, checkpoint.meta.float_dtype))  # buffers that are never stored
    load_floats(model, checkpoint)
    weights = _decoded_weights(checkpoint, source)
    own = model_tensors(model)
    with torch.no_grad():
        for name, weight in weights.items():
            if name.startswith(_MODEL):
                own[name.removeprefix(_MODEL)].copy_(weight)
    program = Program(model, example_of(checkpoint.meta), StoredPlan(tuple(checkpoint.meta.sites), source))
    for key, quantizer in program.quantizers.items():
        _restored(quantizer, checkpoint, key, source).mode = "on"
        target = program.weight_target(key)
        if target in weights and not target.startswith(_MODEL):
            program.set_weight(key, weights[target])
    return program


def example_of(meta: Metadata) -> tuple[Tensor, ...]:
    """Inputs with the shapes and types of the example that the network of a checkpoint was captured with."""
    inputs = [(meta.example_shape, meta.example_dtype), *((more.shape, more.dtype) for more in meta.more_examples)]
    return tuple(
        torch.linspace(0, 1, math.prod(shape), dtype=torch.float32).reshape(shape).to(getattr(torch, dtype))
        for shape, dtype in inputs
    )


def _decoded_weights(checkpoint: Checkpoint, source: str) -> dict[str, Tensor]:
    """The values of the coded weights, by name."""
    decoded = {}
    for record in checkpoint.meta.sites:
        for operand in record.operands:
            stored = checkpoint.codes.get(operand.codes)
            if stored is None or operand.bits is None:
                continue
            if stored.bits != operand.bits:
                raise CheckpointError(
                    f"{source}: damaged: {record.name} has {operand.bits} bits and its codes {stored.bits}"
                )
            axis = weight_axis(record.kind) if operand.slot == "weight" else 0
            quantizer = make_quantizer(operand.scheme, operand.bits, ranges=operand.groups, axis=axis).float()
            _restored(quantizer, checkpoint, operand.quantizer, source)
            codes = unpack(stored.packed, stored.bits, stored.shape)
            try:
                decoded[operand.codes] = quantizer.decode(codes).detach()
            except (InputError, RuntimeError) as error:  # a tensor of another shape than the weight asks for
                raise CheckpointError(f"{source}: damaged: {operand.quantizer}: {error}") from error
    return decoded
