"""The rewritten network beside its rivals: float, uniform low precision at the original widths, and NCE.

Uniform and rewritten are trained alike: the same data, recipe, epochs and teacher (the float network). What differs is
where the channels are. How many of the epochs are in float suits one better than the other, so uniform is trained a
second time with another split: what NCE is held against is the better of the two.
"""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from torch.fx import GraphModule

from nce_fx.data import Data
from nce_fx.frozen import Frozen
from nce_fx.plain_text import number_of
from nce_fx.report.records import Comparison, CostRecord, ResultRow, folder_of
from nce_fx.tasks import LossLike, MetricLike, Task
from nce_fx.training import Recipe, evaluate, train
from nce_fx.training.recipe import usual_float_epochs
from nce_fx.training.result import Watch


@dataclass(frozen=True)
class Trained(Frozen):
    """The comparison, and the networks it is about, by the names of its rows."""

    comparison: Comparison
    networks: Mapping[str, GraphModule]


def compare(
    float_network: GraphModule,
    networks: Mapping[str, GraphModule],
    data: Data,
    recipe: Recipe,
    *,
    distill: bool = True,
    loss: LossLike = None,
    metric: MetricLike = None,
    float_epochs: int = 0,
    recipes: Mapping[str, Recipe] = MappingProxyType({}),
    directory: str | Path | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Train quantized networks alike, distilled from the float network, and hold them side by side.

    Args:
        float_network: the trained network at its own widths; not trained here.
        networks: what to train, by name, such as ``{"uniform 2-bit": ..., "NCE 2-bit": ...}``; they are not changed.
        data: trained on its train split, measured on its test split.
        recipe: how each is trained; with ``float_epochs`` in float at its own widths first, before it is rounded.
        distill: learn from the float network too, not from the targets alone.
        loss: what they are trained for, and ``metric`` what they are measured by, as `nce_fx.training.train` takes
            them.
        float_epochs: how long the float network was trained, for the record.
        recipes: of the networks that another recipe suits better, by name.
        directory: checkpoints and logs go to a folder here for each network; a run that was stopped goes on from them.
        watch: shows progress.

    Raises:
        TrainingError: training cannot go on; the message says where it stopped.
    """
    watch = watch or (lambda name: nullcontext())
    teacher = float_network if distill else None
    task = Task.of(loss, metric)
    before = evaluate(float_network, data, loss=task.loss, metric=task.metric)
    rows = [_row("float", float_network, task, before, float_epochs, 0.0)]
    trained = {}
    for name, network in networks.items():
        started = time.monotonic()
        folder = None if directory is None else Path(directory) / folder_of(name)
        with watch(name) as progress:
            result = train(
                network,
                data,
                recipes.get(name, recipe),
                teacher=teacher,
                loss=task.loss,
                metric=task.metric,
                directory=folder,
                progress=progress or False,
            )
        trained[name] = result.graph_module
        rows.append(_row(name, result.graph_module, task, result.score, recipe.epochs, time.monotonic() - started))
    comparison = Comparison(
        data=data.name,
        epochs=recipe.epochs,
        seed=recipe.seed,
        recipe=recipe.to_dict(),
        rows=tuple(rows),
        metric=task.metric.name,
        is_share=task.metric.is_share,
    )
    return Trained(comparison, trained)


def other_split(recipe: Recipe, bits: int | None) -> tuple[str, Recipe] | None:
    """Return how else a recipe's epochs may be split, between float and low precision, and the words for it.

    All at low precision where some are in float, else the usual part in float; ``None`` where there is one epoch.
    """
    usual = usual_float_epochs(recipe.epochs)
    if recipe.float_epochs:
        words = f"all {number_of(recipe.epochs, 'epoch')} at {number_of(bits or 32, 'bit')}"
        return words, replace(recipe, float_epochs=0)
    return (f"{number_of(usual, 'epoch')} in float", replace(recipe, float_epochs=usual)) if usual else None


def _row(network: str, gm: GraphModule, task: Task, score: float, epochs: int, seconds: float) -> ResultRow:
    measured = {"accuracy": score} if task.counts_right else {"accuracy": None, "score": score}
    return ResultRow(network=network, epochs=epochs, seconds=round(seconds, 3), **measured, **CostRecord.of(gm).cost)
