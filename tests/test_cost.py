"""Law 6: what is costed at other widths is what the resized model costs, to the last MAC and parameter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import nce_fx
from nce_fx.errors import ChannelError, InputError
from nce_fx.export.network import to_networkx
from nce_fx.models import MODELS
from nce_fx.ops import work
from nce_fx.passes.analysis.channels import analyze_channels
from nce_fx.passes.analysis.channels.graph import ChannelGraph
from nce_fx.passes.analysis.cost import analyze_cost
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.transform.resize import resize
from tests.zoo.model import noise

NOTHING_KNOWN = ChannelGraph((), (), {}, {})
"""A channel graph that leaves every axis at its traced length: costs of operations alone."""


def counted(gm: Any, *inputs: Any) -> tuple[int, int]:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        gm(*inputs)
    return counter.get_total_flops() // 2, sum(parameter.numel() for parameter in gm.parameters())


class Functions(nn.Module):
    """Every functional form that a raw parameter can be multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3))
        self.matrix = nn.Parameter(torch.randn(5, 6))
        self.bias = nn.Parameter(torch.randn(5))
        self.table = nn.Parameter(torch.randn(7, 4))

    def forward(self, x):
        x = F.conv2d(x, self.kernel, padding=1)
        x = F.conv_transpose2d(x, self.kernel.flip(0)[:, :2], stride=2)
        x = torch.cat([x, x, x], 1).mean((2, 3))
        x = F.linear(x, self.matrix, self.bias)
        x = torch.addmm(self.bias, x, self.matrix @ self.matrix.t())
        x = torch.einsum("bi,oi,ok->bk", x, self.table[:5, :1].expand(5, 5).t(), self.table[:5])
        return torch.bmm(x[:, None], x[:, :, None]) + torch.matmul(x, self.table.t()).sum()


class Attention(nn.Module):
    """Functional attention on top of one projection, and a lookup below it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.project = nn.Linear(12, 36, bias=False)

    def forward(self, tokens):
        parts = self.project(self.embed(tokens)).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(parts[0], parts[1], parts[2])


class HeadsApart(nn.Module):
    """Attention whose queries, keys and values have so many heads; what one side alone has is broadcast."""

    def __init__(self, *heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.layers = nn.ModuleList(nn.Linear(6, count * width) for count, width in zip(heads, (4, 4, 3), strict=True))

    def forward(self, x):
        sides = [
            layer(x).unflatten(-1, (count, -1)).transpose(1, 2)
            for layer, count in zip(self.layers, self.heads, strict=True)
        ]
        return F.scaled_dot_product_attention(*sides)


@pytest.mark.parametrize("heads", [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 2), (2, 1, 2), (1, 2, 1), (2, 2, 2)])
def test_attention_costs_the_products_of_broadcast_heads(heads):
    x = torch.randn(2, 5, 6)
    gm = nce_fx.trace(HeadsApart(*heads), x)
    assert analyze_cost(gm, NOTHING_KNOWN).macs == counted(gm, x)[0]


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), (torch.randn(2, 4, 9),)),
        (nn.Conv3d(3, 5, (1, 2, 3), stride=2), (torch.randn(2, 3, 4, 5, 6),)),
        (nn.Conv2d(3, 5, 3), (torch.randn(3, 8, 8),)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (torch.randn(2, 4, 5, 5),)),
        (nn.Linear(3, 5), (torch.randn(2, 7, 3),)),
        (nn.GRU(4, 6, 2, batch_first=True, bidirectional=True), (torch.randn(2, 5, 4),)),
        (Functions(), (torch.randn(2, 3, 6, 6),)),
        (Attention(), (torch.randint(0, 11, (2, 5)),)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_every_operation_costs_what_torch_counts(model, inputs):
    gm = nce_fx.trace(model, inputs)
    total = analyze_cost(gm, NOTHING_KNOWN).total
    assert (total.macs, total.params) == counted(gm, *inputs)


def test_attention_and_lstm_modules_cost_what_their_matrices_multiply():
    """FlopCounterMode does not see into fused kernels, so these are computed by hand."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.lstm = nn.LSTM(8, 3, batch_first=True)

        def forward(self, x):
            return self.lstm(self.attention(x, x, x, need_weights=False)[0])[0]

    batch, tokens, width, hidden = 2, 5, 8, 3
    gm = nce_fx.trace(Both().train(), (torch.randn(batch, tokens, width),))
    report = analyze_cost(gm, NOTHING_KNOWN)
    rows = batch * tokens
    lstm = rows * 4 * hidden * (width + hidden)
    assert report.nodes["lstm"].macs == lstm
    assert report.macs - lstm == rows * 4 * width * width + 2 * rows * tokens * width


