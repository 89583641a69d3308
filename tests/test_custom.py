"""Channel rules of a user's own: found on classes, functions and operators, by the analysis and by every resize."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nce_fx
from nce_fx import custom
from nce_fx.errors import ChannelError, InputError
from nce_fx.ops import OPS
from tests.laws import narrowing_is_removal, new_channels_live, nothing_is_silent, widening_keeps_the_function
from tests.zoo.model import image, randomize


@nce_fx.channel_rule(lambda module, x: F.conv2d(x, module.kernels, module.offsets))
class Mixed(nn.Module):
    """A 1x1 convolution that computes what no tracer follows: it looks at values."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(out, width, 1, 1))
        self.offsets = nn.Parameter(torch.randn(out))

    def forward(self, x):
        y = torch.einsum("oi,bihw->bohw", self.kernels[:, :, 0, 0], x)
        return y + self.offsets[:, None, None] if float(x.detach().abs().max()) > 0 else y


def scaled(module, x):
    custom.follows(x, "channels", x.shape[1])
    return x * module.scale


@nce_fx.channel_rule(scaled)
class Scaled(nn.Module):
    """A scale for each channel, and an attribute that must say how many there are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.scale = channels, nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x):
        assert x.shape[1] == self.channels
        return x * self.scale


@nce_fx.channel_rule(lambda x, slope: x)
def bent(x, slope):
    """Elementwise, but decided by a value: a tracer cannot enter."""
    return torch.where(x > 0, x, slope * x) if float(slope) > 0 else x


@nce_fx.channel_rule(lambda x: x)
@torch.library.custom_op("nce_fx_tests::cubed", mutates_args=())
def cubed(x: torch.Tensor) -> torch.Tensor:
    return x**3


cubed.register_fake(torch.empty_like)
cubed.register_autograd(
    lambda ctx, gradient: gradient * 3 * ctx.saved_tensors[0] ** 2,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@torch.library.custom_op("nce_fx_tests::strange", mutates_args=())
def strange(x: torch.Tensor) -> torch.Tensor:
    return x.flip(1).cumsum(1)


strange.register_fake(torch.empty_like)


class Listening(nn.Module):
    """A module that no tracer enters and that has no rule."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.inner(x) * (2 if x.detach().numpy().max() > 0 else 1)


class Net(nn.Module):
    """Convolutions around something in the middle."""

    def __init__(self, middle, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3)
        self.middle = middle
        self.last = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        return self.last(torch.relu(self.middle(self.first(x))))


