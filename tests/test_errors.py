"""What is refused, in words: one line each that says what is wrong and what to do."""

import gzip
import math
import re
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from typer.testing import CliRunner

import nce_fx
from nce_fx.callables import load_callable
from nce_fx.cli import app
from nce_fx.custom import channel_rule
from nce_fx.data import load_data
from nce_fx.data.data_split import split_data
from nce_fx.errors import NceFxError
from nce_fx.export.opset import set_opset
from nce_fx.export.pt2 import load_pt2
from nce_fx.models import MODELS
from nce_fx.models.loading import load_model
from nce_fx.passes.by_name import pipeline_from
from nce_fx.passes.planning.choices import Rules
from nce_fx.plan import WidthPlan
from nce_fx.quantizers.lsq import LsqWeight
from nce_fx.report.explanation import explain
from nce_fx.signature import input_signature, signature_of


@pytest.fixture(scope="module")
def gm():
    return nce_fx.trace(MODELS["resnet8"](in_channels=1, width=2).eval(), (torch.zeros(2, 1, 8, 8),))


def fashion(folder, labels):
    """Files of Fashion-MNIST whose images are of one pixel."""
    for name in ("train", "t10k"):
        images = bytes((0, 0, 8, 3)) + np.array([len(labels), 1, 1], ">u4").tobytes() + bytes(len(labels))
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        answers = bytes((0, 0, 8, 1)) + np.array([len(labels)], ">u4").tobytes() + bytes(labels)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(answers)
    return f"fashion-mnist:{folder}"


def user_code(folder, text, name="model.py"):
    (folder / name).write_text(text)
    return f"{folder / name}:make"


def archive_with_two(folder, record):
    """An archive with two records of one name."""
    path = folder / "archive.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"archive/{record}", b"pt2")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(f"archive/{record}", b"again")
    return path


