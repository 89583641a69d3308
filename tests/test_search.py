"""The search: width choices in the graph, expected costs, expansions, the plan, and runs that are stopped."""

import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import nce_fx
from nce_fx.data.data_split import split_data
from nce_fx.errors import BudgetError, InputError
from nce_fx.models import MODELS
from nce_fx.passes.analysis.channels.plan_check import check_plan
from nce_fx.passes.transform.resize import gathers_of
from nce_fx.passes.transform.widths import InsertWidthChoices, RemoveWidthChoices, WidthDraw, WidthNorm, channel_order
from nce_fx.search import METHODS, SearchRecipe, search
from nce_fx.search.carrying import of_kind
from nce_fx.search.expansion import first_candidates, grow
from nce_fx.search.expected_cost import costs_of, expected_cost
from nce_fx.search.outcome import plan_from
from nce_fx.search.recipes import tau_at, width_rate
from nce_fx.search.search_log import SearchLog
from nce_fx.search.width_search import WidthSearch
from nce_fx.tensor_file import digest
from nce_fx.training.checkpoint import latest_checkpoint
from nce_fx.training.run import Run
from tests.laws import comes_back
from tests.search_runs import Residual, free, quarters, run, traced

SPECS = pytest.mark.parametrize("spec", [None, nce_fx.QuantSpec(), nce_fx.QuantSpec("lsq", "lsq", shortcuts="float")])


