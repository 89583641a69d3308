"""An operation that nobody knows is one row: followed, costed, resized, quantized, and torch stays as it was."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn, randn

import nce_fx
from nce_fx import registry
from nce_fx.errors import InputError
from nce_fx.ops import OPS, Absent, Op, WeightLayout, table
from nce_fx.ops.rules import affine
from nce_fx.ops.work import rows_times_weight
from nce_fx.passes.transform.fold import FoldBatchNorm
from tests.observing import counted, difference, run
from tests.zoo.model import image, noise, randomize


class Mixed(nn.Module):
    """A 1x1 convolution that computes what no tracer follows: it looks at values."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(out, width, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.kernels) if float(x.detach().abs().max()) > 0 else x


@torch.library.custom_op("nce_fx_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight) * 2


doubled.register_fake(F.linear)

MIXED = Op(
    name="mixed",
    kind="weighted",
    modules=(Mixed,),
    signature="input, weight",
    attributes={"weight": "kernels"},
    channels=OPS["conv2d"].channels,
    catch="call",
    macs=rows_times_weight("mixed", -3, weight="kernels"),
    quantize=Absent("it looks at values"),
    example=lambda: (randn(2, 8, 5, 5), randn(6, 8, 1, 1)),
)
DOUBLED = Op(
    name="doubled",
    kind="weighted",
    spellings={torch.ops.nce_fx_tests.doubled.default: ""},
    signature="input, weight",
    channels=OPS["linear"].channels,
    catch="call",
    macs=rows_times_weight("doubled", -1),
    quantize=WeightLayout(0),
    example=lambda: (randn(2, 8), randn(6, 8)),
)
MINE = OPS.adding(MIXED, DOUBLED)


@torch.library.custom_op("nce_fx_tests::shifted", mutates_args=())
def shifted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return F.linear(x, weight, bias)


shifted.register_fake(F.linear)
SHIFTED = replace(
    DOUBLED,
    name="shifted",
    spellings={torch.ops.nce_fx_tests.shifted.default: ""},
    signature="input, weight, bias=None",
    fold=affine.rows,
)


@nce_fx.channel_rule(F.linear, macs=rows_times_weight("tripled", -1), quantize=WeightLayout(0))
def tripled(x, weight):
    """Decided by a value: no tracer can enter."""
    return F.linear(x, weight) * 3 if float(x.detach().max()) > -1e9 else x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 6, 3), Mixed(6, 8), nn.Linear(5, 4)
        self.matrix = nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        x = torch.relu(self.middle(self.first(x))).mean((2, 3))
        return self.last(torch.relu(torch.ops.nce_fx_tests.doubled.default(x, self.matrix)))


@pytest.fixture
def model():
    return randomize(Net()).eval().double()


def test_a_made_up_operation_is_followed_costed_and_resized(model):
    x = (image().double(),)
    gm = nce_fx.trace(model, x, ops=MINE)
    channels = nce_fx.analyze_channels(gm)
    assert {"first", "middle.kernels", "matrix"} <= {g.id for g in channels.groups if g.pinned is None}
    widths = {"first": 9, "middle.kernels": 12, "matrix": 7}
    wide = nce_fx.resize(gm, widths)
    assert difference(run(gm, x), run(wide, x)) <= 1e-9
    cost = nce_fx.analyze_cost(gm, channels)
    for at, graph in ((cost, gm), (cost.at(widths), wide)):
        macs, params = counted(graph, x)
        # PyTorch's counter does not look into the operator.
        assert (at.macs, at.params) == (macs + len(x[0]) * graph.get_parameter("matrix").numel(), params)
    narrow = nce_fx.resize(gm, {"first": 4})
    assert narrow.get_parameter("middle.kernels").shape == (8, 4, 1, 1)


def test_a_made_up_operation_is_quantized_where_its_row_says_how(model):
    gm = nce_fx.trace(model, (image().double(),), ops=MINE)
    names = [node.name for node in nce_fx.quantize(gm).graph.nodes]
    assert "matrix_quant" in names
    assert not any(name.startswith("middle_kernels") and name.endswith("quant") for name in names)


class Normed(nn.Module):
    def __init__(self, call) -> None:
        super().__init__()
        self.call, self.norm, self.matrix = call, nn.BatchNorm1d(8), nn.Parameter(torch.randn(8, 5))

    def forward(self, x):
        return self.norm(self.call(x, self.matrix))


@pytest.mark.parametrize(
    ("call", "row", "takes"),
    [
        (torch.ops.nce_fx_tests.doubled.default, DOUBLED, False),
        (torch.ops.nce_fx_tests.shifted.default, SHIFTED, True),
        (lambda x, weight: F.linear(x, weight) + weight.sum(), SHIFTED, False),
        (lambda x, weight: F.linear(F.linear(x, weight) @ weight, weight), SHIFTED, False),
    ],
)
def test_a_norm_is_folded_where_the_row_says_how_and_nobody_else_reads_the_weight(call, row, takes):
    model, x = randomize(Normed(call)).eval().double(), (noise(4, 5).double(),)
    gm = nce_fx.trace(model, x, ops=OPS.adding(row))
    folded = FoldBatchNorm()(gm)
    assert folded.modified is takes
    assert difference(run(gm, x), run(folded.graph_module, x)) <= 1e-9


