"""The slimmable search: slices of one network, settings within budgets, and a plan that comes back after a stop."""

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

import nce_fx
from nce_fx.errors import BudgetError, ChannelError, InputError
from nce_fx.passes.planning.choices import Rules
from nce_fx.passes.planning.settings import Settings
from nce_fx.passes.transform.quantize import InsertQuantizers, RemoveQuantizers
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.pipeline import Pipeline
from nce_fx.quantizers import Quantizer
from nce_fx.search import SlimmableRecipe, search
from nce_fx.search.carrying import of_kind
from nce_fx.search.slices import Widest, quantizer_paths
from nce_fx.search.slimmable import Compared, Measuring, SlimmableLog, better_by
from tests import drawing
from tests.observing import difference, loss_of
from tests.observing import run as outputs_of
from tests.search_runs import free, quarters, traced
from tests.zoo import ZOO

SHORT = SlimmableRecipe(epochs=2, batch_size=16, drawn=2, evaluations=9, population=4, parents=3, statistics=1, seed=1)


def cut(gm: GraphModule, spec: nce_fx.QuantSpec, inputs: tuple[Any, ...]) -> tuple[GraphModule, Widest, dict[str, int]]:
    """A quantized widest network with weights that have moved since it was widened, and widths of a slice."""
    groups = [group for group in nce_fx.analyze_channels(gm) if group.pinned is None]
    narrow = {group.id: group.width - (group.width > group.min_width) * group.step for group in groups}
    widest = Widest.of(gm, {group.id: (narrow[group.id], group.width + group.step) for group in groups}, spec, 0)
    network = nce_fx.quantize(widest.graph, spec, [inputs])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 0.1 * torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype))
    return network, widest, {group: width for group, width in narrow.items() if group not in widest.left}


PATTERNS = (
    "add_in_part",
    "channel_shuffle",
    "parametrized",
    "layer_norm",
    "attention_fused_unbind",
    "attention_grouped_query",
    "mobile_hybrid",
    "keyword_defaults",
    "merged_branches",
    "low_rank",
)
"""Of the zoo, those where a slice's graph, names or widths are most unlike those of the widest network."""


@pytest.mark.parametrize("name", PATTERNS)
def test_a_slice_is_what_resize_and_quantize_make_of_the_network(name):
    """Its weights are quantized as those of a network of its widths; gradients go into the widest network alone."""
    known, spec = drawing.traced(ZOO[name].make(), ZOO[name].inputs), nce_fx.QuantSpec()
    network, widest, widths = cut(known.gm, spec, known.inputs)
    slice_ = widest.at(widths, network)
    resized = ResizeChannels(widths, keep=widest._kept(widths))
    made = Pipeline((RemoveQuantizers(), resized, InsertQuantizers(spec)))(network).graph_module.eval()
    for own, theirs in zip(quantizer_paths(made), quantizer_paths(network), strict=True):
        made.get_submodule(own).load_state_dict(network.get_submodule(theirs).state_dict())
    slice_.network.eval()
    mine, wanted = slice_.run(network, known.inputs, {}), made(*known.inputs)
    leaves, expected = tree_leaves(mine), outputs_of(made, known.inputs)
    for one in ([leaf.detach() for leaf in leaves], outputs_of(slice_.network, known.inputs)):
        assert difference(one, expected) < 1e-12
    loss_of(mine).backward()
    loss_of(wanted).backward()
    for path, parameter in made.named_parameters():
        whole, part = network.get_parameter(slice_.source(path)).grad, parameter.grad
        if part is None:
            continue
        assert whole is not None, path
        outside = whole.clone()
        for axis, places in slice_.places.get(path, ()):
            whole = whole.index_select(axis, places)
        torch.testing.assert_close(whole, part)
        torch.testing.assert_close(outside.abs().sum(), part.abs().sum())


def settings_of(budget: nce_fx.Budget) -> Settings:
    gm = traced()
    cost = nce_fx.analyze_cost(gm, quantized=nce_fx.quantize(gm))
    return Settings.of(cost, budget, Rules(0.5, 2.0))


def test_settings_keep_every_budget_and_spend_it():
    settings, generator = settings_of(nce_fx.Budget(macs=0.9, params=1.0, weight_bytes=0.95)), np.random.default_rng(0)
    drawn = [settings.drawn(generator) for _ in range(12)]
    drawn += [settings.child(one, other, generator) for one, other in itertools.pairwise(drawn)]
    assert settings.fit(np.array(drawn)).all()
    assert len(set(drawn)) > 8
    for setting in drawn:
        wider = np.array(setting) + np.eye(len(setting), dtype=np.int64)
        room = [row for row in wider if (row <= settings.widest).all()]
        assert not room or not settings.fit(np.array(room)).any()
    assert settings.fit(np.array([settings.narrowest]))[0]
    assert not settings.fit(np.array([settings.original]))[0]
    # What is exactly as much as is allowed fits.
    exactly = settings_of(nce_fx.Budget(macs=1.0, params=1.0))
    assert exactly.fit(np.array([exactly.original]))[0]
    with pytest.raises(BudgetError, match="cannot be met"):
        settings_of(nce_fx.Budget(macs=0.01))


