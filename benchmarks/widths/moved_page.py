"""How well objectives foretell trained networks: python -m benchmarks.moved_page

From networks.csv, which `python -m benchmarks.moved` makes: what the planner minimises, what capacity costs, both, and
a surface fitted to the networks themselves, each beside the loss that came; and what seeds alone make of it, which
nothing can foretell. The tables go into docs/search.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.moved import RESULTS, read
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks import pages
from benchmarks.evidence.statistics import paired_p
from nce_fx.search.surface_fit import Surface, fitted

PAGE = pages.DOCS / "search.md"
EQUAL = ("uniform", "random", "plan")
"""Kinds of networks that cost the same."""
CAPACITIES = (0.0, 0.3, 0.6, 0.9, 1.0)
Numbers = NDArray[np.float64]


class Networks:
    """The networks of one study: a row for all seeds of the same widths."""

    def __init__(self, rows: Sequence[Mapping[str, str]], known: Mapping[str, Mapping[str, float]]) -> None:
        alike: dict[str, list[Mapping[str, str]]] = {}
        for row in rows:
            alike.setdefault(row["widths"], []).append(row)
        self.rows, self.known, self.groups = list(alike.values()), known, tuple(known)
        self.kinds = [own[0]["kind"] for own in self.rows]
        self.losses = np.array([np.mean([loss_of(row) for row in own]) for own in self.rows])
        self.accuracies = np.array([np.mean([100 * accuracy_of(row) for row in own]) for own in self.rows])
        self.seeds = np.array([len(own) for own in self.rows])
        self.points = np.array([self._point(own[0]) for own in self.rows])
        self.equal = np.array([kind in EQUAL for kind in self.kinds])

    def _point(self, row: Mapping[str, str]) -> list[float]:
        widths = json.loads(row["widths"])
        return [math.log2(widths[group] / self.known[group]["width"]) for group in self.groups]

    @property
    def noise(self) -> float:
        """The variance of the loss between seeds of the same widths."""
        several = [[loss_of(row) for row in own] for own in self.rows if len(own) > 1]
        free = sum(len(own) - 1 for own in several)
        return sum(float(np.var(own)) * len(own) for own in several) / free if free else math.nan

    def share(self, quantity: str) -> Numbers:
        """Return what groups have of a quantity; they add up to 1."""
        found = np.array([self.known[group][quantity] for group in self.groups])
        return np.asarray(found / found.sum(), np.float64)

    def objective(self, capacity: float, exponent: float = 1.0) -> Numbers:
        """Return what the planner minimises, of every network."""
        elasticity = (self.share("macs") + self.share("params")) / 2
        importance = (1 - capacity) * self.share("noise") + capacity * elasticity
        return np.asarray(np.exp2(-exponent * self.points) @ importance, np.float64)


def loss_of(row: Mapping[str, str]) -> float:
    """Return the loss on all images that no network learned from, 10,000 of each of two splits."""
    return (float(row["held_out_loss"]) + float(row["test_loss"])) / 2


def accuracy_of(row: Mapping[str, str]) -> float:
    """Return the accuracy on them."""
    return (float(row["held_out_accuracy"]) + float(row["test_accuracy"])) / 2


def told(predictions: Numbers, losses: Numbers) -> tuple[float, float]:
    """Return how much of the losses a line through predictions explains, each left out in turn, and their ranks."""
    design = np.stack([np.ones(len(losses)), *np.atleast_2d(predictions)], 1)
    hat = design @ np.linalg.pinv(design)
    left_out = losses - (losses - hat @ losses) / (1 - np.diag(hat))
    error = float(((losses - left_out) ** 2).sum() / ((losses - losses.mean()) ** 2).sum())
    ranked = predictions if predictions.ndim == 1 else left_out
    return 1 - error, float(spearmanr(ranked, losses).statistic)


def objectives(networks: Networks) -> list[str]:
    """Return a table: an objective a row."""
    equal, losses = networks.equal, networks.losses[networks.equal]
    noise, capacity = networks.objective(0.0), networks.objective(1.0)
    rows: dict[str, Numbers] = {
        f"the planner's, capacity {a:g}": networks.objective(a)[equal] for a in CAPACITIES[1:-1]
    }
    rows = {"the planner's: noise alone": noise[equal]} | rows
    rows |= {"noise at exponent 2": networks.objective(0.0, 2.0)[equal], "capacity alone": capacity[equal]}
    rows["noise and capacity, each with a weight of its own"] = np.stack([noise[equal], capacity[equal]])
    lines = ["| objective | explained variance | Spearman |", "|---|--:|--:|"]
    for name, predictions in rows.items():
        explained, ranked = told(predictions, losses)
        lines.append(f"| {name} | {explained:.2f} | {ranked:.2f} |")
    surfaces = {"log2 of the widths": networks.points, "1 / widths": np.exp2(-networks.points) - 1}
    for name, points in surfaces.items():
        left = left_out_of_surface(points, networks.losses)[equal]
        explained = 1 - float(((losses - left) ** 2).sum() / ((losses - losses.mean()) ** 2).sum())
        ranked = spearmanr(left, losses).statistic
        lines.append(f"| surface: a slope a group, in {name} | {explained:.2f} | {ranked:.2f} |")
    reliable = ceiling(networks)
    lines.append(f"| what seeds leave to be foretold | {reliable:.2f} | {math.sqrt(max(0.0, reliable)):.2f} |")
    return lines


def ceiling(networks: Networks) -> float:
    """Return the share of the variance among networks of equal cost that is not of their seeds."""
    equal = networks.equal
    seeds = float((networks.noise / networks.seeds[equal]).mean())
    return 1 - seeds / float(networks.losses[equal].var(ddof=1))


def surface_of(networks: Networks) -> Surface:
    """Return the surface of all networks."""
    return fitted(networks.points, networks.losses, np.zeros(len(networks.groups)))


def left_out_of_surface(points: Numbers, losses: Numbers) -> Numbers:
    """Return what the surface of all others says of each network; the others choose how strong its ridge is."""
    found, every, centre = [], np.arange(len(losses)), np.zeros(points.shape[1])
    for one in every:
        surface = fitted(points[every != one], losses[every != one], centre)
        found.append(float(surface(points[one : one + 1])[0]))
    return np.array(found)


def kinds(networks: Networks) -> list[str]:
    """Return a table: a kind of networks a row."""
    own = networks.accuracies[networks.kinds.index("uniform")]
    head = ("kind", "networks", "accuracy against uniform's, mean", "spread", "best")
    lines = ["| " + " | ".join(head) + " |", "|---|--:|--:|--:|--:|"]
    for kind in dict.fromkeys(networks.kinds):
        found = networks.accuracies[[each == kind for each in networks.kinds]]
        spread = f"{found.std(ddof=1):.2f}" if len(found) > 1 else ""
        cells = (kind, len(found), f"{(found - own).mean():+.2f}", spread, f"{(found - own).max():+.2f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def slopes(networks: Networks) -> list[str]:
    """Return a table: a group a row."""
    surface = surface_of(networks)
    share = {name: networks.share(name) for name in ("noise", "macs", "params")}
    lines = ["| group | loss where its width doubles | its share of noise | of MACs | of parameters |"]
    lines.append("|---|--:|--:|--:|--:|")
    for place, group in enumerate(networks.groups):
        slope = f"{surface.slopes[place]:+.4f} ± {surface.errors[place]:.4f}"
        lines.append(f"| {group} | {slope} | " + " | ".join(f"{own[place]:.2f}" for own in share.values()) + " |")
    return lines


def text(name: str, networks: Networks) -> list[str]:
    """Return what is said of one network."""
    surface, rows = surface_of(networks), [row for own in networks.rows for row in own]
    uniform = [100 * accuracy_of(row) for row in rows if row["kind"] == "uniform"]
    spread = f" (± {np.std(uniform, ddof=1):.2f} over {len(uniform)} seeds)" if len(uniform) > 1 else ""
    first = rows[0]
    return [
        f"{name}, {first['images']} images of {first['data']}, {first['float_epochs']} epochs in float and"
        f" {first['epochs']} at 2 bits: {len(rows)} trained networks of {len(networks.rows)} widths. Uniform comes to"
        f" {np.mean(uniform):.2f} %{spread}; a seed moves the loss by {math.sqrt(networks.noise):.4f}, widths of equal"
        f" cost by {networks.losses[networks.equal].std(ddof=1):.4f}.",
        "",
        *kinds(networks),
        "",
        f"Of the {int(networks.equal.sum())} of equal cost, each left out in turn:",
        "",
        *objectives(networks),
        "",
        f"The surface of all of them (curvature {surface.curvature:.4f}, {surface.noise:.4f} from it on average):",
        "",
        *slopes(networks),
    ]


def climbed(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a table: what the best of the surface came to, a recipe a row; nothing where none was."""
    lines = ["| images, epochs | uniform | best of the surface | difference | p | seeds |", "|---|--:|--:|--:|--:|--:|"]
    for recipe in dict.fromkeys(map(recipe_of, rows)):
        own: dict[str, dict[str, float]] = {"uniform": {}, "surface": {}}
        for row in rows:
            if recipe_of(row) == recipe and row["kind"] in own:
                own[row["kind"]][row["seed"]] = 100 * float(row["test_accuracy"])
        pairs = [(own["surface"][seed], own["uniform"][seed]) for seed in own["surface"] if seed in own["uniform"]]
        if pairs:
            best, uniform = zip(*pairs, strict=True)
            p = f"{paired_p(pairs):.3f}" if len(pairs) > 1 else ""
            means = f"{np.mean(uniform):.2f} % | {np.mean(best):.2f} % | {np.mean(best) - np.mean(uniform):+.2f}"
            images, in_float, low = recipe
            lines.append(f"| {images}, {in_float} in float and {low} at 2 bits | {means} | {p} | {len(pairs)} |")
    return lines if len(lines) > 2 else []


