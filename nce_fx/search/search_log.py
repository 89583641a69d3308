"""What a search writes down: its widths epoch by epoch, what expanded, when and why, and what was left alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.table import Table

from nce_fx.frozen import Frozen
from nce_fx.line_chart import Line, lines_svg
from nce_fx.plain_table import table_of
from nce_fx.plan import WidthPlan
from nce_fx.search.asked import PLAN, Log
from nce_fx.training.log import csv_table


@dataclass(frozen=True)
class SearchEpoch(Frozen):
    """Where the search stood after one epoch."""

    epoch: int
    """Counted from 1."""
    tau: float
    loss: float | None
    """Mean cross entropy of the width steps; none while weights warm up."""
    widths: Mapping[str, int]
    """The preferred width of every group that has a choice."""
    mean: Mapping[str, float]
    """The mean width by the preferences."""
    widest: Mapping[str, int]
    preference: Mapping[str, float]
    """Of the widest candidate."""
    used: Mapping[str, float]
    """What the preferred network costs, as shares of the budgets."""
    braked: Mapping[str, str] = field(default_factory=dict)
    """Groups whose widest candidate passed the threshold and got no wider one, and why."""


@dataclass(frozen=True)
class Expansion:
    """A group that got a wider candidate."""

    epoch: int
    group: str
    before: int
    after: int
    preference: float
    """Of the widest candidate, which was above the threshold."""
    threshold: float

    @property
    def why(self) -> str:
        """The reason in words."""
        return f"width {self.before} was preferred with {self.preference:.3f} > {self.threshold:g}"


@dataclass(frozen=True)
class SearchLog(Log):
    """The whole course of a search."""

    files = (PLAN, "widths.csv", "expansions.csv", "widths.svg", "log.csv", "steps.csv")
    epochs: tuple[SearchEpoch, ...]
    expansions: tuple[Expansion, ...]
    left: Mapping[str, str]
    """Groups that kept their width, and why."""

    def contents(self, original: Mapping[str, int]) -> dict[str, bytes]:
        """Return ``widths.csv`` (a row a group and epoch), ``expansions.csv`` and the picture ``widths.svg``."""
        rows = [
            (at.epoch, group, width, f"{at.mean[group]:.4f}", at.widest[group], f"{at.preference[group]:.4f}")
            for at in self.epochs
            for group, width in at.widths.items()
        ]
        widths = csv_table(("epoch", "group", "preferred", "mean", "widest", "preference_of_widest"), rows)
        events = [(e.epoch, e.group, "expanded", e.before, e.after, e.why) for e in self.expansions]
        events += [
            (at.epoch, group, "braked", at.widest[group], at.widest[group], reason)
            for at in self.epochs
            for group, reason in at.braked.items()
        ]
        events += [(0, group, "left", original[group], original[group], reason) for group, reason in self.left.items()]
        expansions = csv_table(("epoch", "group", "what", "before", "after", "why"), sorted(events))
        return {
            "widths.csv": widths,
            "expansions.csv": expansions,
            "widths.svg": widths_svg(self, original).encode(),
        }

    def table(self, plan: WidthPlan) -> Table:
        """Return the groups with their widths: original, preferred, planned; and what became of their candidates."""
        last, rows = self.epochs[-1], []
        for group, before in plan.original.items():
            grown = [str(e.after) for e in self.expansions if e.group == group]
            said = self.left.get(group) or ("expanded to " + ", ".join(grown) if grown else "as at the start")
            rows.append((group, before, last.widths.get(group, "-"), plan.widths[group], said))
        columns = ("group", ">own widths", ">preferred", ">found", "candidates")
        return table_of("Search: channels", columns, rows)


def widths_svg(log: SearchLog, original: Mapping[str, int]) -> str:
    """Return a picture of mean widths over epochs, original = 1: a line a group, a dot an expansion."""
    lines = [
        Line(
            group,
            tuple((float(at.epoch), at.mean[group] / original[group]) for at in log.epochs),
            tuple(
                (float(e.epoch), e.after / original[group], f"{group}: {e.before} to {e.after}, {e.why}")
                for e in log.expansions
                if e.group == group
            ),
        )
        for group in (log.epochs[-1].widths if log.epochs else ())
    ]
    return lines_svg(lines, "Mean width of each group, original = 1; dots: a wider candidate was added", "epoch")
