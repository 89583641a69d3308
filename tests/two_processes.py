"""What `test_training_processes.py` runs: ``torchrun --nproc-per-node 2 -m tests.two_processes DIR``.

With ``trained`` behind it only what is trained, by any number of processes; with ``compiled`` what is compiled.
"""

import copy
import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import nce_fx
from nce_fx.cli import app
from nce_fx.errors import TrainingError
from nce_fx.passes.analysis.sensitivity import METRICS
from nce_fx.processes import start_engine
from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from nce_fx.tensor_file import digest
from nce_fx.training import Recipe, evaluate, train
from nce_fx.training.checkpoint import latest_checkpoint
from tests import search_runs
from tests.training_runs import Blobs, FunctionalNorm, InOrder, Synchronizing, net

RECIPE = Recipe(epochs=3, batch_size=32, clip_gradient=5.0)


class QuantizedConv(nn.Conv2d):
    """A convolution with its two quantizers, 2 bits each."""

    def __init__(self, kinds: tuple[str, str], inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)
        self.weight_quant = WEIGHT_QUANTIZERS[kinds[0]](2)
        self.weight_quant.start(self.weight)
        self.activation_quant = ACTIVATION_QUANTIZERS[kinds[1]](2)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = self.weight_quant(self.weight)
        return nn.functional.conv2d(self.activation_quant(input), weight, self.bias)


def quantized(kinds: tuple[str, str]) -> nn.Module:
    """A 2-bit net in float64: there no sum over processes rounds to another level."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [QuantizedConv(kinds, 1, 8), nn.BatchNorm2d(8), nn.ReLU(), QuantizedConv(kinds, 8, 8)]
    return nn.Sequential(*layers, FunctionalNorm(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)).double()


class Unplugged(Blobs):
    """Fails when the third epoch begins, in every process."""

    class Error(Exception):
        """Of this data alone."""

    def loader(self, split: str, *, batch_size: int, seed: int, epoch: int, shuffle: bool) -> DataLoader[Any]:
        if epoch == 2:
            raise self.Error
        return super().loader(split, batch_size=batch_size, seed=seed, epoch=epoch, shuffle=shuffle)


def runs(directory: Path) -> dict[str, Any]:
    """Train the same as one process does, and say what came of it. The last batch of an epoch has an odd size."""
    data, exact = Blobs(train=105), Blobs(train=105)
    exact.to_double()
    result = train(net(dropout=0.0), data, RECIPE, teacher=net(1), directory=directory / "float")
    for kinds in (("sawb", "pact"), ("lsq", "lsq")):
        train(quantized(kinds), exact, RECIPE, directory=directory / kinds[0])
    # No norm: statistics would be those of a part.
    train(net(dropout=0.0, norm=False), data, replace(RECIPE, accumulate=3), directory=directory / "accumulated")
    teacher, student = residual(exact)
    again = replace(SHARDED, checkpoint_activations=True)
    train(student, exact, again, teacher=teacher, directory=directory / "again")
    return {
        "accuracy": result.accuracy,
        "weights": digest(result.model.state_dict()),
        "evaluated": evaluate(result.model, data, 7),
        # The last batch has one sample, and one process none.
        "in order": evaluate(result.model, data, 4, metric=InOrder()),
        "synchronized": evaluate(result.model, data, 4, metric=Synchronizing()),
        "of one sample": evaluate(result.model, Blobs(test=1), metric="mean_iou"),
    }


def sensitivities() -> dict[str, Any]:
    """Every metric's scores over seven batches, the last one smaller; and how many steps this process took for them."""
    data = Blobs(train=100)
    batches = list(data.loader("train", batch_size=15, seed=0, epoch=0, shuffle=True))
    gm = nce_fx.trace(net(dropout=0.0).eval(), (batches[0][0],))
    found: dict[str, Any] = {"steps": {}}
    for metric in METRICS:
        done: list[int] = []
        report = nce_fx.analyze_sensitivity(gm, batches, metric, progress=lambda at, total, d=done: d.append(total))  # type: ignore[misc]
        found[metric] = {name: [node.weight, node.activation] for name, node in report.by_node.items()}
        found["steps"][metric] = len(done)
        assert set(done) == {len(done)}
    return found


