"""What the compiler knows of operations: one row each, one family a file, one table of them."""

from nce_fx.ops.op import Absent, Op, WeightLayout
from nce_fx.ops.table import OPS, Ops, table_of

__all__ = ["OPS", "Absent", "Op", "Ops", "WeightLayout", "table_of"]
