"""Do no harm: whether a plan is better than the widths as they are is tried, briefly, before anything is retrained.

Candidates are the plan, plans that move widths less far, and the widths as they are (or, where these cost more than the
budget, all narrowed by one factor), each with all epochs at low precision or the usual part of them in float. Each is
trained by a short form of the recipe on a part of the training split, distilled from the float network, and measured by
the loss on the rest of it; the test split is not looked at. Together the trials cost no more than a stated share of the
retraining: where that allows few, they are those that are likeliest. Where no plan is better, the widths stay.

The float network has seen what is held out, and so has whoever starts from its weights: all candidates alike.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

from torch.fx import GraphModule

from nce_fx.data import Data
from nce_fx.data.data_split import held_out
from nce_fx.errors import InputError
from nce_fx.plain_text import number_of
from nce_fx.plan import WidthPlan
from nce_fx.progress import advance
from nce_fx.report.records import TrialRecord, TrialRow
from nce_fx.tasks import LossLike
from nce_fx.training import Recipe, train
from nce_fx.training.recipe import usual_float_epochs
from nce_fx.training.result import StepReport, Watch

REGIONS = ((0.67, 1.5), (0.8, 1.25))
"""How far widths move in plans that are tried beside the first, as ratios of their own."""
LIKELIEST = ((0, False), (1, True), (2, True), (0, True), (1, False), (2, False), (3, True), (3, False))
"""What is tried, the likeliest first: the number of a candidate (0: what is safe, 1: the plan, then one for
each region), and whether the usual part of its epochs is in float, which what was narrowed wants more."""
_HELD_OUT = 0.2
_LEAST = 4
"""Epochs of a trial. Two told on digits how much a plan takes from a network, not what comes of it: with seed 0 they
kept the widths of a ResNet-18 where the plan was better in the end; four did that with one seed of three."""


@dataclass(frozen=True)
class Trial:
    """What plans are tried with."""

    data: Data
    recipe: Recipe
    """Of the retraining that follows."""
    share: float = 0.25
    """What all trials together may cost, of the retraining of one network."""
    loss: LossLike = None
    distill: bool = True
    """Whether the float network can teach."""
    watch: Watch | None = None
    choose_float: bool = False
    """Whether it is chosen, for each candidate, how many epochs are in float; else they are the recipe's."""

    def __post_init__(self) -> None:
        """Refuse a share that is none.

        Raises:
            InputError: it is not above 0, or above 1.
        """
        if not 0 < self.share <= 1:
            raise InputError(f"trial: a share of {self.share} of the retraining: give one above 0, up to 1")

    def epochs(self, candidates: int) -> int:
        """Return the epochs that each of so many candidates may be trained for; 0 where they are too few to tell."""
        found = int(self.share * self.recipe.epochs / ((1 - _HELD_OUT) * candidates) + 1e-9)
        return found if found >= _LEAST else 0

    @property
    def turns(self) -> tuple[tuple[int, int], ...]:
        """What the share allows to try: number of a candidate, and how many epochs of its retraining are in float."""
        own, usual = self.recipe.float_epochs, usual_float_epochs(self.recipe.epochs)
        wanted = [(number, usual if in_float else 0) for number, in_float in LIKELIEST]
        if not self.choose_float:
            wanted = [(number, own) for number in range(len(REGIONS) + 2)]
        return tuple(wanted[: max((n for n in range(2, len(wanted) + 1) if self.epochs(n)), default=0)])

    @property
    def regions(self) -> tuple[tuple[float, float], ...]:
        """How far widths move in the plans that the share allows to try beside the first."""
        return REGIONS[: max(number for number, _ in self.turns) - 1]

    def why_not(self) -> str:
        """Return why nothing can be tried; nothing where it can."""
        if held_out(self.data, _HELD_OUT, self.recipe.seed) is None:
            return f"the training split of {self.data.name} cannot be parted"
        if not self.turns:
            return f"{self.share:g} of {number_of(self.recipe.epochs, 'epoch')} is too little to try plans in"
        return ""

    def decide(self, teacher: GraphModule, candidates: Mapping[str, GraphModule]) -> TrialRecord:
        """Train every candidate briefly and say which is the best; the first of equals, so put what is safe first."""
        parts = held_out(self.data, _HELD_OUT, self.recipe.seed)
        if parts is None:
            raise InputError(f"trial: {self.why_not()}")
        names = tuple(candidates)
        turns = [(names[number], in_float) for number, in_float in self.turns if number < len(names)]
        rows: list[TrialRow] = []
        epochs = self.epochs(len(turns))
        for name, in_float in turns:
            short = _scaled(in_float, self.recipe.epochs, epochs)
            # Progressive bits have no time here.
            recipe = replace(self.recipe, epochs=epochs, float_epochs=short, bits=(), evaluate_every=0)
            with (self.watch or (lambda _: nullcontext()))(f"trial: {name}") as progress:
                result = train(
                    candidates[name],
                    parts[0],
                    recipe,
                    teacher=teacher if self.distill else None,
                    loss=self.loss,
                    metric="loss",
                    progress=progress or partial(_tell, len(rows), len(turns)),
                )
            rows.append(TrialRow(candidate=name, loss=result.score, float_epochs=short, retrain_float_epochs=in_float))
        best = min(rows, key=lambda row: row.loss)
        return TrialRecord(
            rows=tuple(rows),
            chosen=best.candidate,
            float_epochs=best.retrain_float_epochs,
            epochs=epochs,
            share=self.share,
            held_out=len(parts[1].train),
        )


def why_untried(trial: Trial | None, plan: WidthPlan, *, safe: bool) -> str:
    """Return why a plan is not tried beside what is ``safe``, such as "nothing changes"; nothing where it is."""
    if trial is None:
        return "no training data and recipe to try it with"
    if not safe:
        return "they cost more than the budget"
    return trial.why_not() if plan.changed else "nothing changes"


def _tell(before: int, trials: int, at: StepReport) -> None:
    """Say how much of all trials is done, so many of them before the one that is at this step."""
    advance(before * at.steps + at.step, trials * at.steps)


def _scaled(in_float: int, whole: int, epochs: int) -> int:
    """Return how many of a trial's epochs are in float where so many are of the whole: one at least, and not all."""
    return min(max(1, round(in_float * epochs / whole)), epochs - 1) if in_float else 0
