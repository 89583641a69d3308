"""Plans: within every budget, near the certified bound, the best there is on nets small enough to enumerate."""

import itertools
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nce_fx
from nce_fx.errors import BudgetError
from nce_fx.models import INPUT_SHAPES, MODELS
from nce_fx.passes.analysis.channels import analyze_channels
from nce_fx.passes.analysis.channels.plan_check import check_plan
from nce_fx.passes.analysis.cost import analyze_cost
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.planning import Budget, plan_widths
from nce_fx.passes.planning.budget import plan_and_build
from nce_fx.passes.planning.choices import Rules, legal_choices
from nce_fx.passes.planning.posynomial import constraints
from nce_fx.passes.planning.relaxation import relax
from nce_fx.plan import WidthPlan
from nce_fx.quantities import known_quantities


class Analysed:
    """A traced model with its analyses and random sensitivities."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], seed: int = 0, **cost: Any) -> None:
        self.gm = nce_fx.trace(model.eval(), (torch.randn(1, *shape),))
        self.channels = analyze_channels(self.gm)
        self.cost = analyze_cost(self.gm, self.channels, **cost)
        drawn = np.random.default_rng(seed).lognormal(0, 1, len(self.channels.groups))
        by_group = {group.id: float(value) for group, value in zip(self.channels, drawn, strict=True)}
        self.sensitivity = SimpleNamespace(metric="drawn", by_group=by_group)

    def plan(self, budget: Budget, **options: Any) -> Any:
        return plan_widths(self.channels, self.cost, self.sensitivity, budget, **options)


@pytest.fixture(scope="module")
def resnet():
    return Analysed(MODELS["resnet20"](), (3, 32, 32), weight_bits=2, activation_bits=2)


@pytest.fixture(scope="module")
def tiny():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 5, 1),
        nn.Conv2d(5, 3, 1),
    )
    return Analysed(net, (2, 8, 8))


@pytest.mark.parametrize("ratio", [0.6, 1.0, 1.4])
def test_budgets_hold_and_the_gap_is_small(resnet, ratio):
    budget = Budget(**dict.fromkeys(("macs", "params", "bit_ops", "weight_bytes", "activation_bytes"), ratio))
    plan = resnet.plan(budget, streams=0.0)
    before, after = resnet.cost.total, resnet.cost.at(plan.widths).total
    for name in ("macs", "params", "bit_ops", "weight_bytes", "activation_bytes"):
        assert getattr(after, name) <= ratio * getattr(before, name)
    assert plan.source["bound"] <= plan.source["objective"]
    assert plan.source["gap"] <= 0.02
    # Where streams keep what one factor leaves them there is little to choose, and whole channels are coarse.
    assert resnet.plan(budget).source["gap"] <= 0.05


@pytest.mark.parametrize(
    "limits", [{"macs": 1.0}, {"params": 0.8}, {"activation_bytes": 0.7}, {"macs": 0.9, "params": 1.2}]
)
def test_any_subset_of_budgets(resnet, limits):
    plan = resnet.plan(Budget(**limits))
    after = resnet.cost.at(plan.widths).total
    for name, ratio in limits.items():
        assert getattr(after, name) <= ratio * getattr(resnet.cost.total, name)
    assert plan.source["gap"] <= 0.02


def test_without_a_budget_everything_is_as_wide_as_allowed(resnet):
    plan = resnet.plan(Budget(), max_width=1.5)
    for group in resnet.channels:
        if group.pinned is None:
            assert plan.widths[group.id] == group.width * 3 // 2


def enumerated(analysed: Analysed, limits: dict[str, float], rules: Rules, exponent: float) -> float:
    """The least objective of all plans within the limits, by trying all of them."""
    choices = legal_choices(analysed.channels, rules)
    best = np.inf
    for picks in itertools.product(*(range(len(widths)) for widths in choices.widths)):
        widths = choices.part_widths(np.array([picks]))
        totals = analysed.cost.model.totals_of_many(widths, tuple(limits))[0]
        if (totals <= np.array(list(limits.values()))).all():
            noise = sum(
                analysed.sensitivity.by_group[group.id] * ratios[pick] ** -exponent
                for group, ratios, pick in zip(choices.groups, choices.ratios, picks, strict=True)
            )
            best = min(best, noise)
    return best


@pytest.mark.parametrize("exponent", [1.0, 2.0])
@pytest.mark.parametrize(("macs", "params"), [(1.0, 1.0), (0.7, 1.0), (1.5, 0.9)])
def test_the_plan_is_the_best_of_all_on_a_net_small_enough_to_enumerate(tiny, macs, params, exponent):
    plan = tiny.plan(Budget(macs=macs, params=params), exponent=exponent)
    limits = {"macs": macs * tiny.cost.macs, "params": params * tiny.cost.params}
    best = enumerated(tiny, limits, Rules(), exponent)
    assert plan.source["bound"] <= best * (1 + 1e-9)
    # The search is local: it is allowed one percent, and finds the best itself nearly always.
    assert plan.source["objective"] <= best * 1.01


def test_the_bound_is_that_of_an_independent_solver(tiny):
    """The same geometric program, written down for cvxpy and solved by Clarabel."""
    cvxpy = pytest.importorskip("cvxpy")
    choices = legal_choices(tiny.channels, Rules())
    limits = {"macs": float(tiny.cost.macs), "params": float(tiny.cost.params)}
    rows = constraints(tiny.cost.model, choices, limits)
    noise = np.array([tiny.sensitivity.by_group[group.id] for group in choices.groups])
    low = np.array([ratios[0] for ratios in choices.ratios])
    high = np.array([ratios[-1] for ratios in choices.ratios])
    relaxed = relax(noise, np.full(len(noise), 1.5), rows, low, high)
    assert relaxed is not None
    y = cvxpy.Variable(len(noise))
    walls = [y >= np.log(low), y <= np.log(high)]
    for row, constant in enumerate(rows.constants):
        own = rows.rows == row
        terms = rows.exponents.toarray()[own] @ y + np.log(rows.coefficients[own])
        walls.append(cvxpy.log_sum_exp(terms) <= np.log(1 - constant))
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(cvxpy.multiply(noise, cvxpy.exp(-1.5 * y)))), walls)
    problem.solve(solver="CLARABEL")
    assert relaxed.objective == pytest.approx(problem.value, rel=1e-4)
    assert relaxed.bound <= problem.value * (1 + 1e-6)
    assert relaxed.bound == pytest.approx(problem.value, rel=1e-4)


def test_width_goes_where_noise_hurts(resnet):
    loud = next(group.id for group in resnet.channels if group.pinned is None and "conv1" in group.id)
    by_group = {group.id: 1.0 for group in resnet.channels}
    sensitivity = SimpleNamespace(metric="made", by_group={**by_group, loud: 100.0})
    plan = plan_widths(resnet.channels, resnet.cost, sensitivity, Budget(macs=1.0, params=1.0))
    assert plan.widths[loud] > resnet.channels[loud].width


def test_plans_are_the_same_bytes_twice(resnet):
    budget = Budget(macs=0.9, params=0.9)
    assert resnet.plan(budget).to_json() == resnet.plan(budget).to_json()


def test_where_nothing_is_better_the_plan_is_the_original():
    analysed = Analysed(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (4,))
    plan = analysed.plan(Budget(macs=1.0, params=1.0))
    assert plan.widths == plan.original
    assert plan.source["gap"] <= 1e-4


def test_the_plan_says_what_it_expects(resnet):
    plan = resnet.plan(Budget(macs=1.0, params=1.0))
    free = [group for group in resnet.channels.groups if group.pinned is None]
    before = sum(resnet.sensitivity.by_group[group.id] for group in free)
    after = sum(resnet.sensitivity.by_group[group.id] * group.width / plan.widths[group.id] for group in free)
    assert plan.predicted_noise == pytest.approx(after / before, rel=1e-3)
    assert plan.predicted_noise < 1
    assert WidthPlan(plan.widths, plan.original, plan.model).predicted_noise is None


def test_freeze_only_and_round_to(resnet):
    plan = resnet.plan(Budget(macs=1.0), freeze=["layer1.*"], round_to=8)
    changed = plan.changed
    assert changed
    for group, width in changed.items():
        assert not any(name.startswith("layer1.") for name in resnet.channels[group].producers)
        assert width % 8 == 0
    plan = resnet.plan(Budget(macs=0.9), only=["layer2.*.conv1"])
    assert set(plan.changed) <= {group.id for group in resnet.channels if group.id.startswith("layer2.")}
    assert plan.changed
    with pytest.raises(BudgetError, match="freeze='nothing' matches no channel group"):
        resnet.plan(Budget(macs=1.0), freeze=["nothing"])


def test_groups_whose_step_is_their_width_take_whole_copies_or_none():
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    analysed = Analysed(net, (4,))
    whole = next(group for group in analysed.channels if group.pinned is None and group.step == group.width)
    loud = SimpleNamespace(metric="made", by_group={whole.id: 100.0})
    plan = plan_widths(analysed.channels, analysed.cost, loud, Budget(macs=1.5))
    assert plan.widths[whole.id] == 2 * whole.width
    assert analysed.plan(Budget(macs=1.0), min_width=0.9, max_width=1.9).widths[whole.id] == whole.width


def test_impossible_budgets_say_the_least_and_what_fights(resnet):
    with pytest.raises(
        BudgetError, match=r"macs <= .* \(0.01x\) cannot be met: the least possible is [0-9,]+ \(0.0.*x\)"
    ):
        resnet.plan(Budget(macs=0.01), min_width=0.25)
    with pytest.raises(BudgetError, match=r"It fights with min_width=0.5: lift either"):
        resnet.plan(Budget(macs=0.2), min_width=0.5)
    with pytest.raises(BudgetError, match=r"It fights with freeze: lift either"):
        resnet.plan(Budget(params=0.3), freeze=["*"])
    with pytest.raises(BudgetError, match=r"macs <= .*; params <= .*fights with min_width=0.9"):
        resnet.plan(Budget(macs=0.5, params=0.5), min_width=0.9)
    with pytest.raises(BudgetError, match=r"the least possible .*Even one step a group is too much"):
        resnet.plan(Budget(macs=100), min_width=0)


def test_the_least_possible_is_possible(resnet):
    """A budget of exactly the least is met, one below is refused."""
    widths = {g.id: max(g.min_width, -(-g.width // 4)) for g in resnet.channels if g.pinned is None}
    least = resnet.cost.at(widths).macs
    assert resnet.cost.at(resnet.plan(Budget(macs=least)).widths).macs == least
    with pytest.raises(BudgetError, match=f"the least possible is {least:,}"):
        resnet.plan(Budget(macs=least - 1))


def test_budgets_from_words():
    assert Budget.parse("1.0x") == 1.0
    assert Budget.parse(" 2E6 ") == 2_000_000
    assert Budget.parse("40_000") == 40_000
    assert Budget(macs=16, params="0.5").as_mapping() == {"macs": 16.0, "params": 0.5}
    assert Budget(macs=17).limits(dict.fromkeys(known_quantities(), 100.0)) == {"macs": 17}
    for nonsense in ("", "x", "-1", "1.0xx", "nan", -3, 0, float("inf"), True, "20x"):
        with pytest.raises(BudgetError):
            Budget.parse(nonsense)


@pytest.mark.parametrize(("least", "most"), [(0.25, 0.9), (1.1, 2.0), (-1.0, 2.0)])
def test_width_ratios_must_hold_the_original(resnet, least, most):
    with pytest.raises(BudgetError, match="must hold the original width"):
        resnet.plan(Budget(macs=1.0), min_width=least, max_width=most)


@pytest.fixture
def timed(tmp_path):
    """A network whose price is of a table that counts MACs itself, plus a start-up time."""
    sizes = (1, 2, 4, 8, 16, 32)
    rows = [
        {"op": "conv2d", "c_in": i, "c_out": o, "h": 4, "w": 4, "bits": 2, "cost": 5.0 + 0.1 * i * o}
        for i in sizes
        for o in sizes
    ]
    rows += [{**row, "op": "linear", "h": 1, "w": 1} for row in rows]
    (tmp_path / "times.json").write_text(json.dumps(rows))
    table = HardwareTable.read(tmp_path / "times.json")
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.Flatten(),
        nn.Linear(64, 4),
    )
    return Analysed(net, (3, 8, 8), weight_bits=2, hardware=table)


def test_a_custom_budget_works_like_the_others(timed):
    """The plan keeps it, and comes near its bound."""
    plan = timed.plan(Budget(custom=0.9, params=1.2))
    assert timed.cost.at(plan.widths).total.custom <= 0.9 * timed.cost.total.custom
    assert 0 < plan.source["bound"] <= plan.source["objective"]
    with pytest.raises(BudgetError, match="needs a hardware table"):
        Analysed(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (4,)).plan(Budget(custom=1.0))


@pytest.mark.parametrize("quantity", ["custom", "macs", "params"])
def test_a_posynomial_is_never_above_the_cost_and_near_it(timed, quantity):
    choices, total = legal_choices(timed.channels, Rules()), getattr(timed.cost.total, quantity)
    rows = constraints(timed.cost.model, choices, {quantity: total})
    generator = np.random.default_rng(0)
    for _ in range(20):
        ratios = np.array([generator.choice(of_one) for of_one in choices.ratios])
        widths = {group.id: round(group.width * r) for group, r in zip(choices.groups, ratios, strict=True)}
        cost = getattr(timed.cost.at(widths).total, quantity) / total
        bound = rows.constants[0] + float(rows.coefficients @ np.exp(rows.exponents.toarray() @ np.log(ratios)))
        assert 0.4 * cost < bound <= cost * (1 + 1e-9)


def test_sensitivities_that_are_not_numbers_are_refused(resnet):
    bad = SimpleNamespace(metric="made", by_group={group.id: float("nan") for group in resnet.channels})
    with pytest.raises(BudgetError, match="not a finite number"):
        plan_widths(resnet.channels, resnet.cost, bad, Budget(macs=1.0))


def test_the_plan_resizes_its_model(resnet):
    plan = resnet.plan(Budget(macs=1.0, params=1.0))
    check_plan(plan, resnet.gm)
    wide = nce_fx.resize(resnet.gm, plan)
    assert analyze_cost(wide).macs == resnet.cost.at(plan.widths).macs <= resnet.cost.macs


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
@pytest.mark.parametrize("ratio", [0.8, 1.5])
def test_gap_on_imagenet_networks(name, ratio):
    analysed = Analysed(MODELS[name](), INPUT_SHAPES[name])
    assert analysed.plan(Budget(macs=ratio, params=ratio)).source["gap"] <= 0.02


@pytest.mark.parametrize("raises", [True, False])
def test_where_networks_cost_more_than_their_plans_the_widths_as_they_are_stay_a_plan(tiny, raises):
    """A resize may gather channels, which no plan counts; the network itself is within its budget."""
    budget, moved = Budget(params=1.0), tiny.plan(Budget(params=1.0))
    assert moved.changed

    def planned(reserve):
        if reserve and raises:
            return tiny.plan(Budget(params=0.0001))
        return moved

    def built(plan):
        if plan.changed:  # built wider than was said
            return nce_fx.resize(tiny.gm, {g.id: 2 * g.width for g in tiny.channels.groups if g.pinned is None})
        return nce_fx.resize(tiny.gm, plan)

    plan, network = plan_and_build(planned, built, budget, tiny.cost)
    assert plan.changed == {}
    assert plan.predicted_noise == 1.0
    assert plan.source["cost"] == {"params": sum(p.numel() for p in network.parameters())}
    with pytest.raises(BudgetError, match=r"over its limit|cannot be met"):
        plan_and_build(planned, built, Budget(params=0.9), tiny.cost)
