"""Milliseconds of fxptq's integers on a GPU, beside torch in float and beside the limits of the GPU.

    python -m benchmarks.speed_cuda swinir_x4_w4a4.safetensors edsr_x4_w4a4.safetensors
    python -m benchmarks.speed_cuda --quick edsr_x4_w4a4.safetensors

Sizes are WIDTHxHEIGHT of the output. Times are medians between CUDA events: `call` is a call from Python, `graph` the
replay of a CUDA graph of it, without the time that Python takes to launch kernels. The limits are measured on the same
GPU: the speed of a copy, and of large products of bytes. The script prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.work import work_of
from fxptq.bench.ways import Subject, subject
from fxptq.errors import FxptqError
from fxptq.kernels.cuda import register
from fxptq.sizes import parse_size

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Limits:
    """The limits of the GPU: bytes read and written a second by a copy, operations a second by large products."""

    bandwidth: float
    int8: float
    bf16: float


@dataclass(frozen=True)
class Row:
    """One way to run a network; a missing figure is None, and `note` gives the reason."""

    checkpoint: str
    size: str
    batch: int
    way: str
    call_ms: float | None = None
    graph_ms: float | None = None
    peak_mb: float | None = None
    note: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["320x180", "1280x720"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="the first size and batch, few rounds")
    parser.add_argument("--json", type=Path, help="also write the rows and limits here")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.batches, options.rounds = options.sizes[:1], options.batches[:1], 5
    obstacle = register.obstacle()
    if obstacle:
        print(f"benchmarks.speed_cuda: {obstacle}; there is nothing to measure", file=sys.stderr)
        return 1
    try:
        report(options)
    except FxptqError as error:
        print(f"benchmarks.speed_cuda: {error}", file=sys.stderr)
        return 1
    return 0


def report(options: argparse.Namespace) -> None:
    register.backend()
    limits = measured_limits(4096 if options.quick else 8192)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    print(f"A copy moves {limits.bandwidth / 1e9:.0f} GB/s, read and written; large products make")
    print(f"{limits.int8 / 1e12:.0f} TOP/s of bytes and {limits.bf16 / 1e12:.0f} TFLOP/s of bfloat16.")
    rows: list[Row] = []
    for checkpoint in options.checkpoints:
        for size in options.sizes:
            for batch in options.batches:
                rows += table(checkpoint, size, batch, options.rounds, limits)
    if options.json is not None:
        record = {
            "device": torch.cuda.get_device_name(),
            "limits": asdict(limits),
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(record, indent=1))


def measured_limits(side: int) -> Limits:
    """Measures the GPU: a copy of 1 GiB, and products of square matrices."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a = torch.randint(-127, 128, (side, side), dtype=torch.int8, device="cuda")
    b = torch.randint(-127, 128, (side, side), dtype=torch.int8, device="cuda").t()
    c, d = a.bfloat16(), b.bfloat16()
    copied, int8, bf16 = (
        statistics.median(times(call, 10)) / 1000
        for call in (lambda: target.copy_(source), lambda: torch._int_mm(a, b), lambda: c @ d)  # noqa: SLF001  # its only name
    )
    return Limits(2 * source.numel() / copied, 2 * side**3 / int8, 2 * side**3 / bf16)


def times(call: Call, rounds: int) -> list[float]:
    """Measures the milliseconds of each call, after two calls to warm up."""
    for _ in range(2):
        call()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for begin, end in marks:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [float(begin.elapsed_time(end)) for begin, end in marks]


def table(checkpoint: Path, size: str, batch: int, rounds: int, limits: Limits) -> list[Row]:
    """Measures and prints one network at one size."""
    width, height = parse_size(size)
    what = subject(checkpoint, None, input_size(checkpoint, height, width))
    x = what.x.expand(batch, -1, -1, -1).contiguous().cuda()
    what.quantized.to("cuda")
    network = what.network.cuda()
    integer = what.quantized.to_integer(compile=False)
    with torch.no_grad():
        work = work_of(integer, x)
        memory, compute = 1000 * work.bytes / limits.bandwidth, 2000 * work.products / limits.int8
        print(f"\n{checkpoint.stem}, output {size}, batch {batch} (input {x.shape[3]}x{x.shape[2]}): "
              f"{work.products / 1e9:.1f} G products and {work.bytes / 1e9:.2f} GB for fxptq, "
              f"at best {compute:.3f} ms and {memory:.3f} ms\n")  # fmt: skip
        print("| | call, ms | graph, ms | times as fast as eager | peak, MB |\n|---|---:|---:|---:|---:|")
        rows: list[Row] = []
        for way, make in ways(what, network, x).items():
            *figures, note = measured(make, rounds)
            rows.append(Row(checkpoint.stem, size, batch, way, *figures, note=note))
            print(line(rows[-1], rows[0]), flush=True)
    return rows


def input_size(checkpoint: Path, height: int, width: int) -> str:
    """Computes HEIGHTxWIDTH of the input for an output of at least this size, in multiples that the network takes."""
    task = subject(checkpoint, None, "8x8").quantized.task
    sides = (-(-side // task.task.scale) for side in (height, width))
    return "x".join(str(side + -side % task.input.multiple) for side in sides)


def ways(what: Subject, network: nn.Module, x: Tensor) -> dict[str, Callable[[], Call]]:
    """The functions that prepare each way to run the network, by name."""

    def compiled(model: nn.Module, y: Tensor) -> Call:
        torch._dynamo.reset()  # noqa: SLF001  # its only name
        fast = torch.compile(model, dynamic=False)
        return lambda: fast(y)

    def eager() -> Call:
        return lambda: network(x)

    def fp32() -> Call:
        return compiled(network, x)

    def tf32() -> Call:
        call = compiled(network, x)

        def run() -> Tensor:
            with allowed_tf32():
                return call()

        return run

    def bf16() -> Call:
        return compiled(copy.deepcopy(network).bfloat16(), x.bfloat16())

    def integer() -> Call:
        torch._dynamo.reset()  # noqa: SLF001
        fast = what.quantized.to_integer()
        return lambda: fast(x)

    return {
        "eager fp32": eager, "compile fp32": fp32, "compile TF32": tf32, "compile bf16": bf16, "fxptq": integer,
    }  # fmt: skip


@contextmanager
def allowed_tf32() -> Iterator[None]:
    """Lets float32 products and convolutions run in TF32 inside the block; outside they run in float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def measured(make: Callable[[], Call], rounds: int) -> tuple[float | None, float | None, float | None, str]:
    """Measures milliseconds of a call and of a graph's replay, and peak memory in MB; the text explains a gap."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        call = make()
        called = statistics.median(times(call, rounds))
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / 1e6
    except Exception as error:  # noqa: BLE001  # the table shows the error of a way in place of a figure
        return None, None, None, first_line(error)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return called, statistics.median(times(graph.replay, rounds)), peak, ""  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001
        return called, None, peak, f"no graph: {first_line(error)}"


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"


def line(row: Row, eager: Row) -> str:
    def cell(value: float | None, digits: int = 3) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    faster = None if row.call_ms is None or eager.call_ms is None else eager.call_ms / row.call_ms
    name = f"{row.way} ({row.note})" if row.note else row.way
    return f"| {name} | {cell(row.call_ms)} | {cell(row.graph_ms)} | {cell(faster, 2)} | {cell(row.peak_mb, 0)} |"


if __name__ == "__main__":
    sys.exit(main())
