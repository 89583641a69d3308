"""What a resize makes of values: which channels stay, noise among copies of nothing, and the bytes that it asks for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nce_fx
from nce_fx.devices import FREE_MEMORY
from nce_fx.errors import ChannelError
from nce_fx.passes.transform.widths import InsertWidthChoices, WidthNorm
from nce_fx.passes.transform.widths.choice_sites import carried_order


def two():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    return nce_fx.trace(net.eval(), (torch.randn(2, 4),))


def test_channels_that_are_made_larger_stay():
    gm = two()
    with torch.no_grad():
        gm.get_parameter("0.weight").copy_(torch.tensor([1.0, 4.0, 2.0, 3.0])[:, None].expand(4, 4))
        gm.get_parameter("2.weight").fill_(1.0)
    small = nce_fx.resize(gm, {"0": 2})
    assert small.get_parameter("0.weight")[:, 0].tolist() == [4.0, 3.0]


def test_copies_of_nothing_are_parted_as_those_of_a_weight_of_deviation_one():
    gm, nothing = two(), two()
    with torch.no_grad():
        signs = gm.get_parameter("2.weight").sign_()
        nothing.get_parameter("2.weight").zero_()
    wide, parted = (nce_fx.resize(each, {"0": 8}).get_parameter("2.weight") for each in (gm, nothing))
    halves = signs.repeat_interleave(2, 1) / 2
    assert float(parted.detach().abs().max()) > 0
    torch.testing.assert_close(wide - halves, parted)


def test_a_resize_fits_where_exactly_its_bytes_are_free(monkeypatch):
    gm = two()
    # Rows, bias, what reads them; and eight bytes for each channel of both groups.
    needed = 4 * (9 * 4 + 9 + 3 * 9) + 8 * (9 + 3)
    monkeypatch.setenv(FREE_MEMORY, str(needed))
    nce_fx.resize(gm, {"0": 9})
    monkeypatch.setenv(FREE_MEMORY, str(needed - 1))
    with pytest.raises(ChannelError, match="of memory"):
        nce_fx.resize(gm, {"0": 9})


def test_an_order_is_written_down_and_read_again():
    gm = two()
    for made in (InsertWidthChoices({"0": (2, 4)}), InsertWidthChoices({"0": (2, 4)}).decide(gm)):
        read = InsertWidthChoices.from_options(made.options())
        assert read == made
        said, again = (
            None if each.order is None else {axis: ranks.tolist() for axis, ranks in each.order.items()}
            for each in (made, read)
        )
        assert said == again


def test_the_order_of_a_wider_network_has_first_every_channel_then_their_copies():
    gm = two()
    order = {("0.weight", 0): np.array([2, 0, 3, 1])}
    wide = nce_fx.resize(gm, {"0": 7})
    found = carried_order(wide, order, {("0.weight", 0): np.array([0, 0, 1, 1, 2, 2, 3])})
    assert found["0.weight", 0].tolist() == [2, 5, 0, 4, 3, 6, 1]


def test_a_norm_of_widths_scales_each_channel_as_the_narrowest_that_has_it():
    torch.manual_seed(0)
    plain = nn.BatchNorm1d(4)
    norm = WidthNorm(plain, torch.tensor([0, 1, 1, 2]), 3).eval()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(5, 4)
    for pick in range(3):
        had = torch.tensor([0, 1, 1, 2]) <= pick
        wanted = F.batch_norm(
            x, norm.norm.running_mean, norm.norm.running_var, norm.rows("weight")[pick], norm.rows("bias")[pick]
        )
        found = norm(x, F.one_hot(torch.tensor(pick), 3).float())
        torch.testing.assert_close(found[:, had], wanted[:, had])


def test_a_norm_of_widths_averages_over_all_batches_as_the_plain_one():
    plain, other = (nn.BatchNorm1d(4, momentum=None).train() for _ in range(2))
    norm = WidthNorm(other, torch.tensor([0, 0, 1, 1]), 2).train()
    for _ in range(3):
        x = torch.randn(6, 4)
        plain(x)
        norm(x, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(norm.norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.norm.running_var, plain.running_var)


class Two(nn.Module):
    """A layer of two inputs, the second alone of channels that have a choice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.both = nn.Linear(4, 6), nn.Bilinear(4, 6, 3)

    def forward(self, x):
        return self.both(x, self.first(x).relu())


def test_the_second_input_of_a_layer_has_a_choice_where_the_first_has_none():
    gm, x = nce_fx.trace(Two().eval(), (torch.randn(2, 4),)), torch.randn(5, 4)
    searched = InsertWidthChoices({"first": (2, 6)})(gm).graph_module.eval()
    with torch.no_grad():
        searched.get_parameter("first_width_draw.alpha").copy_(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(searched(x), nce_fx.resize(gm, {"first": 2})(x))
