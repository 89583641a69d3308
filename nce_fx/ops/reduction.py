"""What mixes elements along an axis: means, sums, maxima, softmax, cumulative sums."""

from typing import Any

import torch
from torch import nn, rand, randn

from nce_fx.ops.op import Absent, family, same_order
from nce_fx.ops.rules import mixing


def _image() -> tuple[Any, ...]:
    return randn(2, 8, 5, 5), [2]


def _one() -> tuple[Any, ...]:
    return randn(2, 8, 5, 5), 2


def _normed() -> tuple[Any, ...]:
    return randn(2, 8, 5, 5), 2, [2]


_over = family(kind="reduction", signature="input, dim=None, keepdim=False", example=_image)
_along = family(kind="reduction", signature="input, dim", example=_one)
_DEVIATION = "input, dim=None, correction=1, keepdim=False"

ROWS = (
    _over("mean", mixing.reduction("mean"), sign="kept"),
    _over("sum", mixing.reduction("a sum"), sign="kept"),
    _over("amax", mixing.reduction("largest"), sign="kept"),
    _over("amin", mixing.reduction("largest"), sign="kept"),
    _over("max", mixing.largest, example=_one, evenly="amax"),
    _over("min", mixing.largest, example=_one, evenly="amin"),
    _over("prod", mixing.reduction("a product"), example=_one),
    _over("var", mixing.variance, signature=_DEVIATION),
    _over("std", mixing.variance, signature=_DEVIATION),
    _over("logsumexp", mixing.reduction("logsumexp")),
    _along(
        "softmax",
        mixing.softmax,
        nn.Softmax,
        spellings={"_softmax": "input, dim, half_to_float=False", "_safe_softmax": "input, dim, dtype=None"},
        sign="never_negative",
    ),
    _along("log_softmax", mixing.softmax, nn.LogSoftmax, spellings={"_log_softmax": "input, dim, half_to_float=False"}),
    _along("cumsum", mixing.scan),
    _along("cumprod", mixing.scan, example=lambda: (rand(2, 8, 5, 5), 2)),
    _along("sort", mixing.scan, signature="input, dim=-1, descending=False"),
    _along("topk", mixing.topk, signature="input, k, dim=-1, largest=True", example=lambda: (randn(2, 8, 5, 5), 3, 2)),
    _over("norm", mixing.vector_norm, signature="input, p=2, dim=None, keepdim=False", example=_normed, root=True),
    _over("any", mixing.reduction("largest")),
    _over("all", mixing.reduction("largest")),
    _over("argmax", mixing.reduction("argmax, an index of channels"), example=_one),
    _over("argmin", mixing.reduction("argmin, an index of channels"), example=_one),
    _over("nansum", mixing.reduction("a sum")),
    _over(
        "linalg_vector_norm",
        mixing.vector_norm,
        signature="input, ord=2, dim=None",
        example=_normed,
        spellings=same_order(torch.linalg.vector_norm),
        root=True,
    ),
    _along(
        "_weight_norm_interface",
        mixing.normed_weight,
        signature="v, g, dim=0",
        example=Absent("torch.nn.utils.weight_norm makes it, of parameters alone"),
    ),
    _over("var_mean", mixing.variance),
    _over("std_mean", mixing.variance),
    _along("logcumsumexp", mixing.scan),
)
