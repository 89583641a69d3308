"""The device and the processes that training runs on: accelerate starts them, and these few functions are all we ask.

One process is the case that needs nothing. Under ``torchrun`` every process holds the whole model and a share of every
batch. The sensitivity pass shares its batches, see `nce_fx.passes.analysis.sensitivity.shard`.
"""

import atexit
import json
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nce_fx.batches import on_a_batch
from nce_fx.errors import TrainingError
from nce_fx.launcher import shards_are_asked_for

LEAVING = timedelta(seconds=30)
"""How long a process that is done waits for the others before it closes its connections."""


@dataclass(frozen=True)
class Engine:
    """Where this process computes, which one it is, and how many there are."""

    device: torch.device
    rank: int = 0
    processes: int = 1
    shards: bool = False
    """Whether each process trains a part of the weights: ``accelerate launch --use_fsdp --fsdp_version 2``."""

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and draws the progress bar."""
        return self.rank == 0


def start_engine() -> Engine:
    """Join the other processes that ``torchrun`` started, if it did, and choose the device: a GPU where there is one.

    Gloo between processes on CPUs, NCCL between GPUs. May be called any number of times.

    Raises:
        TrainingError: more processes than GPUs were started on this machine, or accelerate's launcher was asked for
            what is not there.
    """
    from accelerate import PartialState

    launched = "LOCAL_RANK" in os.environ
    beside, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if 0 < gpus < beside:
        raise TrainingError(
            f"{beside} processes for {gpus} GPU{'s' * (gpus > 1)}: start torchrun with --nproc-per-node {gpus},"
            " or hide the GPUs by CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    fresh = launched and not dist.is_initialized()
    state = PartialState(cpu=launched and not torch.cuda.is_available())
    if fresh and dist.is_initialized():
        atexit.register(_leave)
    shards = state.num_processes > 1 and shards_are_asked_for()
    _running[:] = [Engine(state.device, state.process_index, state.num_processes, shards)]
    return _running[0]


_running: list[Engine] = []


def running_engine() -> Engine:
    """Return the engine that was started; that of one process where none was.

    So what a user runs in one of many processes, without an engine, waits for no other.
    """
    return _running[0] if _running else Engine(torch.device("cpu"))


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; without gradient. Called by every process, in the same order."""
    if not dist.is_initialized():
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def gather(value: Any) -> list[Any]:
    """Return what every process gives, in their order; its tensors are on the CPU where there are several processes.

    Called by every process, in the same order. What is given may differ in form and size, and be ``None``.
    """
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, tree_map_only(Tensor, Tensor.cpu, value))
    return found


def distributed(model: nn.Module, engine: Engine) -> nn.Module:
    """Return a model whose backward pass leaves the mean of the gradients over all processes, summed meanwhile.

    PyTorch's DistributedDataParallel, as accelerate prepares it. By default that lays its buckets out anew after the
    first step, and a resumed run would add in another order; where it looks for unused parameters it keeps them as they
    are, so a run that was stopped ends with the same bits.

    Args:
        model: on the engine's device; its parameters are the ones that the result trains.
        engine: one process gets the model back.
    """
    if engine.processes == 1:
        return model
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # Gradients that are views of the buckets would save their memory, and take 5 to 10 % of a step on a CPU.
    options = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of accelerate, on its own names
        accelerator = Accelerator(cpu=engine.device.type == "cpu", kwargs_handlers=[options])
        prepared: nn.Module = accelerator.prepare_model(_WithSpare(model).to(engine.device), device_placement=False)
    return prepared


class _WithSpare(nn.Module):
    """A model with a parameter that nothing uses: without one PyTorch advises, on every run, not to look for any."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.spare = model, nn.Parameter(torch.zeros(1))

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the model."""
        return self.model(*inputs, **named)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients of a few numbers, such as a search's preferences, by their sums over all processes.

    Those of weights are summed while they are computed, see `distributed`.
    """
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for kind in dict.fromkeys(gradient.dtype for gradient in gradients):
        group = [gradient for gradient in gradients if gradient.dtype == kind]
        flat = torch.cat([gradient.reshape(-1) for gradient in group])
        dist.all_reduce(flat)
        totals = torch.split(flat, [gradient.numel() for gradient in group])
        for gradient, total in zip(group, totals, strict=True):
            gradient.copy_(total.view_as(gradient))


def agree_on(values: Mapping[str, Any]) -> None:
    """Check that all processes hold the same values: models that differ would be averaged into nonsense.

    Raises:
        TrainingError: a process holds something else.
    """
    if not dist.is_initialized():
        return
    texts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(texts, json.dumps(values, sort_keys=True))
    for rank, text in enumerate(texts):
        if text != texts[0]:
            theirs, ours = json.loads(text), json.loads(texts[0])
            name = next(key for key in ours if theirs[key] != ours[key])
            raise TrainingError(
                f"process {rank} and process 0 differ ({name}): give every process the same, by the same seed"
            )


def call(model: Any, inputs: Any) -> Any:
    """Return a model's output for the inputs of a batch: one tensor, a tuple of arguments, or a mapping of them.

    Raises:
        InputError: the model raises; the message says on what.
    """
    with on_a_batch(inputs):
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _leave() -> None:
    """Leave the other processes when this one ends; where none failed, all leave together.

    Gloo's threads of a process at work may end it ("terminate called without an active exception") when another
    closes its connections under them. A process that failed waits for nobody: the others may never come.
    """
    if not dist.is_initialized():
        return
    if dist.get_backend() == "gloo" and not hasattr(sys, "last_value"):
        with suppress(RuntimeError):  # another failed, and is gone: then nothing is left to wait for
            dist.monitored_barrier(timeout=LEAVING)
    dist.destroy_process_group()
