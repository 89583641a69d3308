"""Nothing changes what it is given: models, graphs, batches and plans are byte for byte what they were."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import nce_fx
from nce_fx.passes.planning import Budget
from nce_fx.passes.transform.fold import FoldBatchNorm
from nce_fx.passes.transform.quantize import QuantSpec, RemoveQuantizers, calibrate, describe
from nce_fx.passes.transform.widths import InsertWidthChoices, channel_order
from nce_fx.search import SearchRecipe, search
from nce_fx.training import Recipe, evaluate, train
from tests.photograph import photograph, surroundings
from tests.search_runs import quarters


class Net(nn.Module):
    """Convolutions, one of them shared, BatchNorms of which one is frozen, dropout, a buffer of no state."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 4)
        self.register_buffer("order", torch.randperm(8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.inner_norm(self.inner(x)).relu_()
        x = self.inner(x)[:, self.order]
        return self.head(self.drop(x.mean((2, 3))))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Given:
    """All that a function may be given."""

    model: nn.Module
    gm: GraphModule
    quantized: GraphModule
    inputs: tuple[torch.Tensor, ...]
    batches: list[tuple[torch.Tensor, torch.Tensor]]
    channels: nce_fx.ChannelGraph
    cost: nce_fx.CostReport
    sensitivity: nce_fx.SensitivityReport
    plan: nce_fx.WidthPlan
    widths: dict[str, int]
    spec: QuantSpec
    budget: Budget
    folder: Path


def given(training: bool, folder: Path) -> Given:
    torch.manual_seed(0)
    model = Net().train(training)
    model.norm.eval()
    model.head.bias.requires_grad_(False)
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    inputs = (torch.randn(2, 1, 6, 6),)
    batches = [(torch.randn(8, 1, 6, 6), torch.randint(0, 4, (8,))) for _ in range(2)]
    gm, spec, budget = nce_fx.trace(model, inputs), QuantSpec(), Budget(macs=1.0, params=1.0)
    channels, cost = nce_fx.analyze_channels(gm), nce_fx.analyze_cost(gm)
    sensitivity = nce_fx.analyze_sensitivity(gm, batches)
    plan = nce_fx.plan_widths(channels, cost, sensitivity, budget)
    widths = {group.id: group.width + group.step for group in channels.groups if group.pinned is None}
    quantized = nce_fx.quantize(gm, spec, batches)
    nce_fx.save(quantized, folder / "saved")
    return Given(
        model, gm, quantized, inputs, batches, channels, cost, sensitivity, plan, widths, spec, budget, folder / "saved"
    )


def _resized_too(g: Given) -> GraphModule:
    return nce_fx.resize(nce_fx.resize(g.gm, g.plan), {})


def _searched(g: Given) -> object:
    recipe = SearchRecipe(epochs=2, warmup_epochs=1, batch_size=48)
    return search(g.gm, quarters(), recipe, budget=Budget(macs=1.0), spec=g.spec)


def _choices(g: Given) -> object:
    choices = {group.id: (group.width // 2, group.width) for group in g.channels.groups if group.pinned is None}
    return InsertWidthChoices(choices, channel_order(g.gm))(g.gm)


CALLS: dict[str, Callable[[Given], object]] = {
    "trace": lambda g: nce_fx.trace(g.model, g.inputs),
    "trace of a graph": lambda g: nce_fx.trace(g.gm, (torch.zeros(2, 1, 12, 12),)),
    "analyze_channels": lambda g: nce_fx.analyze_channels(g.gm),
    "analyze_cost": lambda g: nce_fx.analyze_cost(g.gm, g.channels),
    "analyze_sensitivity": lambda g: nce_fx.analyze_sensitivity(g.gm, g.batches, channels=g.channels),
    "analyze_sensitivity, fisher": lambda g: nce_fx.analyze_sensitivity(g.gm, g.batches, "fisher"),
    "analyze_sensitivity, hessian": lambda g: nce_fx.analyze_sensitivity(g.gm, g.batches, "hessian"),
    "analyze_sensitivity, kl": lambda g: nce_fx.analyze_sensitivity(g.gm, g.batches, "kl"),
    "analyze_sensitivity, sqnr": lambda g: nce_fx.analyze_sensitivity(g.gm),
    "plan_widths": lambda g: nce_fx.plan_widths(g.channels, g.cost, g.sensitivity, g.budget),
    "resize": _resized_too,
    "resize to widths": lambda g: nce_fx.resize(g.gm, g.widths),
    "quantize": lambda g: nce_fx.quantize(g.gm, g.spec, g.batches),
    "calibrate": lambda g: calibrate(g.quantized, g.batches),
    "describe": lambda g: describe(g.quantized),
    "fold": lambda g: FoldBatchNorm()(g.gm),
    "remove quantizers": lambda g: RemoveQuantizers()(g.quantized),
    "insert width choices": _choices,
    "rewrite": lambda g: nce_fx.rewrite(g.model, g.inputs, batches=g.batches, spec=g.spec, budget=g.budget),
    "search": _searched,
    "train": lambda g: train(g.quantized, quarters(), Recipe(epochs=1, batch_size=96), teacher=g.gm),
    "evaluate": lambda g: evaluate(g.quantized, quarters()),
    "export_onnx": lambda g: nce_fx.export_onnx(g.quantized, g.folder / "model.onnx"),
    "integer_weights": lambda g: nce_fx.integer_weights(g.quantized),
    "save": lambda g: nce_fx.save(g.quantized, g.folder.parent / "again", force=True),
    "load": lambda g: nce_fx.load(g.folder, g.model),
    "to_networkx": lambda g: nce_fx.to_networkx(g.gm, g.channels, g.cost),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.long
def test_nothing_that_is_given_is_changed(training: bool, tmp_path: Path) -> None:
    """In one process after the other, on the same values: each finds them as the first one did."""
    values = given(training, tmp_path)
    before, around = photograph(values), surroundings()
    changed = []
    for name, call in CALLS.items():
        call(values)
        if photograph(values) != before or surroundings() != around:
            changed.append(name)
            before, around = photograph(values), surroundings()
    assert not changed


def test_every_public_function_is_asked() -> None:
    public = {name for name in nce_fx.__all__ if inspect.isfunction(getattr(nce_fx, name))}
    assert public - {"channel_rule"} <= {name.partition(",")[0] for name in CALLS}
