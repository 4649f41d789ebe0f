"""The time of a distillation step beside the time that the float networks alone take, in one run.

The bound is the forward and backward pass of the float network, with gradients for the weights that the student
quantizes, on the batches of the preset's `dqc`. All parts take turns, and each figure is a median of CPU time.

    python -m benchmarks.dqc_step swinir_x4 [--bits 3] [--rounds 9] [--threads 1] [--plain]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.study import Study, inputs_of, open_study_network
from fxptq.graph.constants import attribute
from fxptq.graph.program import Program
from fxptq.kernels.backend import get_backend
from fxptq.passes.base import build_pass, run_passes
from fxptq.passes.dqc import Dqc
from fxptq.passes.dqc_settings import DqcSettings
from fxptq.passes.training import Training
from fxptq.progress import Silent


def main() -> None:
    options = parsed_options()
    torch.set_num_threads(options.threads)
    source = open_study_network(options.network)
    preset = source.recipe.preset("standard")
    study = Study(source, inputs_of(source.recipe, "synthetic", 4, 0), preset, 0, Silent())
    ctx = study.at(options.bits)
    if options.plain:
        ctx = replace(ctx, install_kernels=lambda: None)
    run_passes([("dobi2d", {})], ctx)
    dqc = build_pass("dqc", next(entry.settings for entry in preset.passes if entry.name == "dqc"))
    assert isinstance(dqc, Dqc)
    student = as_program(ctx.student)
    with dqc.training(ctx, dqc.learners(student)) as training:
        report(in_turns(parts_of(training, student), options.rounds), dqc.settings)
    path = "plain torch" if options.plain else get_backend("cpu").install().name
    print(f"kernel path {path}, {options.threads} threads, W{options.bits}A{options.bits}")


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="swinir_x4", help="a recipe's name, or a weights file")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each part")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="fake quantization without compiled kernels")
    return parser.parse_args()


def as_program(network: object) -> Program:
    assert isinstance(network, Program)
    return network


def parts_of(training: Training, student: Program) -> dict[str, Callable[[], object]]:
    """The parts of a step, by name, as functions to time."""
    lesson = next(training.lessons)
    for _ in range(-(-training.settings.crops // training.settings.batch)):
        next(training.lessons)  # from now on every lesson is kept
    teaching = training.teaching

    def in_float() -> None:
        teacher = as_program(teaching.ctx.teacher)
        with learning_weights(teacher, student) as weights:
            output, features = teacher.with_features(*lesson.inputs)
            answer = (teaching.ctx.picture.pick(output), features)
            torch.autograd.grad(teaching.loss(answer, (lesson.picture, list(lesson.features))), weights)

    picture = lesson.picture.clone().requires_grad_()
    features = [feature.clone() for feature in lesson.features]
    return {
        "teacher": lambda: teaching.teach(lesson.inputs),
        "student in float": in_float,
        "student": lambda: teaching.student_loss(lesson).backward(),  # type: ignore[no-untyped-call]
        "optimizer": lambda: training.update(1, 0.5),
        "loss": lambda: teaching.loss((picture, features), (lesson.picture, features)).backward(),  # type: ignore[no-untyped-call]
        "judgement": training.evaluate,
        "step": lambda: training.step(1, 0.5),
    }


@contextmanager
def learning_weights(teacher: Program, student: Program) -> Iterator[list[Tensor]]:
    """Within, the float weights of the student's quantized ones take gradients; yields them."""
    targets = {target for key in student.quantizers if (target := student.weight_target(key)) is not None}
    weights = [attribute(teacher.holder, target) for target in sorted(targets)]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield weights
    finally:
        for weight in weights:
            weight.requires_grad_(False)


def in_turns(parts: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median CPU time of each part in ms, after a first round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + 1):
        for name, part in parts.items():
            start = time.process_time()
            part()
            times[name].append((time.process_time() - start) * 1e3)
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}


def report(ms: dict[str, float], settings: DqcSettings) -> None:
    """Prints the parts, and the ratios to the bound."""
    for name, value in ms.items():
        print(f"{name:40s} {value:8.0f} ms")
    print(f"{'fake quantization (by difference)':40s} {ms['student'] - ms['student in float']:8.0f} ms")
    batches = -(-settings.crops // settings.batch) if settings.crops else settings.steps
    judgements = 1 + settings.steps // settings.eval_every
    whole = ms["step"] + (batches * ms["teacher"] + judgements * ms["judgement"]) / settings.steps
    if not settings.crops:
        whole -= ms["teacher"]  # which the measured steps include
    for name, bound in (
        ("student in float", ms["student in float"]),
        ("student in float + teacher", ms["student in float"] + ms["teacher"]),
    ):
        print(f"step / ({name}): {ms['step'] / bound:.2f}, with its share {whole / bound:.2f}")


if __name__ == "__main__":
    main()
