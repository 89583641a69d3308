"""What a network is trained for: a loss to minimise, a metric to measure by, and how far a student is from a teacher.

    loss = (1 - a) * task(student, target) + a * distance(student, teacher)

The distance of scores of classes is T^2 * KL(softmax(teacher / T) || softmax(student / T)): Hinton, Vinyals and Dean,
"Distilling the knowledge in a neural network" (2015); T^2 keeps the gradients on one scale. Where each number of the
output has a target it is the loss with the teacher's output as the target. Of all other tensors it is the squared
difference as a share of the teacher's variance, where that is above 1. An output of
several tensors has the mean of the distances of each.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nce_fx.errors import InputError, TrainingError
from nce_fx.tasks.losses import LOSSES, Loss, cross_entropy, loss_named
from nce_fx.tasks.metrics import METRICS, Metric, metric_named
from nce_fx.tasks.outputs import at_least_float, beside_losses, classes_of, own_loss, parts_of, scores_of
from nce_fx.tasks.stateful import StatefulMetric

LossLike = str | Callable[[Any, Any], Any] | Loss | None
"""A name of `LOSSES`, ``package.module:callable``, or ``loss(output, target)`` itself; cross entropy for ``None``."""
MetricLike = str | Callable[[Any, Any], Any] | Metric | StatefulMetric | None
"""A name of `METRICS`, ``package.module:callable``, or ``metric(output, target)`` itself, or an object that keeps
what it has seen; what goes with the loss for ``None``."""


@dataclass(frozen=True)
class Task:
    """A loss and a metric."""

    loss: Loss
    metric: Metric

    @staticmethod
    def of(loss: LossLike = None, metric: MetricLike = None) -> "Task":
        """Return the task of a loss and a metric, each by name or as it is.

        Raises:
            InputError: there is none of that name.
        """
        found = loss_named(loss)
        return Task(found, metric_named(metric, found))

    @property
    def counts_right(self) -> bool:
        """Whether the metric is an accuracy, which means something on training samples as well."""
        return self.metric.name == "accuracy"

    def said(self, value: float) -> str:
        """Return what the metric says, as people read it: ``91.25 %``, ``mean squared error 0.0123``."""
        name = "" if self.counts_right else f"{self.metric.name.rpartition(':')[2].replace('_', ' ')} "
        return name + self.metric.shown(value)

    def training_loss(
        self,
        student: Any,
        target: Any,
        *,
        smoothing: float = 0.0,
        teacher: Any = None,
        share: float = 0.0,
        heat: float = 1.0,
    ) -> Tensor:
        """Return the mean loss of a batch, in float32 whatever the precision of the scores.

        Args:
            student: the model's output.
            target: the batch's target.
            smoothing: of the labels, where the loss is of classes.
            teacher: the teacher's output, without gradient, or ``None`` for the task alone.
            share: a, the part of the distance from the teacher.
            heat: T, the temperature of both softmaxes.

        Raises:
            InputError: smoothing of labels that are no classes.
            TrainingError: the loss does not take the output and the target.
        """
        if smoothing and not self.loss.is_of_classes:
            raise InputError(f"recipe: label_smoothing is for classes; it must be 0 with the loss {self.loss.name}")
        loss = replace(self.loss, of=partial(cross_entropy, smoothing=smoothing)) if smoothing else self.loss
        plain = loss(student, target)
        if teacher is None:
            return plain
        return (1 - share) * plain + share * self._distance(student, teacher, target, heat)

    def _distance(self, student: Any, teacher: Any, target: Any, heat: float) -> Tensor:
        own, theirs = dict(parts_of(beside_losses(student))), dict(parts_of(beside_losses(teacher)))
        both = [path for path in own if path in theirs and own[path].shape == theirs[path].shape]
        if not both:
            raise TrainingError(
                "the teacher's output has nothing in common with the model's but losses: nothing can be learnt from it"
            )
        axis, classes = 1, 0
        if self.loss.is_of_classes:
            scores = classes_of(student, target, self.loss.name)[0]
            axis, classes = 1 if scores.shape == scores_of(student).shape else -1, scores.shape[1]

        def distance(ours: Tensor, taught: Tensor) -> Tensor:
            if self.loss.is_of_classes and ours.dim() > 1 and ours.shape[axis] == classes:
                return _divergence(ours, taught, axis, heat)
            if self.loss.is_of_numbers:
                return self.loss(ours, taught.sigmoid() if self.loss.is_of_logits else taught)
            return F.mse_loss(ours, taught) / taught.var(correction=0).clamp(min=_LEAST_VARIANCE)

        distances = [distance(own[path], theirs[path]) for path in both]
        return distances[0] if len(distances) == 1 else torch.stack(distances).mean()


_LEAST_VARIANCE = 1.0
"""Of a teacher's output, for the share that a difference is of it: small numbers are not made large ones, or a teacher
that says nearly always the same would drown the task."""


def _divergence(student: Tensor, teacher: Tensor, axis: int, heat: float) -> Tensor:
    """The mean Kullback-Leibler divergence over all samples and positions, times T squared."""

    def rows(scores: Tensor) -> Tensor:
        logarithms = F.log_softmax(scores / heat, dim=axis)
        return logarithms.movedim(axis, -1).flatten(0, -2) if scores.dim() > 2 else logarithms

    return heat**2 * F.kl_div(rows(student), rows(teacher), reduction="batchmean", log_target=True)


__all__ = [
    "LOSSES",
    "METRICS",
    "Loss",
    "LossLike",
    "Metric",
    "MetricLike",
    "Task",
    "at_least_float",
    "loss_named",
    "metric_named",
    "own_loss",
    "scores_of",
]
