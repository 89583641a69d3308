"""What the compiler knows of operations: one row each, one family a file, one table of them."""

from nce_fx.ops.op import Op
from nce_fx.ops.table import OPS, Ops

__all__ = ["OPS", "Op", "Ops"]
