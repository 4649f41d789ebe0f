"""The settings of the pass `dqc`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fxptq.errors import InputError
from fxptq.passes.distill import FeatureScale, OutputLoss

_RATES = ("lr", "weight_lr", "rounding_lr", "vector_lr")
"""The settings that are learning rates."""

_COUNTS = ("crops", "answers_mb", "warmup", "holdout_patch", "patience")
"""The settings that are whole numbers of which 0 means none."""


@dataclass(frozen=True)
class DqcSettings:
    """Settings; the defaults are the values of the paper, where it gives one.

    Attributes:
        steps: number of steps of the optimizer (Adam).
        batch: crops in a step; one for a network that takes one picture at a time.
        patch: side of a crop in pixels of the input.
        crops: number of fixed crops to train on, again and again, for which the float network answers once; 0 for
            new crops in every step.
        answers_mb: memory for these answers in MB; answers beyond it are computed again, with the same result.
        lr: learning rate of bounds in units of each quantizer's initial step; 0 for none. In units of the width, a
            rate that suits 2 bits would move a bound at 8 bits by many steps.
        backoff: factor for the learning rate. When a held-out loss is more than twice that before training (of a
            `constant` rate, whose noise nothing takes away: more than that), training goes on from the best state with
            the rate multiplied by this. 1 disables it.
        betas: coefficients of Adam.
        schedule: `cosine` lowers the rate to zero over the run, `constant` keeps it.
        warmup: steps over which the rate rises from zero.
        output_loss: `absolute` trains on the mean absolute difference of the pictures, as the paper does, `squared` on
            the mean squared one, and `relative` on the squared one of each picture in proportion to its detail (see
            `fxptq.passes.worth`), as a mean of PSNR over pictures counts errors.
        feature_weight: lambda, the factor of the feature loss.
        feature_scale: `relative` or `paper`, see fxptq.passes.distill.feature_loss.
        weight_lr: learning rate of bounds of weights, in the same unit; 0 for none, and None for that of the other
            bounds. A step of the bounds of a weight that keeps its codes moves all of its values together.
        rounding_lr: learning rate of the codes of weights, in units of a code; 0 for none. Each weight starts where
            the float weight lies in the cell of its code, see `fxptq.passes.offsets`; its grid learns through the
            codes. (AdaRound, arXiv 2004.10568, learns codes layer by layer.)
        keep_codes: whether each weight keeps its codes, so that its grid alone learns, through them; for weights
            that were rounded for the output of their layer.
        vector_lr: learning rate of biases and of the scales and shifts of norms, in units of each vector's root
            mean square; 0 for none.
        holdout: share of the images to evaluate on, 0..1.
        holdout_origin: `own` evaluates on a part of the images; `other` evaluates on inputs of another origin where
            the context has them, and trains on all images.
        holdout_crops: number of fixed crops of those images.
        holdout_patch: side of these crops in pixels; 0 for `patch`. Few small crops judge badly.
        turns: whether the student learns the mean of the float network's answer to a crop and of that by way of
            another orientation (see `fxptq.passes.turns`), as long as both answers are near enough to each other
            (`turns_apart`). Features are those of its own answer.
        turns_apart: the largest squared distance of both kinds of answers, as a multiple of the student's squared
            error before training, both on held-out crops. A network that was trained on upright pictures alone
            goes beyond it.
        eval_every: steps between two evaluations.
        work: work that the training may take, in multiply-accumulates of a forward run (see `fxptq.passes.work`). A
            network on which `steps` take less gets more steps and crops, and as many evaluations; at most 16 times
            as many. 0 for none of it.
        patience: number of evaluations without progress after which training stops; 0 for never.
        time_limit_s: limit of the training in seconds; the schedule is fitted to it, and the last state is
            evaluated, too. With a limit the result depends on the machine. None for no limit.
    """

    steps: int = 3000
    batch: int = 8
    patch: int = 64
    crops: int = 0
    answers_mb: int = 1000
    lr: float = 0.03
    backoff: float = 0.3
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 0
    output_loss: OutputLoss = "absolute"
    feature_weight: float = 5.0
    feature_scale: FeatureScale = "paper"
    weight_lr: float | None = None
    rounding_lr: float = 0.0
    keep_codes: bool = False
    vector_lr: float = 0.0
    holdout: float = 0.1
    holdout_origin: Literal["own", "other"] = "own"
    holdout_crops: int = 16
    holdout_patch: int = 0
    turns: bool = False
    turns_apart: float = 3.0
    eval_every: int = 100
    work: float = 0.0
    patience: int = 0
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "patch", "holdout_crops", "eval_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in (*_COUNTS, "work", "feature_weight", "turns_apart", *_RATES):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"{name} must not be negative, but is {getattr(self, name)}")
        if self.keep_codes and self.rounding_lr:
            raise InputError("keep_codes keeps the codes that rounding_lr would change: give one of the two")
        if not any(getattr(self, name) for name in _RATES):
            raise InputError(f"nothing learns: give one of {', '.join(_RATES)} above 0")
        if self.time_limit_s is not None and self.time_limit_s <= 0:
            raise InputError(f"time_limit_s must be above 0, not {self.time_limit_s}")
        if not 0 < self.backoff <= 1:
            raise InputError(f"backoff lies above 0 and is at most 1, unlike {self.backoff}")
        if not (all(0 <= beta < 1 for beta in self.betas) and 0 < self.holdout < 1):
            raise InputError(f"betas and holdout lie between 0 and 1, unlike {self.betas} and {self.holdout}")