def small() -> tuple[GraphModule, dict[str, tuple[int, ...]]]:
    gm = traced()
    return gm, {group: tuple(sorted({1, 1 + width // 2, width})) for group, width in free(gm).items()}


@pytest.mark.parametrize("quantity", ["macs", "params", "bit_ops"])
def test_the_expected_cost_is_the_mean_over_all_networks(quantity):
    gm, candidates = small()
    candidates = dict(list(candidates.items())[:4])
    cost = nce_fx.analyze_cost(gm)
    generator = torch.Generator().manual_seed(0)
    shares = [torch.rand(len(w), generator=generator, dtype=torch.float64).softmax(0) for w in candidates.values()]
    mean = expected_cost(cost.model, candidates, quantity)
    total = 0.0
    for picks in itertools.product(*(range(len(widths)) for widths in candidates.values())):
        widths = {group: candidates[group][pick] for group, pick in zip(candidates, picks, strict=True)}
        exact = getattr(cost.at(widths).total, quantity)
        assert mean.at(picks) == pytest.approx(exact, rel=1e-12)
        probability = 1.0
        for share, pick in zip(shares, picks, strict=True):
            probability *= float(share[pick])
        total += probability * exact
    assert float(mean(shares)) == pytest.approx(total, rel=1e-9)


def test_the_gradient_of_the_cost_loss_is_right():
    gm, candidates = small()
    cost = nce_fx.analyze_cost(gm)
    alphas = [torch.randn(len(w), dtype=torch.float64, requires_grad=True) for w in candidates.values()]

    def loss(*values):
        costs = costs_of(cost.model, candidates, nce_fx.Budget(macs=0.3, params=0.3), SearchRecipe(epochs=9))
        return costs.loss([value.softmax(0) for value in values], [len(w) - 1 for w in candidates.values()])

    assert torch.autograd.gradcheck(loss, alphas)


def test_the_band_loss_pushes_towards_the_budget():
    gm, candidates = small()
    cost = nce_fx.analyze_cost(gm)
    shares = [torch.full((len(w),), 1 / len(w), dtype=torch.float64) for w in candidates.values()]
    widest, narrowest = [len(w) - 1 for w in candidates.values()], [0] * len(candidates)
    costs = costs_of(cost.model, candidates, nce_fx.Budget(macs=0.5), SearchRecipe(epochs=9, lambda_flop=3.0))
    log = float(costs.limited[0].cost(shares).log())
    over, under = costs.loss(shares, widest), costs.loss(shares, narrowest)
    assert over is not None
    assert under is not None
    assert float(over) == pytest.approx(3 * log)
    assert float(under) == pytest.approx(-3 * log)
    assert (
        costs_of(cost.model, candidates, nce_fx.Budget(macs=1.0), SearchRecipe(epochs=9)).loss(shares, widest) is None
    )
    assert costs.over(widest) == "macs"


@SPECS
def test_expanding_keeps_the_float_function_and_carries_what_was_learned(spec):
    gm, x = traced(), torch.randn(5, 1, 6, 6)
    plain = gm if spec is None else nce_fx.quantize(gm, spec, [x])
    candidates = first_candidates(nce_fx.analyze_channels(gm), SearchRecipe(epochs=9)).candidates
    network = InsertWidthChoices(candidates, channel_order(gm))(plain).graph_module
    for draw in of_kind(network, WidthDraw).values():
        draw.alpha.data.normal_()
    for norm in of_kind(network, WidthNorm).values():
        norm.weight.data.uniform_(0.5, 1.5)
    momenta = {name: torch.randn_like(p) for name, p in network.named_parameters() if "alpha" not in name}
    wider = {**candidates, "stem": (*candidates["stem"], 7), "inner": (*candidates["inner"], 8)}
    grown = grow(network, wider, channel_order(gm), momenta, spec, 0)
    before = {draw.group: draw for draw in of_kind(network, WidthDraw).values()}
    for draw in of_kind(grown.network, WidthDraw).values():
        old = before[draw.group].alpha
        assert torch.equal(draw.alpha[: len(old)], old)
        assert draw.alpha[-1] == old[-1]
    if spec is None:
        flat = RemoveWidthChoices()(network).graph_module.eval()
        wide = RemoveWidthChoices()(grown.network).graph_module.eval()
        torch.testing.assert_close(wide(x), flat(x), rtol=1e-4, atol=1e-4)
    shapes = {name: parameter.shape for name, parameter in grown.network.named_parameters()}
    assert set(grown.momenta) == set(momenta)
    assert all(value.shape == shapes[name] for name, value in grown.momenta.items())
    copied = gathers_of(gm, {"stem": 7, "inner": 8})["stem.weight", 0].index
    comes_back(grown.network.eval(), Residual(), (x,))
    times = torch.bincount(torch.from_numpy(copied))[copied]
    torch.testing.assert_close(
        grown.momenta["stem.weight"], momenta["stem.weight"][copied] / times[:, None, None, None]
    )


RECIPE = SearchRecipe(epochs=4, warmup_epochs=1, batch_size=24, threshold=0.3, seed=3)


def test_the_search_finds_a_plan_within_the_budget(tmp_path):
    gm, data = traced(), quarters()
    budget = nce_fx.Budget(macs=0.9, params=1.0)
    result = search(gm, data, RECIPE, budget=budget, spec=nce_fx.QuantSpec(), directory=tmp_path)
    check_plan(result.plan, gm)
    cost = nce_fx.analyze_cost(gm)
    spent = cost.at(result.plan.widths).total
    assert spent.macs <= 0.9 * cost.total.macs
    assert spent.params <= cost.total.params
    assert len(result.log.epochs) == 4
    assert result.log.left["head"].startswith("it makes an output")
    assert nce_fx.WidthPlan.from_json((tmp_path / "plan.json").read_text()) == result.plan
    assert (tmp_path / "widths.svg").read_text().count("<polyline") == len(result.log.epochs[0].widths)
    again = search(gm, data, RECIPE, budget=budget, spec=nce_fx.QuantSpec())
    assert again.plan.to_json() == result.plan.to_json()


def test_it_expands_and_without_expansion_nothing_grows():
    gm, data = traced(), quarters()
    eager = SearchRecipe(epochs=5, warmup_epochs=1, batch_size=24, threshold=0.05, ratios=(0.5, 1.0))
    wide = search(gm, data, eager, budget=nce_fx.Budget(macs=1.5, params=1.5))
    assert wide.log.expansions
    first = wide.log.expansions[0]
    assert first.after > first.before
    assert first.preference > 0.05
    assert wide.log.epochs[-1].widest[first.group] >= first.after
    no_expand = SearchRecipe(epochs=3, warmup_epochs=1, batch_size=24, threshold=0.05, expand=False)
    tas = search(gm, data, no_expand, budget=nce_fx.Budget(macs=1.5, params=1.5))
    assert not tas.log.expansions
    assert all(tas.plan.widths[group] <= width for group, width in tas.plan.original.items())


def test_what_cannot_be_searched_is_said():
    with pytest.raises(InputError, match="threshold is 2"):
        SearchRecipe(threshold=2)
    with pytest.raises(InputError, match="warmup_epochs"):
        SearchRecipe(epochs=3, warmup_epochs=3)
    with pytest.raises(InputError, match="no group"):
        search(nce_fx.trace(nn.Linear(3, 4), (torch.randn(1, 3),)), quarters(), RECIPE)
    with pytest.raises(BudgetError):
        search(traced(), quarters(), RECIPE, budget=nce_fx.Budget(macs=0.0001))


def test_a_recipe_says_of_which_method_it_is():
    assert {name: method.recipe().method for name, method in METHODS.items()} == {name: name for name in METHODS}
    for method in METHODS.values():
        assert method.recipe.from_dict(method.recipe(seed=3).to_dict()) == method.recipe(seed=3)


def test_halves_share_no_sample_and_leave_none_out():
    data = quarters(25)
    weights, widths = split_data(data, 0)
    assert (len(weights.train), len(widths.train)) == (12, 13)
    values = [x[:, 0, 0, 0] for half in (weights, widths) for x, _ in half.loader("train", batch_size=5)]
    assert torch.equal(torch.cat(values).sort().values, data.train.x[:, 0, 0, 0].sort().values)  # type: ignore[union-attr]


def test_schedules():
    recipe = SearchRecipe(epochs=20)
    assert tau_at(recipe, 0.0) == 5.0
    assert tau_at(recipe, 1.0) == pytest.approx(0.1)
    assert width_rate(recipe, 58_800) == pytest.approx(1e-3)
    assert width_rate(recipe, 10) == 0.05


def test_the_plan_follows_the_preferences_and_is_deterministic():
    gm = nce_fx.trace(MODELS["resnet8"](in_channels=1).eval(), (torch.randn(1, 1, 8, 8),))
    cost = nce_fx.analyze_cost(gm)
    preferred = {g.id: g.width for g in nce_fx.analyze_channels(gm) if g.pinned is None}
    preferred |= {"layer1.0.conv1": 8, "layer3.0.conv1": 8}
    budget = nce_fx.Budget(macs=1.0, params=1.0)
    plans = [plan_from(cost, preferred, budget, least=0.3, most=2.0, source={}) for _ in range(2)]
    assert plans[0].to_json() == plans[1].to_json()
    assert plans[0].widths["layer1.0.conv1"] > 4
    assert plans[0].widths["layer3.0.conv1"] < 16
    assert cost.at(plans[0].widths).macs <= cost.macs


def test_a_search_that_stops_where_an_epoch_ends_logs_what_one_that_was_not_stopped_does(tmp_path, monkeypatch):
    recipe = SearchRecipe(epochs=2, warmup_epochs=0, batch_size=48)

    def searched(folder: str) -> SearchLog:
        found = search(traced(), quarters(), recipe, directory=tmp_path / folder, checkpoint_seconds=0)
        return SearchLog(found.log.epochs, found.log.expansions, found.log.left)

    def crash(self: WidthSearch, run: Run) -> Run:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(WidthSearch, "after_epoch", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            searched("stopped")
    assert searched("stopped") == searched("whole")


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.csv") if path.name != "log.csv"} | {
        "plan.json": (directory / "plan.json").read_bytes(),
        "widths.svg": (directory / "widths.svg").read_bytes(),
    }


def weights(directory: Path) -> str:
    kept = latest_checkpoint(directory)
    assert kept is not None
    return digest(kept.tensors)


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    result = run(directory, nce_fx.QuantSpec())
    assert {e.epoch for e in result.log.expansions} >= {2, 3}
    return directory


@pytest.mark.long
def test_a_search_that_was_killed_ends_with_the_same_plan(whole, tmp_path):
    child = subprocess.Popen([sys.executable, "-m", "tests.search_runs", tmp_path], cwd=ROOT)
    # There is a checkpoint after every one of 30 steps, and the first expansion after the twelfth.
    while child.poll() is None and not any(int(path.stem[-9:]) > 13 for path in tmp_path.glob("checkpoint-*")):
        time.sleep(0.002)
    child.kill()
    child.wait()
    before = latest_checkpoint(tmp_path)
    assert before is not None
    assert 13 < before.steps < 30
    assert before.state["companion"]["expansions"]
    run(tmp_path, nce_fx.QuantSpec())
    assert files(tmp_path) == files(whole)
    assert weights(tmp_path) == weights(whole)
