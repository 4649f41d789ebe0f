"""The quantized network: it runs as simulation, and is saved, lowered to integers and exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxptq.checkpoint import file as checkpoints
from fxptq.checkpoint.metadata import Metadata
from fxptq.checkpoint.state import example_of, to_checkpoint
from fxptq.graph import Program, Site
from fxptq.graph.finite import warn_of_nan
from fxptq.graph.precision import in_precision
from fxptq.graph.summary import as_html, in_one_line
from fxptq.passes.base import NO_REPORT, PassReport
from fxptq.recipe import Recipe

if TYPE_CHECKING:
    from fxptq.export.write import Exported


@dataclass(frozen=True)
class FloatLeft:
    """A site left in float."""

    name: str
    reason: str


class QuantizedModel(nn.Module):
    """A quantized network: its call is the simulated low-bit network, for inputs of every size the network takes.

    Attributes:
        program: the captured network with its quantizers.
        meta: the metadata of its checkpoint.
        report: the report of each pass.
        quality: figures and warnings of the quality gate (`fxptq.passes.gate`); empty for a network that was loaded.

    Examples:
        >>> q = fxptq.quantize(model, example, bits=4)
        >>> q(x)  # the simulated low-bit output; in a notebook, q alone shows the table of sites
        >>> q.save("network.safetensors")
        >>> q.train()(x).mean().backward()  # gradients, for training of your own
    """

    def __init__(
        self, program: Program, meta: Metadata, report: tuple[PassReport, ...] = (), quality: PassReport = NO_REPORT
    ) -> None:
        super().__init__()
        self.program = program
        self.meta = meta
        self.report = report
        self.quality = quality
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """The simulated low-bit output for the inputs of the network, in the dtype of the inputs.

        In evaluation mode, in which a quantized network begins, gradients are kept only for an input that asks for
        them. A warning names the place where the network makes NaN of a finite input.
        """
        keeps = torch.is_grad_enabled() and (self.training or any(x.requires_grad for x in inputs))
        with torch.set_grad_enabled(keeps):
            return in_precision(self.program.dtype, self._run, inputs)

    def __repr__(self) -> str:
        """The network in one line."""
        return f"QuantizedModel({self._title}: {in_one_line(self.sites)})"

    def _repr_html_(self) -> str:
        """The table of sites, for notebooks."""
        return as_html(self._title, self.sites)

    @property
    def _title(self) -> str:
        return f"{self.meta.recipe or self.task.name}, W{self.meta.bits_w}A{self.meta.bits_a}, {self.task.task}"

    def _run(self, *inputs: Tensor) -> Any:
        output = self.program(*inputs)
        warn_of_nan(self.program, inputs, output)
        return output

    @property
    def task(self) -> Recipe:
        """Scale, input and degradation of the network, as a recipe without presets."""
        return Recipe.model_validate(self.meta.task)

    @property
    def sites(self) -> list[Site]:
        """Every site of the network, quantized or not, in the order of execution."""
        return list(self.program.sites)

    @property
    def float_sites(self) -> list[FloatLeft]:
        """The sites that were left in float, by name and reason."""
        return [FloatLeft(site.name, site.reason) for site in self.program.sites if site.reason]

    def save(self, path: str | Path) -> None:
        """Writes the network as one .safetensors file, atomically; the same network gives the same bytes.

        Raises:
            CheckpointError: the file cannot be written.
        """
        dtype = getattr(torch, self.meta.float_dtype)
        checkpoints.write(path, to_checkpoint(self.program, self.meta, dtype))

    def to_integer(
        self,
        *,
        compile: bool = True,  # noqa: A002  # the name torch uses for it
        backend: str | None = None,
        compare: bool = True,
    ) -> nn.Module:
        """The network on integer kernels.

        `lowering` of the result says which kernel serves each site, which sites stay simulated in float and why, and
        how fast integers are beside float at the sizes that the model has met.

        Args:
            compile: whether torch.compile compiles the operations between the kernels.
            backend: the name of a back end (`cpu`, `triton`, `torch`, or another package's); None for the back end of
                the network's device.
            compare: whether to time integers beside float, once a network and machine when it is lowered, and once at
                the first call of a size. The times are kept in the user's cache. Kernels that lose are left to the
                simulation, and a warning says so where the whole network is slower than in float.

        Raises:
            InputError: there is no such back end.

        Examples:
            >>> fast = q.to_integer()
            >>> fast.lowering.simulated  # the sites that no integer kernel serves, with the reason
            >>> fast.save("network.safetensors")
        """
        from fxptq.kernels.backend import get_backend  # noqa: PLC0415  # building kernels is only for those who ask
        from fxptq.kernels.lower import lower  # noqa: PLC0415

        chosen = None if backend is None else get_backend(backend)
        integer = lower(self.program, compile=compile, backend=chosen, compare=compare)
        integer.task, integer.writer = self.task, self.save
        return integer

    def export(
        self, path: str | Path, *, size: tuple[int, int] | None = None, opset: int = 21, integers: bool = False
    ) -> Exported:
        """Writes the network for other runtimes: .onnx with quantize-dequantize nodes, or .pt2 for torch.export.

        Args:
            path: the path of the file; its ending chooses the format.
            size: height and width of a file for one size. None exports an .onnx file for every size, where the network
                has a graph of many sizes, and a .pt2 file for the size of the example.
            opset: the version of ONNX's operators, 21 to 25.
            integers: whether to refuse a network with sites that runtimes compute in float.

        Returns:
            What was written, and ONNX Runtime's outputs beside the simulation where it is installed.

        Raises:
            InputError: a call of the network has no ONNX form, an option does not fit, a package is missing, or the
                file cannot be written.
            FxptqError: ONNX Runtime or torch.export fails on the network.

        Examples:
            >>> q.export("network.onnx").onnx.in_float  # the sites that a runtime computes in float, with the reason
        """
        from fxptq.export.write import Settings, export  # noqa: PLC0415  # only for those who ask

        task = self.task
        facts = {
            "scale": str(task.scale),
            "range": f"{task.input.range:g}",
            "channels": str(task.input.channels),
            "sizes": str(task.input.sizes),
            "bits": f"W{self.meta.bits_w}A{self.meta.bits_a}",
            "task": str(task.task),
        }
        return export(
            self.program, example_of(self.meta), Path(path), Settings(size, opset, integers),
            sizes=task.input.sizes, white=task.input.range, facts=facts,
        )  # fmt: skip
