"""`nce-fx inspect` and `nce-fx diff`: pages of folders and models, and two networks side by side."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

import nce_fx
from nce_fx import artifacts
from nce_fx.cli import app
from nce_fx.models import MODELS
from nce_fx.report.records import Comparison, ModelReference, ResultRow

NETS = """
import torch
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3))
"""


def call(*arguments):
    # As wide as no path is long, so that no word is broken.
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(argument) for argument in arguments])


def done(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments):
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.strip().splitlines()[-1].startswith("nce-fx: ")
    return result.stderr


def data_of(path):
    text = path.read_text()
    data = json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    for node in data["nodes"]:
        node["source"] = node["source"].rpartition("/")[2]  # A path is said from where the command ran.
    return data


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two rewrites of resnet8 and one of a model of the user's own."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "nets.py").write_text(NETS)
    done("rewrite", "resnet8", "--out", folder / "loose")
    done("rewrite", "resnet8", "--max-macs", "0.7x", "--max-params", "0.7x", "--out", folder / "tight")
    done("rewrite", f"{folder / 'nets.py'}:build", "--input", "1x3x9x9", "--out", folder / "own")
    return folder


def test_a_model_has_a_page(here):
    result = done("inspect", "resnet8", "--json")
    content = json.loads(result.stdout)
    assert content["html"] == "resnet8.html"
    data = data_of(here / "resnet8.html")
    assert [data[key] for key in ("before", "after", "against", "quantized")] == ["float", "2 bits", "float", False]
    for said in ("the line is the budget", "both quantized"):
        assert said not in (here / "resnet8.html").read_text()
    assert [node["name"] for node in data["nodes"]][:3] == ["x", "conv1", "bn1"]
    costs = {each["name"]: (each["before"], each["after"]) for each in data["quantities"]}
    assert costs["macs"][0] == costs["macs"][1]
    assert costs["bit_ops"][0] > costs["bit_ops"][1]
    assert all(group["before"] == group["after"] for group in content["groups"])
    done("inspect", "resnet8")  # Our own page is replaced.


def test_the_page_of_a_folder_is_drawn_anew(results, here):
    done("inspect", results / "tight", "--html", "deep/page.html")
    assert data_of(here / "deep" / "page.html") == data_of(results / "tight" / artifacts.PAGE)
    sides = [data_of(here / "deep" / "page.html")[side] for side in ("before", "after", "against", "quantized")]
    assert sides == ["own widths", "rewritten", "float, own widths", True]


def test_a_folder_runs_no_code_to_be_seen(results, here):
    result = done("inspect", results / "own", "--html", "own.html")
    assert "as it was saved" in result.stderr
    assert "written to own.html" in result.stderr
    assert "written" not in done("inspect", results / "own").stderr  # It stays as it was.
    saved = results / "own" / artifacts.PAGE
    assert (here / "own.html").read_text() == saved.read_text()
    done("inspect", results / "own", "--model", f"{results / 'nets.py'}:build", "--html", "again.html")
    assert data_of(here / "again.html")["nodes"] == data_of(saved)["nodes"]


def test_what_inspect_refuses(results, here):
    (here / "notes.html").write_text("mine")
    assert "no page of nce-fx" in refused("inspect", "resnet8", "--html", "notes.html")
    assert (here / "notes.html").read_text() == "mine"
    assert "is a folder" in refused("inspect", "resnet8", "--html", here)
    assert "--data is about a model" in refused("inspect", results / "tight", "--data", "digits")
    assert "did you mean 'resnet8'" in refused("inspect", "resnet9")
    assert "report.json" in refused("inspect", here)


def test_two_results_side_by_side(results, here):
    tight, loose = results / "tight", results / "loose"
    content = json.loads(done("diff", tight, loose, "--html", "diff.html", "--json").stdout)
    for name, folder in (("before", tight), ("after", loose)):
        report = artifacts.read_manifest(folder).rewrite
        assert report is not None
        assert {each["name"]: each[name] for each in content["quantities"]} == {
            key: value for key, value in report.rewritten if value is not None
        }
        assert {group["id"]: group[name] for group in content["groups"]} == {
            group.id: group.after for group in report.groups
        }
    data = data_of(here / "diff.html")
    assert (data["before"], data["after"]) == (str(tight), str(loose))
    assert content["quantization"] == {}
    shown = done("diff", tight, loose).stdout
    changed = [group for group in content["groups"] if group["before"] != group["after"]]
    for group in changed:
        assert re.search(rf"{re.escape(group['id'])} .* {group['before']} .* {group['after']} ", shown)
    assert f"{len(content['groups']) - len(changed)} groups are alike" in shown


def test_a_model_and_its_rewrite_side_by_side(results):
    content = json.loads(done("diff", "resnet8", results / "tight", "--json").stdout)
    report = artifacts.read_manifest(results / "tight").rewrite
    assert report is not None
    for each in content["quantities"]:
        assert (each["before"], each["after"]) == (
            getattr(report.original, each["name"]),
            getattr(report.rewritten, each["name"]),
        )
    shown = done("diff", "resnet8", results / "tight").stdout
    assert "both quantized" in shown
    assert "resnet8 at its own widths" in " ".join(shown.split())
    same = json.loads(done("diff", results / "tight", results / "tight", "--json").stdout)
    assert {group["change"] for group in same["groups"]} <= {"same", "pinned"}


def test_results_that_differ_in_all_but_their_widths(here):
    gm = nce_fx.trace(MODELS["resnet8"]().eval(), (torch.randn(1, 3, 16, 16),))
    for name, shortcuts, metric, value in (
        ("first", "int8", "accuracy", 0.875),
        ("second", "quantized", "own:f1", 3.25),
    ):
        row = ResultRow(
            network="NCE 2-bit", accuracy=value if metric == "accuracy" else None, score=value, epochs=1, seconds=1.0
        )
        comparison = Comparison(
            data="digits", epochs=1, seed=0, recipe={}, rows=(row,), metric=metric, is_share=metric == "accuracy"
        )
        network = nce_fx.quantize(gm, nce_fx.QuantSpec(shortcuts=shortcuts))
        of = ModelReference(reference="resnet8", args={})
        artifacts.save(network, here / name, model=of, float_model=gm, comparison=comparison)
        run = here / name / artifacts.CHECKPOINTS / "nce-2-bit"
        run.mkdir(parents=True)
        (run / "log.csv").write_text("epoch,loss\n1,2.5\n")
    nce_fx.save(gm, here / "plain", model=of, float_model=gm)
    shown = done("diff", "first", "second", "--html", "diff.html").stdout
    assert "no width differs" in shown
    assert "both quantized" in shown
    text, data = (here / "diff.html").read_text(), data_of(here / "diff.html")
    assert data["facts"] == ["shortcuts: int8 in first, quantized in second"]
    for said in ("87.50 %", "3.25", "accuracy or f1", "first: NCE 2-bit"):
        assert said in text
    assert [run["name"] for run in data["runs"]] == ["first: NCE 2-bit", "second: NCE 2-bit"]
    assert "the line is the budget" not in text
    for sides in (("plain", "first"), ("first", "plain")):
        shown = done("diff", *sides).stdout
        assert "plain is not quantized" in shown
        assert "both quantized" not in shown


def test_a_model_of_the_users_own_is_named_once(results):
    model = f"{results / 'nets.py'}:build"
    said = [done("diff", *sides, "--json").stdout for sides in ((model, results / "own"), (results / "own", model))]
    assert all(json.loads(each)["groups"] for each in said)
    again = done("diff", model, results / "own", "--model", model, "--json").stdout
    assert again == said[0]


def test_what_diff_refuses(results):
    tight = results / "tight"
    assert "neither side is a result folder" in refused("diff", "resnet8", "resnet8")
    assert "made from resnet8" in refused("diff", "resnet20", tight)
    assert "made from resnet8" in refused("diff", f"{results / 'nets.py'}:build", tight)
    other = refused("diff", tight, results / "own", "--model", f"{results / 'nets.py'}:build")
    assert "nce-fx: " in other
