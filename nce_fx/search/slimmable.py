"""The search among the widths of one slimmable network, in reading order: a network, its training, settings, a plan."""

import glob
from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table

from nce_fx.data.data_split import holding_out
from nce_fx.errors import InputError
from nce_fx.frozen import Frozen
from nce_fx.passes.planning.choices import Rules
from nce_fx.passes.planning.settings import Settings
from nce_fx.plain_table import table_of
from nce_fx.plan import WidthPlan
from nce_fx.search.asked import NO_CHOICE, PLAN, Asked, Log, SearchResult, calibrated, finish, seconds_of
from nce_fx.search.comparing import Measuring, better_by, evolve
from nce_fx.search.recipes import SlimmableRecipe
from nce_fx.search.slices import Widest
from nce_fx.search.slimming import Slimming, sandwich_loss
from nce_fx.tasks import Task
from nce_fx.training.log import csv_table
from nce_fx.training.result import reporting
from nce_fx.training.run import CheckpointWriter


@dataclass(frozen=True)
class Compared(Frozen):
    """A setting that was measured."""

    widths: Mapping[str, int]
    """Of the groups that have a choice."""
    loss: float
    """On what is held out, after the statistics of BatchNorm were taken anew."""
    better: float | None
    """By how many standard errors that is less than at the widths as they are; ``None`` where these do not fit."""


@dataclass(frozen=True)
class SlimmableLog(Log):
    """What was measured."""

    files = (PLAN, "settings.csv", "log.csv", "steps.csv")
    compared: tuple[Compared, ...]
    """The best first."""
    left: Mapping[str, str]
    """Groups that kept their width, and why."""
    uniform: float | None
    """The loss at the widths as they are; ``None`` where these are over a budget."""

    def contents(self, original: Mapping[str, int]) -> dict[str, bytes]:
        """Return ``settings.csv``: a row a setting, the best first."""
        groups = tuple(self.compared[0].widths)
        rows = [
            (f"{one.loss:.6f}", "" if one.better is None else f"{one.better:.3f}", *(one.widths[g] for g in groups))
            for one in self.compared
        ]
        return {"settings.csv": csv_table(("loss", "better", *groups), rows)}

    def preferred(self, sure: float) -> list[Compared]:
        """Return the settings that are surely better than the widths as they are, then these, then the others."""

        def place(one: Compared) -> tuple[bool, bool]:
            return not (one.better is None or one.better >= sure), one.loss != self.uniform

        return sorted(self.compared, key=place)

    def table(self, plan: WidthPlan) -> Table:
        """Return the groups with their widths, before and after, and between which the ten best settings lie."""
        rows = []
        for group, before in plan.original.items():
            found = [one.widths[group] for one in self.compared[:10] if group in one.widths]
            said = f"{min(found)} to {max(found)}" if found else self.left.get(group, "")
            rows.append((group, before, plan.widths[group], said))
        table = table_of("Search: channels before -> after", ("group", ">before", ">after", "ten best"), rows)
        if not plan.changed:
            table.caption = "no setting is surely better than the widths as they are: these stay"
        return table


def search_slimmable(asked: Asked, recipe: SlimmableRecipe) -> SearchResult[SlimmableLog]:
    """Train one network of choosable widths and compare settings of it, see `nce_fx.search.search`."""
    gm, spec, budget, cost, left = asked.gm, asked.spec, asked.budget, asked.cost, asked.pinned
    settings = Settings.of(cost, budget, Rules(recipe.min_ratio, recipe.max_ratio))
    widest = Widest.of(gm, settings.candidates, spec, recipe.seed)
    if widest.left:
        frozen, left = tuple(map(glob.escape, widest.left)), left | dict(widest.left)
        settings = Settings.of(cost, budget, Rules(recipe.min_ratio, recipe.max_ratio, freeze=frozen))
    if not settings.choices.groups:
        raise InputError(NO_CHOICE)

    kept = holding_out(asked.data, recipe.held_out, recipe.seed)
    network, callback = calibrated(widest.graph, spec, kept), Slimming(widest, settings, recipe, budget)
    task = Task.of(sandwich_loss(Task.of(asked.loss).loss, recipe))
    run = asked.trained(network, kept, recipe.training(), callback, task)

    checkpoints = CheckpointWriter(run, asked.checkpoint_seconds)
    with reporting(asked.progress if run.engine.is_main else False) as report:
        measured = evolve(settings, recipe, Measuring(run, callback, kept, checkpoints, report))
    checkpoints.save()
    own = measured.get(settings.original)
    ranked = sorted(measured, key=lambda setting: (measured[setting][0], setting))
    log = SlimmableLog(
        tuple(
            Compared(settings.widths(setting), losses[0], None if own is None else better_by(losses, own))
            for setting, losses in zip(ranked, map(measured.__getitem__, ranked), strict=True)
        ),
        left,
        None if own is None else own[0],
    )
    source = asked.source(recipe, metric="slimmable")
    told = [
        (one.widths, source | {"loss": one.loss, "uniform_loss": log.uniform, "better": one.better})
        for one in log.preferred(recipe.sure)
    ]
    plan, _ = asked.first_plan(told)
    return finish(asked, plan, log, seconds_of(run) + callback.seconds, run.model)
