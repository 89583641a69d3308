"""What a search by a surface writes down: every network it trained, what was fitted to them, and what came of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rich.table import Table

from nce_fx.frozen import Frozen
from nce_fx.plain_table import table_of
from nce_fx.plan import WidthPlan
from nce_fx.search.asked import PLAN, Log
from nce_fx.search.surface_networks import STATE, Measured, Wanted
from nce_fx.training.log import csv_table


@dataclass(frozen=True)
class Fit(Frozen):
    """The surface at the end of a round."""

    round: int
    """Counted from 1."""
    networks: int
    """That it was fitted to: of this round and those before."""
    slopes: Mapping[str, float]
    """For each group: by how much the loss rises where its width doubles."""
    errors: Mapping[str, float]
    """Their standard errors."""
    curvature: float
    noise: float
    """Standard deviation of a network's loss from the surface."""
    seeds: float
    """Standard deviation of the loss between networks of the same widths: no surface explains what that is of."""
    explained: float
    """The share of the variance foretold of networks left out one at a time."""
    ranked: float
    """Spearman's correlation of what is foretold so with what was measured."""
    promised: float
    """By how much the best of the surface has less loss than the centre."""


@dataclass(frozen=True)
class Final(Frozen):
    """A setting that was trained with fresh seeds and held against the first centre."""

    widths: Mapping[str, int]
    foretold: float
    """Its loss by the last surface."""
    losses: tuple[float, ...]
    """Of each seed."""
    scores: tuple[float, ...]
    better: float
    """By how many standard errors its mean loss is less than the first centre's; 0 for that itself."""

    @property
    def loss(self) -> float:
        """The mean over the seeds."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class SurfaceLog(Log):
    """The whole course of a search."""

    files = (PLAN, STATE, "networks.csv", "slopes.csv", "surfaces.csv", "finals.csv")
    networks: tuple[tuple[Wanted, Measured], ...]
    """In the order in which they were wanted."""
    costs: tuple[Mapping[str, float], ...]
    """Of each of them, what it costs of every quantity."""
    fits: tuple[Fit, ...]
    finals: tuple[Final, ...]
    """The first centre first."""
    left: Mapping[str, str]
    """Groups that kept their width, and why."""

    def contents(self, original: Mapping[str, int]) -> dict[str, bytes]:
        """Return ``networks.csv``, ``slopes.csv`` (a row a round and group), ``surfaces.csv`` and ``finals.csv``."""
        groups, quantities = tuple(self.networks[0][0].widths), tuple(self.costs[0])
        rows = [
            (
                *(one.round, one.what, one.seed, repr(told.loss), repr(told.score), f"{told.seconds:.2f}"),
                *(cost[name] for name in quantities),
                *(one.widths[group] for group in groups),
            )
            for (one, told), cost in zip(self.networks, self.costs, strict=True)
        ]
        columns = ("round", "what", "seed", "loss", "score", "seconds", *quantities, *groups)
        networks = csv_table(columns, rows)
        slopes = [
            (fit.round, group, f"{slope:.6g}", f"{fit.errors[group]:.6g}")
            for fit in self.fits
            for group, slope in fit.slopes.items()
        ]
        names = ("round", "networks", "curvature", "noise", "seeds", "explained", "ranked", "promised")
        fits = [tuple(f"{value:.6g}" for name, value in asdict(fit).items() if name in names) for fit in self.fits]
        finals = [
            (f"{one.foretold:.6g}", f"{one.better:.3f}", *map(repr, one.losses), *(one.widths[g] for g in groups))
            for one in self.finals
        ]
        seeds = [f"loss_{seed}" for seed in range(len(self.finals[0].losses))] if self.finals else []
        return {
            "networks.csv": networks,
            "slopes.csv": csv_table(("round", "group", "slope", "error"), slopes),
            "surfaces.csv": csv_table(names, fits),
            "finals.csv": csv_table(("foretold", "better", *seeds, *groups), finals),
        }

    def table(self, plan: WidthPlan) -> Table:
        """Return the groups with their widths, before and after, and the last surface's slopes."""
        last, rows = self.fits[-1], []
        for group, before in plan.original.items():
            slope = f"{last.slopes[group]:+.4f} ± {last.errors[group]:.4f}" if group in last.slopes else ""
            rows.append((group, before, plan.widths[group], slope or self.left.get(group, "")))
        columns = ("group", ">own widths", ">found", ">loss where it doubles")
        table = table_of("Search: channels", columns, rows)
        said = [
            f"surface: foretells {max(0.0, last.explained):.0%} of what differs among {last.networks} networks, by rank"
            f" {last.ranked:.2f}; a seed makes {last.seeds:.4f}"
        ]
        if not any(one.widths == {group: plan.widths[group] for group in one.widths} for one in self.finals[1:]):
            said.append("no setting is surely better than the first: that stays")
        table.caption = "; ".join(said)
        return table
