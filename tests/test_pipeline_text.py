"""Pipelines as text read back as they are printed; on the command line a pass of the user's own stands anywhere."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule
from typer.testing import CliRunner

import nce_fx.passes
from nce_fx import registry
from nce_fx.cli.app import app
from nce_fx.errors import NceFxError, PassError
from nce_fx.passes.by_name import PASSES, known_pass, pipeline_from
from nce_fx.passes.transform.fold import FoldBatchNorm
from nce_fx.passes.transform.quantize import InsertQuantizers, QuantSpec
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.pipeline import Given, Pass, Pipeline
from nce_fx.pipeline.text import to_text
from nce_fx.pipeline.verify import verify
from tests.test_pipeline import MeanOfWeights, ScaleOutput, batch, by_hand, traced

DOCS = Path(nce_fx.__file__).parent.parent / "docs" / "passes.md"
OWN_PASS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[0]
"""The pass that the docs show: one file."""


@dataclass(frozen=True)
class Anything(Pass):
    """Options of every kind."""

    number: float = 0.0
    whole: int | None = None
    word: str = ""
    yes: bool = False
    several: tuple[int, ...] = ()
    by_name: dict[str, str] = field(default_factory=dict)

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        return gm


anything = st.builds(
    Anything,
    st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.integers(-(2**40), 2**40),
    st.text()
    | st.sampled_from(["none", "true", "null", "NaN", "a.b*", "@plan.json", "1", "a}b", "x,y", '"', "layer1.*"]),
    st.booleans(),
    st.lists(st.integers(0, 9)).map(tuple),
    st.dictionaries(st.text(), st.text()),
)


@given(st.lists(anything | st.builds(FoldBatchNorm), min_size=1, max_size=3))
@settings(max_examples=400, deadline=None)
def test_what_is_printed_reads_back_the_same(passes):
    pipeline = Pipeline(tuple(passes))
    assert pipeline_from(to_text(pipeline)) == pipeline


def test_a_pipeline_is_read_with_files_defaults_and_spaces(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"conv1": 8}))
    own = "tests.test_pipeline:ScaleOutput"
    text = f"resize {{ plan = @{tmp_path}/plan.json }}, {own}{{factor=3}} ,quantize{{weight=lsq}}"
    pipeline = pipeline_from(text, {"quantize": {"activation": "pact", "weight": "dorefa"}})
    spec = QuantSpec(weight="lsq", activation="pact")
    assert pipeline.steps == (ResizeChannels({"conv1": 8}), ScaleOutput(3.0), InsertQuantizers(spec))
    again = 'resize{plan={"conv1":8}},tests.test_pipeline:ScaleOutput{factor=3.0},quantize{weight=lsq,activation=pact}'
    assert to_text(pipeline) == again


BAD = {
    "": "the name of a pass",
    "resise": "did you mean 'resize'",
    "resize": "option plan: Field required",
    "resize{plan=3}": "option plan",
    "resize{plan=@no_such.json}": "no_such.json",
    "quantize{bits=2}": "no option 'bits': it has weight, activation, weight_bits",
    "quantize{weight_bits=two}": "weight_bits is 'two'",
    "quantize{weight_bits=9}": "1 to 8",
    "quantize{weight_bits=2": "at the end, expected ',' or '}'",
    "quantize{weight_bits=2,weight_bits=3}": "only once",
    "quantize}": "at '}'",
    "quantize{weight_bits=}": "the value of weight_bits",
    "quantize quantize": "expected ',' or the end",
    "json:dumps": "is no pass",
    "no_such_module:Pass": "no_such_module",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_pipeline_is_refused_in_one_line(text):
    with pytest.raises(NceFxError) as raised:
        pipeline_from(text)
    assert BAD[text] in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_the_list_of_passes_is_whole_and_every_name_is_kebab_case():
    for module in pkgutil.walk_packages(nce_fx.passes.__path__, "nce_fx.passes."):
        importlib.import_module(module.name)
    kinds: list[Any] = [Pass]
    found = set()
    while kinds:
        subclasses = kinds.pop().__subclasses__()
        kinds += subclasses
        found |= {kind for kind in subclasses if kind.__module__.startswith("nce_fx.")}
    assert found == set(PASSES.values())
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in PASSES)


def test_installed_packages_bring_passes(monkeypatch):
    def brings(*points: tuple[str, str]) -> None:
        found = [EntryPoint(*point, PASSES.group) for point in points]
        monkeypatch.setattr(registry, "entry_points", lambda group: found if group == PASSES.group else [])
        PASSES.__dict__.pop("_all", None)

    brings(("scale-output", "tests.test_pipeline:ScaleOutput"))
    assert PASSES.names()[-1] == "scale-output"
    assert known_pass("scale-output") is known_pass("scale-output", [ScaleOutput]) is ScaleOutput
    assert pipeline_from("scale-output{factor=2.5}").steps == (ScaleOutput(2.5),)
    for point, message in {
        ("broken", "no_such_module:X"): "no_such_module",
        ("scale", "tests.test_pipeline:ScaleOutput"): "holds the pass scale-output",
        ("number", "tests.test_pipeline:batch"): "none of passes",
    }.items():
        brings(point)
        with pytest.raises(NceFxError, match=message):
            known_pass(point[0])
        assert known_pass("resize") is ResizeChannels
    PASSES.__dict__.pop("_all", None)


@dataclass(frozen=True)
class Resize(ScaleOutput):
    """A pass with the name of another."""


def test_two_passes_of_one_name_are_refused():
    with pytest.raises(PassError, match="two passes are called resize"):
        known_pass("resize", [Resize])


@dataclass(frozen=True)
class Wrong(Pass):
    """Every way of failing a verification that is not asked of every pass."""

    way: str
    keeps = "function"

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        import copy

        result = copy.deepcopy(gm)
        if self.way == "values":
            return by_hand(result)
        output = result.graph.output_node()
        if self.way == "form":
            output.args = ((output.args[0], output.args[0]),)
        elif self.way == "shapes":
            node = next(node for node in result.graph.nodes if node.op == "call_module")
            node.meta["tensor_meta"] = node.meta["tensor_meta"]._replace(shape=torch.Size((1, 2, 3)))
        elif self.way == "broken":
            with result.graph.inserting_before(output):
                output.args = (result.graph.call_function(torch.mm, (output.args[0], output.args[0])),)
        result.recompile()
        return result


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Wrong("values"), "changed the function: an output is off by"),
        (Wrong("form"), "changed the form of what the model returns: 1x10 float32 became 1x10 float32, 1x10 float32"),
        (Wrong("shapes"), "conv1 .* gives 1x4x16x16 float32 and says"),
        (Wrong("broken"), "does not run"),
        (MeanOfWeights(by_sign=True), r"another graph of other weights.*Pass\.decide"),
    ],
)
def test_verifying_each_pass_finds_what_is_wrong(step, message):
    with pytest.raises(PassError, match=message):
        Pipeline((step,), between=verify)(traced())


def test_the_compilers_own_passes_verify():
    passes = pipeline_from(
        'resize{plan={"conv1":3}},fold-batch-norm,quantize,remove-quantizers,quantize{weight_bits=4}'
    )
    assert Pipeline(passes.steps, between=verify)(traced(), Given([batch()])).modified


def call(*args: Any) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scale.py").write_text(OWN_PASS)
    return tmp_path


@pytest.mark.parametrize("own", ["scale:Scale", "scale.py:Scale"])
def test_the_command_line_takes_a_pass_of_the_users_own_anywhere(here, own):
    looked = call(
        "rewrite", "resnet8", "--max-macs", "0.7x", "--out", "one", "--verify-each", "--print-after", "quantize"
    )
    assert looked.exit_code == 0, looked.output
    assert "weight_quant" in looked.stderr.split("after quantize:")[1]
    passes = f"resize,{own}{{factor=4}},quantize{{weight_bits=3}}"
    options = ["--verify-each", "--print-after", own, "--json"]
    result = call("apply", "resnet8", "one/plan.json", "--passes", passes, *options, "--out", "two")
    assert result.exit_code == 0, result.output
    assert "after scale:" in result.stderr
    assert "torch.mul" in result.stderr.split("after scale:")[1]
    assert json.loads(result.stdout)["plan"] == json.loads((here / "one" / "plan.json").read_text())
    steps = json.loads((here / "two" / "history.json").read_text())["steps"]
    assert [step["name"] for step in steps] == ["resize", "scale", "quantize"]
    assert steps[1]["options"] == {"factor": 4.0}
    assert steps[2]["options"]["weight_bits"] == 3
    refused = call("export", "two", "--packed", "two.safetensors")
    assert refused.exit_code == 1
    assert "--pass " in refused.stderr
    assert call("export", "two", "--packed", "two.safetensors", "--pass", own).exit_code == 0


def test_without_a_plan_passes_are_run_as_they_are_written(here):
    result = call("apply", "resnet8", "--passes", "fold-batch-norm,quantize", "--bits", "4", "--out", "result")
    assert result.exit_code == 0, result.output
    steps = json.loads((here / "result" / "history.json").read_text())["steps"]
    assert [step["name"] for step in steps] == ["fold-batch-norm", "quantize"]
    assert steps[1]["options"]["weight_bits"] == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give a PLAN.json"),
        (["--passes", "resize"], "option plan: Field required"),
        (["--passes", "quantize", "--print-after", "resize"], "the passes are quantize"),
        (["plan.json", "--passes", "quantize"], "has no resize"),
    ],
)
def test_what_apply_cannot_do_is_refused(here, args, message):
    (here / "plan.json").write_text(nce_fx.WidthPlan({}, {}, "").to_json())
    result = call("apply", "resnet8", *args)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert not (here / "nce-fx-out").exists()


def test_a_network_without_quantizers_is_not_retrained(here):
    assert call("apply", "resnet8", "--passes", "fold-batch-norm", "--out", "result").exit_code == 0
    result = call("retrain", "result", "--data", "digits", "--epochs", "1")
    assert result.exit_code == 1
    assert "none of its passes is quantize" in result.stderr


def test_a_network_made_with_a_pass_of_the_users_own_is_retrained_beside_a_rival_that_went_through_it_too(here):
    passes = 'resize{plan={"conv1":3}},scale.py:Scale{factor=3},quantize'
    result = call("apply", "resnet8", "--data", "digits", "--passes", passes, "--out", "result")
    assert result.exit_code == 0, result.output
    before = json.loads((here / "result" / "history.json").read_text())["steps"]
    epochs = ["--data", "digits", "--epochs", "1", "--json"]
    refused = call("retrain", "result", *epochs)
    assert refused.exit_code == 1
    assert "which is not nce-fx's" in refused.stderr
    result = call("retrain", "result", *epochs, "--pass", "scale.py:Scale")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["comparison"]["rows"]
    assert [row["network"] for row in rows] == ["float", "uniform 2-bit", "NCE 2-bit"]
    after = json.loads((here / "result" / "history.json").read_text())["steps"]
    assert after == before
