"""What only training shows is in the graph, too: gradients that somebody defined, the mode behind parts left whole."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest
import torch
from torch import nn

import nce_fx
from nce_fx.errors import TraceError
from tests.laws import LAWS
from tests.observing import seeded


class Rounded(torch.autograd.Function):
    """Rounds to steps of a size; the gradient goes straight through, three times as large."""

    @staticmethod
    def forward(ctx, x, step=0.5):
        ctx.save_for_backward(x)
        return torch.round(x / step) * step

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3, None


class Steps(nn.Module):
    """A network that rounds inside."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(Rounded.apply(self.a(x), 0.25))


def gradient_of(model, x):
    """The gradient of the first layer's weight."""
    return torch.autograd.grad(model(x).sum(), model.a.weight)[0]


def test_a_gradient_that_a_function_defines_is_the_graphs_too():
    torch.manual_seed(0)
    model, x = Steps(), torch.randn(5, 4)
    gm = nce_fx.trace(model, (x,))
    for graph in (gm, pickle.loads(pickle.dumps(gm))):
        torch.testing.assert_close(gradient_of(graph, x), gradient_of(model, x))
    assert nce_fx.analyze_channels(gm)["a"].pinned is None
    wide = nce_fx.resize(gm, {"a": 9})
    torch.testing.assert_close(wide(x), model(x))
    assert gradient_of(wide, x).abs().sum() > 0


@pytest.mark.parametrize("law", LAWS)
def test_what_defines_its_gradient_keeps_the_laws(law):
    LAWS[law](Steps().eval(), (torch.randn(5, 4),))


class Shut(torch.autograd.Function):
    """A ReLU as some write it: its gradient is the one that PyTorch finds."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x > 0)


class DecidedShut(Steps):
    """Shuts in a way that only torch.export follows."""

    def forward(self, x):
        return self.b(Shut.apply(self.a(x if x.shape[1] > 3 else -x)))


def test_a_gradient_that_anyone_finds_need_not_be_defined(monkeypatch):
    monkeypatch.setattr("nce_fx.tracing.symbolic_graph", None)
    model, x = DecidedShut(), torch.randn(5, 4)
    gm = nce_fx.trace(model, (x,))
    assert gm.meta["traced"] == "export"
    torch.testing.assert_close(gradient_of(gm, x), gradient_of(model, x))


class DecidedSteps(Steps):
    """Rounds in a way that only torch.export follows, which enters the function."""

    def forward(self, x):
        return super().forward(x if x.shape[1] > 3 else -x)


def test_a_graph_that_loses_a_gradient_is_refused(monkeypatch):
    monkeypatch.setattr("nce_fx.tracing.symbolic_graph", None)
    with pytest.raises(TraceError, match="in training mode the gradient is lost that Rounded defines"):
        nce_fx.trace(DecidedSteps().eval(), (torch.randn(5, 4),))


class Dice(Steps):
    """Scales by a number of Python's own in training."""

    def forward(self, x):
        return super().forward(x * random.random() if self.training else x)


def test_that_no_graph_draws_pythons_numbers_is_said():
    with pytest.raises(
        TraceError, match="for in training mode it draws numbers that no graph draws, Python's or numpy"
    ):
        nce_fx.trace(Dice().eval(), (torch.randn(5, 4),))


class Merged(nn.Module):
    """Two convolutions, in evaluation one that their weights are merged into."""

    wide: Any
    narrow: Any
    merged: Any

    def __init__(self, wide, narrow):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(wide, narrow, 3, padding=1), nn.Conv2d(wide, narrow, 1)
        self.merged = nn.Conv2d(wide, narrow, 3, padding=1)

    def forward(self, x):
        if self.training:
            return self.wide(x) + self.narrow(x)
        self.merged.weight.data = self.wide.weight + nn.functional.pad(self.narrow.weight, (1, 1, 1, 1))
        self.merged.bias.data = self.wide.bias + self.narrow.bias
        return self.merged(x)


