"""The training loop: L1 loss, Adam, warm-up and cosine, growing patches, averaged weights, restart at any time.

Promises: with the same seed, device and thread count, a run that is limited by steps gives the same weights,
interrupted or not; a run that is limited by minutes follows the clock and gives other weights each time. Files are
written whole or not at all.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from fxptq.data.degrade import Degradation
from fxptq.errors import InputError
from fxptq.io.state_dict import is_derived
from fxptq.training.backward import Eager, Graphed
from fxptq.training.blocks import compile_blocks
from fxptq.training.patches import PatchSampler, TrainingPair, add_noise

CHECKPOINT = "checkpoint.pt"
AVERAGE = "ema.safetensors"
LOG = "log.jsonl"
AHEAD = 16
"""Updates that Python may be ahead of a GPU; the clock is read no more often than it is right."""


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a training run.

    Attributes:
        steps: number of updates.
        minutes: wall time after which the schedule ends, if that is sooner; 0 for no limit.
        lr: peak learning rate of Adam.
        warmup: updates over which the rate rises to its peak.
        patches: sides of the low-resolution patch, one after another over equal parts of the run.
        pixels: low-resolution pixels of a batch; the batch is `pixels // patch**2` patches.
        clip: largest norm of the gradient; longer gradients are shortened; 0 for no limit.
        decay: decay of the exponential average of the weights.
        seed: seed of the patches (and of the first weights).
        device: torch's name of the device.
        bf16: forward and backward in bfloat16 where autocast finds it safe.
        compile: run the network's repeated blocks through torch.compile.
        graph: replay forward and backward as a CUDA graph; for CUDA alone.
        snapshot_minutes: wall time between two snapshots.
    """

    steps: int = 100_000
    minutes: float = 0.0
    lr: float = 5e-4
    warmup: int = 200
    patches: tuple[int, ...] = (24, 32, 48)
    pixels: int = 4608
    clip: float = 0.5
    decay: float = 0.999
    seed: int = 0
    device: str = "cpu"
    bf16: bool = True
    compile: bool = False
    graph: bool = False
    snapshot_minutes: float = 5.0

    def progress(self, step: int, seconds: float) -> float:
        """Returns the finished part of the run, 0..1, by updates or by the clock, whichever is larger."""
        by_clock = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(step / self.steps, by_clock))

    def learning_rate(self, step: int, progress: float) -> float:
        """Returns the rate: a linear warm-up, then half a cosine down to a hundredth of the peak."""
        cosine = 0.505 + 0.495 * math.cos(math.pi * progress)
        return self.lr * min(1.0, (step + 1) / self.warmup) * cosine

    def patch(self, progress: float) -> int:
        """Returns the side of the patch at this point of the run."""
        return self.patches[min(int(progress * len(self.patches)), len(self.patches) - 1)]


