"""The ways to run one network: in float by torch, on fxptq's integers, and by the peers that are installed.

A peer is another engine. It gets the float network with weights of any values, because values do not change its speed;
its own 8-bit quantization, if it has one, is calibrated on the input that is timed.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxptq.bench import onnx_runtime, openvino
from fxptq.commands.evaluate import open_checkpoint
from fxptq.graph.kinds import kind_named
from fxptq.quantized import QuantizedModel
from fxptq.recipe import Recipe
from fxptq.sizes import parse_size

Call = Callable[[], Any]


@dataclass(frozen=True)
class Subject:
    """The network that all ways run, with its input.

    Attributes:
        quantized: the loaded checkpoint.
        network: the same architecture in float.
        x: the input, [1, C, H, W] in the network's range.
        threads: number of threads that a way may use.
    """

    quantized: QuantizedModel
    network: nn.Module
    x: Tensor
    threads: int


def subject(checkpoint: Path, factory: str | None, size: str) -> Subject:
    """Opens a checkpoint and adds its float network and a random input.

    Args:
        checkpoint: a file that `fxptq quantize` wrote.
        factory: `module:function` that builds the network if it is no bundled one.
        size: HEIGHTxWIDTH of the input, pixels.

    Raises:
        InputError: the size is malformed.
        FxptqError: the checkpoint cannot be read, or is of another network.
    """
    height, width = parse_size(size)
    quantized = open_checkpoint(checkpoint, factory)
    if factory is None and quantized.meta.recipe is not None:
        network = Recipe.load(quantized.meta.recipe).build_model()
    else:
        network = copy.deepcopy(quantized.program.holder.model)
    task = quantized.task.input
    x = torch.rand(1, task.channels, height, width, generator=torch.Generator().manual_seed(0)) * task.range
    return Subject(quantized, network.eval(), x, torch.get_num_threads())


def ways() -> dict[str, Callable[[Subject], Call]]:
    """The functions that prepare each way, by name; peers that are not installed are left out.

    The order is that of preparation: torch.compile in float takes longest, and comes last.
    """
    preparations: dict[str, Callable[[Subject], Call]] = {"eager-fp32": _eager, "fxptq-int": _integer}
    if _installed("openvino"):
        preparations |= {
            "openvino-fp32": lambda s: openvino.run(s.network, s.x, s.threads, "f32"),
            "openvino-bf16": lambda s: openvino.run(s.network, s.x, s.threads, "bf16"),
        }
    if _installed("openvino") and _installed("nncf"):
        preparations["openvino-int8"] = lambda s: openvino.run_int8(
            s.network, s.x, s.threads, _is_transformer(s.quantized)
        )
    if _installed("onnxruntime") and _installed("onnx"):
        preparations |= {
            "onnxruntime-fp32": lambda s: onnx_runtime.run(s.network, s.x, s.threads),
            "onnxruntime-int8": lambda s: onnx_runtime.run_int8(s.network, s.x, s.threads),
        }
    return preparations | {"compile-fp32": _compiled, "compile-bf16": _compiled_bf16}


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _is_transformer(quantized: QuantizedModel) -> bool:
    return any(kind_named(site.kind).is_product for site in quantized.program.sites)


def _eager(s: Subject) -> Call:
    return lambda: s.network(s.x)


def _compiled(s: Subject) -> Call:
    fast = torch.compile(s.network)
    return lambda: fast(s.x)


def _compiled_bf16(s: Subject) -> Call:
    fast, x = torch.compile(copy.deepcopy(s.network).bfloat16()), s.x.bfloat16()
    return lambda: fast(x)


def _integer(s: Subject) -> Call:
    fast = s.quantized.to_integer()
    return lambda: fast(s.x)
