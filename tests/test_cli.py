"""The command line as users meet it: what goes where, the exit codes, one line for everything that is wrong."""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from nce_fx import artifacts
from nce_fx.cli import app
from nce_fx.cli.verdict import verdict
from nce_fx.errors import TrainingError
from nce_fx.models import MODELS
from nce_fx.models.loading import load_model
from nce_fx.passes.transform.new_weights import from_scratch
from nce_fx.report.records import Comparison, ResultRow
from nce_fx.training.loop import GO_ON
from tests.training_runs import one_process_a_gpu

USER_MODELS = """
import torch
from torch import nn

def tiny(classes=10, channels=1):
    return nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))

def raises():
    raise RuntimeError("no such depth\\nsecond line")

def not_a_module():
    return 3

def with_nan():
    model = tiny()
    model[2].weight.data[0, 0, 0, 0] = float("nan")
    return model

def huge():
    model = tiny()
    model[6].weight.data.fill_(3e38)
    return model

NUMBER = 3
"""
OWN_DATA = """
import torch

def make():
    images, classes = torch.rand(40, 1, 8, 8), torch.arange(40) % 10
    return [torch.utils.data.TensorDataset(images, classes)] * 2
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_models.py").write_text(USER_MODELS)
    return tmp_path


def call(*args):
    # As wide as no path is long, so that no word is broken.
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(arg) for arg in args])


def refused(*args):
    """Run a command that must be refused: exit 1, nothing on stdout, and one line on stderr, which is returned."""
    result = call(*args)
    assert result.exit_code == 1, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("nce-fx: ")]
    assert len(lines) == 1
    assert "Traceback" not in result.output
    assert lines[0] == result.stderr.splitlines()[-1]
    return lines[0]


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)


BAD = {
    "unknown model": (["no_such_net"], "no model 'no_such_net'"),
    "misspelt model": (["resnet88"], "did you mean 'resnet8'"),
    "module that is not there": (["no_such_package.nets:tiny"], "no_such_package"),
    "callable that is not there": (["own_models:tinny"], "did you mean 'tiny'"),
    "file that is not there": (["nets/none.py:tiny"], "nets/none.py"),
    "not a callable": (["own_models:NUMBER"], "NUMBER"),
    "factory that raises": (["own_models:raises", "--input", "1x1x8x8"], "no such depth"),
    "factory of something else": (["own_models:not_a_module", "--input", "1x1x8x8"], "not a torch.nn.Module"),
    "no input shape": (["own_models:tiny"], "--input"),
    "input of the wrong shape": (["own_models:tiny", "--input", "1x3x8x8"], "1, 3, 8, 8"),
    "input that is no shape": (["resnet8", "--input", "1x3x"], "not a shape"),
    "input that is not the data's": (["resnet8", "--data", "digits", "--input", "1x3x8x8"], "leave it out"),
    "data that is not there": (["resnet8", "--data", "digitz"], "digitz"),
    "folder of data that is not there": (["resnet8", "--data", "imagefolder:nowhere"], "nowhere"),
    "CIFAR folder that is not there": (["resnet8", "--data", "cifar10:nowhere"], "nowhere"),
    "data callable that is not there": (["resnet8", "--data", "own_models:no_data"], "no_data"),
    "weights that are not there": (["resnet8", "--weights", "none.safetensors"], "none.safetensors"),
    "budget that cannot be met": (["resnet8", "--max-macs", "0.001x"], "least"),
    "parameters that cannot be met": (["resnet8", "--max-params", "20"], "least"),
    "budget that is no number": (["resnet8", "--max-macs", "much"], "much"),
    "no bits": (["resnet8", "--bits", "0"], "1 to 8"),
    "too many bits": (["resnet8", "--bits", "9"], "1 to 8"),
    "NaN in the weights": (["own_models:with_nan", "--input", "1x1x8x8"], "2.weight"),
    "arguments that are not JSON": (["resnet8", "--model-args", "{width: 4}"], "not JSON"),
    "arguments that are no object": (["resnet8", "--model-args", "[4]"], "not a JSON object"),
    "arguments that the model does not take": (["resnet8", "--model-args", '{"depth": 4}'], "depth"),
    "a file without what builds the model": (["own_models.py"], "own_models.py:build"),
    "an ONNX file": (["model.onnx"], "ONNX files are not read, for no converter was found that takes them all"),
    "from scratch without retraining": (["resnet8", "--from-scratch"], "--retrain"),
    "unknown metric": (["resnet8", "--sensitivity", "guess"], "guess"),
    "retraining without data": (["resnet8", "--retrain", "1"], "--data"),
    "negative epochs": (["resnet8", "--data", "digits", "--retrain", "-1"], "--retrain -1"),
    "unknown quantizer": (["resnet8", "--weight-quantizer", "guess"], "sawb"),
    "override that is none": (["resnet8", "--override", "fc"], "PATTERN=BITS"),
    "override of no layer": (["resnet8", "--override", "nowhere.*=4"], "matches no layer"),
    "recipe without such a field": (["resnet8", "--recipe", '{"lr": 1}'], "lr"),
    "recipe out of range": (["resnet8", "--recipe", '{"momentum": 2}'], "momentum"),
    "table without a limit": (["resnet8", "--hardware", "table.csv"], "table.csv"),
    "limit without a table": (["resnet8", "--max-custom", "0.9x"], "--hardware"),
    "pattern of no layer": (["resnet8", "--only", "nowhere*"], "nowhere*"),
    "widths that exclude all": (["resnet8", "--min-width", "3", "--max-width", "2"], "3"),
}


@pytest.mark.parametrize(("args", "says"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_writes_nothing(here, args, says):
    before = listing(here)
    assert says in refused("rewrite", *args, "--out", "result")
    assert listing(here) == before


def test_weights_that_do_not_fit_name_the_keys(here):
    state = {name: value.clone() for name, value in MODELS["resnet8"]().state_dict().items()}
    state["fc.weight"] = torch.zeros(3, 3)
    state["head.bias"] = state.pop("fc.bias")
    save_file(state, here / "other.safetensors")
    line = refused("rewrite", "resnet8", "--weights", "other.safetensors", "--out", "result")
    assert all(key in line for key in ("fc.weight", "fc.bias", "head.bias"))
    assert not (here / "result").exists()


def test_truncated_and_foreign_weights_are_refused(here):
    save_file(MODELS["resnet8"]().state_dict(), here / "cut.safetensors")
    whole = (here / "cut.safetensors").read_bytes()
    (here / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save(MODELS["resnet8"](), here / "pickle.pt")
    for name in ("cut.safetensors", "pickle.pt"):
        line = refused("rewrite", "resnet8", "--weights", name, "--out", "result")
        assert name in line
        assert "Unpickling" not in line
        assert "x1b" not in line
    assert line.endswith("save model.state_dict() alone")


def test_nan_in_a_weights_file_is_refused(here):
    state = {name: value.clone() for name, value in MODELS["resnet8"]().state_dict().items()}
    state["conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, here / "nan.safetensors")
    assert "conv1.weight" in refused("rewrite", "resnet8", "--weights", "nan.safetensors", "--out", "result")


def test_a_sensitivity_that_is_not_finite_is_refused(here):
    line = refused("rewrite", "own_models:huge", "--data", "digits", "--out", "result")
    assert "NaN" in line or "finite" in line
    assert not (here / "result").exists()


def test_what_a_runtime_needs_is_kept_with_the_result(here):
    assert call("rewrite", "resnet8", "--out", "result", "--exact", "--sums", "int8").exit_code == 0
    quantization = json.loads((here / "result" / "report.json").read_text())["quantization"]
    assert quantization["exact"]
    assert quantization["sums"] == "int8"


def test_the_gradients_asked_for_are_those_of_the_result(here):
    assert call("rewrite", "resnet8", "--out", "result", "--ewgs", "0.2").exit_code == 0
    assert json.loads((here / "result" / "report.json").read_text())["quantization"]["ewgs"] == 0.2
    assert "ewgs" in refused("rewrite", "resnet8", "--out", "other", "--ewgs", "-1")


def test_a_folder_with_a_result_is_refused_unless_forced(here):
    assert call("rewrite", "resnet8", "--out", "result").exit_code == 0
    (here / "result" / "mine.txt").write_text("keep me")
    first = (here / "result" / "plan.json").read_bytes()
    line = refused("rewrite", "resnet8", "--out", "result", "--max-macs", "0.8x")
    assert "result" in line
    assert "--force" in line
    assert (here / "result" / "plan.json").read_bytes() == first
    assert call("rewrite", "resnet8", "--out", "result", "--max-macs", "0.8x", "--force").exit_code == 0
    assert (here / "result" / "plan.json").read_bytes() != first
    assert (here / "result" / "mine.txt").read_text() == "keep me"


def test_an_out_that_is_a_file_is_refused(here):
    (here / "result").write_text("a file")
    assert "is a file" in refused("rewrite", "resnet8", "--out", "result")
    assert (here / "result").read_text() == "a file"


def test_a_folder_that_cannot_be_written_is_refused(here):
    (here / "file").write_text("")
    assert "file" in refused("rewrite", "resnet8", "--out", "file/result")


def test_without_data_it_says_where_sensitivity_comes_from(here):
    result = call("rewrite", "resnet8", "--out", "result")
    assert result.exit_code == 0
    assert "from the weights alone" in result.stderr
    assert listing(here / "result") == sorted(
        [
            "float.safetensors",
            "graph.txt",
            "history.json",
            "model.safetensors",
            "plan.json",
            "report.html",
            "report.json",
        ]
    )


def test_dry_run_prints_the_plan_and_writes_nothing(here):
    before = listing(here)
    result = call("rewrite", "resnet8", "--dry-run", "--out", "result")
    assert result.exit_code == 0
    assert "own widths" in result.stdout
    assert listing(here) == before


def test_limits_and_quantizers_reach_the_plan_and_the_graph(here):
    quantizers = ["--weight-quantizer", "lsq", "--activation-quantizer", "lsq", "--override", "layer2.*=4"]
    widths = ["--freeze", "layer1.*", "--round-to", "4", "--max-width", "1.5", "--max-bit-ops", "0.9x"]
    result = call("rewrite", "resnet20", *quantizers, *widths, "--out", "one", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    original = content["plan"]["original"]
    changed = {group: width for group, width in content["plan"]["widths"].items() if width != original[group]}
    assert changed
    assert not any(group.startswith("layer1.") for group in changed)
    assert all(width % 4 == 0 and width <= 1.5 * original[group] for group, width in changed.items())
    assert content["rewrite"]["rewritten"]["bit_ops"] <= 0.9 * content["rewrite"]["original"]["bit_ops"]
    quantization = json.loads((here / "one" / "report.json").read_text())["quantization"]
    assert (quantization["weight"], quantization["activation"]) == ("lsq", "lsq")
    assert quantization["overrides"] == {"layer2.*": 4}
    assert call("apply", "resnet20", "one/plan.json", *quantizers, "--out", "two").exit_code == 0
    assert (here / "one" / "model.safetensors").read_bytes() == (here / "two" / "model.safetensors").read_bytes()


def test_the_published_recipe_is_that_of_the_published_quantizers(here):
    """An option that is given goes before it; a network of other quantizers is not retrained by that name."""
    for name, given, wanted in (
        ("usual", [], ("sawb", "lsq", "int8")),
        ("published", ["--recipe", "published"], ("sawb", "pact", "quantized")),
        ("own", ["--recipe", "published", "--activation-quantizer", "lsq"], ("sawb", "lsq", "quantized")),
    ):
        result = call("rewrite", "own_models:tiny", "--input", "1x1x8x8", "--out", name, *given)
        assert result.exit_code == 0, result.output
        found = json.loads((here / name / "report.json").read_text())["quantization"]
        assert (found["weight"], found["activation"], found["shortcuts"]) == wanted
    again = ["--data", "digits", "--epochs", "1", "--model", "own_models:tiny", "--recipe", "published"]
    assert "rewrite it with --recipe published" in refused("retrain", "usual", *again)
    assert "or published" in refused("rewrite", "own_models:tiny", "--input", "1x1x8x8", "--recipe", "publishd")


def test_a_budget_on_the_users_own_hardware(here):
    sizes = [(op, c_in, c_out) for op in ("conv2d", "linear") for c_in in (1, 64) for c_out in (4, 64)]
    rows = [f"{op},{c_in},{c_out},8,8,{bits},{c_in * c_out}" for op, c_in, c_out in sizes for bits in (2, 8)]
    (here / "table.csv").write_text("\n".join(["op,c_in,c_out,h,w,bits,cost", *rows]))
    hardware = ["--hardware", "table.csv", "--max-custom", "0.8x"]
    result = call("rewrite", "resnet8", *hardware, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    source = json.loads(result.stdout)["plan"]["source"]
    assert source["cost"]["custom"] <= source["limits"]["custom"]


def test_json_is_one_object_and_nothing_else(here):
    result = call("rewrite", "resnet8", "--dry-run", "--json")
    content = json.loads(result.stdout)
    assert content["out"] is None
    assert content["rewrite"]["rewritten"]["macs"] <= content["rewrite"]["original"]["macs"]
    assert content["rewrite"]["rewritten"]["params"] <= content["rewrite"]["original"]["params"]
    assert content["plan"]["widths"].keys() == content["plan"]["original"].keys()
    assert "own widths" in result.stderr


@pytest.mark.long
def test_the_main_job_end_to_end(here):
    """One epoch, so that it is quick; the accuracy means nothing, everything else is as in the demo."""
    args = ["rewrite", "resnet8", "--data", "digits", "--retrain", "1", "--json"]
    result = call(*args, "--out", "one")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["comparison"]["rows"]
    assert [row["network"] for row in rows] == ["float", "uniform 2-bit", "NCE 2-bit"]
    float_row, uniform, rewritten = rows
    assert rewritten["macs"] <= uniform["macs"] == float_row["macs"]
    assert rewritten["params"] <= uniform["params"]
    assert uniform["weight_bytes"] < float_row["weight_bytes"] / 4
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert call(*args, "--out", "two").exit_code == 0
    assert (here / "one" / "plan.json").read_bytes() == (here / "two" / "plan.json").read_bytes()
    assert load_file(here / "one" / "model.safetensors").keys() == load_file(here / "two" / "model.safetensors").keys()
    for name, value in load_file(here / "one" / "model.safetensors").items():
        assert torch.equal(value, load_file(here / "two" / "model.safetensors")[name]), name


def test_rewrite_retrains_from_scratch_compiled(here, monkeypatch):
    """The compiler itself is torch's, and slow: here is only what is handed to it."""
    compiled, started = [], []

    def compiler(model, **options):
        compiled.append(model)
        return model

    def scratch(gm, fresh, *rest):
        started.append((gm, fresh, from_scratch(gm, fresh, *rest)))
        return started[-1][2]

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr("nce_fx.cli.rewriting.from_scratch", scratch)
    torch.manual_seed(5)
    save_file(load_model("own_models:tiny", {}).state_dict(), here / "float.safetensors")
    args = ["own_models:tiny", "--weights", "float.safetensors", "--data", "digits", "--retrain", "1"]
    result = call("rewrite", *args, "--from-scratch", "--compile", "--out", "result")
    assert result.exit_code == 0, result.output
    kept = artifacts.read_manifest(here / "result").retraining
    assert kept is not None
    assert kept.from_scratch
    assert kept.recipe["compile"]
    assert len(compiled) >= 2
    (uniform, fresh, start), rewritten = started
    for name, value in fresh.state_dict().items():
        assert torch.equal(start.state_dict()[name], value)
        assert not torch.equal(uniform.state_dict()[name], value)
    assert not torch.equal(rewritten[2].get_parameter("6.bias"), rewritten[0].get_parameter("6.bias"))


