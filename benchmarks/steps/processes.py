"""What a training step costs in several processes, beside PyTorch's own DistributedDataParallel of the same network.

    python -m benchmarks.processes [--steps 20] [--processes 2]      prints tables; of one thread each, on CPUs

Networks are stepped in turn by `nce_fx.training` and by a plain loop: forward pass, cross entropy, backward pass under
DistributedDataParallel as it comes, SGD. With BatchNorm ours takes the statistics of the whole batch, as one process
would, and the plain loop each process's own: PyTorch's SyncBatchNorm is for GPUs. So there is a row without BatchNorm.
Processor seconds are what other programs on the machine do not stretch. "In shards": each process trains a part of the
weights (FSDP2). Memory: the peak over a step of all tensors of a process, ResNet-18 and 8 images of 64x64 in each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import nce_fx
from benchmarks.steps.training_step import MIB, Step, rise
from nce_fx.copying import copy_model
from nce_fx.models import MODELS
from nce_fx.processes import Engine, start_engine
from nce_fx.training import Recipe
from nce_fx.training.determinism import deterministic
from nce_fx.training.loop import train_step
from nce_fx.training.optimizer import momenta
from nce_fx.training.run import prepare
from nce_fx.training.shards import local

BATCH = 64


class Noise:
    """One batch of noise."""

    name = "noise"

    def loader(self, split: str, *, batch_size: int, seed: int, epoch: int, shuffle: bool) -> DataLoader[object]:
        """Return it."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(BATCH, 3, 32, 32, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(BATCH) % 10), batch_size)


def networks() -> dict[str, nn.Module]:
    """Return what is stepped."""
    torch.manual_seed(0)
    gm = nce_fx.trace(MODELS["resnet20"](), (torch.zeros(2, 3, 32, 32),))
    quantized = nce_fx.quantize(gm, batches=[torch.randn(16, 3, 32, 32)])
    return {
        "ResNet-20, float": gm,
        "ResNet-20, 2 bits": quantized,
        "ResNet-20, 2 bits, no BatchNorm": without_norms(quantized),
    }


def without_norms(gm: torch.fx.GraphModule) -> nn.Module:
    """Return a graph whose BatchNorms only scale and shift."""
    for path, module in list(gm.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            gm.set_submodule(path, Scaled(module.num_features))
    return gm


class Scaled(nn.Module):
    """A factor and a shift for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale and shift."""
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def ours(model: nn.Module, engine: Engine) -> Step:
    """Return a step of this package's training."""
    run = prepare(model, Noise(), Recipe(batch_size=BATCH), None, engine, None, None)
    images, target = next(iter(Noise().loader("train", batch_size=BATCH, seed=0, epoch=0, shuffle=False)))
    batch = images[engine.rank :: engine.processes], target[engine.rank :: engine.processes]
    return lambda: train_step(run, batch, 0.001, 0, False)


def plain(model: nn.Module, engine: Engine) -> Callable[[], None]:
    """Return a step of a loop with DistributedDataParallel."""
    parallel = DistributedDataParallel(model.train())
    optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images, target = next(iter(Noise().loader("train", batch_size=BATCH, seed=0, epoch=0, shuffle=False)))
    x, y = images[engine.rank :: engine.processes], target[engine.rank :: engine.processes]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(parallel(x), y).backward()
        optimizer.step()

    return step


def memory(engine: Engine, optimizer: str) -> float:
    """Return the peak of a step's tensors in MiB, what lives between steps included."""
    gm = nce_fx.trace(MODELS["resnet18"](), (torch.zeros(2, 3, 64, 64),))
    model = nce_fx.quantize(gm, batches=[torch.randn(4, 3, 64, 64)])
    recipe = Recipe(batch_size=8 * engine.processes, optimizer=optimizer, learning_rate=0.001)  # type: ignore[arg-type]
    run = prepare(model, Noise(), recipe, None, engine, None, None)
    batch = torch.randn(8, 3, 64, 64), torch.arange(8)
    for _ in range(2):
        train_step(run, batch, 0.001, 0, False)
    run.optimizer.zero_grad(set_to_none=True)
    state = momenta(run.model, run.optimizer).values()
    lasting = sum(local(tensor).nbytes for tensor in (*run.model.parameters(), *run.model.buffers(), *state))
    return (lasting + rise(lambda: train_step(run, batch, 0.001, 0, False))) / MIB


def compare(steps: int) -> None:
    """Step all in turn and print the tables in the first process."""
    torch.set_num_threads(1)
    engine = start_engine()
    parts = replace(engine, shards=True)
    lines = ["| network | elapsed | processor | in shards, elapsed | processor |", "|---|--:|--:|--:|--:|"]
    for name, model in networks().items():
        all_three = [ours(model, engine), plain(copy_model(model), engine), ours(model, parts)]
        taken: list[list[tuple[float, float]]] = [[], [], []]
        with deterministic(engine.device):
            for index in range(steps + 3):
                for step, times in zip(all_three, taken, strict=True):
                    begin = time.perf_counter(), time.process_time()
                    step()
                    if index >= 3:
                        times.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        middle = [[median(time[kind] for time in times) for kind in (0, 1)] for times in taken]
        ratios = (middle[way][kind] / middle[1][kind] for way in (0, 2) for kind in (0, 1))
        lines.append(" | ".join([f"| {name}", *(f"{ratio:.2f}" for ratio in ratios)]) + " |")
    lines += ["", "| ResNet-18, 2 bits | whole, MiB | in shards, MiB |", "|---|--:|--:|"]
    for optimizer in ("sgd", "adamw"):
        found = [memory(each, optimizer) for each in (engine, parts)]
        lines.append(f"| {optimizer}, {engine.processes} processes | {found[0]:.0f} | {found[1]:.0f} |")
    if engine.is_main:
        print("\n".join(lines))


def main() -> None:
    """Start the processes, or be one of them."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--processes", type=int, default=2)
    asked = options.parse_args()
    if "LOCAL_RANK" in os.environ:
        compare(asked.steps)
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(asked.processes)]
    subprocess.run([*torchrun, "-m", "benchmarks.processes", "--steps", str(asked.steps)], check=True)


if __name__ == "__main__":
    main()
