"""Settings of a trained slimmable network, compared on what is held out, each against the widths as they are."""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from nce_fx.batches import read
from nce_fx.data.loaders import BatchDataset, Data
from nce_fx.devices import to_device
from nce_fx.passes.planning.settings import Setting, Settings
from nce_fx.search.recipes import SlimmableRecipe
from nce_fx.search.slimming import Slimming
from nce_fx.tasks import Loss, Task
from nce_fx.tasks.metrics import Metric
from nce_fx.training.batch_norm import reestimate
from nce_fx.training.determinism import deterministic
from nce_fx.training.evaluation import measure
from nce_fx.training.loop import forward_pass
from nce_fx.training.result import StepReport
from nce_fx.training.run import CheckpointWriter, Run

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
