"""Reports and a budget -> a plan of widths."""

from nce_fx.passes.planning.budget import Budget
from nce_fx.passes.planning.planner import plan_widths

__all__ = ["Budget", "plan_widths"]
