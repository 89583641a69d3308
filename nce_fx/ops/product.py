"""Products of matrices, of activations with each other or with a parameter."""

import torch
from torch import randn

from nce_fx.ops import work
from nce_fx.ops.op import Absent, family, same_order
from nce_fx.ops.rules import contraction

_matrices = family(kind="product", macs=work.matmul())
_added = family(kind="product", macs=work.matmul(1))
_ADDED = "beta=1, alpha=1"
_RARE = Absent("PyTorch has no tag for it, and it is rare")
_APART = Absent("PyTorch takes it apart into products of matrices")

ROWS = (
    _matrices(
        "matmul",
        contraction.aten_matmul,
        "input, other",
        lambda: (randn(2, 8), randn(8, 6)),
        spellings=same_order("mm", torch.linalg.matmul),
    ),
    _matrices("bmm", contraction.aten_matmul, "input, mat2", lambda: (randn(2, 4, 8), randn(2, 8, 6))),
    _matrices("mv", contraction.dot_vector, "input, vec", lambda: (randn(6, 8), randn(8))),
    _added(
        "addmm",
        contraction.add_matmul,
        f"input, mat1, mat2, {_ADDED}",
        lambda: (randn(6), randn(2, 8), randn(8, 6)),
    ),
    _added("addmv", _RARE, f"input, mat, vec, {_ADDED}", lambda: (randn(6), randn(6, 8), randn(8))),
    _added(
        "baddbmm",
        contraction.add_matmul,
        f"input, batch1, batch2, {_ADDED}",
        lambda: (randn(2, 4, 6), randn(2, 4, 8), randn(2, 8, 6)),
    ),
    _matrices("inner", _APART, "input, other", lambda: (randn(2, 8), randn(6, 8)), macs=work.inner),
    _matrices(
        "tensordot",
        _APART,
        "input, other, dims=2, dims_other=None",
        lambda: (randn(2, 8), randn(8, 6), 1),
        macs=work.tensordot,
    ),
    _matrices(
        "einsum",
        contraction.einsum,
        "equation, *operands",
        lambda: ("bi,oi->bo", randn(2, 8), randn(6, 8)),
        catch="call",
        macs=work.einsum,
    ),
)
