"""What moves elements and changes none: views, cuts, joins, permutations, copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn, randn

from nce_fx.ops.op import NOTHING, Memory, Op, same

aten = torch.ops.aten
_TORCHVISION = same("torchvision.ops.stochastic_depth.stochastic_depth")


def _tokens(*rest: Any) -> Callable[[], tuple[Any, ...]]:
    return lambda: (randn(2, 6, 8), *rest)


def _image(*rest: Any) -> Callable[[], tuple[Any, ...]]:
    return lambda: (randn(2, 8, 4, 4), *rest)


def _moving(
    name: str,
    signature: str,
    example: Callable[[], tuple[Any, ...]],
    *modules: type[nn.Module],
    memory: Memory = "new",
    spellings: Any = NOTHING,
) -> Op:
    return Op(
        name=name,
        kind="movement",
        modules=modules,
        signature=signature,
        spellings=spellings,
        memory=memory,
        sign="kept",
        example=example,
    )


def _view(name: str, signature: str, example: Callable[[], tuple[Any, ...]], *modules: Any, **also: Any) -> Op:
    return _moving(name, signature, example, *modules, memory="view", **also)


ROWS = (
    _view("view", "input, *shape", _image([2, 8, 16]), spellings=same("_unsafe_view")),
    _view("reshape", "input, shape", _image((2, 8, 16)), spellings=same("_reshape_alias")),
    _view("view_as", "input, other", _image(randn(2, 8, 4, 4))),
    _view("flatten", "input, start_dim=0, end_dim=-1", _image(2), nn.Flatten),
    _view("unflatten", "input, dim, sizes", _image(2, (2, 2)), nn.Unflatten),
    _view("ravel", "input", lambda: (randn(8),)),
    _view("permute", "input, dims", _image((0, 2, 1, 3))),
    _view("transpose", "input, dim0, dim1", _tokens(0, 1), spellings=same("swapaxes", "swapdims")),
    _view("movedim", "input, source, destination", _image(1, -1), spellings=same("moveaxis")),
    _view("t", "input", lambda: (randn(2, 8),)),
    _view("squeeze", "input, dim=None", lambda: (randn(2, 8, 1), 2)),
    _view("unsqueeze", "input, dim", _tokens(1)),
    _view("expand", "input, *sizes", lambda: (randn(2, 8, 1), [2, 8, 3])),
    _view("expand_as", "input, other", lambda: (randn(2, 8, 1), randn(2, 8, 3))),
    _view("select", "input, dim, index", _tokens(1, 0)),
    _view("slice", "input, dim=0, start=None, end=None, step=1", _tokens(1, 0, 3)),
    _view("narrow", "input, dim, start, length", _tokens(1, 1, 3)),
    _view("split", "input, split_size_or_sections, dim=0", _tokens(3, 1)),
    _view("split_with_sizes", "input, split_sizes, dim=0", _tokens([2, 4], 1)),
    _view("tensor_split", "input, indices_or_sections, dim=0", _tokens(2, 1)),
    _view("chunk", "input, chunks, dim=0", _tokens(2, 1)),
    _view("unbind", "input, dim=0", _tokens(1)),
    _view("diagonal", "input, offset=0, dim1=0, dim2=1", _image(0, 2, 3)),
    _view("stochastic_depth", "input, p, mode, training=True", _tokens(0.5, "row", False), spellings=_TORCHVISION),
    _view("detach", "input", _tokens()),
    _view("alias", "input", _tokens()),
    _view("contiguous", "input", _tokens()),
    _view("getitem", "input, index", _tokens((slice(None), slice(0, 2))), spellings=same(getattr)),
    _view("unfold", "input, dimension, size, step", _tokens(1, 2, 2)),
    _moving(
        "im2col",
        "input, kernel_size, dilation=1, padding=0, stride=1",
        _image([2, 2], [1, 1], [0, 0], [2, 2]),
        nn.Unfold,
        spellings=same(F.unfold),
    ),
    Op(
        name="col2im",
        kind="movement",
        modules=(nn.Fold,),
        signature="input, output_size, kernel_size, dilation=1, padding=0, stride=1",
        spellings=same(F.fold),
        sign="kept",
        example=lambda: (randn(2, 8, 4), [4, 4], [2, 2], [1, 1], [0, 0], [2, 2]),
    ),
    _moving("clone", "input", _tokens()),
    _moving("to", "input, *to", _tokens(torch.float64), spellings=same("_to_copy")),
    _moving("float", "input", _tokens()),
    _moving("cat", "tensors, dim=0", lambda: ([randn(2, 8), randn(2, 8)], 1), spellings=same("concat", "concatenate")),
    _moving("stack", "tensors, dim=0", lambda: ([randn(2, 8), randn(2, 8)], 1)),
    _moving("roll", "input, shifts, dims=None", _tokens([1], [1])),
    _moving("flip", "input, dims", _tokens((1,))),
    _moving("rot90", "input, k=1, dims=(0, 1)", _image(1, (2, 3))),
    _moving("index_select", "input, dim, index", _tokens(1, torch.tensor([2, 0, 1]))),
    _moving("repeat", "input, *sizes", _tokens([1, 2, 1])),
    _moving("repeat_interleave", "input, repeats, dim=None", _tokens(2, 1)),
    _moving("tile", "input, dims", _tokens([1, 2, 1])),
    _moving("pixel_shuffle", "input, upscale_factor", _image(2), nn.PixelShuffle),
    _moving("pixel_unshuffle", "input, downscale_factor", _image(2), nn.PixelUnshuffle),
    _moving("channel_shuffle", "input, groups", _image(2), nn.ChannelShuffle, spellings=same("native_channel_shuffle")),
    _moving("size", "input, dim=None", _tokens(0)),
)
