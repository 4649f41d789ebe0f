"""A program's state as checkpoint content, and back: codes for weights on a grid, floats for the rest, the plan.

The network rebuilt from a checkpoint gives the simulated output of the saved one bit for bit, because the stored values
are the values the saved program computes with: float tensors are rounded to the storage type before calibration,
weights are put on their grid after.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fxptq.errors import CheckpointError
from fxptq.graph import Program, Site
from fxptq.io.checkpoint import Checkpoint, PackedCodes
from fxptq.io.metadata import Metadata, OperandRecord, SiteRecord
from fxptq.kernels.pack import pack, unpack
from fxptq.quant.quantizer import Quantizer

_MODEL = "model."


def round_floats(model: nn.Module, dtype: torch.dtype) -> None:
    """Rounds every float parameter and buffer to what `dtype` can hold; the tensors keep their own type.

    Values beyond the range of `dtype` become its largest finite value: an attention mask of -1e9 masks as well so.
    """
    largest = torch.finfo(dtype).max
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype is torch.float32:
                tensor.copy_(tensor.clamp(-largest, largest).to(dtype))


def put_weights_on_grid(program: Program) -> None:
    """Replaces every quantized weight by its values on the grid. The output of the program does not change."""
    with torch.no_grad():
        for key, quantizer in program.quantizers.items():
            quantizer.fold()
            weight = program.weight_of(key)
            if weight is not None and quantizer.mode == "on":
                program.set_weight(key, quantizer(weight))


def coded_weights(program: Program) -> dict[str, str]:
    """Which weights are stored as codes: the tensor's name in the holder, by quantizer key.

    A weight that several quantizers read at different widths has no one code and stays in float.
    """
    targets = {key: program.weight_target(key) for key in program.quantizers}
    readers = Counter(targets.values())
    return {
        key: target
        for key, target in targets.items()
        if target is not None and readers[target] == 1 and program.quantizers[key].mode == "on"
    }


def to_checkpoint(program: Program, meta: Metadata, dtype: torch.dtype) -> Checkpoint:
    """The content of a calibrated program.

    Args:
        program: calibrated, its weights on their grids.
        meta: how it was made.
        dtype: what float32 tensors are stored as.
    """
    coded = coded_weights(program)
    codes = {}
    for key, target in coded.items():
        weight, quantizer = program.weight_of(key), program.quantizers[key]
        assert weight is not None  # a coded key names a weight  # noqa: S101
        codes[target] = PackedCodes(pack(quantizer.encode(weight), quantizer.bits), quantizer.bits, tuple(weight.shape))
    stored = set(coded.values())
    floats = {
        name: tensor.to(dtype) if tensor.dtype is torch.float32 else tensor
        for name, tensor in program.holder.model.state_dict().items()
        if _MODEL + name not in stored
    }
    bounds = {key: (quantizer.lower0, quantizer.width0) for key, quantizer in program.quantizers.items()}
    return Checkpoint(meta, codes, bounds, floats)


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
                    groups=operand.groups,
                    codes=coded.get(operand.quantizer, ""),
                )
                for operand in site.operands
            ],
            reason=site.reason,
        )
        for site in program.sites
    ]


@dataclass(frozen=True)
class StoredPlan:
    """The plan of a checkpoint: every site gets what the site table says, and must be there."""

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
            replace(operand, quantizer=stored.quantizer, bits=stored.bits, groups=stored.groups)
            for operand, stored in zip(site.operands, record.operands, strict=True)
        )
        return replace(site, reason=record.reason, operands=operands)


def load_floats(model: nn.Module, checkpoint: Checkpoint, source: str) -> None:
    """Puts the float tensors of a checkpoint into `model`, strictly.

    Raises:
        CheckpointError: naming the first keys that differ.
    """
    wanted = model.state_dict()
    coded = {name.removeprefix(_MODEL) for name in checkpoint.codes if name.startswith(_MODEL)}
    given = set(checkpoint.floats) | coded
    differing = sorted(set(wanted) ^ given)
    if differing:
        side = "this network lacks" if differing[0] in given else "the checkpoint lacks"
        raise CheckpointError(
            f"{source}: another architecture: {side} {', '.join(differing[:3])} ({len(differing)} keys differ)"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.floats.items()} | {
        name.removeprefix(_MODEL): codes.shape for name, codes in checkpoint.codes.items()
    }
    for name, tensor in wanted.items():
        if tuple(tensor.shape) != tuple(shapes[name]):
            raise CheckpointError(
                f"{source}: another architecture: {name} has shape {tuple(shapes[name])} there and "
                f"{tuple(tensor.shape)} in this network"
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name in checkpoint.floats:
                tensor.copy_(checkpoint.floats[name])


def program_of(model: nn.Module, checkpoint: Checkpoint, source: str) -> Program:
    """The calibrated program of a checkpoint, around a network of its architecture.

    Args:
        model: of the architecture; its values are overwritten.
        checkpoint: as read.
        source: the file's name, for messages.

    Raises:
        CheckpointError: the network is of another architecture.
    """
    load_floats(model, checkpoint, source)
    weights = _decoded_weights(checkpoint)
    parameters = model.state_dict()
    for name, weight in weights.items():
        if name.startswith(_MODEL):
            parameters[name.removeprefix(_MODEL)].copy_(weight)
    shape, dtype = checkpoint.meta.example_shape, getattr(torch, checkpoint.meta.example_dtype)
    example = torch.linspace(0, 1, math.prod(shape)).reshape(shape).to(dtype)
    program = Program(model, example, StoredPlan(tuple(checkpoint.meta.sites), source))
    for key, quantizer in program.quantizers.items():
        if key not in checkpoint.bounds:
            raise CheckpointError(f"{source}: it has no bounds for {key}")
        quantizer.set_grid(*checkpoint.bounds[key])
        quantizer.mode = "on"
        target = program.weight_target(key)
        if target in weights and not target.startswith(_MODEL):
            program.set_weight(key, weights[target])
    return program


def _decoded_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The values of the coded weights, by name."""
    decoded = {}
    for record in checkpoint.meta.sites:
        for operand in record.operands:
            if operand.codes not in checkpoint.codes or operand.bits is None:
                continue
            stored = checkpoint.codes[operand.codes]
            axis = 1 if operand.slot == "weight" and record.kind == "conv_transpose2d" else 0
            quantizer = Quantizer(operand.bits, groups=operand.groups, axis=axis)
            quantizer.set_grid(*checkpoint.bounds[operand.quantizer])
            decoded[operand.codes] = quantizer.decode(unpack(stored.packed, stored.bits, stored.shape)).detach()
    return decoded
