"""What a network can cost is one row a quantity: a new one is in budgets, plans, searches, records, tables, options."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

import nce_fx
from nce_fx.errors import BudgetError, InputError
from nce_fx.models import MODELS
from nce_fx.quantities import OWN, Quantity, Sums, known_quantities
from nce_fx.report import tables
from nce_fx.report.records import CostRecord
from nce_fx.report.view import view_of
from nce_fx.search.expansion import first_candidates
from nce_fx.search.expected_cost import costs_of
from nce_fx.search.recipes import SearchRecipe
from nce_fx.sweep import sweep

LARGEST = Quantity(
    name="largest_layer",
    title="largest layer (MACs)",
    unit="count",
    cost=lambda model: Sums(model.work_macs, (1,) * len(model.work), sets=tuple((i,) for i in range(len(model.work)))),
)
"""A maximum: what a chip with one layer at a time must do at once."""
ENERGY = Quantity(
    name="energy",
    title="energy",
    unit="count",
    cost=lambda model: Sums(model.work_macs, tuple(term.bits + 10 for term in model.work)),
    search="computation",
)
"""A sum: bit operations and a fixed cost of each MAC."""


def example():
    return (torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


def net():
    torch.manual_seed(0)
    return MODELS["resnet8"]().eval()


def text(table):
    console = Console(width=200, file=StringIO())
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def rewritten():
    budget = nce_fx.Budget(energy=0.7, largest_layer=0.8, params=1.0)
    return nce_fx.rewrite(net(), example(), budget=budget, quantities=(ENERGY, LARGEST))


def by_hand(cost):
    layers = [node for node in cost.nodes.values() if node.macs]
    return sum(node.bit_ops + 10 * node.macs for node in layers), max(node.macs for node in layers)


def test_a_new_quantity_is_counted_planned_and_kept(rewritten):
    for record, gm in (
        (rewritten.report.original, rewritten.uniform),
        (rewritten.report.rewritten, rewritten.graph_module),
    ):
        assert (record.energy, record.largest_layer) == by_hand(nce_fx.analyze_cost(gm))
    before, after = rewritten.report.original, rewritten.report.rewritten
    assert 0.9 * 0.7 * before.energy < after.energy <= 0.7 * before.energy
    assert after.largest_layer <= 0.8 * before.largest_layer
    assert rewritten.plan.source["budget"] == {"energy": 0.7, "largest_layer": 0.8, "params": 1.0}
    assert rewritten.plan.source["cost"]["energy"] == after.energy
    assert rewritten.plan.source["gap"] < 0.2


def test_a_new_quantity_is_in_every_table(rewritten):
    shown = text(tables.cost_table(rewritten.report))
    assert "largest layer (MACs)" not in shown  # its title is the package's own, here nobody installed it
    assert "largest layer" in shown
    assert "energy" in shown
    assert f"{rewritten.report.rewritten.energy:,}" in shown
    view = view_of("net", rewritten.plan, rewritten.graph_module, original=rewritten.original, report=rewritten.report)
    assert {quantity.name for quantity in view.quantities} >= {"energy", "largest_layer", "activation_bytes"}
    read = CostRecord.model_validate(json.loads(rewritten.report.rewritten.model_dump_json()))
    assert read == rewritten.report.rewritten


def test_a_new_quantity_is_in_a_sweep_and_in_the_loss_of_a_search():
    from nce_fx.rewrite import analyze

    analyses = analyze(net(), example(), quantities=(ENERGY,))
    points = sweep(analyses, (0.8, 1.0)).points
    assert points[0].cost["energy"] < points[1].cost["energy"]
    assert "energy" in sweep(analyses, (0.8, 1.0)).to_csv().splitlines()[0].split(",")
    assert "peak activation bytes" in text(tables.sweep_table(points))
    candidates = first_candidates(analyses.channels, SearchRecipe()).candidates
    costs = costs_of(analyses.cost.model, candidates, nce_fx.Budget(energy=0.5, activation_bytes=0.5), SearchRecipe())
    assert [(one.name, one.weight) for one in costs.limited] == [("energy", SearchRecipe().lambda_flop)]
    widest = [len(widths) - 1 for widths in candidates.values()]
    assert costs.used(widest) == {"energy": pytest.approx(2.0)}


def test_budgets_are_values_and_name_what_there_is():
    budget = nce_fx.Budget(macs="0.5x", params=None, bit_ops="none")
    assert budget == nce_fx.Budget(macs=0.5)
    assert hash(budget) == hash(nce_fx.Budget(macs=0.5))
    assert repr(budget) == "Budget(macs=0.5)"
    assert (budget.macs, budget.params) == (0.5, None)
    with pytest.raises(AttributeError, match="no quantity"):
        budget.nothing  # noqa: B018
    with pytest.raises(BudgetError, match="energy is in no row"):
        nce_fx.rewrite(net(), example(), budget=nce_fx.Budget(energy=1.0))
    with pytest.raises(BudgetError, match="custom needs a hardware table"):
        nce_fx.rewrite(net(), example(), budget=nce_fx.Budget(custom=1.0))
    assert nce_fx.Budget.default().given == {row.name: 1.0 for row in OWN if row.default}
    with pytest.raises(InputError, match="two quantities are called macs"):
        known_quantities([Quantity(name="macs", title="", unit="count", cost=lambda model: None)])
    with pytest.raises(InputError, match="is no quantity"):
        known_quantities([nn.Identity()])  # type: ignore[list-item]
