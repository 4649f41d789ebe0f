"""The one module that holds the tensors and quantizers of all graphs of a network."""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from fxptq.graph.tensors import digest_of


class Holder(nn.Module):
    """The network's own tensors under `model`, others under `constants`, quantizers under `quantizers`.

    Its methods are for the thread that holds `CAPTURING`, or knows the holder alone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.constants = nn.Module()
        self.quantizers = nn.Module()
        self._digests: dict[str, str] = {}
        self._readers: Counter[str] = Counter()
        self._unread: deque[str] = deque()

    def keep(self, constants: Mapping[str, Tensor]) -> dict[str, str]:
        """Registers constants, each once.

        A constant of an earlier graph with the same name and content is used again, even if its tensor has been
        overwritten since. Another content under the same name gets another name.

        Returns:
            The registered name of each constant.
        """
        self._drop_unread()
        names: dict[str, str] = {}
        taken: set[str] = set()
        for name, tensor in constants.items():
            digest = digest_of(tensor)
            unique, count = name, 0
            while self._digests.get(unique, digest) != digest or unique in taken:
                count += 1
                unique = f"{name}~{count}"
            if unique not in self._digests:
                self.constants.register_buffer(unique, tensor.detach().clone())
                self._digests[unique] = digest
            names[name] = unique
            taken.add(unique)
        return names

    def keep_for(self, reader: object, names: Iterable[str]) -> None:
        """Says who reads constants: those of readers that are all gone are dropped, at the next call of `keep`."""
        read = tuple(names)
        self._readers.update(read)
        # The reader may go at any moment, in any thread: it only leaves a note, which takes no lock.
        weakref.finalize(reader, self._unread.extend, read).atexit = False

    def _drop_unread(self) -> None:
        while self._unread:
            name = self._unread.popleft()
            self._readers[name] -= 1
            if not self._readers[name]:
                delattr(self.constants, name)
                del self._digests[name], self._readers[name]