class Merging(nn.Module):
    """A network in the middle of which is what merges."""

    def __init__(self):
        super().__init__()
        self.a, self.merging, self.b, self.c = nn.Conv2d(3, 4, 3), Merged(4, 5), nn.Conv2d(5, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.c(torch.relu(self.b(self.merging(torch.relu(self.a(x))))))


@pytest.mark.parametrize("law", LAWS)
def test_a_part_that_assigns_to_its_data_keeps_the_laws(law):
    LAWS[law](Merging(), (torch.randn(2, 3, 6, 6),))


def test_what_is_assigned_to_data_is_not_lost():
    model, x = Merging().eval(), torch.randn(2, 3, 6, 6)
    before = copy.deepcopy(model.state_dict())
    gm = nce_fx.trace(model, (x,))
    assert gm.meta["traced"] == "fx"
    assert gm.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(group.pinned is None or group.id == "c" for group in nce_fx.analyze_channels(gm).groups)
    with torch.no_grad():
        model.merging.wide.weight.mul_(2)
    for training in (False, True):
        torch.testing.assert_close(gm.train(training)(x), model.train(training)(x))


class Writing(nn.Module):
    """Writes to its parameters in training, too: a gradient reaches what is written over the next time."""

    a: Any

    def __init__(self):
        super().__init__()
        self.a, self.b, self.slope = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        self.slope.data = self.a.bias.view(-1, 1, 1) * 2
        return self.b(torch.relu(self.a(x)) * self.slope)


def test_what_runs_without_gradients_alone_is_not_the_model():
    with pytest.raises(TraceError, match="it does not run while gradients are recorded") as caught:
        nce_fx.trace(Writing().eval(), (torch.randn(1, 3, 4, 4),))
    assert "self.slope.data = " in str(caught.value)


class Masked(nn.Conv2d):
    """A convolution that sees one half of its kernel, as autoregressive networks have it."""

    def forward(self, x):
        self.weight.data = self.weight.data * torch.tensor([1.0, 1.0, 0.0], dtype=x.dtype)
        return super().forward(x)


def test_a_layer_that_is_left_whole_is_counted_once():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Masked(4, 5, 3), nn.Conv2d(5, 2, 1)).eval()
    LAWS["6_cost_is_exact"](model, (torch.randn(2, 3, 6, 6),))


class Mean(nn.Module):
    """A part that the values decide, if only in training where it is asked to."""

    def __init__(self, in_training):
        super().__init__()
        self.in_training, self.inner = in_training, nn.Linear(5, 5)

    def forward(self, x):
        if not self.in_training or self.training:
            x = x * int((x > 0).sum())
        return self.inner(x)


class BehindAPart(nn.Module):
    """Noise in training and rounding in evaluation, as compression has them, behind such a part."""

    def __init__(self, in_training):
        super().__init__()
        self.first, self.part, self.last = nn.Linear(4, 5), Mean(in_training), nn.Linear(5, 3)

    def forward(self, x):
        x = self.part(self.first(x))
        return self.last(x + torch.rand_like(x) if self.training else x.round())


@pytest.mark.parametrize("in_training", [False, True])
def test_the_mode_is_followed_behind_what_is_left_whole(in_training):
    torch.manual_seed(0)
    model, x = BehindAPart(in_training).eval(), torch.randn(2, 4)
    gm = nce_fx.trace(model, (x,))
    for mode in (True, False):
        wanted, got = seeded(model.train(mode), (x,)), seeded(gm.train(mode), (x,))
        assert wanted is not None
        assert got is not None
        torch.testing.assert_close(got[0], wanted[0])


class WrittenOver(nn.Module):
    """Writes a part of a value over in evaluation and joins it anew in training, as PLKSR does: the same values."""

    def __init__(self):
        super().__init__()
        self.stem, self.part = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        y = self.stem(x)
        z = y * y
        if self.training:
            first, second = torch.split(z, [4, 4], 1)
            z = torch.cat([self.part(first), second], 1)
        else:
            z[:, :4] = self.part(z[:, :4])
        return self.head(z * y)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_written_over_in_evaluation_has_its_gradient_in_training(training):
    model, x = WrittenOver().train(training), torch.randn(2, 3, 6, 6)
    gm = nce_fx.trace(model, (x,))
    expected, gradients = (torch.autograd.grad(each.train()(x).sum(), list(each.parameters())) for each in (model, gm))
    torch.testing.assert_close(gradients, expected)
    torch.testing.assert_close(gm.eval()(x), model.eval()(x))


@pytest.mark.parametrize("law", LAWS)
def test_what_is_written_over_in_evaluation_keeps_the_laws(law):
    torch.manual_seed(0)
    LAWS[law](WrittenOver().eval(), (torch.randn(2, 3, 6, 6),))
