"""What graphs read, in one module, whatever graph is running."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Holder(nn.Module):
    """The network's own tensors under `model`, others under `constants`, quantizers under `quantizers`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.constants = nn.Module()
        self.quantizers = nn.Module()
        self._digests: dict[str, str] = {}

    def keep(self, constants: Mapping[str, Tensor]) -> dict[str, str]:
        """Registers constants, each once.

        A constant that was kept before, for another graph, is found again by its place and content, even if its tensor
        has been overwritten since. Another content at the same place gets another name.

        Returns:
            The name each is kept under.
        """
        names: dict[str, str] = {}
        for name, tensor in constants.items():
            digest = _digest(tensor)
            found, count = name, 0
            while self._digests.get(found, digest) != digest or found in names.values():
                count += 1
                found = f"{name}~{count}"
            if found not in self._digests:
                self.constants.register_buffer(found, tensor.detach().clone())
                self._digests[found] = digest
            names[name] = found
        return names


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    about = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    return hashlib.blake2b(flat.numpy().tobytes() + about, digest_size=16).hexdigest()
