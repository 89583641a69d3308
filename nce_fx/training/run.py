"""One training run: what is trained, on what, how, where it is, and its checkpoints."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nce_fx.copying import copy_model
from nce_fx.devices import check_values
from nce_fx.errors import ArtifactError, TrainingError
from nce_fx.launcher import check_launched
from nce_fx.processes import Engine, agree_on, all_reduce_sum, distributed
from nce_fx.tasks import Task
from nce_fx.tensor_file import digest
from nce_fx.training.batches import Data
from nce_fx.training.checkpoint import Checkpoint, by_kind, flat, last_good, latest_checkpoint, save_checkpoint
from nce_fx.training.extras import Extra, extras_of
from nce_fx.training.features import tapped
from nce_fx.training.forward import called
from nce_fx.training.optimizer import build_optimizer, learned_ranges, momenta, restore_momenta
from nce_fx.training.recipe import Recipe, calmer
from nce_fx.training.result import EpochRecord
from nce_fx.training.scaling import LossScale
from nce_fx.training.shards import check_search, local, on_main, sharded
from nce_fx.training.stages import Stages, stages_of


@dataclass
class Position:
    """What changes while training runs, beside the tensors."""

    epoch: int = 0
    step: int = 0
    """Steps done in this epoch."""
    loss: float = 0.0
    """Sums over the samples of this epoch so far."""
    correct: float = 0.0
    samples: float = 0.0
    seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    """What the scaling of the loss has come to; empty but for fp16."""
    levels: dict[str, Tensor] = field(default_factory=dict, compare=False)
    """Of the quantized weights, when the epoch began."""

    def plain(self) -> dict[str, Any]:
        """Return all but the tensors, as JSON values."""
        values = asdict(replace(self, levels={}))
        del values["levels"]
        return values


class Callback:
    """What goes on beside the training of the weights: nothing, or a search that learns widths in step with it.

    The loop calls these at the same places whatever runs; what a callback keeps is in the checkpoints.
    """

    def identity(self) -> dict[str, Any]:
        """Return what makes this run another run than one that trains the same model by the same recipe."""
        return {}

    def structure(self, original: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        """Return the copy of a model that is trained, as it was when ``state()`` returned this; empty at the start."""
        return copy_model(original)

    def student(self, model: nn.Module) -> nn.Module:
        """Return what is called in training in the place of the model; it trains the model's parameters."""
        return model

    def restore(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Go on with a model that ``structure`` returned, from what ``tensors()`` returned."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON values."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps, as tensors by name."""
        return {}

    def rate(self, done: float) -> float:
        """Return the learning rate where so many epochs are done, as a share of the recipe's."""
        return 1.0

    def before_epoch(self, run: "Run") -> None:
        """An epoch begins, or goes on after it was interrupted."""

    def before_step(self, run: "Run") -> None:
        """The weights are about to make a step."""

    def after_step(self, run: "Run") -> None:
        """The weights have made a step, which the position does not count yet."""

    def after_epoch(self, run: "Run") -> "Run":
        """An epoch has ended; return the run that goes on, with another model where this one is not enough."""
        return run


@dataclass(frozen=True)
class Run:
    """One training run: what is trained, on what, how, and where it is."""

    model: Any
    student: Any
    """The model as it is called: itself, what the callback has in its place, with its features beside the scores, in
    stretches, compiled, or summing gradients over processes."""
    teacher: nn.Module | None
    optimizer: torch.optim.Optimizer
    scale: LossScale
    """Of the loss, where float16 would lose its gradients; 1 at other precisions."""
    stages: Stages
    data: Data
    recipe: Recipe
    engine: Engine
    steps_per_epoch: int
    directory: Path | None
    identity: dict[str, Any]
    plan: str | None
    position: Position
    callback: Callback
    extras: Mapping[str, Extra]
    """What goes on beside the steps, by name."""
    task: Task
    endless: frozenset[str]
    """What nothing trains and was not finite at the start, such as a mask."""

    @cached_property
    def parameters(self) -> list[Tensor]:
        """Of the model; a walk over all modules takes its part of a step."""
        return list(self.model.parameters())

    @cached_property
    def ranges(self) -> list[Tensor]:
        """What quantizers learn that must stay positive."""
        return learned_ranges(self.model)

    @cached_property
    def weights(self) -> int:
        """How many numbers are trained, or could be."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def done(self) -> int:
        """Steps done since the start."""
        return self.position.epoch * self.steps_per_epoch + self.position.step


def prepare(
    original: nn.Module,
    data: Data,
    recipe: Recipe,
    teacher: nn.Module | None,
    engine: Engine,
    directory: Path | None,
    plan: str | None,
    callback: Callback | None = None,
    *,
    task: Task | None = None,
) -> Run:
    """Copy the models to the device, and go to the last checkpoint where there is one.

    Raises:
        TrainingError: there is nothing to train, or the processes were not given the same.
        ArtifactError: the directory holds the checkpoint of another run, or only damaged ones.
    """
    steps = len(data.loader("train", batch_size=recipe.batch_size, seed=recipe.seed, epoch=0, shuffle=True))
    if not steps:
        raise TrainingError("the train split has no batches: it has no samples, or fewer than one batch")
    check_values(original, "training")
    identity = {
        "data": getattr(data, "name", type(data).__name__),
        "batches in an epoch": steps,
        "starting weights": digest(_state_of(original))[:16],
        "teacher's weights": digest(_state_of(teacher))[:16] if teacher is not None else None,
    }
    identity |= {f"recipe.{name}": value for name, value in recipe.to_dict().items()}
    task = task or Task.of()
    identity |= {"loss": task.loss.name, "metric": task.metric.name}
    callback = callback or Callback()
    identity |= callback.identity()
    found = latest_checkpoint(directory) if directory is not None else None
    if found is not None:
        _check_same_run(found, identity, directory)
    check_launched(recipe.precision, recipe.accumulate, recipe.compile)
    check_search(engine, recipe, callback.identity())
    model = callback.structure(original, found.state.get("companion", {}) if found is not None else {})
    model = model.to(engine.device).train()
    if not (recipe.distill_alpha or recipe.distill_features):
        teacher = None  # nothing is learned from it
    if teacher is not None:
        teacher = copy_model(teacher).to(engine.device).eval().requires_grad_(False)
    stages = stages_of(model, recipe)
    position = Position()
    if found is not None:
        history = [EpochRecord(**record) for record in found.state["position"]["history"]]
        position = Position(**{**found.state["position"], "history": history})
    # The bits first: the weights of a checkpoint are those of its stage.
    stages.enter(recipe, position.epoch)
    kinds = by_kind(found.tensors if found is not None else {})
    if found is not None:
        model.load_state_dict(kinds["model"])
        position.levels = kinds["levels"]
        callback.restore(model, kinds["companion"])
    agree_on(identity | {"position": position.plain()})
    named = _numbers(model).items()
    endless = frozenset(name for name, each in named if not (each.requires_grad or each.isfinite().all()))
    student = callback.student(model)
    if recipe.distill_features and teacher is not None:
        student, teacher = tapped(model, teacher)
    if engine.shards:
        student = sharded(student, engine, recipe, whole_model=model)
        teacher = sharded(teacher, engine, recipe, learns=False) if teacher is not None else None
    else:
        student = distributed(called(student, engine, recipe), engine)
        teacher = called(teacher, engine, recipe, learns=False) if teacher is not None else None
    # Of the parameters as they are from here on.
    optimizer, extras = build_optimizer(model, recipe), extras_of(model, recipe)
    if found is not None:
        restore_momenta(model, optimizer, kinds["momentum"])
        for name, extra in extras.items():
            extra.restore(by_kind(kinds["extra"])[name])
    return Run(
        model,
        student,
        teacher,
        optimizer,
        LossScale(recipe.precision == "fp16", position.scaler),
        stages,
        data,
        recipe,
        engine,
        steps,
        directory,
        identity,
        plan,
        position,
        callback,
        extras,
        task,
        endless,
    )


class CheckpointWriter:
    """Saves a run's checkpoints in the main process, and knows when the next is due."""

    def __init__(self, run: Run, seconds: float) -> None:
        self.run, self.seconds = run, seconds
        self.started = self.saved = time.monotonic()
        self.first_step = run.done

    def is_due(self) -> bool:
        """True where the last checkpoint is old enough."""
        due = self.run.directory is not None and time.monotonic() - self.saved >= self.seconds
        if not self.run.engine.shards:
            return due
        # All take part in a checkpoint of parts, when the main process says so.
        return bool(all_reduce_sum(torch.tensor(float(due and self.run.engine.is_main), device=self.run.engine.device)))

    def save_first(self) -> None:
        """Save the start of a run, so that there is always a checkpoint to go back to."""
        if self.run.done == 0:
            self.save()

    def save(self) -> str:
        """Save the run as it is now; return where, in words.

        Raises:
            TrainingError: a weight is not finite any more, or the file cannot be written; earlier ones are kept.
        """
        run = self.run
        momentum = momenta(run.model, run.optimizer)
        # Before the first step the loss says it as well, and where it comes from.
        takes_part = run.engine.is_main or run.engine.shards
        if takes_part and (run.done or run.directory is not None):
            _check_finite({**_numbers(run.model), **momentum}, run)
        if run.directory is None:
            return "nothing was saved"
        if takes_part:
            kinds: dict[str, Mapping[str, Tensor]] = {
                "model": _state_of(run.model),
                "momentum": momentum,
                "levels": run.position.levels,
                "companion": run.callback.tensors(),
                "extra": flat({name: extra.tensors() for name, extra in run.extras.items()}),
            }
            state = {"run": run.identity, "position": run.position.plain(), "plan": run.plan}
            state["companion"] = run.callback.state()
            tensors = {name: on_main(tensor, run.engine) for name, tensor in flat(kinds).items()}
            if run.engine.is_main:
                save_checkpoint(run.directory, Checkpoint(run.done, tensors, state))
        self.saved = time.monotonic()
        return f"saved in {run.directory}"


def _check_same_run(checkpoint: Checkpoint, identity: dict[str, Any], directory: Path | None) -> None:
    # A recipe of before has not the fields that came later: it was trained as their defaults say.
    theirs = {f"recipe.{name}": value for name, value in Recipe().to_dict().items()}
    theirs |= {"loss": "cross_entropy", "metric": "accuracy"} | checkpoint.state["run"]
    for name, value in identity.items():
        if theirs.get(name) != value:
            raise ArtifactError(
                f"{directory} holds a checkpoint of another run ({name}: {theirs.get(name)!r} there, {value!r} here); "
                "choose another directory, or remove the checkpoints in it"
            )


def _check_finite(tensors: dict[str, Tensor], run: Run) -> None:
    # A gradient may overflow in a step whose loss was finite: what it broke must not replace a good checkpoint.
    for name, tensor in tensors.items():
        if name not in run.endless and not local(tensor).isfinite().all():
            remedy = calmer(run.recipe) if run.done else "train weights that are numbers"
            raise TrainingError(
                f"{name} has values that are not finite after step {run.done}: {last_good(run.directory)}; {remedy}"
            )


def _numbers(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that hold fractions; the variance of BatchNorm overflows where its input is large."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in named.items() if tensor.is_floating_point()}


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers by name.

    Raises:
        TrainingError: a module keeps state that is not a tensor, which a checkpoint could not hold.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TrainingError(f"{name} in the model's state is a {type(value).__name__}: only tensors can be saved")
    return state
