"""Do no harm: plans are tried beside the widths as they are, on training data, within a share of the retraining."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import nce_fx
from nce_fx import artifacts
from nce_fx.candidates import EVEN, UNIFORM
from nce_fx.cli import app
from nce_fx.data import load_data
from nce_fx.data.data_split import held_out
from nce_fx.errors import BudgetError, InputError
from nce_fx.models import MODELS
from nce_fx.training import Recipe
from nce_fx.trial import REGIONS, Trial

RECIPE = Recipe(epochs=52, float_epochs=26, batch_size=200)
EXAMPLE = (torch.zeros(2, 1, 8, 8),)


@pytest.fixture(scope="module")
def data() -> Any:
    return load_data("digits")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return MODELS["resnet8"](num_classes=10, in_channels=1, width=4).eval()


@pytest.fixture
def trained(monkeypatch) -> list[tuple[int, int, Any]]:
    """What trials train: (parameters, samples, recipe); the loss that each is said to have ended with is its turn's."""
    calls: list[tuple[int, int, Any]] = []

    def train(network: Any, part: Any, recipe: Recipe, **options: Any) -> Any:
        calls.append((sum(p.numel() for p in network.parameters()), part, recipe))
        return type("Result", (), {"score": LOSSES[len(calls) - 1]})

    monkeypatch.setattr("nce_fx.trial.train", train)
    return calls


LOSSES: list[float] = []


def rewritten(model: nn.Module, data: Any, losses: list[float], **options: Any) -> Any:
    LOSSES[:] = losses
    return nce_fx.rewrite(model, EXAMPLE, batches=data.batches(1, 64), **options)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_best_on_held_out_data_is_returned_and_the_report_says_what_was_tried(model, data, trained, best):
    losses = [1.0, 1.0, 1.0, 1.0]
    losses[best] = 0.5
    result = rewritten(model, data, losses, trial=Trial(data, RECIPE))
    tried = result.report.trial
    assert tried is not None
    assert [row.candidate for row in tried.rows][:2] == [UNIFORM, "0.25x to 2x"]
    assert tried.chosen == tried.rows[best].candidate
    ratios = [group.after / group.before for group in result.report.groups if group.before]
    if best == 0:
        assert not result.plan.changed
        assert result.plan.source["kept"]
        assert result.report.rewritten == result.report.original
        assert result.plan.predicted_noise == 1.0
    else:
        assert result.plan.changed
        least, most = [(0.25, 2.0), *REGIONS][best - 1]
        assert least <= min(ratios) <= max(ratios) <= most
    x = torch.randn(3, 1, 8, 8)
    again = nce_fx.quantize(nce_fx.resize(result.original, result.plan.widths), nce_fx.QuantSpec())
    assert result.graph_module(x).shape == again(x).shape
    assert {name: p.shape for name, p in result.graph_module.named_parameters()} == {
        name: p.shape for name, p in again.named_parameters()
    }


@pytest.mark.parametrize("best", [0, 1])
def test_what_widths_as_they_are_cannot_keep_is_tried_against_one_factor_for_all(model, data, trained, best):
    losses, budget = [1.0] * 4, nce_fx.Budget(macs=0.5, params=0.5, bit_ops=0.5)
    losses[best] = 0.5
    result = rewritten(model, data, losses, trial=Trial(data, RECIPE), budget=budget)
    tried, plan = result.report.trial, result.plan
    assert [row.candidate for row in tried.rows][:2] == [EVEN, "0.25x to 2x"]
    assert tried.chosen == tried.rows[best].candidate
    spent, before = result.report.rewritten.cost, result.report.original.cost
    assert all(spent[name] <= 0.5 * before[name] for name in ("macs", "params", "bit_ops"))
    even = plan.source["even"]
    ratios = [even[group] / width for group, width in plan.original.items() if even[group] != width]
    assert min(ratios) >= 0.5
    assert max(ratios) <= 0.75
    assert (dict(plan.widths) == dict(even)) == (best == 0)
    if best == 0:
        assert plan.source["kept"]
        assert plan.predicted_noise is not None
        assert 1.0 < plan.predicted_noise < 2.0


def test_a_budget_that_only_other_ends_keep_has_no_rival(model, data, trained):
    """0.12 of the bit operations: more than the narrowest network with ends of 8 bits costs, and less than with 2."""
    budget = nce_fx.Budget(bit_ops=0.12)
    with pytest.raises(BudgetError, match="cannot be met"):
        rewritten(model, data, [], budget=budget)
    result = rewritten(model, data, [], budget=budget, end_bits="plan", trial=Trial(data, RECIPE))
    assert result.report.untried == "they cost more than the budget"
    assert "even" not in result.plan.source
    assert result.report.rewritten.cost["bit_ops"] <= 0.12 * result.report.original.cost["bit_ops"]


