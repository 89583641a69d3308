"""The training loop: from a model, data and a recipe to a trained model, resumable at every step.

A step is: the batch of this position; the loss on this process's share of it; sums over the processes; a check that the
loss is finite; gradients, summed over the processes; the update. Everything random in it follows from the recipe's
seed and the position, so what a checkpoint holds is enough to end with the very same weights.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nce_fx.arguments import checked
from nce_fx.batches import Pair, read, samples_in
from nce_fx.by_mode import evaluating
from nce_fx.data.loaders import CALIBRATION_BATCHES, Loader
from nce_fx.devices import device_of, to_device
from nce_fx.errors import TrainingError
from nce_fx.processes import all_reduce_sum, call, start_engine
from nce_fx.quantizers.saved_tensors import compact_saving
from nce_fx.tasks import LossLike, MetricLike, Task
from nce_fx.training.batch_norm import reestimate
from nce_fx.training.batches import Data, batches_of, parts_of
from nce_fx.training.checkpoint import last_good
from nce_fx.training.determinism import deterministic, seed_step
from nce_fx.training.evaluation import measure
from nce_fx.training.extras import Average, extras_of
from nce_fx.training.features import feature_loss
from nce_fx.training.folder import held
from nce_fx.training.forward import forward_pass
from nce_fx.training.interruption import interruptions
from nce_fx.training.log import Log, open_log
from nce_fx.training.not_finite import first_not_finite
from nce_fx.training.optimizer import positive_ranges
from nce_fx.training.oscillation import dampen, share_moved, weight_levels
from nce_fx.training.recipe import Recipe, bits_at, calmer, dampening_at, distillation_at, learning_rate_at
from nce_fx.training.result import EpochRecord, Progress, StepReport, TrainResult, reporting
from nce_fx.training.run import CheckpointWriter, Run, prepare
from nce_fx.training.shards import clip, in_one_piece, mean_of_whole, total_norm, whole_weights

M = TypeVar("M", bound=nn.Module)

GO_ON = "run the same again to go on"
"""What is said of a run with a directory that was stopped."""
MANY_WEIGHTS = 1_000_000
"""From so many on, keeping quantized weights as integers is worth the 3 % of a step's time that it takes."""


@checked
def train(
    model: M,
    data: Data,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    loss: LossLike = None,
    metric: MetricLike = None,
    directory: str | Path | None = None,
    plan: str | None = None,
    progress: Progress = False,
    checkpoint_seconds: float = 60.0,
) -> TrainResult[M]:
    """Train a copy of a model and return it with what its metric says on the test split: its accuracy by default.

    With a directory the run leaves ``log.csv``, ``steps.csv`` and checkpoints there, and the same call made again goes
    on from the last checkpoint: after Ctrl-C, a kill, or a full disk. Ends with the same weights, bit for bit, as a run
    that was never stopped. Started by ``torchrun``, the processes share every batch and all return the result.

    Args:
        model: a GraphModule or any module; never changed.
        data: its ``loader`` gives the batches of the train and test splits, in any form that `nce_fx.batches` reads.
        recipe: how to train.
        teacher: the float model to learn from as well as from the targets; never changed.
        loss: a name of `nce_fx.tasks.LOSSES`, ``package.module:callable``, or ``loss(output, target)``, a mean over the
            batch; cross entropy by default, of samples, pixels or tokens.
        metric: a name of `nce_fx.tasks.METRICS`, ``package.module:callable``, ``metric(output, target)``, or an object
            with ``reset``, ``update`` and ``compute``; by default what goes with the loss: accuracy, or the loss.
        directory: where checkpoints and logs go; None for none.
        plan: JSON to keep in the checkpoints, such as the plan that the model was made by.
        progress: True for a bar on stderr where that is a terminal, or a function called after every step.
        checkpoint_seconds: the time from one checkpoint to the next; one is also saved at the end and at Ctrl-C.

    Raises:
        InputError: no loss or metric of that name, or a batch that the model does not take.
        TrainingError: the loss is not finite or does not fit the targets, nothing can be trained, a file cannot be
            written, or the user stopped.
        ArtifactError: the directory holds the checkpoint of another run, or only damaged ones.
    """
    engine, task = start_engine(), Task.of(loss, metric)
    folder = None if directory is None else Path(directory)
    run = fit(prepare(model, data, recipe, teacher, engine, folder, plan, task=task), progress, checkpoint_seconds)
    history = tuple(run.position.history)
    tested = history[-1].tested if history else None
    if tested is None:
        with deterministic(engine.device), whole_weights(run.student):
            tested = measure(run.model, data, recipe.batch_size, engine, task)
    trained = in_one_piece(run.model, model) if engine.shards else run.model
    accuracy = tested if task.counts_right else None
    result = trained.train(model.training).to(device_of(model))
    return TrainResult(result, accuracy, history, tested, task.metric.name)


