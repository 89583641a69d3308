"""How good a model is on data it was not trained on."""

import math
from collections.abc import Iterator
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nce_fx.arguments import checked
from nce_fx.batches import named, read, samples_in
from nce_fx.by_mode import evaluating
from nce_fx.copying import copy_model
from nce_fx.devices import check_values, device_of, to_device
from nce_fx.errors import TrainingError
from nce_fx.processes import Engine, call, gather, start_engine
from nce_fx.progress import counted
from nce_fx.tasks import LossLike, MetricLike, Task
from nce_fx.training.batches import Data, batches_of
from nce_fx.training.determinism import deterministic


@checked
def evaluate(
    model: nn.Module,
    data: Data,
    batch_size: int = 256,
    *,
    split: str = "test",
    loss: LossLike = None,
    metric: MetricLike = None,
) -> float:
    """Return what a metric says of a model on a split: by default the share of samples whose highest score is right.

    ``loss`` and ``metric`` are what `train` takes; where only a loss is given, the metric is the one that goes with it.

    The model is left as it was (its mode, its device, its statistics), and so are the global random generators. A copy
    moves to the GPU where there is one. Under ``torchrun`` the processes share the work, and each returns the answer.

    Raises:
        InputError: no loss or metric of that name, or a batch that the model does not take.
        TrainingError: the split has no samples, the metric does not fit the output and the target, or an output is NaN.
    """
    task, engine = Task.of(loss, metric), start_engine()
    check_values(model, "evaluation")
    if device_of(model).type != engine.device.type:
        model = copy_model(model).to(engine.device)
    with deterministic(engine.device):
        return measure(model, data, batch_size, engine, task, split=split, told=True)


def measure(
    model: nn.Module,
    data: Data,
    batch_size: int,
    engine: Engine,
    task: Task,
    *,
    split: str = "test",
    told: bool = False,
) -> float:
    """Return what ``evaluate`` does, for a model that is on the engine's device; ``told``: say how far it is."""
    metric, counts, seen = task.metric, None, 0
    not_a_number = torch.zeros((), dtype=torch.bool, device=engine.device)

    def scored(batch: Any) -> tuple[Any, Any, int]:
        nonlocal seen, not_a_number
        inputs, target = to_device(read(batch, model), engine.device)
        output, samples = call(model, inputs), samples_in(inputs, target)
        seen += samples
        # Added up: to ask each batch would make a GPU wait.
        for part in tree_leaves(output):
            if isinstance(part, Tensor) and part.is_floating_point():
                not_a_number |= part.isnan().any()
        return output, named(inputs, model) if target is None and task.loss.is_the_models else target, samples

    with evaluating(model), torch.no_grad():
        loader = data.loader(split, batch_size=batch_size, seed=0, epoch=0, shuffle=False)
        batches = batches_of(loader, engine, drop_empty=True)
        found = map(scored, counted(batches, length_hint(loader)) if told else batches)
        if metric.stateful is not None:
            metric.stateful.begin(engine.device)
            for output, target, _ in found if metric.stateful.synchronizes else _of_all(found, engine):
                metric.stateful.update(output, target)
        else:
            for output, target, samples in found:
                numbers = metric.count(output, target, samples).double()
                counts = numbers if counts is None else counts + numbers
    parts = gather((counts, seen, not_a_number))
    if not sum(part[1] for part in parts):
        raise TrainingError(f"the {split} split has no samples to evaluate on")
    if any(part[2] for part in parts):
        # An accuracy of such scores would look like any other.
        raise TrainingError(f"the model's output on the {split} split holds NaN: look at its weights, and at the data")
    if metric.stateful is not None:
        return metric.stateful.compute()
    # A process that had no sample does not know how many numbers there are.
    value = float(metric.result(torch.stack([part[0] for part in parts if part[0] is not None]).sum(0)))
    if math.isnan(value) and metric.is_share:
        raise TrainingError(f"the {split} split has nothing to measure {metric.name} on")
    return value


def _of_all(found: Iterator[Any], engine: Engine) -> Iterator[Any]:
    """What every process finds, batch by batch, in their order; who is through with its own goes on with the others."""
    if engine.processes == 1:
        yield from found
        return
    while parts := [part for part in gather(next(found, None)) if part is not None]:
        yield from (to_device(part, engine.device) for part in parts)
