"""What a training step costs in two processes, beside PyTorch's own DistributedDataParallel of the same network.

    python -m benchmarks.processes [--steps 20]      prints a table; two processes of one thread each, on CPUs

Networks are stepped in turn by `nce_fx.training` and by a plain loop: forward pass, cross entropy, backward pass under
DistributedDataParallel as it comes, SGD. With BatchNorm ours takes the statistics of the whole batch, as one process
would, and the plain loop each process's own: PyTorch's SyncBatchNorm is for GPUs. So there is a row without BatchNorm.
Processor seconds are what other programs on the machine do not stretch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import nce_fx
from nce_fx.models import MODELS
from nce_fx.processes import Engine, start_engine
from nce_fx.training import Recipe
from nce_fx.training.determinism import deterministic
from nce_fx.training.loop import train_step
from nce_fx.training.run import prepare

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


def ours(model: nn.Module, engine: Engine) -> Callable[[], None]:
    """Return a step of this package's training."""
    run = prepare(model, Noise(), Recipe(batch_size=BATCH), None, engine, None, None)
    images, target = next(iter(Noise().loader("train", batch_size=BATCH, seed=0, epoch=0, shuffle=False)))
    batch = images[engine.rank :: engine.processes], target[engine.rank :: engine.processes]
    return lambda: train_step(run, batch, 0.001, 0, False) and None


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


def compare(steps: int) -> None:
    """Step all in turn and print the table in the first process."""
    torch.set_num_threads(1)
    engine = start_engine()
    lines = ["| network | elapsed | processor |", "|---|--:|--:|"]
    for name, model in networks().items():
        both = [ours(model, engine), plain(model, engine)]
        taken: list[list[tuple[float, float]]] = [[], []]
        with deterministic(engine.device):
            for index in range(steps + 3):
                for step, times in zip(both, taken, strict=True):
                    begin = time.perf_counter(), time.process_time()
                    step()
                    if index >= 3:
                        times.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        ratios = [median(t[kind] for t in taken[0]) / median(t[kind] for t in taken[1]) for kind in (0, 1)]
        lines.append(f"| {name} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    if engine.is_main:
        print("\n".join(lines))


def main() -> None:
    """Start two processes, or be one of them."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=20)
    steps = options.parse_args().steps
    if "LOCAL_RANK" in os.environ:
        compare(steps)
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, "-m", "benchmarks.processes", "--steps", str(steps)], check=True)


if __name__ == "__main__":
    main()
