"""ONNX Runtime beside the simulation: the outputs of a file compared with those of its network."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fxptq.errors import FxptqError
from fxptq.export.subject import Inputs, Trial


@dataclass(frozen=True)
class Comparison:
    """A runtime's output beside the simulation's, for one input.

    Attributes:
        shape: of the first input.
        largest: the largest difference of two values, in units of white.
        psnr: of one output against the other, dB of white; infinite where they are equal.
    """

    shape: tuple[int, ...]
    largest: float
    psnr: float


def installed() -> bool:
    """Whether ONNX Runtime is there."""
    return importlib.util.find_spec("onnxruntime") is not None


def session(data: bytes, threads: int = 0) -> Callable[[Inputs], list[np.ndarray[Any, Any]]]:
    """A file made ready to run: a function of the inputs.

    Args:
        data: the bytes of the file.
        threads: that one run may use; 0 for all.
    """
    import onnxruntime  # noqa: PLC0415  # an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # warnings speak of its own plans for the graph
    runner = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in runner.get_inputs()]
    return lambda inputs: list(runner.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)}))


def compare(data: bytes, trials: Sequence[Trial], white: float) -> tuple[Comparison, ...]:
    """The file's outputs beside the simulation's.

    Args:
        data: the bytes of the file.
        trials: inputs, with the outputs of the simulation.
        white: the value of white.

    Raises:
        FxptqError: ONNX Runtime cannot run the file, or gives outputs of another shape.
    """
    try:
        run = session(data)
        outputs = [run(trial.inputs) for trial in trials]
    except Exception as error:  # whatever the runtime raises
        text = " ".join(str(error).split())
        raise FxptqError(f"ONNX Runtime cannot run the file, which is not written: {text[:300]}") from error
    return tuple(_compared(trial, found, white) for trial, found in zip(trials, outputs, strict=True))


def _compared(trial: Trial, found: list[np.ndarray[Any, Any]], white: float) -> Comparison:
    inputs = trial.inputs
    leaves = [leaf for leaf in tree_leaves(trial.output) if isinstance(leaf, Tensor)]
    shapes = [tuple(leaf.shape) for leaf in leaves]
    if [each.shape for each in found] != shapes:
        raise FxptqError(
            f"not written: for an input of shape {tuple(inputs[0].shape)}, the outputs of ONNX Runtime have the shapes "
            f"{[each.shape for each in found]}, and those of the network {shapes}"
        )
    apart = torch.cat([
        (torch.from_numpy(one) - other).double().flatten() / white for one, other in zip(found, leaves, strict=True)
    ])  # fmt: skip
    error = float(apart.square().mean())
    psnr = math.inf if error == 0 else -10 * math.log10(error)
    return Comparison(tuple(inputs[0].shape), float(apart.abs().max()), psnr)