@pytest.mark.parametrize(
    ("stay", "fits"), [((0, 2, 5), True), ((0, 2, 2), False), ((0, 2), False), ((0, 2, 6), False), ((-1, 0, 2), False)]
)
def test_channels_that_stay_are_different_ones_and_as_many_as_the_width_says(stay, fits):
    gm = nce_fx.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (torch.randn(1, 4),))
    resize = ResizeChannels({"0": 3}, keep={"0": (stay,)})
    if fits:
        kept = Pipeline((resize,))(gm).graph_module
        assert torch.equal(kept.get_parameter("0.weight"), gm.get_parameter("0.weight")[list(stay)])
    else:
        with pytest.raises(ChannelError, match="3 different ones from 0 to 5 stay"):
            Pipeline((resize,))(gm)


def found(directory: Path, **options):
    return search(traced(), quarters(), SHORT, spec=nce_fx.QuantSpec(), directory=directory, **options)


def files(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in ("plan.json", "settings.csv", "steps.csv")}


@pytest.mark.long
def test_the_plan_is_the_best_setting_and_a_search_that_was_stopped_ends_with_it(tmp_path, monkeypatch):
    result = found(tmp_path / "whole")
    cost, log = nce_fx.analyze_cost(traced(), quantized=nce_fx.quantize(traced())), result.log
    spent = cost.at(result.plan.widths).total.by_quantity
    assert all(spent[name] <= cost.total.by_quantity[name] for name in ("macs", "params", "bit_ops", "weight_bytes"))
    assert [one.loss for one in log.compared] == sorted(one.loss for one in log.compared)
    assert log.uniform in [one.loss for one in log.compared if one.widths == free(traced()) and one.better == 0]
    best = log.preferred(SHORT.sure)[0]
    assert {name: result.plan.widths[name] for name in best.widths} == best.widths
    assert len(log.compared) == SHORT.evaluations
    assert result.plan.source["search"]["method"] == "slimmable"
    with (tmp_path / "whole" / "settings.csv").open() as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == [round(one.loss, 6) for one in log.compared]

    def stop_after(count):
        def report(step):
            if step.step >= count:
                raise RuntimeError("stopped")

        return report

    with pytest.raises(RuntimeError, match="stopped"):
        found(tmp_path / "stopped", checkpoint_seconds=0, progress=stop_after(7))
    measure, calls = Measuring._losses, []

    def measured(self, network):
        calls.append(network)
        if len(calls) == 7:
            raise RuntimeError("stopped")
        return measure(self, network)

    monkeypatch.setattr(Measuring, "_losses", measured)
    with pytest.raises(RuntimeError, match="stopped"):
        found(tmp_path / "stopped", checkpoint_seconds=0)
    again = found(tmp_path / "stopped")
    assert len(calls) == 7 + SHORT.evaluations - 6
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    assert again.plan == result.plan


def test_the_widths_as_they_are_stay_where_no_setting_is_surely_better():
    uniform, better, lucky = (1.0, 1.1, 0.9, 1.0), (0.8, 0.9, 0.71, 0.79), (0.9, 1.4, 0.6, 0.7)
    assert better_by(uniform, uniform) == 0
    assert better_by(better, uniform) > 10 > 1 > better_by(lucky, uniform) > 0
    settings = [
        Compared({"a": width}, loss, sure) for width, loss, sure in ((3, 0.8, 1.5), (5, 0.9, 2.5), (4, 1.0, 0.0))
    ]
    log = SlimmableLog((*settings, Compared({"a": 2}, 1.2, -1.0)), {}, 1.0)
    assert [one.widths["a"] for one in log.preferred(2.0)] == [5, 4, 3, 2]
    assert [one.widths["a"] for one in log.preferred(3.0)] == [4, 3, 5, 2]
    assert [one.widths["a"] for one in log.preferred(0.5)] == [3, 5, 4, 2]


def test_it_searches_in_float_and_says_what_it_cannot_search():
    short = SlimmableRecipe(epochs=1, evaluations=3, population=2, drawn=1, random=1, statistics=1, batch_size=32)
    result = search(traced(), quarters(), short, budget=nce_fx.Budget(macs=0.8))
    assert result.log.uniform is None
    assert not of_kind(result.network, Quantizer)
    with pytest.raises(InputError, match="no group"):
        SlimmableRecipe(min_ratio=1.0, max_ratio=1.0)
    with pytest.raises(InputError, match="no group of the network"):
        search(nce_fx.trace(nn.Linear(3, 2), (torch.randn(1, 3),)), quarters(), short)


def test_what_has_no_slices_keeps_its_width():
    """A weight that is computed; a width that a group can have, but not once it is widened."""
    weight = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    layers = [
        weight,
        nn.ReLU(),
        nn.Linear(4, 4),
        nn.LayerNorm(4),
        nn.ReLU(),
        nn.Linear(4, 4),
        nn.ReLU(),
        nn.Linear(4, 2),
    ]
    gm = nce_fx.trace(nn.Sequential(*layers), (torch.randn(1, 3),))
    candidates = {"0": (2, 4, 6), "2": (4, 8), "5": (2, 4, 6)}
    assert candidates.keys() == {group.id for group in nce_fx.analyze_channels(gm) if group.pinned is None}
    widest = Widest.of(gm, candidates, None, 0)
    assert {group: reason.split()[0] for group, reason in widest.left.items()} == {"0": "0.weight", "2": "once"}
    assert nce_fx.analyze_channels(widest.graph).widths == {"0": 4, "2": 4, "5": 6, "7": 2}
