"""The rows of the evidence: where each takes its widths from, and one way to train them all."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule

import nce_fx
from benchmarks.evidence.study import Study
from nce_fx.data import Data
from nce_fx.models.loading import load_model
from nce_fx.rewrite import Analyses, analyze, cost_record, plan_analyzed
from nce_fx.search import search
from nce_fx.training import Recipe, train

Plan = Mapping[str, int]
"""Group id -> width."""
EXAMPLES = 2
"""Inputs that networks are traced with: BatchNorm in training takes no fewer."""


class Stopwatch:
    """Seconds of named pieces of work over all interruptions, kept in a file of the work folder.

    Processor seconds on a CPU, which other programs on the machine do not stretch; elapsed seconds on a GPU.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count what happens inside, also where it is interrupted."""
        started = self.clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - started
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.seconds))

    def __getitem__(self, name: str) -> float:
        return round(self.seconds.get(name, 0.0), 2)


@dataclass(frozen=True)
class Bench:
    """One seed of a study: its float network, and what every row of this seed is made from."""

    study: Study
    data: Data
    seed: int
    work: Path
    """A folder for checkpoints: what was trained is not trained again."""

    @cached_property
    def watch(self) -> Stopwatch:
        """What has taken how long."""
        return Stopwatch(self.work / "seconds.json")

    @cached_property
    def example(self) -> torch.Tensor:
        """A batch of inputs."""
        return torch.zeros(EXAMPLES, *self.data.input_shape)

    @cached_property
    def untrained(self) -> GraphModule:
        """The network at its first weights, which the seed decides."""
        arguments = {"num_classes": self.data.classes, "in_channels": self.data.input_shape[0]}
        torch.manual_seed(self.seed)
        model = load_model(self.study.model, {**arguments, **self.study.model_args})
        return nce_fx.trace(model.train(), (self.example,))

    @cached_property
    def teacher(self) -> GraphModule:
        """The trained float network."""
        return self.taught[0]

    @cached_property
    def taught(self) -> tuple[GraphModule, float]:
        """The trained float network and its accuracy; ablations that do not touch it share it."""
        folder = self.work.parent.parent / f"float-{self.study.float_digest()}" / str(self.seed)
        return self.trained("float", self.untrained, self.study.float_training(self.seed), folder=folder)

    @cached_property
    def batches(self) -> list[Any]:
        """Calibration batches, without augmentation."""
        return self.data.batches(*self.study.calibration, self.seed)

    @cached_property
    def spec(self) -> nce_fx.QuantSpec:
        """How every row but float is quantized."""
        return self.study.quantizing()

    @cached_property
    def budget(self) -> nce_fx.Budget:
        """What every row may cost."""
        return nce_fx.Budget(macs=self.study.budget, params=self.study.budget)

    @cached_property
    def channels(self) -> nce_fx.ChannelGraph:
        """The channel groups."""
        return nce_fx.analyze_channels(self.untrained)

    @cached_property
    def cost(self) -> nce_fx.CostReport:
        """What widths cost."""
        return nce_fx.analyze_cost(self.untrained, self.channels)

    @cached_property
    def analyses(self) -> Analyses:
        """The trained float network, and what the planner wants to know about it."""
        return analyze(self.teacher, (self.example,), batches=self.batches, spec=self.spec, metric=self.study.metric)

    def fits(self, widths: Plan) -> bool:
        """Whether widths cost no more than the budget."""
        spent, before = self.cost.at(widths).total, self.cost.total
        ratio = self.study.budget
        return spent.macs <= ratio * before.macs and spent.params <= ratio * before.params

    def trained(
        self,
        name: str,
        gm: GraphModule,
        recipe: Recipe,
        teacher: GraphModule | None = None,
        folder: Path | None = None,
    ) -> tuple[GraphModule, float]:
        """Return a network after training, in eval mode, and its accuracy; goes on where it was stopped."""
        with self.watch.timed(f"train {name}"):
            folder = folder or self.work / folder_name(name)
            result = train(gm, self.data, recipe, teacher=teacher, directory=folder)
        return result.model.eval(), float(result.accuracy)

    def quantized(self, widths: Plan) -> GraphModule:
        """Return the 2-bit network of these widths, ready to be trained."""
        begin = self.teacher if self.study.start == "float" else self.untrained
        wide = nce_fx.resize(copy.deepcopy(begin).train(), widths, seed=self.seed)
        return nce_fx.quantize(wide, self.spec, self.batches)


@dataclass(frozen=True)
class Outcome:
    """What a row is written from."""

    accuracy: float
    macs: int
    """Of one example."""
    params: int
    search_seconds: float
    train_seconds: float
    widths: Plan


def uniform(bench: Bench) -> Plan:
    """The widths as given."""
    return bench.channels.widths


def nce_plan(bench: Bench) -> Plan:
    """Sensitivity and solver, as `nce-fx rewrite` does it; no search."""
    return plan_analyzed(bench.analyses, bench.budget).widths


def multiplier(bench: Bench) -> Plan:
    """One factor for all groups: the greatest that the budget allows, which at a budget of 1.0 is 1."""
    return fill(bench, dict.fromkeys(free_groups(bench), 1.0))


def random_plan(bench: Bench) -> Plan:
    """Ratios drawn evenly on a logarithmic scale from 1/2 to 2, times the greatest factor that the budget allows.

    What is left of the budget is spent too, a step at a time on groups in random order: a control that costs less than
    it may would be none.
    """
    steps, before = free_groups(bench), bench.channels.widths
    generator = np.random.default_rng(bench.seed)
    drawn = np.exp2(generator.uniform(-1, 1, len(steps)))
    widths = dict(fill(bench, dict(zip(steps, drawn.tolist(), strict=True))))
    growing = generator.permutation(list(steps)).tolist()
    while growing:
        name = growing[0]
        wider = {**widths, name: widths[name] + steps[name]}
        if bench.fits(wider) and wider[name] <= 2 * before[name]:
            widths, growing = wider, [*growing[1:], name]
        else:
            growing = growing[1:]
    return widths


def shuffled(bench: Bench) -> Plan:
    """As nce-plan, with the sensitivities permuted among the groups that may change."""
    analyses = bench.analyses
    free, found = list(free_groups(bench)), analyses.sensitivity.by_group
    others = np.random.default_rng(bench.seed).permutation(free).tolist()
    moved = {group: found[other] for group, other in zip(free, others, strict=True)}
    wrong = replace(analyses.sensitivity, by_group={**found, **moved})
    return plan_analyzed(replace(analyses, sensitivity=wrong), bench.budget).widths


def searched(bench: Bench, name: str, **changes: Any) -> Plan:
    """Widths learned by gradient, starting where the 2-bit networks start."""
    begin = bench.teacher if bench.study.start == "float" else bench.untrained
    recipe = bench.study.searching(bench.seed, **changes)
    folder = bench.work / folder_name(f"{name} search")
    return search(
        copy.deepcopy(begin).train(), bench.data, recipe, budget=bench.budget, spec=bench.spec, directory=folder
    ).plan.widths


def nce_search(bench: Bench) -> Plan:
    """The published method: the search that expands, on the quantized network."""
    return searched(bench, "nce-search")


def no_expand(bench: Bench) -> Plan:
    """The search on the quantized network without expansion: TAS."""
    return searched(bench, "no-expand", expand=False)


def float_search(bench: Bench) -> Plan:
    """The search that expands on the float network, quantized afterwards."""
    return searched(bench, "float-search", quantized=False)


FLOAT = "float"
PLANS: Mapping[str, Callable[[Bench], Plan]] = {
    "uniform": uniform,
    "nce-plan": nce_plan,
    "multiplier": multiplier,
    "random": random_plan,
    "shuffled": shuffled,
    "nce-search": nce_search,
    "no-expand": no_expand,
    "float-search": float_search,
}
ROWS = (FLOAT, *PLANS)


def run_row(bench: Bench, row: str) -> Outcome:
    """Find the widths of a row, train it, and return what came of it.

    Raises:
        AssertionError: the row costs more than its budget.
    """
    teacher = bench.teacher
    if row == FLOAT:
        gm, accuracy = bench.taught
        cost = cost_record(gm)
        macs, seconds = cost.macs // EXAMPLES, bench.watch["train float"]
        return Outcome(accuracy, macs, cost.params, 0.0, seconds, bench.channels.widths)
    with bench.watch.timed(f"widths {row}"):
        widths = {**bench.channels.widths, **PLANS[row](bench)}
    gm = bench.quantized(widths)
    cost, limit = cost_record(gm), cost_record(nce_fx.quantize(bench.untrained, bench.spec))
    ratio = bench.study.budget
    if cost.macs > ratio * limit.macs or cost.params > ratio * limit.params:
        raise AssertionError(f"{row} costs {cost.macs} MACs, {cost.params} parameters: over {ratio:g}x of {limit}")
    recipe = bench.study.retraining(bench.seed)
    # A row at the uniform row's widths is the uniform row: its checkpoints are found, and nothing is trained twice.
    name = "uniform" if widths == bench.channels.widths else row
    _, accuracy = bench.trained(name, gm, recipe, teacher if bench.study.distill else None)
    found = bench.watch[f"widths {row}"]
    return Outcome(accuracy, cost.macs // EXAMPLES, cost.params, found, bench.watch[f"train {name}"], widths)


def free_groups(bench: Bench) -> dict[str, int]:
    """Return the groups that may change, and the steps their widths come in."""
    return {group.id: group.step for group in bench.channels.groups if group.pinned is None}


def fill(bench: Bench, ratios: Mapping[str, float]) -> Plan:
    """Return the widths of these ratios times the greatest common factor, from 1/8 to 8, that the budget allows."""

    def at(factor: float) -> Plan:
        steps, widths = free_groups(bench), bench.channels.widths
        return {
            name: max(1, math.floor(widths[name] * ratio * factor / steps[name] + 0.5)) * steps[name]
            for name, ratio in ratios.items()
        }

    # The cost rises with the factor, by steps: bisection ends at the last step that fits.
    low, high = 0.125, 8.0
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if bench.fits(at(middle)) else (low, middle)
    return at(low)


def folder_name(name: str) -> str:
    """Return a name that any file system takes."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
