"""What moves elements and changes none: views, cuts, joins, permutations, copies."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn, randn

from nce_fx.ops.op import Absent, family, same_order
from nce_fx.ops.rules import by_data, movement, repair

_APART = Absent("PyTorch takes it apart into views")
_TORCHVISION = same_order("torchvision.ops.stochastic_depth.stochastic_depth")


def _tokens(*rest: Any) -> Callable[[], tuple[Any, ...]]:
    return lambda: (randn(2, 6, 8), *rest)


def _image(*rest: Any) -> Callable[[], tuple[Any, ...]]:
    return lambda: (randn(2, 8, 4, 4), *rest)


_moving = family(kind="movement", sign="kept")
_view = family(kind="movement", sign="kept", memory="view")

ROWS = (
    _view(
        "view",
        movement.view,
        "input, *shape",
        _image([2, 8, 16]),
        spellings=same_order("_unsafe_view"),
        repair=repair.view,
    ),
    _view(
        "reshape",
        movement.view,
        "input, shape",
        _image((2, 8, 16)),
        spellings=same_order("_reshape_alias"),
        repair=repair.view,
    ),
    _view("view_as", _APART, "input, other", lambda: (randn(2, 8, 4, 4), randn(2, 8, 4, 4))),
    _view("flatten", _APART, "input, start_dim=0, end_dim=-1", _image(2), nn.Flatten, catch="inside"),
    _view(
        "unflatten",
        _APART,
        "input, dim, sizes",
        _image(2, (2, 2)),
        nn.Unflatten,
        catch="inside",
        repair=repair.unflatten,
    ),
    _view("ravel", _APART, "input", lambda: (randn(8),)),
    _view("permute", movement.moved, "input, dims", _image((0, 2, 1, 3))),
    _view(
        "transpose", movement.moved, "input, dim0, dim1", _tokens(0, 1), spellings=same_order("swapaxes", "swapdims")
    ),
    _view("movedim", _APART, "input, source, destination", _image(1, -1), spellings=same_order("moveaxis")),
    _view("t", movement.moved, "input", lambda: (randn(2, 8),), spellings=same_order("numpy_T")),
    _view("squeeze", movement.moved, "input, dim=None", lambda: (randn(2, 8, 1), 2), repair=repair.squeeze),
    _view("unsqueeze", movement.moved, "input, dim", _tokens(1)),
    _view("expand", movement.moved, "input, *sizes", lambda: (randn(2, 8, 1), [2, 8, 3]), repair=repair.expand),
    _view("expand_as", movement.expand_as, "input, other", lambda: (randn(2, 8, 1), randn(2, 8, 3)), catch="call"),
    _view("select", movement.select, "input, dim, index", _tokens(1, 0)),
    _view("slice", movement.split, "input, dim=0, start=None, end=None, step=1", _tokens(1, 0, 3), repair=repair.cut),
    _view("narrow", movement.split, "input, dim, start, length", _tokens(1, 1, 3), repair=repair.narrow),
    _view("split", movement.split, "input, split_size_or_sections, dim=0", _tokens(3, 1), repair=repair.split),
    _view("split_with_sizes", movement.split, "input, split_sizes, dim=0", _tokens([2, 4], 1), repair=repair.split),
    _view("tensor_split", _APART, "input, indices_or_sections, dim=0", _tokens(2, 1)),
    _view("chunk", movement.split, "input, chunks, dim=0", _tokens(2, 1), repair=repair.split),
    _view("unbind", movement.split, "input, dim=0", _tokens(1)),
    _view("diagonal", movement.moved, "input, offset=0, dim1=0, dim2=1", _image(0, 2, 3)),
    _view(
        "stochastic_depth",
        Absent("it does nothing outside training"),
        "input, p, mode, training=True",
        _tokens(0.5, "row", False),
        spellings=_TORCHVISION,
    ),
    _view("detach", movement.same, "input", _tokens()),
    _view("alias", movement.same, "input", _tokens()),
    _view("contiguous", movement.same, "input", _tokens()),
    _view("getitem", _APART, "input, index", _tokens((slice(None), slice(0, 2))), repair=repair.items),
    _view("builtins.getattr", _APART, "input, name", _image("mT"), spellings=same_order(getattr)),
    _view("unfold", movement.moved, "input, dimension, size, step", _tokens(1, 2, 2)),
    _moving(
        "im2col",
        movement.im2col,
        "input, kernel_size, dilation=1, padding=0, stride=1",
        _image([2, 2], [1, 1], [0, 0], [2, 2]),
        nn.Unfold,
        catch="call",
        spellings=same_order(F.unfold),
    ),
    _moving(
        "col2im",
        movement.col2im,
        "input, output_size, kernel_size, dilation=1, padding=0, stride=1",
        lambda: (randn(2, 8, 4), [4, 4], [2, 2], [1, 1], [0, 0], [2, 2]),
        nn.Fold,
        catch="call",
        spellings=same_order(F.fold),
    ),
    _moving("clone", movement.same, "input", _tokens()),
    _moving("to", movement.same, "input, *to", _tokens(torch.float32), spellings=same_order("_to_copy")),
    _moving("float", _APART, "input", _tokens()),
    _moving(
        "cat",
        movement.cat,
        "tensors, dim=0",
        lambda: ([randn(2, 8), randn(2, 8)], 1),
        spellings=same_order("concat", "concatenate"),
    ),
    _moving("stack", movement.stack, "tensors, dim=0", lambda: ([randn(2, 8), randn(2, 8)], 1)),
    _moving("roll", movement.shifted, "input, shifts, dims=None", _tokens([1], [1])),
    _moving("flip", movement.shifted, "input, dims", _tokens((1,))),
    _moving("rot90", movement.copied, "input, k=1, dims=(0, 1)", _image(1, (2, 3))),
    _moving(
        "gather",
        by_data.gathered,
        "input, dim, index, sparse_grad=False",
        lambda: (randn(2, 6, 8), 1, torch.tensor([2, 0, 1]).view(1, 3, 1).expand(2, 3, 8)),
    ),
    *(
        _moving(
            name,
            by_data.scattered,
            "input, dim, index, src",
            lambda: (randn(2, 6, 8), 1, torch.tensor([2, 0, 1]).view(1, 3, 1).expand(2, 3, 8), randn(2, 3, 8)),
            sign="any",
        )
        for name in ("scatter", "scatter_add")
    ),
    *(
        _moving(
            name,
            by_data.scattered,
            "input, dim, index, source",
            lambda: (randn(2, 6, 8), 1, torch.tensor([2, 0, 1]), randn(2, 3, 8)),
            sign="any",
        )
        for name in ("index_add", "index_copy")
    ),
    _moving("index_select", movement.picked, "input, dim, index", _tokens(1, torch.tensor([2, 0, 1]))),
    _moving("repeat", movement.copied, "input, *sizes", _tokens([1, 2, 1])),
    _moving("repeat_interleave", movement.copied, "input, repeats, dim=None", _tokens(2, 1)),
    _moving("tile", movement.copied, "input, dims", _tokens([1, 2, 1])),
    _moving("pixel_shuffle", movement.copied, "input, upscale_factor", _image(2), nn.PixelShuffle),
    _moving("pixel_unshuffle", movement.space_to_depth, "input, downscale_factor", _image(2), nn.PixelUnshuffle),
    _moving(
        "channel_shuffle",
        movement.copied,
        "input, groups",
        _image(2),
        nn.ChannelShuffle,
        spellings=same_order("native_channel_shuffle"),
    ),
    _moving(
        "item",
        movement.number,
        "input",
        Absent("it makes a number of Python's"),
        catch="call",
        spellings=same_order("_local_scalar_dense", "tolist"),
    ),
    _moving("size", Absent("makes no tensor"), "input, dim=None", _tokens(0)),
    _moving("lift_fresh", movement.same, "input", _tokens()),
    _moving("lift_fresh_copy", movement.same, "input", _tokens()),
    _view("unsafe_chunk", movement.split, "input, chunks, dim=0", _tokens(2, 1), repair=repair.split),
    _view("unsafe_split", movement.split, "input, split_size, dim=0", _tokens(3, 1), repair=repair.split),
    _moving("index", movement.index, "input, indices", _tokens([None, torch.tensor([2, 0])])),
    _moving("glu", movement.glu, "input, dim=-1", _image(1), nn.GLU),
    _moving(
        "Tensor.expand",
        movement.expand,
        "input, *sizes",
        lambda: (randn(2, 8, 1), [2, 8, 3]),
        catch="call",
        sign="any",
        spellings=same_order(torch.Tensor.expand),
    ),
)