def test_the_last_table_has_the_rival_of_the_same_budget_and_retraining_makes_it_again(tmp_path):
    given = ["resnet8", "--model-args", '{"width": 4}', "--data", "digits", "--max-macs", "0.5x", "--no-trial"]
    out = tmp_path / "out"
    assert CliRunner().invoke(app, ["rewrite", *given, "--retrain", "1", "--out", str(out), "--quiet"]).exit_code == 0
    first = artifacts.read_manifest(out).comparison
    assert first is not None
    names = [row.network for row in first.rows]
    assert names == ["float", "uniform 2-bit", "evenly narrowed 2-bit", "NCE 2-bit"]
    macs = {row.network: row.cost["macs"] for row in first.rows}
    assert macs["NCE 2-bit"] <= macs["uniform 2-bit"] / 2
    assert 0.8 * macs["NCE 2-bit"] < macs["evenly narrowed 2-bit"] <= macs["uniform 2-bit"] / 2
    later = tmp_path / "later"
    assert CliRunner().invoke(app, ["rewrite", *given, "--out", str(later), "--quiet"]).exit_code == 0
    asked = ["retrain", str(later), "--data", "digits", "--epochs", "1", "--quiet"]
    assert CliRunner().invoke(app, asked).exit_code == 0
    again = artifacts.read_manifest(later).comparison
    assert again is not None
    # The plan is that of weights which nothing trained; one factor for all is the same.
    assert [(row.network, row.cost) for row in again.rows[:3]] == [(row.network, row.cost) for row in first.rows[:3]]
    assert again.rows[3].network == "NCE 2-bit"


def test_equals_keep_the_widths_as_they_are(model, data, trained):
    assert rewritten(model, data, [1.0] * 4, trial=Trial(data, RECIPE)).report.trial.chosen == UNIFORM


def test_trials_stay_within_their_share_and_off_the_test_data(model, data, trained):
    report = rewritten(model, data, [1.0] * 4, trial=Trial(data, RECIPE)).report
    whole, seen = len(data.train), 0
    for _, part, recipe in trained:
        assert recipe.float_epochs == recipe.epochs // 2
        seen += recipe.epochs * len(part.train)
        assert len(part.test) == report.trial.held_out
        assert len(part.train) + len(part.test) == whole
    assert len(trained) == len(report.trial.rows) >= 3
    assert seen <= 0.25 * RECIPE.epochs * whole
    # What decides is training data that the trial did not train on.
    parts: Any = held_out(data, 0.2, 0)
    rows = [{tuple(image.flatten().tolist()) for image in part.train.__getitems__(range(len(part.train)))[0]}
            for part in parts]  # fmt: skip
    assert len(rows[0] | rows[1]) == len(rows[0]) + len(rows[1])
    every = {tuple(image.flatten().tolist()) for image in data.train.__getitems__(range(whole))[0]}
    assert rows[0] | rows[1] == every


@pytest.mark.parametrize("best", [0, 1, 3, 4])
def test_how_many_epochs_are_in_float_is_chosen_for_each_candidate(model, data, trained, best):
    losses = [1.0] * 8
    losses[best] = 0.5
    recipe = replace(RECIPE, epochs=104, float_epochs=26)
    tried: Any = rewritten(model, data, losses, trial=Trial(data, recipe, choose_float=True)).report.trial
    plan, nearer = "0.25x to 2x", "0.67x to 1.5x"
    wanted = [(UNIFORM, 0), (plan, 26), (nearer, 26), (UNIFORM, 26), (plan, 0), (nearer, 0)]
    assert [(row.candidate, row.retrain_float_epochs) for row in tried.rows][: len(wanted)] == wanted
    assert (tried.chosen, tried.float_epochs) == wanted[best]
    # A trial is the retraining in short: a quarter of it in float too, one epoch at least.
    assert [row.float_epochs for row in tried.rows] == [call.float_epochs for *_, call in trained]
    assert {row.float_epochs for row in tried.rows} == {0, max(1, round(tried.epochs / 4))}
    assert sum(call.epochs for *_, call in trained) * 0.8 <= 0.25 * 104


def test_where_nothing_can_be_tried_the_report_says_why(model, data, trained):
    def said(**options: Any) -> str:
        return str(rewritten(model, data, [], **options).report.untried)

    assert said() == "no training data and recipe to try it with"
    assert said(trial=Trial(data, replace(RECIPE, epochs=6, float_epochs=3))) == (
        "0.25 of 6 epochs is too little to try plans in"
    )
    loaders = replace(data, train=[data.train.__getitems__(range(9))], augmented=None)
    assert said(trial=Trial(loaders, RECIPE)) == "the training split of digits cannot be parted"
    assert not trained
    with pytest.raises(InputError, match="trial: a share of 0 of the retraining"):
        Trial(data, RECIPE, share=0)


def test_fewer_epochs_try_fewer_plans(data):
    allowed = {epochs: len(Trial(data, Recipe(epochs=epochs)).turns) for epochs in (25, 26, 39, 52, 100)}
    assert allowed == {25: 0, 26: 2, 39: 3, 52: 4, 100: 4}
    both = {epochs: len(Trial(data, Recipe(epochs=epochs), choose_float=True).turns) for epochs in (25, 52, 103)}
    assert both == {25: 0, 52: 4, 103: 8}
    for epochs, most in allowed.items():
        if most:
            assert most * Trial(data, Recipe(epochs=epochs)).epochs(most) * 0.8 <= 0.25 * epochs + 1e-9


@pytest.mark.long
def test_a_trial_trains_and_measures(model, data):
    """For real, with the shortest that there is: four epochs of two candidates."""
    recipe = Recipe(epochs=26, float_epochs=6, batch_size=400)
    result: Any = nce_fx.rewrite(model, EXAMPLE, batches=data.batches(1, 64), trial=Trial(data, recipe))
    rows = result.report.trial.rows
    assert len(rows) == 2
    assert all(1 < row.loss < 4 for row in rows)
    assert result.report.trial.chosen == min(rows, key=lambda row: row.loss).candidate
    again = nce_fx.rewrite(model, EXAMPLE, batches=data.batches(1, 64), trial=Trial(data, recipe))
    assert again.report.trial == result.report.trial
