"""Files for Model Explorer say of every node what the graph says, by the graph's own names."""

import json

import torch
from typer.testing import CliRunner

import nce_fx
from nce_fx import artifacts
from nce_fx.cli import app
from nce_fx.export.network import model_explorer
from nce_fx.models import MODELS
from nce_fx.quantizers.base import Quantizer


def test_a_result_folder_is_written_for_model_explorer(tmp_path):
    out, file = tmp_path / "out", tmp_path / "graph.json"
    call = CliRunner().invoke
    assert call(app, ["rewrite", "resnet8", "--model-args", '{"width": 4}', "--out", str(out)]).exit_code == 0
    assert call(app, ["export", str(out), "--model-explorer", str(file)]).exit_code == 0
    collection, data = json.loads(file.read_text()), json.loads((tmp_path / "graph.data.json").read_text())
    (graph,) = collection["graphs"]
    gm = artifacts.load(out, MODELS["resnet8"](width=4))
    assert [node["id"] for node in graph["nodes"]] == [node.name for node in gm.graph.nodes]
    edges = {node["id"]: [edge["sourceNodeId"] for edge in node["incomingEdges"]] for node in graph["nodes"]}
    assert edges == {node.name: [read.name for read in node.all_input_nodes] for node in gm.graph.nodes}
    nodes = {node["id"]: node for node in graph["nodes"]}
    report = artifacts.read_manifest(out).rewrite
    assert report is not None
    assert nodes["layer1_0_conv1"]["namespace"] == "layer1/0"
    about = {entry["key"]: entry["value"] for entry in nodes["conv1"]["attrs"]}
    group = next(group for group in report.groups if "conv1" in group.producers)
    assert (about["group"], about["width"]) == (group.id, f"{group.before} to {group.after}")
    conv = next(node for node in gm.graph.nodes if node.name == "conv1")
    assert about["shape"] == "x".join(map(str, conv.meta["tensor_meta"].shape))
    cost = nce_fx.analyze_cost(gm).nodes["conv1"]
    assert (about["macs"], about["params"]) == (f"{cost.macs:,}", f"{cost.params:,}")
    quantizers = {node.name: gm.get_submodule(str(node.target)) for node in gm.graph.find_nodes(op="call_module")}
    rounded = {name: str(module.bits) for name, module in quantizers.items() if isinstance(module, Quantizer)}
    assert {"2", "8"} <= {*rounded.values()}
    bits = {name: {e["key"]: e["value"] for e in node["attrs"]}.get("bits", "") for name, node in nodes.items()}
    assert bits == {name: rounded.get(name, "") for name in nodes}
    results = data[graph["id"]]["results"]
    noise = {layer.name: layer.weight + layer.activation for layer in report.layers}
    assert results["fc"]["value"] == noise["fc"]
    assert len(results) == len(noise)
    layers = tuple(layer.model_copy(update={"weight": 0.5, "activation": 0.25}) for layer in report.layers)
    of_both = report.model_copy(update={"layers": layers})
    assert [entry["value"] for entry in model_explorer(gm, "m", of_both)[1]["m"]["results"].values()] == [0.75] * len(
        noise
    )


def test_each_cost_stands_at_a_node():
    """Those of parameters that no layer has, too, such as what quantizers learn."""
    x = torch.zeros(1, 3, 8, 8)
    gm = nce_fx.quantize(nce_fx.trace(MODELS["resnet8"](width=4), (x,)), nce_fx.QuantSpec("lsq", "lsq"), [x])
    cost = nce_fx.analyze_cost(gm)
    said = {about["layer"]: about for _, about in nce_fx.to_networkx(gm, cost=cost).nodes(data=True) if about["layer"]}
    assert {path: (about["macs"], about["params"]) for path, about in said.items()} == {
        path: (costs.macs, costs.params) for path, costs in cost.nodes.items()
    }


def test_a_graph_without_a_report_has_no_data():
    gm = nce_fx.trace(MODELS["resnet8"](width=4), (torch.zeros(1, 3, 8, 8),))
    graph, data = model_explorer(gm, "mine")
    assert graph["label"] == "mine"
    assert data["mine"]["results"] == {}
