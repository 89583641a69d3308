"""What training minimises: cross entropy, and how far the student is from a frozen teacher.

    loss = (1 - a) * CE(student, target) + a * T^2 * KL(softmax(teacher / T) || softmax(student / T))

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015); T^2 keeps the gradients on one scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nce_fx.errors import TrainingError
from nce_fx.training.recipe import Recipe


def logits_of(output: Any) -> Tensor:
    """Return the class scores (batch, classes) in a model's output: the first tensor of a tuple, list or mapping.

    Raises:
        TrainingError: the output holds no tensor.
    """
    while not isinstance(output, Tensor):
        parts = list(output.values()) if isinstance(output, Mapping) else output
        if not isinstance(parts, (tuple, list)) or not parts:
            raise TrainingError(f"the model returns {type(output).__name__}: training needs a tensor of class scores")
        output = parts[0]
    return output


def training_loss(student: Tensor, target: Tensor, recipe: Recipe, teacher: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch, in float32 whatever the precision of the scores.

    Args:
        student: the model's class scores, (batch, classes).
        target: the classes, (batch,), or their probabilities, (batch, classes).
        recipe: its label smoothing, and its a and T where there is a teacher.
        teacher: the teacher's class scores, without gradient, or None for cross entropy alone.
    """
    student = _at_least_float(student)
    cross_entropy = F.cross_entropy(student, target, label_smoothing=recipe.label_smoothing)
    if teacher is None:
        return cross_entropy
    heat, share = recipe.distill_temperature, recipe.distill_alpha
    divergence = F.kl_div(
        F.log_softmax(student / heat, dim=1),
        F.log_softmax(_at_least_float(teacher) / heat, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - share) * cross_entropy + share * heat**2 * divergence


def count_correct(scores: Tensor, target: Tensor) -> Tensor:
    """Return how many samples of a batch have their highest score at the target class."""
    classes = target.argmax(1) if target.ndim > 1 else target
    return (scores.argmax(1) == classes).sum()


def _at_least_float(scores: Tensor) -> Tensor:
    """Half-precision scores as float32: a softmax over many classes loses too much below it."""
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