def test_exported_graphs_cost_the_same():
    model = MODELS["resnet8"]().eval()
    inputs = (torch.randn(1, 3, 32, 32),)
    exported = torch.export.export(model, inputs).module()
    from torch.fx.passes.shape_prop import ShapeProp

    ShapeProp(exported).propagate(*inputs)
    total = analyze_cost(exported, NOTHING_KNOWN)
    traced = analyze_cost(nce_fx.trace(model, inputs), NOTHING_KNOWN)
    assert (total.macs, total.params) == (traced.macs, traced.params)
    assert {"layer1.0.conv1", "fc"} <= set(total.nodes)
    assert total.nodes["layer1.0.conv1"].macs == traced.nodes["layer1.0.conv1"].macs


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "mobilenet_v2"])
def test_cost_at_other_widths_is_the_cost_of_the_resized_model(name):
    inputs = (torch.randn(2, 3, 32, 32),)
    gm = nce_fx.trace(MODELS[name]().eval(), inputs)
    channels = analyze_channels(gm)
    report = analyze_cost(gm, channels)
    assert (report.macs, report.params) == counted(gm, *inputs)
    generator = np.random.default_rng(0)
    for _ in range(2):
        widths = {
            group.id: group.width + group.step * int(generator.integers(-2, 5) * (group.width // group.step) // 8)
            for group in channels
            if group.pinned is None
        }
        resized = resize(gm, widths)
        at = report.at(widths)
        assert (at.macs, at.params) == counted(resized, *inputs)
        assert at.total == analyze_cost(resized).total


def test_totals_are_the_sums_over_nodes():
    gm = nce_fx.trace(MODELS["resnet8"]().eval(), (torch.randn(1, 3, 32, 32),))
    report = analyze_cost(gm, weight_bits=2, activation_bits=3)
    for name in ("macs", "params", "bit_ops", "weight_bytes"):
        assert sum(getattr(node, name) for node in report.nodes.values()) == getattr(report.total, name)
    assert report.bit_ops == 6 * report.macs
    conv = report.nodes["layer1.0.conv1"]
    assert (conv.weight_bits, conv.activation_bits) == (2, 3)
    assert conv.weight_bytes == conv.params // 4


def test_bits_may_differ_per_layer():
    gm = nce_fx.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), (torch.randn(1, 3, 8, 8),))
    nodes = analyze_cost(gm, weight_bits={"0": 8}, activation_bits={"0": 8, "1": 2}).nodes
    assert (nodes["0"].weight_bits, nodes["1"].weight_bits) == (8, 32)
    assert nodes["0"].bit_ops == 64 * nodes["0"].macs
    with pytest.raises(InputError, match="0 bits"):
        analyze_cost(gm, NOTHING_KNOWN, weight_bits={"0": 0})


def test_peak_memory_counts_what_is_alive_and_no_views():
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.relu(self.conv(x))  # in place: no memory of its own
            return (x + y).flatten(1)  # x, y and the sum are alive here, the view is not counted

    gm = nce_fx.trace(Skip(), (torch.randn(1, 4, 8, 8),))
    size = 4 * 8 * 8
    assert analyze_cost(gm).total.activation_bytes == 3 * size * 4
    assert analyze_cost(gm, activation_bits=2).total.activation_bytes == 3 * size // 4


