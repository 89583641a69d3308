"""The search that moves widths while it trains: what channels are worth, what comes along, what is undone."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nce_fx
from nce_fx.data.loaders import BatchDataset
from nce_fx.errors import InputError
from nce_fx.passes.analysis.channels.plan_check import check_plan
from nce_fx.passes.planning.budget import count
from nce_fx.passes.transform.resize import gathers_of
from nce_fx.search import AdaptRecipe, search
from nce_fx.search.adapt_log import Move
from nce_fx.search.channel_worth import worth_of_groups
from nce_fx.search.moves import moved
from nce_fx.tasks import Task
from nce_fx.tensor_file import digest
from nce_fx.training.checkpoint import latest_checkpoint
from tests.search_runs import quarters, traced

RECIPE = AdaptRecipe(epochs=5, warmup_epochs=0, batch_size=24, region=0.5, seed=3)
SPEC = nce_fx.QuantSpec()


@pytest.mark.parametrize("spec", [None, SPEC])
def test_worth_is_how_the_loss_moves_as_channels_go(spec):
    batches = [(x.double(), y) for x, y in quarters().batches(2, 24)]
    gm = traced(torch.float64)
    network = gm if spec is None else nce_fx.quantize(gm, spec, batches)
    task = Task.of()
    found = worth_of_groups(network, batches, task)
    # `inner` is read by nothing but a grouped convolution that leads to `back`, `last` by the head alone.
    for group, reader in (("inner", "back.weight"), ("last", "head.weight")):
        weight = network.get_parameter(reader)
        expected = 0.0
        for inputs, target in batches:
            (slope,) = torch.autograd.grad(task.loss(network(inputs), target), weight)
            axes = [axis for axis in range(weight.dim()) if axis != 1]
            expected += float((slope * weight.detach()).sum(axes).square().sum()) / len(batches)
        assert found[group] == pytest.approx(expected)
        assert expected > 0
    if spec is None:
        # Against the loss itself: all of the head's columns a little less.
        step, (inputs, target) = 1e-6, batches[0]
        head = network.get_parameter("head.weight")
        slopes = []
        for column in range(head.shape[1]):
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    kept = head.clone()
                    head[:, column] *= 1 + sign * step
                    losses.append(float(task.loss(network(inputs), target)))
                    head.copy_(kept)
            slopes.append((losses[0] - losses[1]) / (2 * step))
        one = worth_of_groups(network, batches[:1], task)["last"]
        assert one == pytest.approx(sum(slope**2 for slope in slopes), rel=1e-4)


def test_a_move_carries_what_was_learned_and_leaves_the_other_network_as_it_was():
    gm, x = traced(), torch.randn(5, 1, 6, 6)
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    memory = {name: torch.randn_like(value) for name, value in gm.named_parameters()}
    wide, carried = moved(gm, Move({"stem": 7}), None, 0, memory)
    torch.testing.assert_close(wide.eval()(x), gm.eval()(x), rtol=1e-4, atol=1e-4)
    assert set(carried) == set(memory)
    index = torch.from_numpy(gathers_of(gm, {"stem": 7})["stem.weight", 0].index)
    copies = torch.bincount(index)[index]
    torch.testing.assert_close(carried["stem.weight"], memory["stem.weight"][index] / copies[:, None, None, None])
    torch.testing.assert_close(carried["inner.weight"], memory["inner.weight"][:, index])
    narrow, carried = moved(gm, Move({"stem": 2}), None, 0, memory)
    kept = torch.from_numpy(gathers_of(gm, {"stem": 2})["stem.weight", 0].index)
    assert torch.equal(carried["stem.weight"], memory["stem.weight"][kept])
    with torch.no_grad():
        for value in (*wide.parameters(), *narrow.parameters()):
            value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())


class Unseen(BatchDataset):
    def __len__(self):
        return 32

    def __getitems__(self, indices):
        raise AssertionError("a search looks at the test split")


def test_the_search_keeps_the_budget_and_does_not_look_at_the_test_split(tmp_path):
    gm, data = traced(), replace(quarters(), test=Unseen())
    budget = nce_fx.Budget(macs=0.9, params=1.0, bit_ops=1.0)
    result = search(gm, data, RECIPE, budget=budget, spec=SPEC, directory=tmp_path)
    check_plan(result.plan, gm)
    spent = count(nce_fx.quantize(nce_fx.resize(gm, result.plan), SPEC)).by_quantity
    own = count(nce_fx.quantize(gm, SPEC)).by_quantity
    assert all(spent[name] <= limit for name, limit in budget.limits(own).items())
    assert result.log.tried
    for each in result.log.tried:
        assert each.stays == (each.loss < each.without)
        assert all(2 / 3 <= width / each.before[group] <= 1.5 for group, width in each.after.items())
    widths = dict(result.log.start)
    for each in (each for each in result.log.tried if each.stays):
        assert {group: widths[group] for group in each.before} == dict(each.before)
        widths |= dict(each.after)
    assert widths == dict(result.plan.widths)
    assert nce_fx.WidthPlan.from_json((tmp_path / "plan.json").read_text()) == result.plan
    assert (tmp_path / "moves.csv").read_text().count("\n") == 1 + sum(len(each.after) for each in result.log.tried)
    assert (tmp_path / "widths.svg").read_text().startswith("<svg")


def test_what_held_out_data_does_not_like_is_undone():
    result = search(traced(), quarters(), replace(RECIPE, margin=0.99), spec=SPEC)
    assert [each.stays for each in result.log.tried] == [False, False]
    # A quarter of such widths is no channel: as far again.
    assert [each.region for each in result.log.tried] == [0.5, 0.5]
    assert not result.plan.changed


def test_the_rate_falls_to_zero_in_each_stretch(tmp_path):
    search(traced(), quarters(), RECIPE, spec=SPEC, directory=tmp_path)
    rates = [float(line.split(",")[2]) for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    # Of the last of four steps in each epoch: one to warm up, then four stretches.
    quarter = RECIPE.learning_rate * 0.5 * (1 + math.cos(math.pi * 3 / 4))
    assert rates == pytest.approx([RECIPE.learning_rate, *[quarter] * 4])


def test_what_leaves_no_time_for_a_move_is_said():
    with pytest.raises(InputError, match="at least 6"):
        AdaptRecipe(epochs=5, warmup_epochs=4)
    with pytest.raises(InputError, match="no group"):
        search(nce_fx.trace(torch.nn.Linear(3, 4), (torch.randn(1, 3),)), quarters(), RECIPE)


class Stopped(Exception):
    pass


def finished(directory: Path) -> tuple[str, bytes]:
    kept = latest_checkpoint(directory)
    assert kept is not None
    return digest(kept.tensors), (directory / "plan.json").read_bytes()


def test_a_search_that_was_stopped_ends_with_the_same_widths(tmp_path):
    def run(name: str, until: int = 10**9) -> None:
        def progress(report: nce_fx.training.StepReport) -> None:
            if report.step >= until:
                raise Stopped

        search(
            traced(), quarters(), RECIPE, spec=SPEC, directory=tmp_path / name, progress=progress, checkpoint_seconds=0
        )

    run("whole")
    # Of four steps an epoch: in the stretch of the network without the move, and in the second try.
    for until in (10, 15):
        with pytest.raises(Stopped):
            run("parts", until)
    run("parts")
    assert finished(tmp_path / "parts") == finished(tmp_path / "whole")
