"""Small networks in which one step of the channel analysis, or of its proof by a second run, decides what is found."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

import nce_fx
from nce_fx.passes.analysis.channels import ChannelGraph, ChannelGroup, ChannelPart
from tests.laws import widening_keeps_the_function
from tests.zoo import ZOO


class Net(nn.Module):
    """A convolution, what a test does to its channels, and a convolution that reads them."""

    def __init__(self, between: Callable[[Any, torch.Tensor], Any], *, reads: int = 6, **held: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(reads, 4, 1)
        self.between = between
        for name, value in held.items():
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x):
        return self.between(self, self.a(x))


def image(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5)


def analyzed(net: nn.Module, x: Any = None) -> ChannelGraph:
    return nce_fx.analyze_channels(nce_fx.trace(net.eval(), (image() if x is None else x,)))


def flipped_norm(net, h):
    """A norm of flipped channels whose weight is computed."""
    return net.b(F.batch_norm(h.flip(1), net.mean, net.var, net.p * 1.5, net.q))


def standardized(weight):
    return weight - weight.mean((1, 2, 3), keepdim=True)


@torch.fx.wrap
def measured(x):
    """What cannot be run on channels, and returns a number beside a tensor."""
    return torch.tensor(x.detach().numpy()), x.shape[2]


@torch.fx.wrap
def both(x):
    """Two values, each by a view."""
    return x.view(2, -1, 16), x.view(2, -1, 4, 4)


def picked(net, h):
    """Places that an index picks, which is repeated for each channel."""
    best = net.b(h).mean(1).flatten(1).topk(3).indices
    return net.c(h.flatten(2).gather(2, best.unsqueeze(1).expand(-1, 6, -1)).mean(2))


def rows(net, h):
    """A view whose first size is left to what channels become."""
    return net.c(F.layer_norm(h.mean((2, 3)), (6,)).view(-1, 6))


class Flipped(nn.Module):
    def forward(self, weight):
        return weight.flip(0)


def with_flipped_weight() -> nn.Module:
    net = Net(lambda net, h: net.b(h))
    parametrize.register_parametrization(net.a, "weight", Flipped())
    return net


FREE: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "a parameter that meets them in another order": (
        lambda: Net(lambda net, h: net.b(h.flip(1) * net.p), p=drawn(6, 1, 1)),
        None,
    ),
    "views inside what returns two values": (lambda: Net(lambda net, h: net.b(both(h)[1])), None),
    "places that are picked in each": (lambda: Net(picked, c=nn.Linear(6, 4)), None),
    "a weight that is dropped out": (
        lambda: Net(lambda net, h: F.conv2d(h, net.drop(net.w)), drop=nn.Dropout(0.5), w=drawn(4, 6, 1, 1)),
        None,
    ),
    "a weight cut to their number": (
        lambda: Net(lambda net, h: F.conv2d(h, net.w[:, : h.shape[1]]), w=drawn(4, 6, 1, 1)),
        None,
    ),
    "a norm that follows them flipped": (
        lambda: Net(flipped_norm, p=drawn(6), q=drawn(6), mean=torch.rand(6), var=torch.rand(6) + 1),
        None,
    ),
    "groups that read them turned": (
        lambda: Net(
            lambda net, h: net.b(net.g(h.view(2, -1, 2, 4, 4).transpose(1, 2).flatten(1, 2))),
            g=nn.Conv2d(6, 6, 1, groups=3),
        ),
        None,
    ),
    "a standardized weight whose gain is zero": (
        lambda: Net(
            lambda net, h: net.b(F.conv2d(h, standardized(net.w) * net.g)),
            w=drawn(6, 6, 1, 1),
            g=nn.Parameter(torch.zeros(6, 1, 1, 1)),
        ),
        None,
    ),
    "a weight that is flipped": (with_flipped_weight, None),
    "a maximum over them": (lambda: Net(lambda net, h: net.b(h) + h.max(1).values.unsqueeze(1)), None),
    "a view of one sample": (lambda: Net(rows, c=nn.Linear(6, 4)), image(1)),
    "a number beside the input": (lambda: Paired(), (image(), 2)),
    "a number beside what is not followed": (lambda: Net(lambda net, h: torch.mul(*measured(net.b(h)))), None),
}


class Paired(Net):
    def __init__(self) -> None:
        super().__init__(lambda net, h: net.b(h))

    def forward(self, pair):
        return self.b(self.a(pair[0]) * pair[1])


@pytest.mark.parametrize("case", FREE)
def test_channels_are_free_and_a_wider_network_is_the_same_function_with(case):
    make, x = FREE[case]
    net = make().eval()
    x = image() if x is None else x
    assert analyzed(net, x)["a"].pinned is None
    widening_keeps_the_function(net, (x,), dtypes=(torch.float64,))


PINNED: dict[str, tuple[Callable[[Any, torch.Tensor], Any], dict[str, Any], str]] = {
    "a product whose arguments are named": (
        lambda net, h: torch.matmul(input=h.mean(2).transpose(1, 2), other=net.c(h).mean(2)),
        {"c": nn.Conv2d(6, 6, 1)},
        "mixed by a product",
    ),
    "two constants at one node": (
        lambda net, h: net.b(torch.where(net.even, h, net.numbers)),
        {"even": torch.arange(6).view(6, 1, 1) % 2 == 0, "numbers": torch.arange(6).view(6, 1, 1)},
        "it meets a constant of fixed length",
    ),
    "a view that is written down, of a merged weight": (
        lambda net, h: F.conv2d(h, (net.w + net.up @ net.down).view(4, 6, 1, 1)),
        {"w": drawn(4, 6), "up": drawn(4, 2), "down": drawn(2, 6)},
        "is invalid for input of size",
    ),
    "an activation of a weight": (
        lambda net, h: F.conv2d(h, net.act(net.w)),
        {"act": nn.ReLU(), "w": drawn(4, 6, 1, 1)},
        "it is read by a weight that the graph computes",
    ),
    "a flipped weight of groups": (
        lambda net, h: net.b(F.conv2d(h, net.w.flip(0), groups=6)),
        {"w": drawn(6, 1, 1, 1)},
        "a computed weight cannot follow the order of its groups",
    ),
    "a weight of groups that come in two orders": (
        lambda net, h: net.b(F.conv2d(h, net.w * 1.5, groups=6)) + net.c(F.conv2d(h.flip(1), net.w * 1.5, groups=6)),
        {"w": drawn(6, 1, 1, 1), "c": nn.Conv2d(6, 4, 1)},
        "a computed weight cannot follow the order of its groups",
    ),
    "a constant where they come in two orders": (
        lambda net, h: net.b(torch.where(net.even, h.flip(1), net.c(h))),
        {"even": torch.arange(6).view(6, 1, 1) % 2 == 0, "c": nn.Conv2d(6, 6, 1)},
        "no repair of the graph restores it",
    ),
    "a view of a weight to their number": (
        lambda net, h: F.conv2d(h, net.w.view(4, h.shape[1], 1, 1)),
        {"w": drawn(4, 6, 1)},
        "cut out by numbers",
    ),
    "a length that an operation without a rule reads": (
        lambda net, h: net.b(h) * measured(h.new_ones(1, 1, 1).expand(1, 1, h.shape[1]))[0].sum(),
        {},
        "computed from a width",
    ),
}


@pytest.mark.parametrize("case", PINNED)
def test_channels_are_pinned_and_the_reason_is_said_with(case):
    between, held, reason = PINNED[case]
    pinned = analyzed(Net(between, **held))["a"].pinned
    assert pinned is not None
    assert reason in pinned


def test_what_is_written_in_place_is_the_users_to_mend():
    pinned = analyzed(Net(lambda net, h: net.b(h.unsqueeze_(2).squeeze(2))))["a"].pinned
    assert pinned is not None
    assert "write it without the underscore" in pinned
    assert "please report it" not in pinned


@pytest.mark.parametrize(
    "case", ["a parameter that meets them in another order", "views inside what returns two values"]
)
def test_no_node_is_put_in_with(case):
    gm = nce_fx.trace(FREE[case][0]().eval(), (image(),))
    wide = nce_fx.resize(gm, {"a": 9})
    assert [node.target for node in wide.graph.nodes] == [node.target for node in gm.graph.nodes]


def test_nodes_that_only_a_computed_weight_needs_go_with_it():
    net = Net(lambda net, h: net.b(F.conv2d(h, standardized(net.w))), w=drawn(6, 6, 1, 1))
    (weight,) = analyzed(net).computed_weights
    assert sorted(weight.nodes) == ["mean", "sub", "w"]


def test_rows_and_columns_of_a_square_merged_weight_are_apart():
    net = Net(
        lambda net, h: net.b(F.conv2d(h, (net.w + net.up @ net.down).unsqueeze(2).unsqueeze(3))),
        w=drawn(6, 6),
        up=drawn(6, 2),
        down=drawn(2, 6),
    )
    free = [group for group in analyzed(net) if group.pinned is None]
    assert free[0].producers == ("a",)
    assert len(free) == 2


def test_a_model_without_layers_has_no_groups():
    assert list(analyzed(nn.ReLU())) == []


def test_the_only_channel_of_an_output_is_the_users():
    pinned = analyzed(nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(1, 2)))["0"].pinned
    assert pinned is not None
    assert pinned.startswith("it makes an output of the model")


def test_parts_that_a_view_wants_equally_long_change_together():
    model = ZOO["attention_one_head_by_views"]
    group = nce_fx.analyze_channels(nce_fx.trace(model.make(), model.inputs))["block.attn.qkv"]
    assert (group.pinned, group.step, len(group.parts)) == (None, 3, 1)


def test_a_piece_that_is_cut_out_keeps_a_channel():
    def gated(net, h):
        some, others = h.split([2, 4], 1)
        return net.b(torch.cat([some.relu(), others], 1))

    channels = analyzed(Net(gated))
    assert channels["a"].min_width == 2
    assert [part.width for part in channels.parts if part.group == "a"] == [2, 4]


def groups_of(width: int, *parts: ChannelPart) -> ChannelGraph:
    group = ChannelGroup("a", width, 1, ("a",), (), None, tuple(range(len(parts))), 1)
    return ChannelGraph((group,), parts, {}, {})


@pytest.mark.parametrize(
    ("width", "parts", "wanted", "widths"),
    [
        (8, (ChannelPart("a", 3, 1, False, True), ChannelPart("a", 5, 1, True, True)), 12, (3, 9)),
        (8, (ChannelPart("a", 3, 1, False, True), ChannelPart("a", 5, 1, True, True)), 5, (3, 2)),
        (8, (ChannelPart("a", 8, 1, True, True), ChannelPart("a", 4, 2, True, False)), 16, (16, 8)),
        (6, (ChannelPart("a", 6, 1, True, True), ChannelPart("a", 9, 3, True, False)), 4, (4, 6)),
    ],
)
def test_a_width_is_shared_out_among_the_parts_of_its_group(width, parts, wanted, widths):
    assert groups_of(width, *parts).part_widths({"a": wanted}) == widths