def fit(run: Run, progress: Progress = False, checkpoint_seconds: float = 60.0) -> Run:
    """Train what was prepared to its last epoch; return the run at its end."""
    engine, recipe = run.engine, run.recipe
    checkpoints = CheckpointWriter(run, checkpoint_seconds)
    with (
        torch.enable_grad(),
        deterministic(engine.device),
        held(run.directory if engine.is_main else None),
        interruptions(run.directory is not None) as asked_to_stop,
        open_log(run.directory if engine.is_main else None, run.position.history, run.done) as log,
        reporting(progress if engine.is_main else False) as report,
    ):
        checkpoints.save_first()
        while run.position.epoch < recipe.epochs:
            if recipe.float_epochs == run.position.epoch and recipe.float_epochs and not run.position.step:
                checkpoints.run = run = _in_low_precision(run)
            _train_epoch(run, checkpoints, log, report, asked_to_stop)
            checkpoints.run = run = run.callback.after_epoch(run)
        log.flush()
        checkpoints.save()
    return run


def _in_low_precision(run: Run) -> Run:
    """Start the quantizers, and what goes on beside the steps, on what the epochs in float have made of the network.

    Every process looks at the same batches as in evaluation, whole, so that all see the same.
    """
    recipe = run.recipe
    loader = _batches(run, recipe.float_epochs)

    def look() -> None:
        with evaluating(run.model):
            for batch in islice(iter(loader), CALIBRATION_BATCHES):
                inputs, _ = read(batch, run.model)
                call(run.model, to_device(inputs, run.engine.device))

    run.stages.enter(recipe, recipe.float_epochs)
    with whole_weights(run.student):
        run.stages.start_again(look)
    return replace(run, extras=extras_of(run.model, recipe))


def _train_epoch(
    run: Run,
    checkpoints: CheckpointWriter,
    log: Log,
    report: Callable[[StepReport], None],
    asked_to_stop: Callable[[], bool],
) -> None:
    """Train from the position to the end of its epoch, and evaluate."""
    recipe, position, engine = run.recipe, run.position, run.engine
    epoch, started, before = position.epoch, time.monotonic(), position.seconds
    run.model.train()
    run.stages.enter(recipe, epoch)
    seed_step(recipe.seed, epoch, -1, engine)
    batches = batches_of(_batches(run, epoch), engine, position.step)
    run.callback.before_epoch(run)
    in_float, border = epoch < recipe.float_epochs, recipe.float_epochs * run.steps_per_epoch
    if not position.step:
        position.levels = {} if in_float else _levels(run)
    for step in range(position.step, run.steps_per_epoch):
        batch_seed = seed_step(recipe.seed, epoch, step, engine)
        rate = _rate_at(run, run.done)
        batch = next(batches, None)
        if batch is None:
            raise TrainingError(
                f"epoch {epoch + 1} has {step} batches: the loader said that an epoch has {run.steps_per_epoch}"
            )
        run.callback.before_step(run)
        loss, correct, samples, stop = train_step(run, batch, rate, batch_seed, asked_to_stop())
        for extra in () if in_float else run.extras.values():
            extra.after_step((run.done + 1 - border) / (recipe.epochs * run.steps_per_epoch - border))
        run.callback.after_step(run)
        position.step += 1
        position.loss += loss
        position.correct += correct
        position.samples += samples
        position.seconds = before + time.monotonic() - started
        log.step(run.done, epoch + 1, rate, loss / samples, correct / samples if run.task.counts_right else None)
        if position.step < run.steps_per_epoch:
            report(_report(run, checkpoints))
        if stop and position.step < run.steps_per_epoch:
            log.flush()
            again = GO_ON if run.directory is not None else "run the same again"
            raise TrainingError(f"stopped after step {run.done}: {checkpoints.save()}; {again}")
        if checkpoints.is_due():
            log.flush()
            checkpoints.save()
    tested = None
    last = epoch + 1 == recipe.epochs
    moved = None if in_float else share_moved(position.levels, _levels(run))
    average = None if in_float else run.extras.get("average")
    assert average is None or isinstance(average, Average)
    if last and average is not None:
        average.put()
    if last and recipe.reestimate:
        with whole_weights(run.student):
            reestimate(run.model, _inputs(run), lambda: forward_pass(engine, recipe))
    if last or (recipe.evaluate_every and (epoch + 1) % recipe.evaluate_every == 0):
        with average.shown() if average is not None and not last else nullcontext(), whole_weights(run.student):
            tested = measure(run.model, run.data, recipe.batch_size, engine, run.task)
    position.history.append(
        EpochRecord(
            epoch=epoch + 1,
            steps=run.done,
            learning_rate=_rate_at(run, run.done - 1),
            bits=bits_at(recipe, epoch),
            loss=position.loss / position.samples,
            accuracy=position.correct / position.samples if run.task.counts_right else None,
            test_accuracy=tested if run.task.counts_right else None,
            test_metric=None if run.task.counts_right else tested,
            seconds=before + time.monotonic() - started,
            moved=moved,
        )
    )
    log.epoch(position.history)
    whole = _report(run, checkpoints)  # of its last step too: with what the test split said after it
    position.epoch, position.step, position.seconds = epoch + 1, 0, 0.0
    position.loss = position.correct = position.samples = 0.0
    report(whole)


