"""What a model is measured by: each metric counts batch by batch, so that shares of a batch and batches add up.

A metric of the user's own is ``metric(output, target)``, a mean over the batch; or an object with ``reset()``,
``update(output, target)`` and ``compute()``, as torchmetrics has them, for what is no mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nce_fx.callables import load_callable
from nce_fx.errors import InputError, one_line
from nce_fx.nearest import nearest
from nce_fx.registry import Registry
from nce_fx.tasks.losses import Loss, name_of
from nce_fx.tasks.outputs import classes_of, pair_of
from nce_fx.tasks.stateful import Stateful, StatefulMetric, one_number, taking

IGNORED = -100
"""The class of what is left out, as in PyTorch."""


@dataclass(frozen=True)
class Metric:
    """A metric: what it counts in a batch, and what all counts together say."""

    name: str
    count: Callable[[Any, Any, int], Tensor]
    """(output, target, samples) -> numbers that add up over batches."""
    says: str
    result: Callable[[Tensor], Tensor] = lambda counts: counts[0] / counts[1]
    is_share: bool = False
    """Whether it is in [0, 1], higher the better, and shown in percent."""
    stateful: Stateful | None = None

    def shown(self, value: float | None) -> str:
        """Return a value as people read it: ``91.25 %``, ``0.0123``; a dash where there is none."""
        return shown_value(value, is_share=self.is_share)


def shown_value(value: float | None, *, is_share: bool) -> str:
    """Return the value of a metric as people read it."""
    return "-" if value is None else f"{100 * value:.2f} %" if is_share else f"{value:.4g}"


def count_right(output: Any, target: Any, samples: int = 0) -> Tensor:
    """Return how many samples, pixels or tokens have their highest score at their class, and of how many."""
    scores, wanted, counted = _decided(output, target, "accuracy")
    right = (scores.argmax(1) == wanted) & counted
    return torch.stack([right.sum(), counted.sum()])


def _decided(output: Any, target: Any, what: str) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, one class for each position, and which positions count."""
    scores, wanted = classes_of(output, target, what)
    wanted = wanted.argmax(1) if wanted.is_floating_point() else wanted
    return scores, wanted, wanted != IGNORED


def _overlap(output: Any, target: Any, samples: int) -> Tensor:
    scores, wanted, counted = _decided(output, target, "mean_iou")
    classes = scores.shape[1]
    found, there = scores.argmax(1)[counted], wanted[counted]
    both = torch.bincount(there[found == there], minlength=classes)
    return torch.stack(
        [both, torch.bincount(found, minlength=classes) + torch.bincount(there, minlength=classes) - both]
    )


def _mean_overlap(counts: Tensor) -> Tensor:
    there = counts[1] > 0
    return (counts[0][there] / counts[1][there]).mean()


def _squared(output: Any, target: Any, samples: int) -> Tensor:
    scores, wanted = pair_of(output, target, "mean_squared_error")
    return torch.stack([(scores - wanted).double().square().sum(), wanted.new_tensor(wanted.numel()).double()])


def _absolute(output: Any, target: Any, samples: int) -> Tensor:
    scores, wanted = pair_of(output, target, "l1")
    return torch.stack([(scores - wanted).double().abs().sum(), wanted.new_tensor(wanted.numel()).double()])


def _right_sides(output: Any, target: Any, samples: int) -> Tensor:
    scores, wanted = pair_of(output, target, "binary_accuracy")
    right = (scores > 0) == (wanted > 0.5)
    return torch.stack([right.sum(), right.new_tensor(right.numel(), dtype=torch.int64)])


METRICS: Registry[Metric] = Registry(
    "task_metrics",
    {
        metric.name: metric
        for metric in (
            Metric(
                "accuracy",
                count_right,
                "share of samples, pixels or tokens whose highest score is at their class",
                is_share=True,
            ),
            Metric("mean_iou", _overlap, "segmentation: overlap over union, mean of the classes", _mean_overlap, True),
            Metric("binary_accuracy", _right_sides, "share of the output's numbers on the right side", is_share=True),
            Metric("mean_squared_error", _squared, "the mean of (output - target)^2"),
            Metric("l1", _absolute, "the mean of |output - target|"),
        )
    },
    lambda value: isinstance(value, Metric),
    lambda metric: metric.says,
)
"""Name -> metric; ``loss`` is one more, the loss itself."""


def metric_named(metric: str | Callable[[Any, Any], Any] | Metric | StatefulMetric | None, loss: Loss) -> Metric:
    """Return a metric by its name, ``package.module:callable``, or as what it is; what fits the loss for none.

    Raises:
        InputError: there is none of the name.
    """
    if isinstance(metric, Metric):
        return metric
    name = metric or loss.metric
    if not isinstance(name, str):
        return _own(name_of(name), name)
    if name == "loss":
        return Metric("loss", _weighted("loss", loss), "the loss itself")
    if name in METRICS:
        return METRICS[name]
    if ":" in name:
        return _own(name, load_callable(name, "metric"))
    known = ("loss", *METRICS)
    raise InputError(
        f"no metric {name!r}: there are {', '.join(known)}, and package.module:callable{nearest(name, known)}"
    )


def _own(name: str, found: Any) -> Metric:
    if isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            raise InputError(f"the metric {name} cannot be made without arguments: {one_line(error)}") from error
    keeps = Stateful(name, found) if isinstance(found, StatefulMetric) else None
    return Metric(name, _weighted(name, found), "of the user's own", stateful=keeps)


def _weighted(name: str, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any, int], Tensor]:
    def count(output: Any, target: Any, samples: int) -> Tensor:
        with taking(name):
            value = function(output, target)
        number = one_number(name, value, "a mean over the batch").detach()
        return torch.stack([number * samples, number.new_tensor(samples)])

    return count