class Trainer:
    """One run in one folder: `checkpoint.pt` to continue from, `ema.safetensors` to use, `log.jsonl` to read.

    Args:
        model: the network with its first weights; trained in place.
        pairs: images to train on.
        held_out: images to watch the progress by; never trained on.
        degradation: the degradation that the pairs were made with.
        value_range: the network's own range, 1 or 255.
        settings: see `TrainSettings`.
        start: name of the file of weights that the first weights come from; "" for none.
        out: the folder; a checkpoint in it is continued.

    Raises:
        InputError: the folder holds a checkpoint of another network, or an image is smaller than a patch.
    """

    def __init__(
        self,
        model: nn.Module,
        pairs: Sequence[TrainingPair],
        held_out: Sequence[TrainingPair],
        *,
        degradation: Degradation,
        value_range: float,
        settings: TrainSettings,
        out: Path,
        start: str = "",
    ) -> None:
        self.settings, self.out, self.value_range, self.start = settings, out, value_range, start
        self.device = torch.device(settings.device)
        # Convolutions on a CPU are a fifth faster with the channels last.
        self.model = model.to(self.device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch's stubs lack it
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        if settings.compile:
            compile_blocks(self.model)
        self.sampler = PatchSampler(pairs, degradation, settings.seed, max(settings.patches), self.device)
        noise = torch.Generator().manual_seed(settings.seed)
        self.held_out = [
            (
                add_noise(_centre(pair.low, 64) / 255, degradation, noise),
                _centre(pair.high, 64 * degradation.scale) / 255,
            )
            for pair in held_out
        ]
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=settings.lr, betas=(0.9, 0.99), fused=self.device.type == "cuda")
        self.backward = (Graphed if settings.graph else Eager)(self._loss, trained)
        self.step, self.seconds = 0, 0.0
        out.mkdir(parents=True, exist_ok=True)
        if (out / CHECKPOINT).is_file():
            self._resume()

    def run(self, report: Callable[[str], object] = str) -> None:
        """Trains to the end of the schedule, leaving a snapshot every few minutes and reporting its line of the log."""
        started, snapshot_at, losses = time.monotonic() - self.seconds, self.seconds, []
        while (progress := self.settings.progress(self.step, self.seconds)) < 1:
            losses.append(self._update(progress))
            self.seconds = time.monotonic() - started
            if self.seconds - snapshot_at >= 60 * self.settings.snapshot_minutes:
                report(self._snapshot(losses))
                snapshot_at, losses = self.seconds, []
        report(self._snapshot(losses))

    def _update(self, progress: float) -> Tensor:
        patch = self.settings.patch(progress)
        low, high = self.sampler.draw(max(1, self.settings.pixels // patch**2), patch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(self.step, progress)
        loss = self.backward(low.contiguous(memory_format=torch.channels_last), high)
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.step += 1
        self._average_weights()
        if self.device.type == "cuda" and self.step % AHEAD == 0:
            torch.cuda.synchronize(self.device)
        return loss

    def _loss(self, low: Tensor, high: Tensor) -> Tensor:
        # A cache of rounded weights would be filled inside a captured graph and outlive it.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16, cache_enabled=False):
            restored: Tensor = self.model(low * self.value_range)
        return (restored.float() / self.value_range - high).abs().mean()

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = min(self.settings.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    @torch.inference_mode()
    def held_out_psnr(self) -> float:
        """Computes the mean PSNR in dB (all channels, 0..1, no crop) of the averaged weights on the held-out crops."""
        scores = []
        for low, high in self.held_out:
            restored = self.average(low[None].to(self.device) * self.value_range) / self.value_range
            error = (restored[0].clamp(0, 1) - high.to(self.device)).square().mean()
            scores.append(-10 * math.log10(error.item()))
        return sum(scores) / max(1, len(scores))

    def _snapshot(self, losses: Sequence[Tensor]) -> str:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.sampler.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        part = self.out / f"{CHECKPOINT}.part"
        torch.save(state, part)
        part.replace(self.out / CHECKPOINT)
        average = {key: t.contiguous() for key, t in self.average.state_dict().items() if not is_derived(key)}
        history = {
            "step": str(self.step),
            "seconds": f"{self.seconds:.0f}",
            "settings": json.dumps(asdict(self.settings)),
            "start": self.start,
        }
        part = self.out / f"{AVERAGE}.part"
        safetensors.torch.save_file(average, part, metadata=history)
        part.replace(self.out / AVERAGE)
        line = json.dumps(
            {
                "step": self.step,
                "seconds": round(self.seconds),
                "progress": round(self.settings.progress(self.step, self.seconds), 4),
                "loss": torch.stack(list(losses)).mean().item() if losses else None,
                "held_out_psnr": round(self.held_out_psnr(), 3),
            }
        )
        with (self.out / LOG).open("a") as log:
            log.write(line + os.linesep)
        return line

    def _resume(self) -> None:
        state = torch.load(self.out / CHECKPOINT, map_location=self.device, weights_only=True)
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(f"{self.out / CHECKPOINT} is of another network; choose another folder") from error
        self.sampler.generator.set_state(state["generator"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]


def _centre(image: Tensor, side: int) -> Tensor:
    """Crops the middle [C, side, side] of an image; along an axis that is shorter, the whole axis stays."""
    top, left = max(0, (image.shape[1] - side) // 2), max(0, (image.shape[2] - side) // 2)
    return image[:, top : top + side, left : left + side]
