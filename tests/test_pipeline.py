"""Passes are held to their word, and what was done to a graph is its history: saved, replayed, or refused in words."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import nce_fx
from nce_fx.errors import ArtifactError, NceFxError, PassError, PlanError
from nce_fx.models import MODELS
from nce_fx.passes.transform.fold import FoldBatchNorm
from nce_fx.passes.transform.quantize import InsertQuantizers, RemoveQuantizers
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.pipeline import Given, Pass, Pipeline, history_of
from nce_fx.rewrite import run_pipeline


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS["resnet8"](width=4).eval()


def batch() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def traced() -> GraphModule:
    return nce_fx.trace(net(), (batch()[:1],))


@dataclass(frozen=True)
class ScaleOutput(Pass):
    """Multiply what the model returns."""

    factor: float = 2.0

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        result = copy.deepcopy(gm)
        output = result.graph.output_node()
        with result.graph.inserting_before(output):
            scaled = result.graph.call_function(torch.mul, (output.args[0], self.factor))
        output.args = (scaled,)
        result.recompile()
        return result


@dataclass(frozen=True)
class MeanOfWeights(Pass):
    """Add a number that the weights decide, as a constant of the graph."""

    by_sign: bool = False

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        result = copy.deepcopy(gm)
        mean = torch.stack([value.mean() for value in gm.parameters()]).mean().detach()
        output = result.graph.output_node()
        result.register_buffer("mean_of_weights", mean, persistent=False)
        with result.graph.inserting_before(output):
            constant = result.graph.get_attr("mean_of_weights")
            function = torch.sub if self.by_sign and mean < 0 else torch.add
            output.args = (result.graph.call_function(function, (output.args[0], constant)),)
        result.recompile()
        return result


def kept(gm: GraphModule, folder: Path, *passes: type[Pass]) -> GraphModule:
    """Save, load into other weights, and check that nothing is different."""
    expected = gm(batch())
    nce_fx.save(gm, folder)
    loaded = nce_fx.load(folder, net(seed=5), passes=passes)
    assert torch.equal(loaded(batch()), expected)
    assert history_of(loaded) == history_of(gm)
    return loaded


@pytest.mark.parametrize("place", range(3))
def test_a_pass_of_the_users_own_is_replayed_wherever_it_stands(place, tmp_path):
    plan = {"conv1": 6, "layer1.0.conv1": 2}
    steps: list[Pass] = [ResizeChannels(plan), InsertQuantizers()]
    steps.insert(place, ScaleOutput(3.0))
    gm = Pipeline(tuple(steps))(traced(), Given(batches=[batch()])).graph_module
    assert [step.name for step in history_of(gm).steps] == [step.name for step in steps]
    kept(gm, tmp_path / "result", ScaleOutput)


def test_ranges_are_the_uniform_networks_behind_a_resize_and_the_batches_behind_any_other_pass():
    gm, batches = traced(), [(batch(), torch.zeros(4))]
    resized = ResizeChannels({"conv1": 6, "layer1.0.conv1": 2}), InsertQuantizers()
    plain = run_pipeline(gm, Pipeline(resized), batches).state_dict()
    uniform = nce_fx.quantize(gm, batches=batches).state_dict()
    ranges = [name for name in uniform if name.endswith("_activation_quant.step")]
    assert all(torch.equal(plain[name], uniform[name]) for name in ranges)
    mixed = Pipeline((resized[0], ScaleOutput(), resized[1]))
    found = run_pipeline(gm, mixed, batches).state_dict()
    own = mixed(gm, Given(batches)).graph_module.state_dict()
    assert all(torch.equal(found[name], own[name]) for name in own)
    assert any(not torch.equal(found[name], uniform[name]) for name in ranges)


def test_quantizing_after_folding_and_twice_is_replayed(tmp_path):
    passes = FoldBatchNorm(), InsertQuantizers(nce_fx.QuantSpec(weight_bits=4)), RemoveQuantizers(), InsertQuantizers()
    kept(Pipeline(passes)(traced(), Given([batch()])).graph_module, tmp_path / "one")
    late = Pipeline((ResizeChannels({"conv1": 3}), InsertQuantizers(), FoldBatchNorm()))
    kept(late(traced(), Given([batch()])).graph_module, tmp_path / "two")


@pytest.mark.parametrize("place", range(3))
def test_a_graph_that_was_traced_again_at_another_size_is_kept(place, tmp_path):
    other = torch.randn(2, 3, 24, 24)
    gm = traced()
    for index, step in enumerate((ResizeChannels({"conv1": 3}), InsertQuantizers(), ScaleOutput())):
        gm = step(gm, Given([batch()])).graph_module
        gm = nce_fx.trace(gm, (other,)) if index == place else gm
    assert [step.name for step in history_of(gm).steps].index("trace") == place + 1
    loaded = kept(gm, tmp_path / "result", ScaleOutput)
    assert loaded.meta["inputs"] == gm.meta["inputs"]


def test_a_folder_imports_nothing_and_says_which_class_it_wants(tmp_path):
    nce_fx.save(ScaleOutput()(nce_fx.quantize(traced())).graph_module, tmp_path / "result")
    message = r"scale-output, tests\.test_pipeline:ScaleOutput, .* passes=\(ScaleOutput,\)"
    with pytest.raises(ArtifactError, match=message):
        nce_fx.load(tmp_path / "result", net())


def test_constants_that_weights_decided_come_back(tmp_path):
    kept(MeanOfWeights()(traced()).graph_module, tmp_path / "result", MeanOfWeights)


def test_a_pass_whose_structure_follows_weights_without_saying_so_is_refused(tmp_path):
    def signed(sign: float) -> nn.Module:
        model = net()
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(sign * value.abs())
        return model

    gm = MeanOfWeights(by_sign=True)(nce_fx.trace(signed(1.0), (batch()[:1],))).graph_module
    nce_fx.save(gm, tmp_path / "result")
    assert torch.equal(nce_fx.load(tmp_path / "result", signed(1.0), passes=[MeanOfWeights])(batch()), gm(batch()))
    with pytest.raises(ArtifactError, match=r"mean-of-weights makes another graph .* Pass\.decide"):
        nce_fx.load(tmp_path / "result", signed(-1.0), passes=[MeanOfWeights])


def by_hand(gm: GraphModule) -> GraphModule:
    output = gm.graph.output_node()
    with gm.graph.inserting_before(output):
        output.args = (gm.graph.call_function(torch.relu, (output.args[0],)),)
    gm.recompile()
    return gm


def with_setting(gm: GraphModule, path: str, name: str, value: Any) -> GraphModule:
    setattr(gm.get_submodule(path), name, value)
    return gm


@pytest.mark.parametrize(
    ("make", "when"),
    [
        (lambda: by_hand(traced()), "after it was traced"),
        (lambda: by_hand(nce_fx.quantize(traced())), "after quantize"),
        (lambda: nce_fx.quantize(by_hand(nce_fx.resize(traced(), {"conv1": 6}))), "after resize"),
        (lambda: with_setting(nce_fx.quantize(traced()), "bn1", "eps", 1e-3), "after quantize"),
        (lambda: with_setting(nce_fx.quantize(traced()), "fc.weight_quant", "bits", 3), "after quantize"),
        (lambda: nce_fx.quantize(with_setting(traced(), "conv1", "padding", (0, 0))), "after it was traced"),
    ],
)
def test_what_was_changed_by_hand_is_refused_at_save(make, when, tmp_path):
    with pytest.raises(ArtifactError, match=f"changed by hand {when}, which cannot be replayed"):
        nce_fx.save(make(), tmp_path / "result")
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class WithTensor(ScaleOutput):
    """A pass whose option is no plain data."""

    by: Any = None


def test_a_pass_whose_options_are_no_plain_data_runs_and_is_refused_at_save(tmp_path):
    gm = WithTensor(by=torch.ones(1))(traced()).graph_module
    with pytest.raises(ArtifactError, match=r"with-tensor cannot be replayed: .*WithTensor are not plain data"):
        nce_fx.save(gm, tmp_path / "result")


@dataclass(frozen=True)
class InPlace(Pass):
    """Every way of changing what was given."""

    way: str = ""

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        if self.way == "nodes":
            by_hand(gm)
        elif self.way == "data":
            next(gm.parameters()).data.mul_(2)
        elif self.way == "order":
            weight = next(gm.parameters()).data
            weight.copy_(weight.flip(0))
        elif self.way == "setting":
            with_setting(gm, "bn1", "eps", 1e-3)
        elif self.way == "mode":
            gm.train()
        elif self.way == "buffer":
            gm.get_buffer("bn1.running_mean").add_(1)
        elif self.way == "frozen":
            next(gm.parameters()).requires_grad_(False)
        return gm


@pytest.mark.parametrize("way", ["nodes", "data", "order", "setting", "mode", "buffer", "frozen"])
def test_a_pass_that_changes_its_input_is_caught(way):
    with pytest.raises(PassError, match=r"in-place changed .* of the graph it was given: let it work on a deep copy"):
        InPlace(way)(traced())


@dataclass(frozen=True)
class Careless(Pass):
    """Every way of giving back what is no sound graph."""

    way: str

    def apply(self, gm: GraphModule, given: Given) -> Any:
        result = copy.deepcopy(gm)
        if self.way == "stale":
            output = result.graph.output_node()
            with result.graph.inserting_before(output):
                output.args = (result.graph.call_function(torch.relu, (output.args[0],)),)
        elif self.way == "missing":
            del result._modules["bn1"]
        return None if self.way == "nothing" else result


@pytest.mark.parametrize(
    ("way", "message"), [("stale", "left the old code"), ("missing", "bn1"), ("nothing", "returned a NoneType")]
)
def test_a_careless_pass_is_caught(way, message):
    with pytest.raises(PassError, match=f"careless.*{message}"):
        Careless(way)(traced())


def test_whether_anything_changed_is_measured():
    gm = traced()
    same = Careless("copy")(gm)
    assert not same.modified
    assert same.graph_module is not gm
    assert ScaleOutput()(gm).modified
    assert not ResizeChannels({"conv1": 4})(gm).modified
    quantized = InsertQuantizers()(gm)
    assert quantized.modified
    assert not FoldBatchNorm()(FoldBatchNorm()(gm)).modified
    assert not RemoveQuantizers()(RemoveQuantizers()(quantized)).modified


@dataclass(frozen=True)
class Promises(Pass):
    """Requires and ensures what is not so."""

    requires = ()
    ensures = (InsertQuantizers.requires[0],)

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        return nce_fx.quantize(gm)


def test_what_a_pass_ensures_is_asked_of_the_result():
    with pytest.raises(NceFxError, match="quantized already"):
        Promises()(traced())


def test_modes_of_single_modules_come_back(tmp_path):
    model = net().train()
    model.get_submodule("bn1").eval()
    gm = nce_fx.quantize(nce_fx.trace(model, (batch(),)), batches=[batch()])
    nce_fx.save(gm, tmp_path / "result")
    loaded = nce_fx.load(tmp_path / "result", net(seed=3))
    modes = {path: module.training for path, module in gm.named_modules()}
    assert {path: module.training for path, module in loaded.named_modules()} == modes
    assert set(modes.values()) == {True, False}
    assert torch.equal(loaded(batch()), gm(batch()))


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.second(nn.functional.dropout(self.first(x), 0.5, self.training))


def test_what_tracing_in_one_mode_wrote_down_stays_though_the_mode_is_another(tmp_path):
    gm = nce_fx.trace(Dropping().eval(), (torch.randn(2, 6),)).train()
    nce_fx.save(gm, tmp_path / "result")
    loaded = nce_fx.load(tmp_path / "result", Dropping())
    assert loaded.training
    assert loaded.code == gm.code


def test_a_network_in_another_precision_comes_back_in_it(tmp_path):
    gm = traced().double()
    nce_fx.save(gm, tmp_path / "result")
    x = batch().double()
    assert torch.equal(nce_fx.load(tmp_path / "result", net(seed=3))(x), gm(x))


def test_the_model_of_another_architecture_is_refused(tmp_path):
    nce_fx.save(nce_fx.quantize(traced()), tmp_path / "result")
    with pytest.raises(PlanError, match="another model"):
        nce_fx.load(tmp_path / "result", MODELS["resnet8"](width=6))


def test_histories_that_are_damaged_are_refused_in_one_line(tmp_path):
    from nce_fx.pipeline.history_json import HistoryRecord

    nce_fx.save(nce_fx.quantize(traced()), tmp_path / "result")
    whole = json.loads((tmp_path / "result" / "history.json").read_text())
    assert HistoryRecord.from_json(json.dumps(whole)).to_json() == (tmp_path / "result" / "history.json").read_text()
    for damaged in ("", "{}", "[]", json.dumps({**whole, "colour": 1}), json.dumps({**whole, "steps": [{"name": 1}]})):
        with pytest.raises(ArtifactError) as raised:
            HistoryRecord.from_json(damaged)
        assert len(str(raised.value).splitlines()) == 1