def test_nothing_is_written_on_torch_and_other_graphs_do_not_know_it(model):
    nce_fx.trace(model, (image().double(),), ops=MINE)
    assert "mixed" not in OPS.rows
    gm = nce_fx.trace(model, (image().double(),))
    assert nce_fx.analyze_channels(gm)["first"].pinned is not None
    gm.meta["ops"] = MINE
    assert nce_fx.analyze_channels(gm)["first"].pinned is None, "an analysis is kept with another table"


def test_a_graph_with_rows_of_its_own_is_not_pickled_without_them(model, tmp_path):
    gm = nce_fx.trace(model, (image().double(),), ops=MINE)
    with pytest.raises(InputError, match=r"\(mixed, doubled\) cannot be pickled"):
        torch.save(gm, tmp_path / "graph.pt")


def test_a_weighted_row_says_its_macs():
    with pytest.raises(InputError, match="'forgotten' is weighted: say its macs"):
        Op(
            name="forgotten",
            kind="weighted",
            signature="input",
            channels=Absent("none"),
            example=lambda: (noise(2, 8),),
        )


class Ruled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(8, 2)
        self.matrix = nn.Parameter(torch.randn(8, 6))

    def forward(self, x):
        return self.last(torch.relu(tripled(torch.relu(self.first(x)), self.matrix)))


def test_a_rule_of_a_function_of_ones_own_is_a_row_with_macs_and_a_weight():
    model, x = randomize(Ruled()).eval(), (noise(4, 3),)
    gm = nce_fx.trace(model, x)
    channels = nce_fx.analyze_channels(gm)
    assert {"first", "matrix"} <= {g.id for g in channels.groups if g.pinned is None}
    cost = nce_fx.analyze_cost(gm, channels)
    assert (cost.nodes["matrix"].op, cost.nodes["matrix"].macs) == ("tripled", 4 * 8 * 6)
    assert cost.at({"matrix": 10}).macs == nce_fx.analyze_cost(nce_fx.resize(gm, {"matrix": 10})).macs
    assert "matrix_quant" in [node.name for node in nce_fx.quantize(gm).graph.nodes]


def test_a_network_with_rows_of_its_own_is_rewritten_saved_and_loaded(tmp_path):
    x = (image(),)
    gm = nce_fx.trace(randomize(Net()).eval(), x, ops=MINE)
    result = nce_fx.rewrite(gm, x, budget=nce_fx.Budget(macs=0.8))
    nce_fx.save(result.graph_module, tmp_path / "mine")
    other = nce_fx.trace(randomize(Net(), seed=3).eval(), x, ops=MINE)
    assert torch.equal(nce_fx.load(tmp_path / "mine", other)(*x), result.graph_module(*x))


class Point:
    """What an installed package gives as an entry point."""

    def __init__(self, value: object, name: str = "mixed") -> None:
        self.name, self.value, self.found = name, "theirs:MIXED", value

    def load(self) -> object:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def test_installed_packages_add_rows(model, monkeypatch):
    table.default.cache_clear()
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point(MIXED, "a"), Point((DOUBLED,), "b")])
    gm = nce_fx.trace(model, (image().double(),))
    assert nce_fx.analyze_channels(gm)["middle.kernels"].pinned is None
    for wrong, words in (
        (3, "is none of ops"),
        (ImportError("no numpy"), "no numpy"),
        (replace(MIXED, name="relu"), "relu"),
    ):
        table.default.cache_clear()
        monkeypatch.setattr(registry, "entry_points", lambda group, wrong=wrong: [Point(wrong)])
        with pytest.raises(InputError, match=words):
            table.default()
    monkeypatch.undo()
    table.default.cache_clear()


def _looking(module, x):
    return F.conv2d(x, module.weight, module.bias)


@nce_fx.channel_rule(_looking, macs=rows_times_weight("looking", -3), quantize=WeightLayout(0), fold=affine.rows)
class Looking(nn.Module):
    """A 1x1 convolution of the user's own that looks at values, with a bias or without."""

    def __init__(self, width: int, out: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, width, 1, 1))
        self.bias = nn.Parameter(torch.randn(out)) if bias else None

    def forward(self, x):
        return _looking(self, x) if float(x.detach().abs().max()) > 0 else x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("quantized", [True, False])
def test_a_norm_is_folded_into_a_module_whose_rule_says_how(bias, quantized):
    layers = nn.Conv2d(3, 6, 1), Looking(6, 8, bias), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    model, x = randomize(nn.Sequential(*layers)).eval().double(), (image().double(),)
    gm = nce_fx.trace(model, x)
    before = nce_fx.quantize(gm, batches=[x[0]]) if quantized else gm
    folded = FoldBatchNorm()(before)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.graph_module.modules())
    assert difference(run(before, x), run(folded.graph_module, x)) <= 1e-9
