"""How good a model is on data it was not trained on."""

import math
from operator import length_hint

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nce_fx.arguments import checked
from nce_fx.batches import named, read, samples_in
from nce_fx.by_mode import evaluating
from nce_fx.copying import copy_model
from nce_fx.devices import check_values, device_of, to_device
from nce_fx.errors import TrainingError
from nce_fx.processes import Engine, all_reduce_sum, call, start_engine
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
    if metric.stateful is not None:
        metric.stateful.reset()
    with evaluating(model), torch.no_grad():
        loader = data.loader(split, batch_size=batch_size, seed=0, epoch=0, shuffle=False)
        batches = batches_of(loader, engine, drop_empty=True)
        for batch in counted(batches, length_hint(loader)) if told else batches:
            inputs, target = to_device(read(batch, model), engine.device)
            output, samples = call(model, inputs), samples_in(inputs, target)
            seen += samples
            # Added up: to ask each batch would make a GPU wait.
            for part in tree_leaves(output):
                if isinstance(part, Tensor) and part.is_floating_point():
                    not_a_number |= part.isnan().any()
            if target is None and task.loss.is_the_models:
                target = named(inputs, model)
            if metric.stateful is not None:
                metric.stateful.update(output, target)
                continue
            found = metric.count(output, target, samples).double()
            counts = found if counts is None else counts + found
    if metric.stateful is not None and seen:
        return float(metric.stateful.compute())
    if counts is None and engine.processes == 1:
        raise TrainingError(f"the {split} split has no samples to evaluate on")
    if float(all_reduce_sum(not_a_number.double())):
        # An accuracy of such scores would look like any other.
        raise TrainingError(f"the model's output on the {split} split holds NaN: look at its weights, and at the data")
    value = float(metric.result(all_reduce_sum(_like_others(counts, engine))))
    if math.isnan(value) and metric.is_share:
        raise TrainingError(f"the {split} split has nothing to measure {metric.name} on")
    return value


def _like_others(counts: Tensor | None, engine: Engine) -> Tensor:
    """The counts of a process, zeros where it had no sample."""
    return torch.zeros(2, dtype=torch.float64, device=engine.device) if counts is None else counts
