"""Products of matrices, of activations with each other or with a parameter."""

from __future__ import annotations

from torch import randn

from nce_fx.ops import work
from nce_fx.ops.op import Absent, Op, same_order
from nce_fx.ops.rules import contraction

ROWS = (
    Op(
        name="matmul",
        kind="product",
        signature="input, other",
        spellings=same_order("mm"),
        channels=contraction.aten_matmul,
        macs=work.matmul(),
        example=lambda: (randn(2, 8), randn(8, 6)),
    ),
    Op(
        name="bmm",
        kind="product",
        signature="input, mat2",
        channels=contraction.aten_matmul,
        macs=work.matmul(),
        example=lambda: (randn(2, 4, 8), randn(2, 8, 6)),
    ),
    Op(
        name="mv",
        kind="product",
        signature="input, vec",
        channels=contraction.dot_vector,
        macs=work.matmul(),
        example=lambda: (randn(6, 8), randn(8)),
    ),
    Op(
        name="addmm",
        kind="product",
        signature="input, mat1, mat2, beta=1, alpha=1",
        channels=contraction.add_matmul,
        macs=work.matmul(1),
        example=lambda: (randn(6), randn(2, 8), randn(8, 6)),
    ),
    Op(
        name="addmv",
        kind="product",
        signature="input, mat, vec, beta=1, alpha=1",
        channels=Absent("PyTorch has no tag for it, and it is rare"),
        macs=work.matmul(1),
        example=lambda: (randn(6), randn(6, 8), randn(8)),
    ),
    Op(
        name="baddbmm",
        kind="product",
        signature="input, batch1, batch2, beta=1, alpha=1",
        channels=contraction.add_matmul,
        macs=work.matmul(1),
        example=lambda: (randn(2, 4, 6), randn(2, 4, 8), randn(2, 8, 6)),
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
