"""The bench: one seed of a study, and the one way in which every row of it is trained.

A row says where channels are, and at how many bits. Its network is then trained in float at these very widths, from
weights that the same seed draws; rounded; and trained at low precision, distilled from that float network of its own.
Each stage has as many epochs in every row, but for those that say otherwise in their name.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

import nce_fx
from benchmarks.evidence.study import Study
from nce_fx.analyses import Analyses
from nce_fx.data import Data
from nce_fx.files import write_whole
from nce_fx.models.loading import load_model
from nce_fx.passes.transform.new_weights import NewWeights
from nce_fx.pipeline import Given
from nce_fx.report.records import CostRecord
from nce_fx.rewrite import analyze
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
            write_whole(self.path, json.dumps(self.seconds).encode())

    def __getitem__(self, name: str) -> float:
        return round(self.seconds.get(name, 0.0), 2)


@dataclass(frozen=True)
class Choice:
    """What a row decides: ``Choice({"conv1": 12})`` is a plan, the rest as uniform has it."""

    widths: Plan
    spec: nce_fx.QuantSpec | None = None
    float_times: int = 1
    """How often the float stage's epochs are trained."""


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
        """What has taken how long at low precision, and in search."""
        return Stopwatch(self.work / "seconds.json")

    @cached_property
    def floats(self) -> Path:
        """The folder of this seed's float networks, which ablations that do not touch them share."""
        return self.work.parent.parent / f"float-{self.study.float_digest()}" / str(self.seed)

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
        """The float network at its own widths, trained."""
        return self.float_network(self.channels.widths)[0]

    @cached_property
    def batches(self) -> list[Any]:
        """Calibration batches, without augmentation."""
        return self.data.batches(*self.study.calibration, self.seed)

    @cached_property
    def spec(self) -> nce_fx.QuantSpec:
        """How every row but float is quantized, where it does not say otherwise."""
        return self.study.quantizing()

    @cached_property
    def budget(self) -> nce_fx.Budget:
        """What every row may cost."""
        return nce_fx.Budget(**dict.fromkeys(self.study.limits, self.study.budget))

    @cached_property
    def channels(self) -> nce_fx.ChannelGraph:
        """The channel groups."""
        return nce_fx.analyze_channels(self.untrained)

    @cached_property
    def uniform(self) -> GraphModule:
        """The untrained network, quantized at its own widths."""
        return nce_fx.quantize(self.untrained, self.spec)

    @cached_property
    def cost(self) -> nce_fx.CostReport:
        """What widths cost at low precision."""
        return nce_fx.analyze_cost(self.untrained, self.channels, quantized=self.uniform)

    @cached_property
    def analyses(self) -> Analyses:
        """The trained float network, and what the planner wants to know about it."""
        return analyze(self.teacher, (self.example,), batches=self.batches, spec=self.spec, metric=self.study.metric)

    def fits(self, widths: Plan) -> bool:
        """Whether widths cost no more than the budget."""
        spent = self.cost.at(widths).total.by_quantity
        return all(spent[name] <= limit for name, limit in self.budget.limits(self.cost.total.by_quantity).items())

    def excess(self, gm: GraphModule) -> str:
        """Return in words what of a network costs more than the budget; nothing where all is within."""
        spent, before = CostRecord.of(gm).cost, CostRecord.of(self.uniform).cost
        limits = self.budget.limits(before)
        over = [f"{spent[name]:,} {name}, over {limit:,.0f}" for name, limit in limits.items() if spent[name] > limit]
        return "; ".join(over)

    def network(self, widths: Plan) -> GraphModule:
        """Return the float network of these widths with the weights that the seed draws for them."""
        if widths == self.channels.widths:
            return self.untrained
        resized = nce_fx.resize(self.untrained, widths, seed=self.seed)
        return NewWeights(self.seed)(resized, Given(fresh=self.untrained)).graph_module

    def float_network(self, widths: Plan, times: int = 1) -> tuple[GraphModule, float, float]:
        """Return the float network of these widths after training, its accuracy, and the seconds that took."""
        name = "original" if widths == self.channels.widths else digest_of(widths)
        name += f"-{times}" * (times > 1)
        watch = Stopwatch(self.floats / "seconds.json")
        recipe = self.study.float_training(self.seed, times)
        return *trained(self.network(widths), self.data, recipe, None, self.floats / name, watch, name), watch[name]

    def low_precision_network(self, choice: Choice) -> tuple[GraphModule, float, float]:
        """Return the network of a choice after both stages, its accuracy, and the seconds that took.

        A row that chooses what another has chosen finds its checkpoints, and nothing is trained twice.
        """
        beginning, seconds = self.network(choice.widths), 0.0
        teacher = None
        if self.study.start == "float" or self.study.distill:
            teacher, _, seconds = self.float_network(choice.widths, choice.float_times)
        if self.study.start == "float" and teacher is not None:
            beginning = teacher
        spec = choice.spec or self.spec
        student = nce_fx.quantize(copy.deepcopy(beginning).train(), spec, self.batches)
        decided = {"widths": dict(choice.widths), "spec": repr(spec), "times": choice.float_times}
        name = digest_of(decided)
        recipe = self.study.retraining(self.seed)
        taught = teacher if self.study.distill else None
        gm, accuracy = trained(student, self.data, recipe, taught, self.work / name, self.watch, name)
        return gm, accuracy, seconds + self.watch[name]

    def cost_of(self, gm: GraphModule) -> CostRecord:
        """Return what a network costs for one example."""
        record = CostRecord.of(gm)
        shared = ("params", "weight_bytes")
        return CostRecord(**{name: v if name in shared else v // EXAMPLES for name, v in record.cost.items()})


def trained(
    gm: GraphModule,
    data: Data,
    recipe: Recipe,
    teacher: GraphModule | None,
    folder: Path,
    watch: Stopwatch,
    name: str,
) -> tuple[GraphModule, float]:
    """Return a network after training, in eval mode, and its accuracy; goes on where it was stopped."""
    with watch.timed(name):
        result = train(gm, data, recipe, teacher=teacher, directory=folder)
    assert result.accuracy is not None
    return result.model.eval(), result.accuracy


def digest_of(decided: Any) -> str:
    """Return a name for a choice that any file system takes."""
    return hashlib.sha256(json.dumps(decided, sort_keys=True, default=dict).encode()).hexdigest()[:12]