@pytest.mark.parametrize("strict", [False, True])
def test_rewrite_stops_at_a_damaged_image_where_asked(here, strict):
    pytest.importorskip("torchvision.datasets")
    from PIL import Image

    for name in ("train/cat/0", "train/dog/0", "train/dog/1", "val/cat/0", "val/dog/0"):
        path = here / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), "red").save(path)
    path = here / "images" / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    own = '{"channels": 3, "classes": 2}'
    args = ["own_models:tiny", "--model-args", own, "--data", f"imagefolder:{here / 'images'}", "--dry-run"]
    if strict:
        assert "1.png" in refused("rewrite", *args, "--strict")
    else:
        with pytest.warns(UserWarning, match=r"1\.png"):
            assert call("rewrite", *args).exit_code == 0


def test_apply_replays_a_plan_to_the_same_weights(here):
    torch.manual_seed(0)
    save_file(MODELS["resnet8"](in_channels=1).state_dict(), here / "float.safetensors")
    given = ["--weights", "float.safetensors", "--data", "digits", "--seed", "3"]
    assert call("rewrite", "resnet8", *given, "--out", "one").exit_code == 0
    result = call("apply", "resnet8", "one/plan.json", *given, "--out", "two")
    assert result.exit_code == 0, result.output
    assert (here / "one" / "plan.json").read_bytes() == (here / "two" / "plan.json").read_bytes()
    assert (here / "one" / "model.safetensors").read_bytes() == (here / "two" / "model.safetensors").read_bytes()


