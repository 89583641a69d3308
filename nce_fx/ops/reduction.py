"""What mixes elements along an axis: means, sums, maxima, softmax, cumulative sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn, rand, randn

from nce_fx.ops.op import Op, Sign


def _image() -> tuple[Any, ...]:
    return randn(2, 8, 5, 5), [2]


def _one() -> tuple[Any, ...]:
    return randn(2, 8, 5, 5), 2


def _over(
    name: str,
    signature: str = "input, dim=None, keepdim=False",
    sign: Sign = "any",
    example: Callable[[], tuple[Any, ...]] = _image,
    **also: Any,
) -> Op:
    return Op(name=name, kind="reduction", signature=signature, sign=sign, example=example, **also)


ROWS = (
    _over("mean", sign="kept"),
    _over("sum", sign="kept"),
    _over("amax", sign="kept"),
    _over("amin", sign="kept"),
    _over("max", example=_one),
    _over("min", example=_one),
    _over("prod", example=_one),
    _over("var", "input, dim=None, correction=1, keepdim=False"),
    _over("std", "input, dim=None, correction=1, keepdim=False"),
    _over("logsumexp"),
    _over(
        "softmax",
        "input, dim",
        example=_one,
        modules=(nn.Softmax,),
        spellings={"_softmax": "input, dim, half_to_float=False"},
        sign="never_negative",
    ),
    _over(
        "log_softmax",
        "input, dim",
        example=_one,
        modules=(nn.LogSoftmax,),
        spellings={"_log_softmax": "input, dim, half_to_float=False"},
    ),
    _over("cumsum", "input, dim", example=_one),
    _over("cumprod", "input, dim", example=lambda: (rand(2, 8, 5, 5), 2)),
    _over("sort", "input, dim=-1, descending=False", example=_one),
    _over("norm", "input, p=2, dim=None, keepdim=False", example=lambda: (randn(2, 8, 5, 5), 2, [2])),
)
