"""Products of matrices, of activations with each other or with a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import randn

from nce_fx.ops import work
from nce_fx.ops.op import Absent, Op, same_order
from nce_fx.ops.rules import contraction


def _matrices(name: str, signature: str, channels: Any, example: Callable[[], tuple[Any, ...]], **also: Any) -> Op:
    """A product of two matrices, to which another is added or not."""
    macs = work.matmul(1 if "alpha" in signature else 0)
    return Op(name=name, kind="product", signature=signature, channels=channels, macs=macs, example=example, **also)


_RARE = Absent("PyTorch has no tag for it, and it is rare")
_ADDED = "beta=1, alpha=1"

ROWS = (
    _matrices(
        "matmul",
        "input, other",
        contraction.aten_matmul,
        lambda: (randn(2, 8), randn(8, 6)),
        spellings=same_order("mm", torch.linalg.matmul),
    ),
    _matrices("bmm", "input, mat2", contraction.aten_matmul, lambda: (randn(2, 4, 8), randn(2, 8, 6))),
    _matrices("mv", "input, vec", contraction.dot_vector, lambda: (randn(6, 8), randn(8))),
    _matrices(
        "addmm", f"input, mat1, mat2, {_ADDED}", contraction.add_matmul, lambda: (randn(6), randn(2, 8), randn(8, 6))
    ),
    _matrices("addmv", f"input, mat, vec, {_ADDED}", _RARE, lambda: (randn(6), randn(6, 8), randn(8))),
    _matrices(
        "baddbmm",
        f"input, batch1, batch2, {_ADDED}",
        contraction.add_matmul,
        lambda: (randn(2, 4, 6), randn(2, 4, 8), randn(2, 8, 6)),
    ),
    *(
        Op(
            name=name,
            kind="product",
            signature=signature,
            channels=Absent("PyTorch takes it apart into products of matrices"),
            macs=macs,
            example=example,
        )
        for name, signature, macs, example in (
            ("inner", "input, other", work.inner, lambda: (randn(2, 8), randn(6, 8))),
            (
                "tensordot",
                "input, other, dims=2, dims_other=None",
                work.tensordot,
                lambda: (randn(2, 8), randn(8, 6), 1),
            ),
        )
    ),
    Op(
        name="einsum",
        kind="product",
        signature="equation, *operands",
        channels=contraction.einsum,
        catch="call",
        macs=work.einsum,
        example=lambda: ("bi,oi->bo", randn(2, 8), randn(6, 8)),
    ),
)
