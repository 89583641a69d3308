"""The search among the widths of one slimmable network, in reading order: a network, its training, settings, a plan."""

import glob
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torch.fx import GraphModule

from nce_fx.batches import read
from nce_fx.data.data_split import holding_out
from nce_fx.data.loaders import BatchDataset, Data
from nce_fx.devices import to_device
from nce_fx.errors import InputError
from nce_fx.frozen import Frozen
from nce_fx.passes.planning.choices import Rules
from nce_fx.passes.planning.settings import Setting, Settings
from nce_fx.plain_table import table_of
from nce_fx.plan import WidthPlan
from nce_fx.search.asked import NO_CHOICE, PLAN, Asked, Log, SearchResult, calibrated, finish, seconds_of
from nce_fx.search.recipes import SlimmableRecipe
from nce_fx.search.slices import Widest
from nce_fx.search.slimming import Slimming, sandwich_loss
from nce_fx.tasks import Loss, Task
from nce_fx.tasks.metrics import Metric
from nce_fx.training.batch_norm import reestimate
from nce_fx.training.determinism import deterministic
from nce_fx.training.evaluation import measure
from nce_fx.training.forward import forward_pass
from nce_fx.training.log import csv_table
from nce_fx.training.result import StepReport, reporting
from nce_fx.training.run import CheckpointWriter, Run


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
        table = table_of("Search: channels", ("group", ">own widths", ">found", "ten best"), rows)
        if not plan.changed:
            table.caption = "no setting is surely better than its own widths: these stay"
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


_BATCHES = 20
"""How many batches what is held out is cut into at least: the spread over them says how sure a difference is."""
Losses = tuple[float, ...]
"""The mean loss, then that of each batch."""


@dataclass(frozen=True)
class Measuring:
    """Measures settings of a trained network on what is held out; what is known is not measured again."""

    run: Run
    callback: Slimming
    data: Data
    """Its test split is what is held out."""
    checkpoints: CheckpointWriter
    report: Callable[[StepReport], None]

    def __call__(self, setting: Setting) -> Losses:
        """Return the losses of a setting, and note them for the checkpoints."""
        known, most = self.callback.known, self.callback.recipe.evaluations
        if setting not in known:
            started = time.monotonic()
            known[setting] = self._losses(self.callback.cut(setting, self.run.model).network)
            self.callback.seconds += time.monotonic() - started
            left = (most - len(known)) * self.callback.seconds / len(known)
            self.report(StepReport(1, 1, min(len(known), most), most, min(known.values())[0], None, None, left))
            if self.checkpoints.is_due():
                self.checkpoints.save()
        return known[setting]

    def _losses(self, network: GraphModule) -> Losses:
        run, recipe, size = self.run, self.run.recipe, 4 * self.run.recipe.batch_size
        if isinstance(self.data.test, BatchDataset):
            size = max(1, min(size, len(self.data.test) // _BATCHES))
        batches = self.data.batches(self.callback.recipe.statistics, recipe.batch_size, recipe.seed)
        metric = _ByBatch(run.task.loss, len(self.data.loader("test", size, 0, 0, False)))
        with deterministic(run.engine.device):
            inputs = (to_device(read(batch, network)[0], run.engine.device) for batch in batches)
            reestimate(network, inputs, lambda: forward_pass(run.engine, recipe))
            task = Task(run.task.loss, Metric("loss", metric.count, "the loss of each batch", metric.result))
            mean = measure(network, self.data, size, run.engine, task)
        return mean, *metric.found


class _ByBatch:
    """The loss as a metric that keeps what each batch gave; processes that share batches add theirs up."""

    def __init__(self, loss: Loss, batches: int) -> None:
        self.loss, self.batches, self.places = loss, batches, itertools.count()
        self.found: Losses = ()

    def count(self, output: object, target: object, samples: int) -> Tensor:
        """Return the sum of the losses, and the samples, in the row of the batch: (batches, 2)."""
        value = self.loss(output, target).detach().double()
        rows = value.new_zeros(self.batches, 2)
        rows[next(self.places)] = torch.stack([value * samples, value.new_tensor(samples)])
        return rows

    def result(self, rows: Tensor) -> Tensor:
        """Return the mean over all samples, and keep that of each batch."""
        self.found = tuple((rows[:, 0] / rows[:, 1]).tolist())
        total: Tensor = rows[:, 0].sum() / rows[:, 1].sum()
        return total


def better_by(one: Losses, other: Losses) -> float:
    """Return by how many standard errors a setting has less loss than another on the same batches; 0 for one batch."""
    gain = np.array(other[1:]) - np.array(one[1:])
    if len(gain) < 2:
        return 0.0
    error = float(gain.std(ddof=1)) / math.sqrt(len(gain))
    return float(gain.mean()) / error if error else 0.0


def evolve(settings: Settings, recipe: SlimmableRecipe, measured: Callable[[Setting], Losses]) -> dict[Setting, Losses]:
    """Return settings with their losses: the widths as they are where these fit, random ones, children of the best."""
    generator = np.random.default_rng([recipe.seed, recipe.epochs])
    found: dict[Setting, Losses] = {}
    fits = bool(settings.fit(np.array([settings.original]))[0])
    generation = [settings.original] if fits else []
    generation += [settings.drawn(generator) for _ in range(recipe.population)]
    while True:
        fresh = [setting for setting in dict.fromkeys(generation) if setting not in found]
        if not fresh:
            return found
        for setting in fresh[: recipe.evaluations - len(found)]:
            found[setting] = measured(setting)
        if len(found) >= recipe.evaluations:
            return found
        best = sorted(found, key=lambda setting: (found[setting][0], setting))[: recipe.parents]
        pairs = generator.integers(len(best), size=(4 * recipe.population, 2)).tolist()
        children = dict.fromkeys(settings.child(best[one], best[other], generator) for one, other in pairs)
        generation = [child for child in children if child not in found][: recipe.population]
