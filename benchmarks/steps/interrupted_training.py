"""Kill 2-bit training with SIGKILL at random moments, go on each time, and compare with a run that was never killed.

    python -m benchmarks.interrupted_training --kills 20

Every kill hits a run that is under way, before its first step or later. Exits 0 where the weights, the momenta, the
running statistics and every logged loss are equal, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.fx import GraphModule

import nce_fx
from nce_fx.data import Data, load_data
from nce_fx.models import MODELS
from nce_fx.tensor_file import digest
from nce_fx.training import Recipe, train
from nce_fx.training.checkpoint import latest_checkpoint


def networks(data: Data, model: str) -> tuple[GraphModule, GraphModule]:
    """Return a 2-bit network and its float teacher."""
    torch.manual_seed(0)
    teacher = MODELS[model](num_classes=data.classes, in_channels=data.input_shape[0])
    traced = nce_fx.trace(teacher, (torch.zeros(1, *data.input_shape),))
    return nce_fx.quantize(traced, nce_fx.QuantSpec(), batches=data.batches(1)), traced


def train_once(directory: Path, data: Data, pair: tuple[GraphModule, GraphModule], epochs: int) -> None:
    """Train, or go on, with a checkpoint every few steps."""
    recipe = Recipe(epochs=epochs, batch_size=64)
    train(pair[0], data, recipe, teacher=pair[1], directory=directory, checkpoint_seconds=0.05)


def in_a_process(work: Callable[[], None]) -> int:
    """Start work in a process of its own and return its id; forked, so that nothing is imported again."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


def steps_of(directory: Path) -> int:
    """Return how far a run has come by its last checkpoint."""
    found = latest_checkpoint(directory)
    return found.steps if found is not None else 0


def finish(child: int) -> None:
    """Wait for a process that must succeed."""
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit("a run that was not killed failed")


def main() -> None:
    """Run both and compare."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--epochs", type=int, default=30)
    options.add_argument("--model", default="resnet8")
    options.add_argument("--seed", type=int, default=0, help="of the moments")
    given = options.parse_args()
    torch.set_num_threads(1)
    data = load_data("digits", augment=True)
    pair = networks(data, given.model)
    torch.optim.SGD([torch.zeros(1)])  # The first optimizer imports the compiler, which takes longer than an epoch.
    moments = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        started = time.monotonic()
        finish(in_a_process(lambda: train_once(whole, data, pair, given.epochs)))
        seconds = time.monotonic() - started
        total = steps_of(whole)
        positions: list[int] = []
        for left in range(given.kills, 0, -1):
            rest = 1 - (positions[-1] if positions else 0) / total
            child = in_a_process(lambda: train_once(killed, data, pair, given.epochs))
            time.sleep(moments.uniform(0.0, 2.0 * rest * seconds / (left + 1)))
            if os.waitpid(child, os.WNOHANG)[0]:
                sys.exit(f"the run ended before kill {len(positions) + 1} of {given.kills}: give more --epochs")
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            positions.append(steps_of(killed))
        finish(in_a_process(lambda: train_once(killed, data, pair, given.epochs)))
        ends = [latest_checkpoint(run) for run in (whole, killed)]
        digests = [digest(end.tensors) if end is not None else "" for end in ends]
        logs = [(run / "steps.csv").read_bytes() for run in (whole, killed)]
    print(f"one run: {seconds:.1f} s; of {total} steps, after each of {given.kills} kills saved: {positions}")
    print(f"weights {digests[0][:16]} and {digests[1][:16]}; logs {'equal' if logs[0] == logs[1] else 'differ'}")
    sys.exit(0 if digests[0] == digests[1] and logs[0] == logs[1] else 1)


if __name__ == "__main__":
    main()