def test_apply_refuses_a_plan_for_another_model(here):
    assert call("rewrite", "resnet8", "--out", "one").exit_code == 0
    wider = '{"width": 6}'
    line = refused("apply", "resnet8", "one/plan.json", "--model-args", wider, "--out", "two")
    assert "another model" in line
    assert "another model" in refused("apply", "resnet20", "one/plan.json", "--out", "two")
    (here / "plan.json").write_text("{")
    assert "not JSON" in refused("apply", "resnet8", "plan.json", "--out", "two")
    assert "none.json" in refused("apply", "resnet8", "none.json", "--out", "two")
    assert not (here / "two").exists()


def test_a_model_from_a_file_and_from_a_module(here):
    for reference in ("own_models:tiny", "own_models.py:tiny"):
        result = call("rewrite", reference, "--input", "1x2x8x8", "--model-args", '{"channels": 2}', "--dry-run")
        assert result.exit_code == 0, result.output


def test_search_writes_a_plan_that_apply_takes(here):
    args = ["search", "resnet8", "--data", "digits", "--epochs", "2", "--json"]
    result = call(*args, "--out", "found")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["plan"]["source"]["metric"] == "search"
    assert "own widths" in result.stderr
    assert {"plan.json", "widths.svg", "expansions.csv"} <= {path.name for path in (here / "found").iterdir()}
    assert "--force" in refused(*args, "--out", "found")
    assert call("apply", "resnet8", "found/plan.json", "--data", "digits", "--out", "applied").exit_code == 0
    assert json.loads((here / "applied" / "plan.json").read_text()) == content["plan"]
    assert "--data" in refused("search", "resnet8", "--out", "other")
    assert "gradient" in refused("search", "resnet8", "--data", "digits", "--method", "luck", "--out", "other")
    assert "no such field: taus" in refused("search", "resnet8", "--recipe", '{"taus": 1}', "--out", "other")