def test_shared_and_unused_parameters_count_once():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.unused = nn.Parameter(torch.zeros(7))

        def forward(self, x):
            return self.layer(self.layer(x))

    gm = nce_fx.trace(Shared(), (torch.randn(3, 4),))
    report = analyze_cost(gm, NOTHING_KNOWN)
    assert report.params == sum(parameter.numel() for parameter in gm.parameters())
    assert report.nodes["layer"].macs == 2 * 3 * 16
    assert report.nodes["layer"].params == 20


def test_widths_that_cannot_be_are_refused():
    gm = nce_fx.trace(MODELS["resnet8"]().eval(), (torch.randn(1, 3, 32, 32),))
    report = analyze_cost(gm)
    with pytest.raises(ChannelError, match="no channel group 'nowhere'"):
        report.at({"nowhere": 3})
    with pytest.raises(ChannelError, match="pinned"):
        report.at({"fc": 11})


def table_file(tmp_path: Path, suffix: str, cost: Callable[[int, int], float]) -> HardwareTable:
    rows = [
        {"op": op, "c_in": c_in, "c_out": c_out, "h": 8, "w": 8, "bits": 2, "cost": cost(c_in, c_out)}
        for op in ("conv2d_3x3", "linear")
        for c_in in (1, 4, 16, 64)
        for c_out in (1, 8, 64)
    ]
    path = tmp_path / f"table{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        lines = [",".join(rows[0])] + [",".join(str(value) for value in row.values()) for row in rows]
        path.write_text("\n".join(lines))
    return HardwareTable.read(path)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_table_of_products_gives_products(tmp_path, suffix):
    table = table_file(tmp_path, suffix, lambda c_in, c_out: 3.0 * c_in * c_out)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 3, padding=1))
    gm = nce_fx.trace(model, (torch.randn(1, 3, 8, 8),))
    report = analyze_cost(gm, weight_bits=2, hardware=table)
    assert report.total.custom == pytest.approx(3 * 15 + 3 * 35)
    group = next(group for group in report.model.channels if group.pinned is None)
    assert report.at({group.id: 10}).total.custom == pytest.approx(3 * 30 + 3 * 70)


def test_a_layer_that_is_called_twice_costs_twice_and_holds_its_larger_output(tmp_path):
    table = table_file(tmp_path, ".csv", lambda c_in, c_out: 3.0 * c_in * c_out)
    layer = nn.Conv2d(4, 4, 3, padding=1)
    gm = nce_fx.trace(nn.Sequential(layer, nn.ReLU(), layer), (torch.randn(1, 4, 8, 8),))
    report = analyze_cost(gm, weight_bits=2, activation_bits=2, hardware=table)
    (cost,) = report.nodes.values()
    assert cost.custom == report.total.custom == pytest.approx(2 * 3 * 16)
    assert cost.macs == 2 * 16 * 9 * 64


def test_tables_interpolate_between_and_scale_beyond(tmp_path):
    table = table_file(tmp_path, ".csv", lambda c_in, c_out: 100.0 + c_in * c_out)
    sizes = np.array([[4, 8, 8, 8], [4, 20, 8, 8], [128, 64, 8, 8], [4, 8, 8, 8]], np.float64)
    at = table.price("conv2d", "_3x3", sizes, 2, "layer")
    assert at[0] == pytest.approx(132)
    assert 132 < at[1] < 100 + 4 * 64
    assert at[2] == pytest.approx(2 * (100 + 64 * 64))
    assert at[3] == at[0]


