"""Scores in known numbers: what each metric takes, what a tensor without samples costs, and who sees batches."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nce_fx
from nce_fx.passes.analysis.sensitivity import METRICS, Noise, analyze_sensitivity
from nce_fx.passes.analysis.sensitivity.analyze import Metric
from nce_fx.passes.analysis.sensitivity.noise import real_noise
from nce_fx.passes.analysis.sensitivity.probe import Probe
from nce_fx.passes.analysis.sensitivity.scores import Scores
from nce_fx.passes.analysis.sensitivity.shard import Shard


def coarse(value: Tensor) -> Tensor:
    return (value * 4).round() / 4


COARSE = Noise(lambda path, weight: coarse(weight), lambda name, readers, sample: coarse)


def pairs(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(6, 4, generator=generator), torch.arange(6) % 3) for _ in range(count)]


@pytest.fixture(scope="module")
def two():
    torch.manual_seed(0)
    return nce_fx.trace(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval(), (torch.randn(2, 4),))


@pytest.mark.parametrize(
    ("metric", "forwards"),
    # One thing at a time: of two layers, two and one run again for the weights, and as many for what they read.
    [("sqnr", 0), ("sqnr_activation", 1), ("fisher", 4), ("gauss_newton", 6), ("kl", 1 + 6 / 2), ("loss", 1 + 6 / 2)],
)
def test_what_a_metric_takes_in_forward_passes(two, metric, forwards):
    assert analyze_sensitivity(two, pairs(), metric).forwards == forwards


def test_what_a_metric_does_not_score_costs_nothing(two, monkeypatch):
    analyze = sys.modules["nce_fx.passes.analysis.sensitivity.analyze"]
    silent = Metric(lambda probe, batches, progress: Scores({"0": 2.0}), False, "the first layer alone")
    monkeypatch.setattr(analyze, "METRICS", {**METRICS, "silent": silent})
    report = analyze_sensitivity(two, metric="silent")
    assert [node.total for node in report.by_node.values()] == [2.0, 0.0]
    assert list(report.by_group.values()) == [2.0, 0.0]


@pytest.mark.parametrize("metric", ["sqnr_activation", "fisher", "gauss_newton"])
def test_who_watches_sees_every_batch(two, metric):
    seen = []
    analyze_sensitivity(two, pairs(3), metric, watch=lambda values: seen.append(len(values)))
    assert seen == [len(two.graph.nodes)] * 3


class Scaled(nn.Module):
    """A number comes first, and the samples after it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, scale, x):
        return self.layer(x * scale)


def test_samples_are_counted_where_a_number_comes_first():
    gm = nce_fx.trace(Scaled().eval(), (torch.tensor(2.0), torch.randn(2, 4)))
    report = analyze_sensitivity(gm, [((torch.tensor(2.0), x), y) for x, y in pairs()], "sqnr_activation")
    assert (report.batches["batches"], report.batches["samples"]) == (2, 12)


class Table(nn.Module):
    """A layer of a table that no sample is in, added to one of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(1, 4))
        self.shared, self.own = nn.Linear(4, 3, bias=False), nn.Linear(4, 3)

    def forward(self, x):
        return self.own(x) + self.shared(self.table)


def test_a_layer_without_samples_is_shared_out_among_them():
    torch.manual_seed(1)
    gm, ((x, y),) = nce_fx.trace(Table().eval(), (torch.randn(2, 4),)), pairs(1)
    report = analyze_sensitivity(gm, [(x, y)], "fisher", noise=COARSE)
    weight = gm.get_parameter("shared.weight")
    (slope,) = torch.autograd.grad(F.cross_entropy(gm(x), y), weight)
    moved = float((slope * (coarse(weight) - weight)).detach().sum())
    assert report.by_node["shared"].weight == pytest.approx(0.5 * moved**2, rel=1e-4)


class Borrowed(nn.Module):
    """A function on the weight of a module that nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.out = nn.Linear(4, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(F.linear(x, self.held.weight).relu())


def test_a_group_has_the_noise_of_a_weight_that_a_function_takes():
    gm = nce_fx.trace(Borrowed().eval(), (torch.randn(2, 4),))
    report = analyze_sensitivity(gm, metric="sqnr")
    assert report.by_group["held"] == report.by_node["held"].weight > 0


def test_classes_lie_on_the_axis_that_the_targets_leave(two):
    probe = Probe.of(two, COARSE)
    assert probe.axis_of_classes(torch.randn(2, 3), None) == 1
    assert probe.axis_of_classes(torch.randn(2, 3), torch.zeros(2, dtype=torch.long)) == 1
    assert probe.axis_of_classes(torch.randn(2, 3, 5, 4), torch.zeros(2, 5, 4, dtype=torch.long)) == 1
    assert probe.axis_of_classes(torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.long)) == -1


def test_ranges_are_those_of_the_first_batch_in_every_process(two):
    first, second = pairs()
    first = (0.1 * first[0], first[1])
    one, other = (Probe.of(two, real_noise(2), shard=shard) for shard in (None, Shard(1, 2)))
    values = one.forward(first[0]), one.forward(second[0])
    assert [number for number, _ in other.mine([first, second])] == [1]
    for mine, theirs in zip(one.activations, other.activations, strict=True):
        one.rounded(mine, values[0][mine])
        assert torch.equal(one.rounded(mine, values[1][mine]), other.rounded(theirs, values[1][mine]))


def test_a_process_that_measures_all_runs_nothing_beforehand(two):
    unreadable = [("no batch", None)]
    assert list(Probe.of(two, COARSE).mine(unreadable)) == [(0, unreadable[0])]