@pytest.mark.long
def test_retrain_a_result_that_was_not_trained(here):
    assert call("rewrite", "resnet8", "--data", "digits", "--out", "result").exit_code == 0
    assert "--epochs" in refused("retrain", "result")
    result = call("retrain", "result", "--data", "digits", "--epochs", "1", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["comparison"]["epochs"] == 1
    assert "cannot teach" in result.stderr
    assert "is trained" in refused("retrain", "result")
    assert call("retrain", "result", "--force", "--no-uniform", "--json").exit_code == 0


def test_retrain_runs_no_code_that_only_the_folder_names(here):
    assert call("rewrite", "own_models:tiny", "--data", "digits", "--out", "result").exit_code == 0
    assert "--model own_models:tiny" in refused("retrain", "result", "--data", "digits", "--epochs", "1")
    again = ["--data", "digits", "--epochs", "1", "--no-uniform", "--model", "own_models:tiny"]
    assert call("retrain", "result", *again).exit_code == 0


def test_retrain_refuses_what_is_not_a_result(here):
    assert "none" in refused("retrain", "none")
    assert "is a file, not a folder" in refused("retrain", "own_models.py")
    (here / "folder").mkdir()
    (here / "folder" / "report.json").write_text('{"version": 1}')
    assert "not nce-fx's" in refused("retrain", "folder")


@pytest.mark.parametrize("command", [("rewrite", "resnet8"), ("apply", "resnet8", "plan.json")])
def test_what_writes_a_new_folder_runs_in_one_process(here, monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = call(*command, "--data", "digits", "--out", "out")
    assert result.exit_code == 1
    assert f"`nce-fx {command[0]}` runs in one process" in result.stderr
    assert not (here / "out").exists()


@pytest.mark.slow
@one_process_a_gpu
def test_two_processes_retrain_one_folder(here):
    assert call("rewrite", "resnet8", "--data", "digits", "--retrain", "1", "--out", "result").exit_code == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "nce_fx", "retrain"]
    done = subprocess.run(
        [*command, "result", "--force", "--epochs", "2", "--json"], capture_output=True, env=quiet_environment()
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["comparison"]["epochs"] == 2
    comparison = artifacts.read_manifest(here / "result").comparison
    assert comparison is not None
    assert comparison.epochs == 2


@pytest.mark.long
def test_ctrl_c_stops_in_words_and_retrain_goes_on(here):
    """Stopped with Ctrl-C while it retrains; then resumed to the weights of a run that was never stopped."""
    command = ["rewrite", "resnet8", "--model-args", '{"width": 8}', "--data", "digits", "--retrain", "2"]

    def press_ctrl_c():
        # Only where training listens: anywhere else it would stop the tests.
        while signal.getsignal(signal.SIGINT) is signal.default_int_handler or not list(
            (here / "stopped" / "training").glob("nce-2-bit/*")
        ):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_ctrl_c, daemon=True).start()
    message = refused(*command, "--out", "stopped")
    assert "stopped after step" in message
    assert message.endswith("nce-fx retrain stopped")
    assert artifacts.read_manifest(here / "stopped").comparison is None
    assert "to go on with its training: nce-fx retrain stopped" in refused(*command, "--out", "stopped")
    assert call("retrain", "stopped").exit_code == 0
    assert call(*command, "--out", "whole").exit_code == 0
    one, two = (load_file(here / name / "model.safetensors") for name in ("stopped", "whole"))
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_what_was_stopped_goes_on_by_the_command_that_it_says(here, monkeypatch):
    """A model, data and a folder that a shell would not take as they are, named again where they are code."""
    (here / "own data.py").write_text(OWN_DATA)
    given = ["rewrite", "own_models:tiny", "--data", "own data.py:make", "--retrain", "1", "--out", "my result"]
    comparison = importlib.import_module("nce_fx.comparison")

    def stop(*args, **kwargs):
        raise TrainingError(f"stopped after step 1: saved in my result; {GO_ON}")

    with monkeypatch.context() as patched:
        patched.setattr(comparison, "train", stop)
        stopped = refused(*given)
    command = stopped.partition("the command that goes on: ")[2]
    assert "run the same again" not in stopped
    # The same again does not, and says what does.
    assert refused(*given).endswith(command)
    result = call(*shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    # So do the commands that are said last.
    steps = " ".join(result.stderr.split()).partition("next: ")[2].split("; ")
    assert [shlex.split(step)[1] for step in steps] == ["inspect", "export"]
    for step in steps:
        assert call(*shlex.split(step)[1:]).exit_code == 0


@pytest.mark.parametrize("accuracies", [(0.8, 0.7), (0.7, 0.8), (0.75, 0.75)])
def test_the_last_line_says_which_widths_did_better(accuracies):
    theirs, ours = accuracies
    cost = {"macs": 1, "params": 1, "activations": 1, "weight_bytes": 1, "activation_bytes": 1}
    rows = [
        ResultRow(network=name, accuracy=accuracy, epochs=1, seconds=0.0, **cost)
        for name, accuracy in (
            ("float", 0.9),
            ("uniform 2-bit", 0.1),
            ("uniform 2-bit, 4", theirs),
            ("NCE 2-bit", ours),
        )
    ]
    comparison = Comparison(data="digits", epochs=1, seed=0, recipe={}, rows=tuple(rows))
    said = verdict(comparison, "NCE 2-bit")
    best = "its own widths did" if theirs > ours else "the rewritten widths did"
    assert said.startswith(f"{best} {'as well' if theirs == ours else 'better'} in this run")
    assert f"{100 * max(accuracies):.2f} %" in said
    alone = comparison.model_copy(update={"rows": (rows[0], rows[-1])})
    assert verdict(alone, "NCE 2-bit") == ""
    assert verdict(comparison.model_copy(update={"metric": "own:metric", "is_share": False}), "NCE 2-bit") == ""


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--dry-run", "--retrain", "30"], "a dry run trains nothing"),
        (["--dry-run"], "a dry run trains nothing"),
        ([], "nothing is trained without --retrain"),
    ],
)
def test_why_nothing_was_tried_is_what_was_asked_for(here, options, why):
    result = call("rewrite", "own_models:tiny", "--data", "digits", "--out", "result", "--json", *options)
    assert json.loads(result.stdout)["rewrite"]["untried"] == why


