"""Which widths a plan may choose, what of a budget it leaves free, and that its bound holds however it was found."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import nce_fx
from nce_fx.errors import BudgetError
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.planning import Budget, relaxation
from nce_fx.passes.planning.budget import count, plan_and_build
from nce_fx.passes.planning.choices import Rules, legal_choices, sensitivity_of, widths_of
from nce_fx.passes.planning.even import even_widths
from nce_fx.passes.planning.integer_widths import Problem
from nce_fx.passes.planning.posynomial import constraints, part_slopes
from nce_fx.passes.planning.settings import Settings
from tests.drawing import pattern


def analysed(gm, **cost):
    channels = nce_fx.analyze_channels(gm)
    return channels, nce_fx.analyze_cost(gm, channels, **cost)


@pytest.fixture(scope="module")
def chain():
    """A chain of layers, each of them 8 wide."""
    layers = [layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.ReLU())]
    gm = nce_fx.trace(nn.Sequential(*layers, nn.Linear(8, 3)).eval(), (torch.randn(1, 8),))
    return gm, *analysed(gm)


@pytest.mark.parametrize(
    ("width", "step", "least", "most", "wanted"),
    [
        (16, 4, 0.3, 2.0, [8, 12, 16, 20, 24, 28, 32]),
        (9, 3, 0.5, 1.5, [6, 9, 12]),
        (20, 1, 0.55, 1.0, [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]),
        (7, 1, 0.1, 1.0, [1, 2, 3, 4, 5, 6, 7]),
        (6, 1, 0.7, 1.25, [5, 6, 7]),
    ],
)
def test_widths_are_steps_from_the_own_one_between_the_ratios(chain, width, step, least, most, wanted):
    group = replace(chain[1].groups[0], width=width, step=step)
    assert widths_of(group, Rules(least, most)).tolist() == wanted


@pytest.mark.parametrize("name", ["option_a", "c2f", "octave"])
def test_the_width_as_it_is_has_ratio_one(name):
    choices = legal_choices(nce_fx.analyze_channels(pattern(name)), Rules())
    assert [own[pick] for own, pick in zip(choices.ratios, choices.original, strict=True)] == [1] * len(choices.groups)


def test_a_group_without_a_sensitivity_counts_a_thousandth_of_the_mean(chain):
    choices = legal_choices(chain[1], Rules())
    noise = sensitivity_of(choices, {choices.groups[0].id: 6.0})
    assert noise == pytest.approx([6.0, *[1e-3] * 5])


def test_options_that_do_not_help_are_not_blamed(chain):
    _, channels, cost = chain
    drawn = SimpleNamespace(metric="drawn", by_group={})
    for least in (0.0, 0.25, 0.5):
        with pytest.raises(BudgetError, match="Even one step a group is too much"):
            nce_fx.plan_widths(channels, cost, drawn, Budget(params=20), min_width=least)


def test_even_widths_leave_what_is_reserved(chain):
    _, _, cost = chain
    budget = Budget(macs=0.8)
    spent = [cost.at(even_widths(cost, budget, Rules(), {"macs": free})).macs for free in (0, 60)]
    assert 0.8 * cost.macs - 40 < spent[0] <= 0.8 * cost.macs
    assert 0.8 * cost.macs - 100 < spent[1] <= 0.8 * cost.macs - 60


def test_what_a_network_costs_beside_its_plan_is_reserved_to_the_unit(chain):
    gm, channels, cost = chain
    limit, asked = cost.params + 10, []
    plan = nce_fx.plan_widths(channels, cost, nce_fx.analyze_sensitivity(gm), Budget(params=limit), max_width=1.0)

    def planned(reserve):
        asked.append(dict(reserve))
        return plan

    wide = nce_fx.resize(gm, {channels.groups[0].id: 16})
    networks = iter([wide, wide, gm])
    plan_and_build(planned, lambda found: next(networks), Budget(params=limit), cost)
    over = count(wide).params - limit
    assert asked == [{}, {"params": over}, {"params": 2 * over}]


def test_a_group_at_its_second_choice_can_take_the_first(chain):
    _, channels, cost = chain
    choices = legal_choices(channels, Rules())
    one = np.ones(6)
    problem = Problem(cost.model, choices, one, one, ("macs",), one[:1], one[:1], 0.0)
    last = len(choices.widths[0]) - 1
    picks = np.array([0, 1, 2, last - 1, last, 1])
    assert problem.room(picks, -1) == [1, 2, 3, 4, 5]
    assert problem.room(picks, -2) == [2, 3, 4]
    assert problem.room(picks, 1) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("count_of_choices", [63, 64, 65, 66])
def test_shares_of_several_parts_are_never_below_what_is_said(count_of_choices):
    channels = nce_fx.analyze_channels(pattern("split_sections"))
    (index,) = (i for i, g in enumerate(legal_choices(channels, Rules()).groups) if len(g.parts) > 1)
    group = legal_choices(channels, Rules()).groups[index]
    most = (group.min_width + group.step * (count_of_choices - 1)) / group.width
    choices = legal_choices(channels, Rules(min_width=0, max_width=most, only=(group.id,)))
    assert [len(own) for own in choices.ratios] == [count_of_choices]
    slopes = part_slopes(choices)
    for pick, ratio in enumerate(choices.ratios[0]):
        for part, width in zip(group.parts, choices.parts_of(0, pick), strict=True):
            assert slopes[part][1] * ratio <= width + 1e-9


def test_a_price_that_no_longer_rises_is_not_said_to():
    """Up to 12 channels the price rises steeply, then not at all: the greatest width alone tells."""
    price = {1: 1.0, 8: 64.0, 12: 144.0, 16: 144.0, 64: 144.0}
    points = tuple((4.0, float(size), 1.0, 1.0, cost) for size, cost in price.items())
    points += tuple((float(size), 4.0, 1.0, 1.0, cost) for size, cost in price.items() if size != 4)
    table = HardwareTable({("linear", 32): tuple(sorted(points))})
    gm = nce_fx.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), (torch.randn(1, 4),))
    channels, cost = analysed(gm, hardware=table)
    choices = legal_choices(channels, Rules(round_to=4))
    assert choices.widths[0].tolist() == [4, 8, 12, 16]
    rows = constraints(cost.model, choices, {"custom": 1.0})
    for width, ratio in zip(choices.widths[0].tolist(), choices.ratios[0], strict=True):
        said = rows.constants[0] + float(rows.coefficients @ np.exp(rows.exponents.toarray() @ np.log([ratio])))
        assert said <= cost.at({"0": width}).total.custom * (1 + 1e-9)


def test_the_bound_holds_wherever_the_solver_stops(chain, monkeypatch):
    _, channels, cost = chain
    choices = legal_choices(channels, Rules())
    rows = constraints(cost.model, choices, {"macs": cost.macs})
    noise = np.random.default_rng(0).lognormal(0, 2, 6)
    low, high = (np.array([own[end] for own in choices.ratios]) for end in (0, -1))

    def relaxed():
        found = relaxation.relax(noise, np.ones(6), rows, low, high)
        assert found is not None
        return found

    best = relaxed()
    generator = np.random.default_rng(1)

    def stopped(program, y, sharpness):
        for _ in range(100):
            away = np.clip(y + generator.normal(0, 0.5, len(y)), program.low + 1e-3, program.high - 1e-3)
            if (program.spent(away)[1] < 0.99).all():
                return away
        return y

    monkeypatch.setattr(relaxation, "_center", stopped)
    for _ in range(20):
        found = relaxed()
        assert found.bound <= best.objective * (1 + 1e-9)
        assert found.objective >= best.bound * (1 - 1e-9)


def test_settings_are_drawn_from_the_least_to_the_greatest_and_moved_both_ways(chain):
    _, _, cost = chain
    two = Settings.of(cost, Budget(macs=0.75), Rules(min_width=0.5, max_width=1.0, round_to=4))
    assert set(two.candidates.values()) == {(4, 8)}
    generator = np.random.default_rng(0)
    # Which widths are the greater ones is drawn: a setting of equal proportions would always widen the same.
    assert len({two.drawn(generator) for _ in range(20)}) > 4
    many = Settings.of(cost, Budget(macs=1.0), Rules(min_width=0.0, max_width=8.0))
    parent = many.original
    moves = [many.logs(np.array([many.child(parent, parent, generator)]))[0] for _ in range(60)]
    greatest = [move[np.abs(move).argmax()] for move in moves if move.any()]
    assert sum(move < 0 for move in greatest) > 5
    assert sum(move > 0 for move in greatest) > 5
    assert np.median(np.abs(greatest)) < 0.5  # an octave is another network