class Residual(nn.Module):
    """What a cut must mind: weights of two readers, writes in place, and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.block, self.act, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(128, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.act(self.norm(self.stem(x)))
        for _ in range(2):
            x += self.block(x).relu()
        return self.head(x.flatten(1))


SHARDED = replace(
    RECIPE, freeze=1e-3, clip_gradient=1.0, distill_features=5.0, dampen=1e-3, average=0.9, reestimate=2, float_epochs=1
)
SHARDS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def residual(data: Blobs) -> tuple[GraphModule, GraphModule]:
    """A network in float and at 2 bits, in float64."""
    torch.manual_seed(0)
    gm = nce_fx.trace(Residual().double().eval(), (torch.zeros(2, 1, 6, 6, dtype=torch.float64),))
    return gm, nce_fx.quantize(gm, batches=list(data.loader("train", batch_size=32, seed=0, epoch=0, shuffle=True)))


def sharded(directory: Path) -> dict[str, str]:
    """Train what several processes hold in parts: a graph with all that goes with it, and a module with AdamW."""
    exact = Blobs(train=105)
    exact.to_double()
    teacher, student = residual(exact)
    one = train(student, exact, SHARDED, teacher=teacher, directory=directory / "shards")
    parts = replace(RECIPE, accumulate=3, optimizer="adamw", learning_rate=0.003)
    other = train(net(dropout=0.0, norm=False), Blobs(train=105), parts, directory=directory / "module-shards")
    again = replace(SHARDED, checkpoint_activations=True)
    train(student, exact, again, teacher=teacher, directory=directory / "shards-again")
    half, data = replace(RECIPE, precision="fp16", accumulate=2), Blobs(train=105)
    gm = nce_fx.trace(net(dropout=0.0, norm=False).eval(), (torch.zeros(2, 1, 6, 6),))
    os.environ["FSDP_ACTIVATION_CHECKPOINTING"] = "true"
    train(gm, data, half, directory=directory / "shards-fp16")
    del os.environ["FSDP_ACTIVATION_CHECKPOINTING"]
    return {"graph": digest(one.model.state_dict()), "module": digest(other.model.state_dict())}


def sharded_and_cut(directory: Path) -> str:
    """The weights of the first run of ``sharded``, cut and resumed as in `resumed`; a copy waits where it stopped."""
    exact, unplugged = Blobs(train=105), Unplugged(train=105)
    exact.to_double()
    unplugged.to_double()
    teacher, student = residual(exact)
    cut = directory / "shards-cut"
    with suppress(Unplugged.Error):
        train(student, unplugged, SHARDED, teacher=teacher, directory=cut, checkpoint_seconds=0)
    if start_engine().is_main:
        shutil.copytree(cut, directory / "shards-waiting")
    return digest(train(student, exact, SHARDED, teacher=teacher, directory=cut).model.state_dict())


def compiled(directory: Path) -> dict[str, Any]:
    """Train compiled networks: whole, in parts that are computed again, and a module whose last batch is smaller."""
    exact = Blobs(train=96)
    exact.to_double()
    teacher, student = residual(exact)
    recipe = replace(RECIPE, epochs=1, compile=True)
    again = replace(recipe, checkpoint_activations=True)
    train(student, exact, recipe, teacher=teacher, directory=directory / "compiled")
    train(net(dropout=0.0), Blobs(train=73), recipe, directory=directory / "compiled-module")
    os.environ.update(SHARDS)
    end = train(student, exact, again, teacher=teacher, directory=directory / "compiled-shards")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return {"weights": digest(end.model.state_dict()), "graphs": graphs}


def resumed(directory: Path) -> str:
    """The weights of the first run of ``runs``, stopped in the third epoch and resumed."""
    model = net(dropout=0.0)
    with suppress(Unplugged.Error):
        train(model, Unplugged(train=105), RECIPE, teacher=net(1), directory=directory / "cut", checkpoint_seconds=0)
    kept = latest_checkpoint(directory / "cut")
    assert kept is not None
    assert kept.steps == 8
    end = train(model, Blobs(train=105), RECIPE, teacher=net(1), directory=directory / "cut")
    return digest(end.model.state_dict())


def refusals() -> list[str]:
    """What is said where processes start with different weights, and where a batch is too small for them."""
    said = []
    other = copy.deepcopy(net())
    with torch.no_grad():
        next(other.parameters()).add_(start_engine().rank)
    for model, data in ((other, Blobs()), (net(), Blobs(train=33))):
        try:
            train(model, data, RECIPE)
        except TrainingError as error:
            said.append(str(error))
    return said


ANALYZE = ("analyze", "resnet8", "--data", "digits", "--json")


def analyzed() -> dict[str, Any]:
    """What the command line says of a network; of several processes the first one speaks."""
    done = CliRunner().invoke(app, ANALYZE)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout or "{}")  # type: ignore[no-any-return]


def main() -> None:
    """Run everything; each process writes what it found."""
    torch.set_num_threads(1)
    directory = Path(sys.argv[1])
    engine = start_engine()
    if sys.argv[2:] == ["compiled"]:
        found: dict[str, Any] = compiled(directory)
        (directory / f"process-{engine.rank}.json").write_text(json.dumps(found))
        return
    whole = sys.argv[2:] != ["trained"]
    found = runs(directory) | {"processes": engine.processes}
    if whole:
        found |= {"resumed": resumed(directory), "sensitivities": sensitivities(), "analyzed": analyzed()}
        search_runs.run(directory / "search", nce_fx.QuantSpec())
    os.environ.update(SHARDS)
    found |= {"sharded": sharded(directory)}
    if whole:
        found |= {"shards resumed": sharded_and_cut(directory)}
    for name in SHARDS:
        del os.environ[name]
    if whole:
        found |= {"refusals": refusals()}
    (directory / f"process-{engine.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
