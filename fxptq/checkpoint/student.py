"""A student between two passes as tensors and numbers, and back, bit for bit.

Passes change the tensors of the network, the constants that quantizers read, and the quantizers: their widths, their
modes and the tensors that they store. A scheme of another package is saved by its own `stored`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxptq.checkpoint.state import model_tensors
from fxptq.errors import CalibrationError, InputError
from fxptq.graph import Program
from fxptq.io.state_file import State

_MODEL, _WEIGHT, _QUANTIZER = "model.", "weight.", "quantizer."


def student_state(program: Program) -> State:
    """The state of a student behind a pass."""
    tensors = {_MODEL + name: tensor for name, tensor in model_tensors(program.holder.model).items()}
    tensors |= {_WEIGHT + key: weight for key, weight in _constants(program).items()}
    modes: dict[str, str] = {}
    for key, quantizer in program.quantizers.items():
        quantizer.absorb()
        modes[key] = quantizer.mode
        if quantizer.mode == "on":
            tensors |= {f"{_QUANTIZER}{key}/{name}": tensor for name, tensor in quantizer.stored().items()}
    bits = {key: quantizer.bits for key, quantizer in program.quantizers.items()}
    return State({"modes": modes, "bits": bits}, tensors)


@torch.no_grad()
def restore_student(program: Program, state: State) -> None:
    """Gives a new program of the same network the state of `student_state`.

    Raises:
        InputError: the state is that of another network.
    """
    tensors, modes = state.tensors, state.numbers["modes"]
    try:
        for name, tensor in model_tensors(program.holder.model).items():
            tensor.copy_(tensors[_MODEL + name])
        for key, weight in _constants(program).items():
            weight.copy_(tensors[_WEIGHT + key])
        program.set_bits(state.numbers["bits"])
        for key, quantizer in program.quantizers.items():
            quantizer.mode = modes[key]
            if modes[key] == "on":
                prefix = f"{_QUANTIZER}{key}/"
                own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
                quantizer.restore({name: x.to(quantizer.lower.device) for name, x in own.items()})
    except (KeyError, RuntimeError, CalibrationError) as error:
        raise InputError(f"the state of a run does not fit the network: {error}") from error


def _constants(program: Program) -> dict[str, Tensor]:
    """The constants that quantizers read and that are no tensors of the network, by the key of the quantizer."""
    own = {tensor.data_ptr() for tensor in model_tensors(program.holder.model).values()}
    weights = {key: program.weight_of(key) for key in program.quantizers}
    return {key: weight for key, weight in weights.items() if weight is not None and weight.data_ptr() not in own}
