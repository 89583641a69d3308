"""What a training step costs in several processes, beside PyTorch's own DistributedDataParallel.

    python -m benchmarks.processes [--steps 20] [--processes 2]      of one thread each, on CPUs; writes the table

Networks are stepped in turn by `nce_fx.training` and by plain loops: forward pass, cross entropy, backward pass under
DistributedDataParallel as it comes, SGD. With BatchNorm ours takes the statistics of the whole batch, as one process
would. One plain loop trains the same network: its BatchNorm takes them too, written with PyTorch's differentiable
``all_reduce``, since PyTorch's SyncBatchNorm refuses tensors of a CPU. The other one leaves each process its own
statistics, which is another network: it computes less, and two processes do not give the losses of one.

A figure is the median over the rounds of (ours / other) in one round, with the quartiles of the processor's seconds,
which other programs on the machine stretch less than those of the clock. "In shards": each process trains a part of the
weights (FSDP2). Memory: the peak over a step of all tensors of a process, ResNet-18 and 8 images of 64x64 in each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import nce_fx
from benchmarks import pages
from benchmarks.steps.training_step import MIB, Step, ratios, rise
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
NETWORKS = ("ResNet-20, float", "ResNet-20, 2 bits", "ResNet-20, 2 bits, no BatchNorm")
OWN, WHOLE = "plain", "plain, whole batch"
"""The two loops that stand beside."""
COLUMNS = (
    (f"ours, {WHOLE}", "processor"),
    (f"ours, {WHOLE}", "elapsed"),
    (f"ours, {OWN}", "processor"),
    (f"ours, {OWN}", "elapsed"),
    (f"shards, {OWN}", "processor"),
)
PAGE = pages.DOCS / "training.md"
RESULTS = pages.RESULTS / "processes.json"


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
    return dict(zip(NETWORKS, (gm, quantized, without_norms(copy_model(quantized))), strict=True))


def without_norms(gm: torch.fx.GraphModule) -> torch.fx.GraphModule:
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


class WholeBatchNorm(nn.BatchNorm2d):
    """BatchNorm as textbooks have it: means of x and of x squared, over the batches of all processes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize."""
        size = input.new_full((1,), input.numel() / input.shape[1])
        sums = torch.cat([input.sum((0, 2, 3)), input.square().sum((0, 2, 3)), size])
        total, squares, n = torch.split(all_reduce(sums), [self.num_features, self.num_features, 1])
        mean = total / n
        variance = squares / n - mean.square()
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return input * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


def with_whole_batch(model: nn.Module) -> nn.Module:
    """Give the BatchNorms of a model the statistics of all processes, in place."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = WholeBatchNorm
    return model


def plain(model: nn.Module, engine: Engine) -> Step:
    """Return a step of a loop with DistributedDataParallel."""
    parallel = DistributedDataParallel(model.train())
    optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images, target = next(iter(Noise().loader("train", batch_size=BATCH, seed=0, epoch=0, shuffle=False)))
    x, y = images[engine.rank :: engine.processes], target[engine.rank :: engine.processes]

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(parallel(x), y)
        torch.autograd.backward(loss)
        optimizer.step()
        return float(loss.detach())

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


def timed(steps: Mapping[str, Step], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every step of every candidate, ``{"ours": {"elapsed": [...], "processor": [...]}}``, in turns."""
    taken: dict[str, dict[str, list[float]]] = {name: {"elapsed": [], "processor": []} for name in steps}
    for turn in range(-3, rounds):
        for name, step in steps.items():
            begin = time.perf_counter(), time.process_time()
            step()
            if turn >= 0:
                taken[name]["elapsed"].append(time.perf_counter() - begin[0])
                taken[name]["processor"].append(time.process_time() - begin[1])
    return taken


def compare(rounds: int, names: Sequence[str]) -> None:
    """Step all in turn; the first process writes the table after each network."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "torch.distributed.nn", FutureWarning)  # the public form of what is to come
    engine = start_engine()
    parts = replace(engine, shards=True)
    results = pages.load(RESULTS)
    for name in names:
        model = networks()[name]
        steps = {"ours": ours(model, engine), OWN: plain(copy_model(model), engine), "shards": ours(model, parts)}
        if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            steps[WHOLE] = plain(with_whole_batch(copy_model(model)), engine)
        with deterministic(engine.device):
            taken = timed(steps, rounds)
        results[name] = {"processes": engine.processes, "rounds": rounds}
        for who, other in (("ours", OWN), ("ours", WHOLE), ("shards", OWN)):
            if other in taken:
                found = {kind: ratios({who: taken[who][kind], other: own}, other) for kind, own in taken[other].items()}
                results[name][f"{who}, {other}"] = {kind: each[who] for kind, each in found.items()}
        if engine.is_main:
            pages.save(RESULTS, results)
            write_page()
    peaks = {}
    for optimizer in ("sgd", "adamw") if set(names) == set(NETWORKS) else ():
        peaks[optimizer] = [round(memory(each, optimizer)) for each in (engine, parts)]
        if engine.is_main:
            print(f"ResNet-18, 2 bits, {optimizer}: {peaks[optimizer]} MiB, whole and in shards")


def write_page() -> None:
    """Put the ratios into the page, and print them."""
    lines = [
        "| network | beside the same network, processor | elapsed | beside statistics of each process, processor"
        " | elapsed | in shards, processor |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, row in pages.load(RESULTS).items():
        cells = [name]
        for pair, kind in COLUMNS:
            if pair not in row and pair.endswith(WHOLE):
                pair = f"ours, {OWN}"  # without BatchNorm the two are one
            found = row[pair][kind]
            spread = f" ({found['lower_quartile']:.2f} to {found['upper_quartile']:.2f})" if kind == "processor" else ""
            cells.append(f"{found['ratio']:.2f}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    pages.put(PAGE, "processes table", lines)
    print("\n".join(lines))


def main() -> None:
    """Start the processes, or be one of them."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    asked = options.parse_args()
    if "LOCAL_RANK" in os.environ:
        compare(asked.steps, asked.networks)
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(asked.processes)]
    given = ["--steps", str(asked.steps), "--networks", *asked.networks]
    subprocess.run([*torchrun, "-m", "benchmarks.processes", *given], check=True)


if __name__ == "__main__":
    main()