def _levels(run: Run) -> dict[str, Tensor]:
    with whole_weights(run.student):
        return weight_levels(run.model)


def _rate_at(run: Run, step: int) -> float:
    """The learning rate of a step, counted from 0 over the whole run."""
    steps = run.steps_per_epoch
    return learning_rate_at(run.recipe, step, steps) * run.callback.rate(step / steps)


def _batches(run: Run, epoch: int) -> Loader:
    """The batches of an epoch's training, whole, in their order."""
    recipe = run.recipe
    return run.data.loader("train", batch_size=recipe.batch_size, seed=recipe.seed, epoch=epoch, shuffle=True)


def _inputs(run: Run) -> Iterator[Any]:
    """The inputs of the batches that BatchNorm's statistics are taken from: those of the epoch that would come next."""
    for batch in islice(batches_of(_batches(run, run.recipe.epochs), run.engine), run.recipe.reestimate):
        yield to_device(read(batch, run.model)[0], run.engine.device)


def train_step(run: Run, batch: Any, rate: float, seed: int, stop: bool) -> list[float]:
    """Do one step; return the sums over all processes of loss, correct samples, samples, and requests to stop."""
    recipe = run.recipe
    batch = to_device(read(batch, run.model), run.engine.device)
    run.optimizer.zero_grad(set_to_none=True)
    totals = [0.0, 0.0, 0.0, float(stop)]
    parts, samples = [batch], None
    if recipe.accumulate > 1:
        samples = all_reduce_sum(torch.tensor(samples_in(*batch), device=run.engine.device)).item()
        # As many in every process: the smallest share of the batch has a sample for each.
        parts = parts_of(batch, min(recipe.accumulate, int(samples) // run.engine.processes))
    for index, part in enumerate(parts):
        with _summing(run.student, index + 1 == len(parts)):
            loss, sums = _forward(run, part, stop)
            for place, value in enumerate(sums):
                totals[place] = value if place == 3 else totals[place] + value
            if not math.isfinite(sums[0]):
                raise _broken(run, f"the loss is {sums[0]}", part, seed)
            # The mean over processes is that of as many equal shares; these are weighted by their size.
            share = samples_in(*part) * run.engine.processes / (samples or sums[2])
            (loss * share * run.scale.value).backward()  # type: ignore[no-untyped-call]
    if run.engine.shards:
        mean_of_whole(run.parameters, run.engine)
    gradients = [parameter.grad for parameter in run.parameters if parameter.grad is not None]
    run.scale.unscale(gradients)
    if recipe.dampen and run.position.epoch >= recipe.float_epochs:
        dampen(run.model, dampening_at(recipe, run.done, run.steps_per_epoch))
    norm = total_norm(gradients)
    finite = bool(norm.isfinite())
    if not finite and run.scale.value <= 1:
        raise _broken(run, "a gradient is not finite", parts[-1], seed)
    if recipe.clip_gradient is not None and finite:
        clip(gradients, norm, recipe.clip_gradient)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    if finite:
        with positive_ranges(run.ranges):
            run.optimizer.step()
    run.scale.update(finite)
    run.position.scaler = run.scale.state()
    return totals


def _broken(run: Run, what: str, batch: Pair, seed: int) -> TrainingError:
    """Say what is not finite, and which operation of the network it comes from where that can be told."""
    inputs, target = batch
    with whole_weights(run.student):
        place = first_not_finite(run.model, inputs, lambda output: run.task.training_loss(output, target))
    return TrainingError(
        f"{what} at step {run.position.step + 1} of epoch {run.position.epoch + 1} (batch seed {seed})"
        f"{f': {place}' if place else ''}: {last_good(run.directory)}; {calmer(run.recipe)}"
    )


def _forward(run: Run, batch: Pair, stop: bool) -> tuple[Tensor, list[float]]:
    """Return this process's mean loss, and the sums over all processes that `train_step` returns."""
    engine, recipe, task = run.engine, run.recipe, run.task
    inputs, target = batch
    size = samples_in(inputs, target)
    # A last batch of another size is not worth a compilation of its own.
    full = size * engine.processes * recipe.accumulate == recipe.batch_size
    student, teacher = run.student, run.teacher
    features = bool(recipe.distill_features) and teacher is not None
    with forward_pass(engine, recipe, compiled=recipe.compile and full), _saving(run):
        output, maps = call(student, inputs) if features else (call(student, inputs), ())
        taught, their_maps = None, ()
        if teacher is not None:
            with torch.no_grad():
                taught, their_maps = call(teacher, inputs) if features else (call(teacher, inputs), ())
    loss = task.training_loss(
        output,
        target,
        smoothing=recipe.label_smoothing,
        teacher=taught,
        share=distillation_at(recipe, run.done, run.steps_per_epoch),
        heat=recipe.distill_temperature,
    )
    if features:
        loss = loss + recipe.distill_features * feature_loss(maps, their_maps)
    if not loss.requires_grad:
        raise TrainingError(f"the loss {task.loss.name} does not depend on the model's weights: is an output detached?")
    # Of pixels or tokens the share that is right, in samples.
    right, counted = task.metric.count(output, target, size).detach() if task.counts_right else loss.new_zeros(2)
    right = right.double() * (size / counted.double().clamp(min=1))
    sums = torch.stack([loss.detach().double() * size, right])
    return loss, all_reduce_sum(torch.cat([sums, sums.new_tensor([size, float(stop)])])).tolist()


def _summing(student: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Sum gradients over processes in the last part of a batch alone."""
    if last or not isinstance(student, DistributedDataParallel):
        return nullcontext()
    waiting: AbstractContextManager[None] = student.no_sync()
    return waiting


def _saving(run: Run) -> AbstractContextManager[None]:
    """Keep quantized weights as integers where there are many; a compiler decides by itself what to keep."""
    return compact_saving() if run.weights >= MANY_WEIGHTS and not run.recipe.compile else nullcontext()


def _report(run: Run, checkpoints: CheckpointWriter) -> StepReport:
    position, total = run.position, run.recipe.epochs * run.steps_per_epoch
    pace = (time.monotonic() - checkpoints.started) / max(1, run.done - checkpoints.first_step)
    tested = [record.tested for record in position.history if record.tested is not None]
    return StepReport(
        epoch=position.epoch + 1,
        epochs=run.recipe.epochs,
        step=run.done,
        steps=total,
        loss=position.loss / position.samples,
        accuracy=position.correct / position.samples if run.task.counts_right else None,
        test_accuracy=tested[-1] if tested and run.task.counts_right else None,
        metric=run.task.metric.name,
        test_metric=tested[-1] if tested else None,
        seconds_left=pace * (total - run.done),
    )
