"""Losses by name: each the mean over a batch, with what sensitivity and distillation need to know of it.

A loss of the user's own is ``loss(output, target)``: the model's whole output, the batch's whole target, a mean over
the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from nce_fx.callables import load_callable
from nce_fx.errors import InputError, NceFxError, TrainingError, one_line
from nce_fx.nearest import nearest
from nce_fx.registry import Registry
from nce_fx.tasks.outputs import classes_of, own_loss, pair_of, scores_of

Of = Callable[[Any, Any], Tensor]
"""(output, target) -> a mean over the batch."""
TEMPERATURE = 1.5
"""Of the softmax whose curvature the Gauss-Newton metric takes."""


@dataclass(frozen=True)
class Loss:
    """A loss, and what is known of it."""

    name: str
    of: Of
    says: str
    metric: str = "loss"
    """What a model trained with it is measured by where nothing is said."""
    root: Callable[[Tensor, Tensor, int], Tensor] | None = None
    """(output, random signs e, axis of classes) -> u with E[u u'] the curvature of the loss at the output; ``None``
    where it is not known."""
    is_of_classes: bool = False
    is_of_numbers: bool = False
    """Whether each number of the output has a target."""
    is_of_logits: bool = False
    is_the_models: bool = False

    def __call__(self, output: Any, target: Any) -> Tensor:
        """Return the mean loss of a batch.

        Raises:
            TrainingError: the loss does not take them; the message says what they are.
        """
        try:
            value = self.of(output, target)
        except NceFxError:
            raise
        except Exception as error:
            raise TrainingError(
                f"the loss {self.name} does not take this output and target: {one_line(error)}"
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TrainingError(f"the loss {self.name} gives {type(value).__name__}, not one number in a tensor")
        return value.reshape(())


def cross_entropy(output: Any, target: Any, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of one class a sample, a pixel or a token; -100 is left out."""
    scores, wanted = classes_of(output, target, "cross_entropy")
    return F.cross_entropy(scores, wanted, label_smoothing=smoothing)


def _mean_squared_error(output: Any, target: Any) -> Tensor:
    return F.mse_loss(*pair_of(output, target, "mean_squared_error"))


def _l1(output: Any, target: Any) -> Tensor:
    return F.l1_loss(*pair_of(output, target, "l1"))


def _binary_cross_entropy(output: Any, target: Any) -> Tensor:
    scores, wanted = pair_of(output, target, "binary_cross_entropy")
    if bool((wanted < 0).any()) or bool((wanted > 1).any()):
        raise TrainingError("binary_cross_entropy needs targets in [0, 1], one for each number of the output")
    return F.binary_cross_entropy_with_logits(scores, wanted)


def _own(output: Any, target: Any) -> Tensor:
    return own_loss(output)


def _of_softmax(output: Tensor, signs: Tensor, axis: int) -> Tensor:
    if output.dim() < 2 or output.shape[axis] == 1:
        return signs
    chances = (output / TEMPERATURE).softmax(axis)
    weighted = chances.sqrt() * signs
    return weighted - chances * weighted.sum(axis, keepdim=True)


def _of_sigmoid(output: Tensor, signs: Tensor, axis: int) -> Tensor:
    chances = (output / TEMPERATURE).sigmoid()
    return (chances * (1 - chances)).sqrt() * signs


def _of_distance(output: Tensor, signs: Tensor, axis: int) -> Tensor:
    return signs


LOSSES: Registry[Loss] = Registry(
    "losses",
    {
        loss.name: loss
        for loss in (
            Loss(
                "cross_entropy",
                cross_entropy,
                "one class a sample, a pixel or a token, of several",
                "accuracy",
                _of_softmax,
                is_of_classes=True,
            ),
            Loss(
                "mean_squared_error",
                _mean_squared_error,
                "regression: the mean of (output - target)^2",
                "mean_squared_error",
                _of_distance,
                is_of_numbers=True,
            ),
            Loss("l1", _l1, "regression: the mean of |output - target|", "l1", _of_distance, is_of_numbers=True),
            Loss(
                "binary_cross_entropy",
                _binary_cross_entropy,
                "yes or no for each number of the output, which is a logit",
                "binary_accuracy",
                _of_sigmoid,
                is_of_numbers=True,
                is_of_logits=True,
            ),
            Loss(
                "own",
                _own,
                "what the model calls its losses, as detection models return them",
                root=_of_distance,
                is_the_models=True,
            ),
        )
    },
    lambda value: isinstance(value, Loss),
    lambda loss: loss.says,
)
"""Name -> loss."""


def loss_named(loss: str | Callable[[Any, Any], Any] | Loss | None) -> Loss:
    """Return a loss by its name, ``package.module:callable``, or as the callable that it is; cross entropy for none.

    Raises:
        InputError: there is none of the name.
    """
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return Loss(name_of(loss), loss, "of the user's own")
    name = loss or "cross_entropy"
    if name in LOSSES:
        return LOSSES[name]
    if ":" in name:
        return Loss(name, load_callable(name, "loss"), "of the user's own")
    raise InputError(
        f"no loss {name!r}: there are {', '.join(LOSSES)}, and package.module:callable{nearest(name, LOSSES)}"
    )


def name_of(function: Any) -> str:
    """Return how a callable of the user's own is called in records: ``package.module:callable``."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}:{kind.__qualname__}"


def without_target(loss: Loss, output: Any) -> Any:
    """Return a target for a batch that has none: the model's own decision, where the loss is of classes.

    Raises:
        InputError: the loss is another.
    """
    if loss.is_the_models:
        return None
    if not loss.is_of_classes:
        raise InputError(f"the loss {loss.name} needs a target in every batch, such as (inputs, target): there is none")
    return scores_of(output).detach().argmax(1)