def recipe_of(row: Mapping[str, str]) -> tuple[str, str, str]:
    """Return how the network of a row was trained."""
    return row["images"], row["float_epochs"], row["epochs"]


def of_the_set(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return the rows that a surface is fitted to: of the first one's recipe, but for what a surface led to."""
    return [row for row in rows if recipe_of(row) == recipe_of(rows[0]) and row["kind"] != "surface"]


def write_page(results: Path = RESULTS) -> None:
    """Put the tables into the page, and print them."""
    known: Mapping[str, Any] = pages.load(results.with_suffix(".json"))
    every = list(read(results).values())
    lines: list[str] = []
    for name in dict.fromkeys(row["network"] for row in every):
        rows = [row for row in every if row["network"] == name]
        lines += ["", *text(name, Networks(of_the_set(rows), known[name]))]
        if found := climbed(rows):
            widths = next(row["widths"] for row in rows if row["kind"] == "surface")
            lines += [
                "",
                f"The best of a surface of the first of them, on the test split ({in_words(widths)}):",
                "",
                *found,
            ]
    if results == RESULTS:
        pages.put(PAGE, "moved networks", [*lines[1:], ""])
    print("\n".join(lines))


def in_words(widths: str) -> str:
    """Return widths as people read them."""
    return ", ".join(f"{group} {width}" for group, width in json.loads(widths).items())


if __name__ == "__main__":
    write_page()
