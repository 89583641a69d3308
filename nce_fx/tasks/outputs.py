"""What a loss and a metric read in a model's output and in a target: the scores, the classes, the axis they are on."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nce_fx.errors import TrainingError


def first_tensor(output: Any) -> Tensor:
    """Return what a model says of its samples: the first tensor of its output, ``logits`` where one is called so.

    Raises:
        TrainingError: the output holds no tensor.
    """
    found = output
    while not isinstance(found, Tensor):
        parts: Any = found
        if isinstance(found, Mapping):
            parts = [found["logits"]] if found.get("logits") is not None else list(found.values())
        parts = [part for part in parts if part is not None] if isinstance(parts, tuple | list) else []
        if not parts:
            raise TrainingError(f"the model returns {type(output).__name__}: a loss needs a tensor of scores")
        found = parts[0]
    return found


def scores_of(output: Any) -> Tensor:
    """Return the first tensor of an output as a loss takes it: in single precision where it has half.

    Raises:
        TrainingError: the output holds no tensor.
    """
    return at_least_float(first_tensor(output))


def target_of(target: Any, what: str) -> Tensor:
    """Return what the scores are held against: the target, or the first tensor of one that is several.

    Raises:
        TrainingError: there is none.
    """
    found = next((leaf for leaf in tree_leaves(target) if isinstance(leaf, Tensor)), None)
    if found is None:
        raise TrainingError(f"{what} needs a target in every batch, such as (inputs, target): there is none")
    return found


def pair_of(output: Any, target: Any, what: str) -> tuple[Tensor, Tensor]:
    """Return scores and a target of the same shape; a last axis of 1 may be missing in either.

    Raises:
        TrainingError: the shapes are others: broadcast, they would compare samples with each other.
    """
    scores, wanted = scores_of(output), target_of(target, what)
    if scores.shape != wanted.shape and scores.numel() == wanted.numel() and _bare(scores) == _bare(wanted):
        wanted = wanted.reshape(scores.shape)
    if scores.shape != wanted.shape:
        raise TrainingError(
            f"{what} compares each number of the output with its target: the output is {shown(scores)}, the target "
            f"{shown(wanted)}; give targets of the output's shape, or a loss of your own"
        )
    return scores, wanted.to(scores.dtype)


def _bare(tensor: Tensor) -> list[int]:
    sizes = list(tensor.shape)
    return sizes[:-1] if len(sizes) > 1 and sizes[-1] == 1 else sizes


def classes_of(output: Any, target: Any, what: str) -> tuple[Tensor, Tensor]:
    """Return scores with their classes on axis 1, and their classes: whole numbers, or probabilities in that shape.

    The classes are on axis 1, as for images and pixels, or on the last axis where only that fits, as for tokens.

    Raises:
        TrainingError: the target is no classes of these scores; the message says what there is instead.
    """
    scores, wanted = scores_of(output), target_of(target, what)
    if scores.dim() < 2:
        raise _other(what, scores, wanted, "one number a sample is no class of several")
    if wanted.is_floating_point():
        if wanted.shape != scores.shape or scores.shape[1] == 1 or not _are_probabilities(wanted):
            raise _other(what, scores, wanted, "that is neither whole numbers nor a probability for each class")
        return scores, wanted
    if wanted.dim() == 2 and wanted.shape[1] == 1 and scores.dim() == 2:
        wanted = wanted[:, 0]
    if wanted.shape != scores.shape[:1] + scores.shape[2:]:
        if wanted.shape != scores.shape[:-1]:
            raise _other(what, scores, wanted, "that is no class for each position of the output")
        scores = scores.movedim(-1, 1)
    if scores.shape[1] == 1:
        raise _other(what, scores, wanted, "one number a sample is no class of several")
    return scores, wanted.long()


def _are_probabilities(target: Tensor) -> bool:
    sums = target.sum(1)
    return bool((target >= 0).all()) and bool((sums - 1).abs().max() < 1e-3)


def _other(what: str, scores: Tensor, target: Tensor, why: str) -> TrainingError:
    return TrainingError(
        f"{what} is for classes: the output is {shown(scores)}, the target {shown(target)}, {why}; name another loss: "
        "mean_squared_error, l1, binary_cross_entropy, or package.module:callable"
    )


def at_least_float(scores: Tensor) -> Tensor:
    """Return half-precision scores as float32: a softmax over many classes loses too much below it."""
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores


def own_loss(output: Any) -> Tensor:
    """Return the loss that a model gave itself: its ``loss``, or the sum of all it calls losses.

    Raises:
        TrainingError: there is none.
    """
    losses = _losses(output)
    if not losses:
        raise TrainingError(
            f"the model gives no loss of its own: it returns {_said(output)}; it must return a dict of losses, or name "
            "another loss"
        )
    return torch.stack([at_least_float(loss).mean() for loss in losses]).sum()


def has_own_loss(output: Any) -> bool:
    """Whether a model gave itself a loss; some do in training alone."""
    return bool(_losses(output))


def _losses(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.dim() == 0 else []
    named = _named(output)
    if isinstance(named.get("loss"), Tensor):
        return [named["loss"]]
    return [value for name, value in named.items() if "loss" in name.lower() and isinstance(value, Tensor)]


def beside_losses(output: Any) -> Any:
    """Return an output without what it calls losses."""
    named = _named(output)
    if named:
        return {name: value for name, value in named.items() if "loss" not in name.lower()}
    return () if isinstance(output, Tensor) and output.dim() == 0 else output


def _named(output: Any) -> dict[str, Any]:
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items() if value is not None}
    if is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return dict(output._asdict()) if hasattr(output, "_asdict") else {}


def parts_of(output: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Yield the tensors of numbers in an output of any structure, by where they are in it."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.dim():
            yield path, at_least_float(output)
    elif named := _named(output):
        for name, value in named.items():
            yield from parts_of(value, (*path, name))
    elif isinstance(output, tuple | list):
        for index, value in enumerate(output):
            yield from parts_of(value, (*path, index))


def shown(tensor: Tensor) -> str:
    """Return a tensor in words: ``float32 16x1``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape)) or 'of one number'}"


def _said(output: Any) -> str:
    named = _named(output)
    return f"{type(output).__name__} of {', '.join(named)}" if named else type(output).__name__
