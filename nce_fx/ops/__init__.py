"""What the compiler knows of operations: one row each, one family a file, one table of them."""

from nce_fx.ops.op import Absent, Op
from nce_fx.ops.table import OPS, Ops

__all__ = ["OPS", "Absent", "Op", "Ops"]