class Calling(nn.Module):
    """A function as a module, so that it stands in the middle of a net."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


MODELS = {
    "module with weights": lambda: Net(Mixed(6, 6)),
    "module with an attribute": lambda: Net(Scaled(6)),
    "function": lambda: Net(Calling(lambda x: bent(x, 0.1))),
    "operator": lambda: Net(Calling(torch.ops.nce_fx_tests.cubed)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "law", [widening_keeps_the_function, new_channels_live, narrowing_is_removal, nothing_is_silent]
)
def test_laws_hold_with_a_rule(name, law):
    model = randomize(MODELS[name]()).eval()
    gm = nce_fx.trace(model, (image(),))
    assert gm.meta["traced"] == "fx"
    assert nce_fx.analyze_channels(gm)["first"].pinned is None
    if not (law is narrowing_is_removal and name == "module with weights"):
        law(model, (image(),))


def test_a_module_with_a_rule_makes_channels_of_its_own():
    gm = nce_fx.trace(Net(Mixed(6, 6)).eval(), (image(),))
    channels = nce_fx.analyze_channels(gm)
    assert channels["middle.kernels"].pinned is None
    wide = nce_fx.resize(gm, {"first": 9, "middle.kernels": 8})
    assert wide.get_parameter("middle.kernels").shape == (8, 9, 1, 1)


@pytest.mark.parametrize(
    ("middle", "entry"),
    [
        (Listening(6), "@nce_fx.channel_rule(lambda module, x: ...) above class Listening"),
        (Calling(torch.ops.nce_fx_tests.strange), "nce_fx.channel_rule(lambda x: ...)(torch.ops.nce_fx_tests.strange)"),
    ],
)
def test_without_a_rule_it_pins_and_the_message_shows_the_entry(middle, entry):
    model = randomize(Net(middle)).eval()
    gm = nce_fx.trace(model, (image(),))
    channels = nce_fx.analyze_channels(gm)
    reason = channels["first"].pinned
    assert reason is not None
    assert entry in reason
    assert "test_custom.py:" in reason
    if isinstance(middle, Listening):
        assert gm.meta["traced"] == "fx with leaves: middle"
        assert entry in str(channels["middle.inner"].pinned)
    widening_keeps_the_function(model, (image(),))
    nothing_is_silent(model, (image(),))


def test_a_rule_that_returns_another_shape_is_refused():
    @nce_fx.channel_rule(lambda module, x: x.mean(1, keepdim=True))
    class Wrong(nn.Module):
        def forward(self, x):
            return x * 2

    with pytest.raises(ChannelError, match=r"rule of middle .* returns shape \(2, 1, 6, 6\)"):
        nce_fx.analyze_channels(nce_fx.trace(Net(Wrong()).eval(), (image(),)))


def test_a_subclass_with_another_forward_has_no_rule():
    class Otherwise(Mixed):
        def forward(self, x):
            return x.flip(1)

    assert OPS.of_module(type("Same", (Mixed,), {})(6, 6)) is not None
    assert OPS.of_module(Otherwise(6, 6)) is None


def test_only_what_can_carry_a_rule_takes_one():
    with pytest.raises(InputError, match="channel_rule"):
        nce_fx.channel_rule(lambda x: x)(3)
    for torchs in (nn.Softsign, torch.ops.aten.sort, torch.ops.aten.sort.default):
        with pytest.raises(InputError, match="PyTorch's own"):
            nce_fx.channel_rule(lambda x: x)(torchs)


def test_words_of_rules():
    @nce_fx.channel_rule(lambda module, x: custom.pin(x, "it is written to a fixed register"))
    class Register(nn.Module):
        def forward(self, x):
            return x + 1

    @nce_fx.channel_rule(lambda module, x: custom.together(x, 1))
    class Whole(nn.Module):
        def forward(self, x):
            return x / x.mean(1, keepdim=True).abs().clamp(min=1e-3)

    pinned = nce_fx.analyze_channels(nce_fx.trace(Net(Register()).eval(), (image(),)))["first"].pinned
    assert "fixed register" in str(pinned)
    assert nce_fx.analyze_channels(nce_fx.trace(Net(Whole()).eval(), (image(),)))["first"].step == 6


def once_a_channel(module, x):
    for _ in range(x.shape[1]):
        x.run.carries(x.labels[0], 1)
    return x


def halves_where_even(module, x):
    return custom.together(x, 1) if x.shape[1] == 6 else x.mean((2, 3), keepdim=True) + x


def another_parameter(module, x):
    return x * (module.scale if x.shape[1] <= 6 else module.other)


def another_question(module, x):
    for label in x.labels:
        (x.run.varies if x.shape[1] <= 6 else x.run.carries)(label, 1)
    return x


def other_channels(module, x):
    x.run.varies((x if x.shape[1] <= 6 else module.other.expand(2, 6, 6, 6)).labels[0], 1)
    return x


def more_where_narrow(module, x):
    for _ in range(1 if x.shape[1] >= 6 else 2):
        custom.together(x[:, :1].expand(x.shape), 1)
    return x


def fewer_where_narrow(module, x):
    for _ in range(2 if x.shape[1] >= 6 else 1):
        x.run.number((1,), x.labels[0])
    return x


BY_SHAPE = [
    once_a_channel,
    halves_where_even,
    another_parameter,
    another_question,
    other_channels,
    more_where_narrow,
    fewer_where_narrow,
]


@pytest.mark.parametrize("rule", BY_SHAPE)
def test_a_rule_that_a_shape_decides_is_named_and_never_taken_for_another(rule):
    """Found while all widths grow, it pins in words; found by one width alone, it refuses that width in words."""

    @nce_fx.channel_rule(rule)
    class Decided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.other = (nn.Parameter(torch.rand(6, 1, 1) + 0.5) for _ in range(2))

        def forward(self, x):
            return x * self.scale if float(x.detach().abs().max()) > 0 else x * self.other

    model = randomize(Net(Decided())).eval()
    gm = nce_fx.trace(model, (image(),))
    channels = nce_fx.analyze_channels(gm)
    nothing_is_silent(model, (image(),))
    reason = channels["first"].pinned
    if reason is None:
        with pytest.raises(ChannelError) as refused:
            nce_fx.resize(gm, {"first": 3})
        reason = str(refused.value)
    assert "middle" in reason
    assert "channel rule" in reason
    assert rule.__name__ in reason