def test_ctrl_c_before_there_is_anything_to_save(here, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("nce_fx.rewrite"), "plan_widths", stop)
    result = call("rewrite", "resnet8", "--out", "result")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "nce-fx: stopped"
    assert listing(here) == ["own_models.py"]


def test_models_and_passes_list_what_there_is():
    assert {row["name"] for row in json.loads(call("models", "--json").stdout)["models"]} == MODELS.keys()
    found = {row["name"]: row for row in json.loads(call("passes", "--json").stdout)["passes"]}
    assert {"resize", "quantize", "fold-batch-norm"} <= found.keys()
    assert "plan" in found["resize"]["options"]
    assert "resnet20" in call("models").stdout
    assert "resize" in call("passes").stdout


def test_analyze_shows_layers_groups_and_why():
    layers = json.loads(call("analyze", "resnet8", "--json").stdout)
    assert not any("_quant" in name for name in layers["layers"])
    assert "_quant" not in (shown := call("analyze", "resnet8").stdout)
    assert "counted as quantized" in shown
    assert f"({len(layers['quantizers'])} quantizers)" in shown
    assert layers["total"]["macs"] == sum(layer["macs"] for layer in layers["layers"].values())
    assert layers["sensitivity"]["by_node"].keys() <= layers["layers"].keys()
    content = json.loads(call("analyze", "resnet8", "--groups", "--why", "layer1.0.conv2", "--json").stdout)
    stem = next(group for group in content["groups"] if "conv1" in group["producers"])
    assert stem["id"] == content["why"]["group"]
    assert "layer1.0.conv2" in stem["producers"]
    chain = next(tie["chain"] for tie in content["why"]["ties"] if tie["producer"] == "conv1")
    assert any("add" in name for name, _ in chain)
    pinned = next(group for group in content["groups"] if "fc" in group["producers"])
    assert pinned["pinned"]
    assert "layer1.0.conv2" in call("analyze", "resnet8", "--why", "layer1.0.conv2").stdout
    assert "did you mean 'layer1.0.conv2'" in refused("analyze", "resnet8", "--why", "layer1.0.conv22")


def test_usage_errors_exit_2():
    assert call("rewrite").exit_code == 2
    assert call("rewrite", "resnet8", "--no-such-option").exit_code == 2
    assert call("widen", "resnet8").exit_code == 2


def quiet_environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.long
def test_a_real_process_prints_one_line_and_exits_1(tmp_path):
    command = [sys.executable, "-m", "nce_fx", "rewrite", "no_such_net"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=quiet_environment())
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_model_that_was_built_is_not_changed():
    """`nn.Module` from the outside: analyze does not touch weights or mode."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    from nce_fx.rewrite import rewrite

    rewrite(model, (torch.randn(1, 1, 8, 8),))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
