"""What a search that moves widths writes down: every move, what it was held against, and whether it stayed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rich.table import Table

from nce_fx.frozen import Frozen
from nce_fx.line_chart import Line, lines_svg
from nce_fx.passes.transform.resize import Kept
from nce_fx.plain_table import table_of
from nce_fx.plan import WidthPlan
from nce_fx.search.asked import PLAN, Log
from nce_fx.training.log import csv_table


@dataclass(frozen=True)
class Move(Frozen):
    """A few groups at other widths."""

    widths: Mapping[str, int]
    keep: Kept | None = None
    """Which channels of those that are narrower stay; those that carry most by default."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the move that `dataclasses.asdict` and JSON wrote."""
        kept = values["keep"]
        if kept is not None:
            kept = {group: tuple(tuple(part) for part in parts) for group, parts in kept.items()}
        return cls(values["widths"], kept)


@dataclass(frozen=True)
class Tried(Frozen):
    """A move, and what held-out training data said of it."""

    epoch: int
    """After which it was made, counted from 1."""
    region: float
    before: Mapping[str, int]
    """The widths that changed."""
    after: Mapping[str, int]
    loss: float
    """With it."""
    without: float
    """Of the network that was trained as long without it."""
    stays: bool


@dataclass(frozen=True)
class AdaptLog(Log):
    """The whole course of a search."""

    files = (PLAN, "moves.csv", "widths.svg", "log.csv", "steps.csv")
    start: Mapping[str, int]
    """The widths it began with: the network's own, or as near as the budget allows."""
    tried: tuple[Tried, ...]
    left: Mapping[str, str]
    """Groups that keep their width, and why."""

    def contents(self, original: Mapping[str, int]) -> dict[str, bytes]:
        """Return ``moves.csv`` (a row a move and group) and the picture ``widths.svg``."""
        rows = [
            (each.epoch, group, each.before[group], width, f"{each.region:.4g}", *losses, what)
            for each in self.tried
            for losses in [(f"{each.loss:.6g}", f"{each.without:.6g}")]
            for what in ["stays" if each.stays else "undone"]
            for group, width in each.after.items()
        ]
        columns = ("epoch", "group", "before", "after", "region", "loss", "loss_without", "what")
        return {"moves.csv": csv_table(columns, rows), "widths.svg": moves_svg(self, original).encode()}

    def table(self, plan: WidthPlan) -> Table:
        """Return the groups with their widths, and how often each was moved and moved back."""
        stayed, undone = (sum(each.stays is kept for each in self.tried) for kept in (True, False))
        rows = []
        for group, before in plan.original.items():
            said = [each.stays for each in self.tried if group in each.after]
            moved = f"moved {sum(said)} times, moved back {len(said) - sum(said)}" if said else "as it was"
            rows.append((group, before, plan.widths[group], self.left.get(group) or moved))
        title = f"Search: {stayed} moves stayed, {undone} were undone"
        return table_of(title, ("group", ">own widths", ">found", "what became of it"), rows)


def moves_svg(log: AdaptLog, original: Mapping[str, int]) -> str:
    """Return a picture of widths over epochs, original = 1: a line a group that was moved, a dot a move that stayed."""
    stayed = [each for each in log.tried if each.stays]
    lines = []
    for group in dict.fromkeys(group for each in stayed for group in each.after):
        points, dots = [(0.0, log.start[group] / original[group])], []
        for each in (each for each in stayed if group in each.after):
            ratio = each.after[group] / original[group]
            points += [(float(each.epoch), points[-1][1]), (float(each.epoch), ratio)]
            said = f"{group}: {each.before[group]} to {each.after[group]}, loss {each.loss:.4g} < {each.without:.4g}"
            dots.append((float(each.epoch), ratio, said))
        lines.append(Line(group, tuple(points), tuple(dots)))
    return lines_svg(lines, "Width of each group, original = 1; dots: a move that stayed", "epoch")
