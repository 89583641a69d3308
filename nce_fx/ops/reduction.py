"""What mixes elements along an axis: means, sums, maxima, softmax, cumulative sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn, rand, randn

from nce_fx.ops.op import Op, Sign, same_order
from nce_fx.ops.rules import mixing


def _image() -> tuple[Any, ...]:
    return randn(2, 8, 5, 5), [2]


def _one() -> tuple[Any, ...]:
    return randn(2, 8, 5, 5), 2


def _normed() -> tuple[Any, ...]:
    return randn(2, 8, 5, 5), 2, [2]


def _over(
    name: str,
    channels: Callable[..., Any],
    signature: str = "input, dim=None, keepdim=False",
    sign: Sign = "any",
    example: Callable[[], tuple[Any, ...]] = _image,
    **also: Any,
) -> Op:
    return Op(name=name, kind="reduction", channels=channels, signature=signature, sign=sign, example=example, **also)


ROWS = (
    _over("mean", mixing.reduction("mean"), sign="kept"),
    _over("sum", mixing.reduction("a sum"), sign="kept"),
    _over("amax", mixing.reduction("largest"), sign="kept"),
    _over("amin", mixing.reduction("largest"), sign="kept"),
    _over("max", mixing.largest, example=_one, evenly="amax"),
    _over("min", mixing.largest, example=_one, evenly="amin"),
    _over("prod", mixing.reduction("a product"), example=_one),
    _over("var", mixing.variance, "input, dim=None, correction=1, keepdim=False"),
    _over("std", mixing.variance, "input, dim=None, correction=1, keepdim=False"),
    _over("logsumexp", mixing.reduction("logsumexp")),
    _over(
        "softmax",
        mixing.softmax,
        "input, dim",
        example=_one,
        modules=(nn.Softmax,),
        spellings={"_softmax": "input, dim, half_to_float=False"},
        sign="never_negative",
    ),
    _over(
        "log_softmax",
        mixing.softmax,
        "input, dim",
        example=_one,
        modules=(nn.LogSoftmax,),
        spellings={"_log_softmax": "input, dim, half_to_float=False"},
    ),
    _over("cumsum", mixing.scan, "input, dim", example=_one),
    _over("cumprod", mixing.scan, "input, dim", example=lambda: (rand(2, 8, 5, 5), 2)),
    _over("sort", mixing.scan, "input, dim=-1, descending=False", example=_one),
    _over(
        "norm",
        mixing.vector_norm,
        "input, p=2, dim=None, keepdim=False",
        example=lambda: (randn(2, 8, 5, 5), 2, [2]),
        root=True,
    ),
    _over("any", mixing.reduction("largest")),
    _over("all", mixing.reduction("largest")),
    _over("argmax", mixing.reduction("argmax, an index of channels"), example=_one),
    _over("argmin", mixing.reduction("argmin, an index of channels"), example=_one),
    _over("nansum", mixing.reduction("a sum")),
    _over(
        "linalg_vector_norm",
        mixing.vector_norm,
        "input, ord=2, dim=None",
        example=_normed,
        spellings=same_order(torch.linalg.vector_norm),
        root=True,
    ),
    _over("var_mean", mixing.variance),
    _over("std_mean", mixing.variance),
    _over("logcumsumexp", mixing.scan, "input, dim", example=_one),
)