def test_tables_that_do_not_fit_are_refused(tmp_path):
    table = table_file(tmp_path, ".csv", lambda c_in, c_out: 1.0)
    gm = nce_fx.trace(nn.Sequential(nn.Conv2d(3, 5, 5)), (torch.randn(1, 3, 8, 8),))
    with pytest.raises(InputError, match="no conv2d_5x5 at 2 bits, which 0 needs; it has conv2d_3x3 at 2 bits"):
        _ = analyze_cost(gm, NOTHING_KNOWN, weight_bits=2, hardware=table).total
    broken = tmp_path / "broken.csv"
    broken.write_text("op,c_in,c_out,h,w,bits\nlinear,1,1,1,1,2\n")
    with pytest.raises(InputError, match=r"broken.csv, row 1: KeyError\('cost'\)"):
        HardwareTable.read(broken)
    broken.write_text("op,c_in,c_out,h,w,bits,cost\nlinear,1,1,1,1,2,-4\n")
    with pytest.raises(InputError, match="positive"):
        HardwareTable.read(broken)
    with pytest.raises(InputError, match="cannot be read"):
        HardwareTable.read(tmp_path / "nowhere.csv")


def test_scattered_tables_stay_exact_at_their_points(tmp_path):
    points = (
        (1.0, 1.0, 8.0, 8.0, 1.0),
        (4.0, 9.0, 8.0, 8.0, 7.0),
        (16.0, 2.0, 8.0, 8.0, 5.0),
        (9.0, 30.0, 8.0, 8.0, 40.0),
    )
    table = HardwareTable({("linear", 2): points})
    sizes = np.array([point[:4] for point in points])
    assert table.price("linear", "", sizes, 2, "x") == pytest.approx([point[4] for point in points])


def test_networkx_graph_says_op_shape_cost_group_and_bits():
    gm = nce_fx.trace(MODELS["resnet8"]().eval(), (torch.randn(1, 3, 32, 32),))
    graph = to_networkx(gm)
    report = analyze_cost(gm)
    assert graph.number_of_nodes() == len(gm.graph.nodes)
    assert sum(data["macs"] for _, data in graph.nodes(data=True)) == report.macs
    conv = graph.nodes["layer1_0_conv1"]
    assert conv["op"] == "conv2d"
    assert conv["groups"] == ("layer1.0.conv1",)
    assert conv["shape"][0] == 1
    assert conv["bits"] is None
    assert ("layer1_0_conv1", "layer1_0_bn1") in graph.edges


def test_a_long_network_is_not_looked_through_once_a_layer(monkeypatch):
    """Whether an input has a part in a value is asked of every layer: the answers take one walk of the graph."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(4, 4) for _ in range(50))
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(50))

        def forward(self, x):
            for weight, layer in zip(self.weights, self.layers, strict=True):
                x = x + layer(torch.relu(x @ weight))
            return x

    gm = nce_fx.trace(Chain(), (torch.randn(2, 4),))
    channels = nce_fx.analyze_channels(gm)
    seen = 0
    walk = work.ancestors

    def counted(nodes):
        nonlocal seen
        for node in walk(nodes):
            seen += 1
            yield node

    monkeypatch.setattr(work, "ancestors", counted)
    nce_fx.analyze_cost(gm, channels)
    assert seen < 4 * len(gm.graph.nodes)


@torch.fx.wrap
def scores_of_own(q, k):
    return torch.bmm(q, k.transpose(1, 2))


class Wrapped(nn.Module):
    """A function of the user's own that tracers do not enter, which computes a product."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.out = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(scores_of_own(self.q(x), self.k(x)).softmax(-1))


def test_a_product_in_a_function_that_is_left_whole_is_counted():
    x = (noise(2, 4, 5),)
    gm = nce_fx.trace(Wrapped().eval(), x)
    cost = nce_fx.analyze_cost(gm)
    assert cost.macs == counted(gm, *x)[0] == cost.nodes["scores_of_own"].macs + 736
    assert cost.nodes["scores_of_own"].op == "scores_of_own"
