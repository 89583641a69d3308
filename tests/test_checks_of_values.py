"""Models that check their values as they run: the graph leaves checks out, and says so; other branches are refused."""

import pytest
import torch
from torch import Tensor, nn

import nce_fx
from nce_fx.errors import TraceError
from tests import checking
from tests.zoo.model import noise


class Checking(nn.Module):
    def __init__(self, check, asks_for_tensors):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        self.check, self.asks_for_tensors = check, asks_for_tensors

    def forward(self, x):
        if self.asks_for_tensors and not isinstance(x, Tensor):  # torch.fx gives what is none
            raise TypeError("no tensor")
        h = self.a(x).relu()
        self.check(h)
        return self.b(h)


@pytest.mark.parametrize("asks_for_tensors", [False, True], ids=["fx", "export"])
@pytest.mark.parametrize("check", checking.CHECKS)
def test_a_check_that_only_raises_is_left_out_and_said(check, asks_for_tensors):
    torch.manual_seed(0)
    model, x = Checking(check, asks_for_tensors).eval(), noise(3, 4)
    gm = nce_fx.trace(model, (x,))
    assert gm.meta["traced"] == ("export" if asks_for_tensors else "fx")
    assert "it does not check values as its model does at" in gm.meta["compared"]
    assert f"{checking.__file__}:" in gm.meta["compared"]
    assert len([node for node in gm.graph.nodes if node.op.startswith("call_")]) == 3
    torch.testing.assert_close(gm(2 * x), model(2 * x))
    assert [group.pinned is None for group in nce_fx.analyze_channels(gm).groups] == [True, False]


def test_a_check_of_a_number_is_left_out():
    model, x = Checking(checking.by_numbers, False).eval(), noise(3, 4)
    gm = nce_fx.trace(model, (x,))
    assert len([node for node in gm.graph.nodes if node.op.startswith("call_")]) == 3
    torch.testing.assert_close(gm(2 * x), model(2 * x))


def test_a_model_without_checks_says_nothing_of_them():
    gm = nce_fx.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), noise(3, 4))
    assert gm.meta["compared"] == "compared with the model in both modes"


@pytest.mark.parametrize(
    "branch", [checking.turns_what_is_large, checking.gives_up, checking.repeats, checking.asserts_of_one_way]
)
def test_a_branch_of_which_both_ways_go_on_is_refused(branch):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(branch(self.a(x).relu()))

    with pytest.raises(TraceError, match=r'which stops at .*checking\.py:\d+, "(if|while) h\.(sum|max)'):
        nce_fx.trace(Branching().eval(), noise(3, 4))


def test_what_raises_on_the_example_inputs_is_the_models_own_error():
    with pytest.raises(TraceError, match=r"does not take the example input .*not finite"):
        nce_fx.trace(Checking(checking.a_function_of_its_own, False).eval(), torch.full((3, 4), torch.inf))