MISTAKES = {
    "a file that is no Python": (
        lambda gm, at: load_callable(f"{at}/there.py:make", "model"),
        r"model '.*there\.py:make': there is no file",
    ),
    "a name that a file has not": (
        lambda gm, at: load_callable(user_code(at, "def made(): pass"), "model"),
        r"has no 'make'; did you mean 'made'\?",
    ),
    "a file that fails": (
        lambda gm, at: load_callable(user_code(at, "\n1 / 0"), "model"),
        r"model\.py failed: ZeroDivisionError: division by zero \(at .*model\.py:2\)",
    ),
    "an argument that a model has not": (
        lambda gm, at: load_model("resnet8", {"widht": 2}),
        r"model 'resnet8': takes no 'widht'; it takes .*width.*; did you mean 'width'\?",
    ),
    "a rule for what is no op": (
        lambda gm, at: channel_rule(lambda x: x)(3),
        "channel_rule: 3 is no module class, Python function or torch.ops operator",
    ),
    "a label too many": (
        lambda gm, at: load_data(fashion(at, [3, 10])),
        "has a label 10 in train; they are 0 to 9",
    ),
    "files that are not there": (
        lambda gm, at: load_data(f"fashion-mnist:{at}"),
        r"has neither train-images-idx3-ubyte nor train-images-idx3-ubyte\.gz: ",
    ),
    "one image for two halves": (
        lambda gm, at: split_data(load_data(fashion(at, [3])), 0),
        "data fashion-mnist: a search halves its training split, which is too short: 1",
    ),
    "a type that an opset has not": (
        lambda gm, at: set_opset(helper.make_model(helper.make_graph([], "g", [], [], [
            helper.make_tensor("levels", TensorProto.INT4, [1], [3])])), 20),
        "opset 20 has no integers of 4 bits, which levels has: give 21, or choose format qcdq or qonnx",
    ),
    "an op that an opset has not": (
        lambda gm, at: set_opset(helper.make_model(helper.make_graph([
            helper.make_node("Gelu", ["x"], ["y"], "curve")], "g", [], [])), 19),
        "opset 19 has no Gelu such as curve: ",
    ),
    "two records of one name": (
        lambda gm, at: load_pt2(archive_with_two(at, "archive_format")),
        r"archive\.pt2 holds two records of one name: export it again",
    ),
    "bits without a cost": (
        lambda gm, at: nce_fx.analyze_cost(gm, weight_bits=33),
        "33 bits cannot be costed: choose 1 to 32",
    ),
    "outputs of a model that gives losses": (
        lambda gm, at: nce_fx.analyze_sensitivity(gm, [torch.ones(1, 1, 8, 8)], metric="kl", loss="own"),
        "the kl metric compares outputs, and the model gives losses: choose fisher or loss",
    ),
    "nine bits of noise": (lambda gm, at: nce_fx.analyze_sensitivity(gm, bits=9), "9 bits: choose 1 to 8"),
    "no noise": (lambda gm, at: nce_fx.analyze_sensitivity(gm, bits=0), "0 bits: choose 1 to 8"),
    "a budget of nothing": (
        lambda gm, at: nce_fx.Budget(macs="0x"),
        "macs='0x' is no budget: give a ratio like 0.8x or a positive number",
    ),
    "a budget of everything": (lambda gm, at: nce_fx.Budget(macs=math.inf), "macs=inf is no budget: give a ratio"),
    "a budget of a truth": (lambda gm, at: nce_fx.Budget(macs=True), "macs=True is no budget: give a ratio"),
    "a ratio that is a number": (
        lambda gm, at: nce_fx.Budget(macs="16.5x"),
        "macs='16.5x': ratios go up to 16x; give the number itself",
    ),
    "multiples of none": (lambda gm, at: Rules(round_to=0), "round_to=0 is no multiple: give 1 or more"),
    "widths around another one": (
        lambda gm, at: Rules(min_width=1.25),
        "min_width=1.25 and max_width=2.0 must hold the original width between them",
    ),
    "nine bits": (
        lambda gm, at: nce_fx.QuantSpec(weight_bits=9),
        "weight_bits is 9: give 1 to 8 bits, or 32 for float",
    ),
    "a quantizer of nine bits": (lambda gm, at: LsqWeight(9), "LsqWeight takes 1 to 8 bits, not 9"),
    "a quantizer of a truth": (lambda gm, at: LsqWeight(True), "LsqWeight takes 1 to 8 bits, not True"),
    "a pass's option of another kind": (
        lambda gm, at: pipeline_from("resize{seed=many}"),
        "pass resize, option ",
    ),
    "a plan that is no JSON": (lambda gm, at: WidthPlan.from_json("{"), "the plan is not JSON: "),
    "a plan that is too deep": (
        lambda gm, at: WidthPlan.from_json("[" * 100_000),
        "the plan is not JSON: it is nested too deeply",
    ),
    "a layer that is not there": (
        lambda gm, at: explain(gm, nce_fx.analyze_channels(gm), "layer1.0.conv7"),
        r"no layer 'layer1\.0\.conv7' has channels; did you mean 'layer1\.0\.conv\d'\?: `--groups` lists them all",
    ),
    "an input without its batch": (
        lambda gm, at: nce_fx.trace(MODELS["resnet8"]().eval(), (torch.zeros(3, 16, 16),)),
        "does not take the example input .3x16x16.: .*; it takes one with a batch: write 1x3x16x16$",
    ),
    "a module that is no layer": (
        lambda gm, at: explain(gm, nce_fx.analyze_channels(gm), "layer1.0"),
        r"'layer1\.0' is no layer; inside of it are layer1\.0\.conv1, layer1\.0\.conv2: name one",
    ),
    "an input that JSON has no word for": (
        lambda gm, at: input_signature({1, 2}),
        "an input of type set cannot be kept: use tensors, numbers and containers",
    ),
    "an input without a shape": (
        lambda gm, at: signature_of(torch.fx.symbolic_trace(nn.ReLU())),
        "input input_1 has no shape to keep: trace with tensors, numbers and containers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_in_one_line_that_says_what_to_do(gm, tmp_path, name):
    work, words = MISTAKES[name]
    with pytest.raises(NceFxError, match=words) as refused:
        work(gm, tmp_path)
    assert "\n" not in str(refused.value)


COMMANDS = {
    "a file of options that is no TOML": (
        ["rewrite", "--config", "{broken}"], "broken.toml is not TOML: "),
    "a list where a number is meant": (
        ["rewrite", "--config", "{list}"], "list.toml, line 2: bits: "),
    "a model whose input nobody knows": (
        ["analyze", "{model}"], "is not known: give its shape, such as --input 1x3x224x224"),
    "arguments that are no JSON": (
        ["analyze", "resnet8", "--model-args", "width=2"], "--model-args is not JSON ("),
    "bits of a layer in words": (
        ["rewrite", "resnet8", "--dry-run", "--override", "fc=two"],
        "--override fc=two is not PATTERN=BITS: write such as 'layer1.*=4' or 'fc=float'"),
    "a way of ends that is none": (
        ["rewrite", "resnet8", "--end-bits", "best"], "--end-bits best: one of "),
    "from scratch without training": (
        ["rewrite", "resnet8", "--from-scratch"], "--from-scratch is about retraining: give --retrain EPOCHS as well"),
    "float epochs without training": (
        ["rewrite", "resnet8", "--float-epochs", "3"], "--float-epochs is about retraining: give --retrain EPOCHS as"),
    "a float search of another method": (
        ["search", "resnet8", "--data", "digits", "--method", "adapt", "--float"],
        "--float and --no-expand are of --method gradient, not of adapt"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_refuses_a_mistake_before_it_does_anything(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("bits = \n")
    (tmp_path / "list.toml").write_text('model = "resnet8"\nbits = [2]\n')
    files = SimpleNamespace(model=user_code(tmp_path, "import torch\nmake = torch.nn.ReLU\n"))
    arguments, words = COMMANDS[name]
    named = {"broken": "broken.toml", "list": "list.toml", "model": files.model}
    before = sorted(tmp_path.rglob("*.toml"))
    result = CliRunner().invoke(app, [each.format(**named) if "{" in each else each for each in arguments],
                                env={"COLUMNS": "400"})  # fmt: skip
    assert result.exit_code in (1, 2), result.output
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert sorted(tmp_path.rglob("*.toml")) == before
    assert not (tmp_path / "nce-fx-out").exists()


@pytest.mark.parametrize("name", ["class", 'a"b', "lambda"])
def test_a_name_that_no_code_can_have_is_said(name):
    """A dictionary of modules takes any key; a graph calls them in Python."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleDict({name: nn.Linear(3, 2)})

        def forward(self, x):
            return self.heads[name](x)

    with pytest.raises(NceFxError, match=re.escape(f"rename heads.{name}") + "$"):
        nce_fx.trace(Named(), (torch.zeros(1, 3),))
