"""The integer network of one size as a program of torch.export, with fxptq's integer operators in it.

`torch.export.load` reads the file where the operators are registered: after `import fxptq.kernels.ops`, in plain torch;
after `fxptq.kernels.backend.get_backend("cpu").install()`, with the compiled kernels.
"""

from __future__ import annotations

import io

import torch

from fxptq.errors import FxptqError
from fxptq.export.subject import Subject
from fxptq.graph.program import Program
from fxptq.kernels.lower import lower


def to_pt2(program: Program, subject: Subject) -> bytes:
    """The bytes of a .pt2 file.

    Args:
        program: the quantized network.
        subject: a graph of one size.

    Raises:
        FxptqError: torch.export cannot export the network.
    """
    module = lower(program, compile=False).of(subject.variant).module
    data = io.BytesIO()
    try:
        with torch.no_grad():
            exported = torch.export.export(module, subject.example, strict=False)
            torch.export.save(exported, data)
    except Exception as error:  # whatever torch.export raises
        text = " ".join(str(error).split())
        raise FxptqError(f"torch.export cannot export the network: {type(error).__name__}: {text[:300]}") from error
    return data.getvalue()
