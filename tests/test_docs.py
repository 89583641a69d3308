"""What the README and the docs show runs: every block of Python and every command, in the order in which it is shown.

Data that is not at hand is made here, an epoch stands for many, and small networks stand for large ones.
"""

import argparse
import importlib
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import save_file
from torch.distributed.run import get_args_parser
from typer.testing import CliRunner

from nce_fx.cli import app
from tests import command_line_page
from tests.test_data import cifar_folder, vision

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = {
    str(path.relative_to(ROOT)): BLOCK.findall(path.read_text())
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
DOCTESTS = "docs/architecture.md"
"""Its blocks are sessions, run by tests/test_floors.py."""
PROGRAMS = ("docs/tutorial.md",)
"""Pages whose blocks are files of their own: none takes a name from another."""
FEW_NETWORKS = {"networks": 2, "rounds": 1, "repeats": 2, "candidates": 1, "finals": 2}
SMALLER = {
    r"--(retrain|epochs) \d+": r"--\1 1",
    r"\bepochs=\d+": "epochs=1",
    r"SearchRecipe\(epochs=1\)": "SearchRecipe(epochs=1, warmup_epochs=0)",
    r"AdaptRecipe\(epochs=1\)": "AdaptRecipe(epochs=3, warmup_epochs=1)",
    r"--method adapt --epochs 1": "--method adapt --epochs 3",
    r"--(no-expand|float) --out": r"--\1 --epochs 1 --out",
    r"SlimmableRecipe\(epochs=1\)": "SlimmableRecipe(epochs=1, drawn=2, evaluations=5, population=4)",
    r'"evaluations": 1000': '"drawn": 2, "evaluations": 5, "population": 4',
    r"SurfaceRecipe\(epochs=1, float_epochs=8": "SurfaceRecipe(epochs=1, float_epochs=1, **FEW_NETWORKS",
    r"--method surface --epochs 1": f"--method surface --epochs 1 --recipe '{json.dumps(FEW_NETWORKS)}'",
    r"(--workers |\bworkers=)4": r"\g<1>1",
    r"resnet(20|50)\b|resnet18(?= --model-args)": "resnet8",
    r"1x3x224x224": "1x3x32x32",
    r"imagefolder:images\b(@\d+)?": "imagefolder:images@32",
    r"torchvision\.models:resnet18": "torchvision.models:squeezenet1_1",
    r" --open\b": "",
}
BEFORE = {
    "docs/deploy.md": "nce-fx rewrite resnet8 --data digits --sensitivity sqnr --out nce-fx-out",
    "docs/page.md": "nce-fx rewrite resnet8 --data digits --sensitivity sqnr --out result",
}
"""A command that a page takes for done."""
SETTING = """
import torch, nce_fx
from nce_fx.models import MODELS
from tests.search_runs import quarters
from tests.test_docs import FEW_NETWORKS
data = quarters()
batches = data.batches(2, 48)
gm = nce_fx.trace(MODELS["resnet8"](width=4, num_classes=4, in_channels=1).eval(), (torch.randn(1, 1, 6, 6),))
wide = nce_fx.resize(gm, {})
"""
"""The names that the parts of the README's program have, for the pages that show a part."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what the commands name: images, weights, modules of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    vision()
    cifar_folder(tmp_path / "DIR", monkeypatch, (16, 16, 16))
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    save_file(squeezenet1_1().state_dict(), tmp_path / "r18.safetensors")
    for page in ("docs/tutorial.md", "docs/passes.md"):
        for _, text in PAGES[page]:
            _write_module(text)
            if "Image.fromarray" in text:
                exec(compile(text, page, "exec"), {})
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if blocks and page != DOCTESTS])
def test_what_a_page_shows_runs(page, folder, monkeypatch):
    names: dict[str, Any] = {}
    if page in ("docs/search.md", "docs/training.md"):
        exec(SETTING, names)
    if page in BEFORE:
        _run(BEFORE[page])
    if page == "README.md":
        torch.save(importlib.import_module("nets").build().state_dict(), "net.pt")
    for language, text in PAGES[page]:
        for large, small in SMALLER.items():
            text = re.sub(large, small, text)
        if language == "python":
            if page == "README.md":  # it saves a result of its own
                (folder / "program").mkdir(exist_ok=True)
                monkeypatch.chdir(folder / "program")
            _write_module(text)
            exec(compile(text, page, "exec"), {} if page in PROGRAMS else names)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                _run(line)


@pytest.mark.long
def test_the_example_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in json.loads((ROOT / "examples" / "digits.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            text = re.sub(r"\bepochs=\d+", "epochs=1", "".join(cell["source"]))
            exec(compile(text, cell["id"], "exec"), names)
    assert "_weight_quant" in capsys.readouterr().out
    assert (tmp_path / "digits.onnx").exists()


def _write_module(text: str) -> None:
    """Write a block that says which file it is: ``# nets.py`` in its first line."""
    if named := re.match(r"# (\w+\.py)\n", text):
        Path(named[1]).write_text(text)


def _run(line: str) -> None:
    """Run a command that a page shows; of others, look whether there is what they name."""
    words = shlex.split(line, comments=True)
    match words:
        case ["nce-fx", *arguments]:
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, (line, done.stderr, done.exception)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), line
        case ["accelerate", "launch", *rest]:
            _parses(launch_command_parser().parse_args(rest), line)
        case ["torchrun", *rest]:
            _parses(get_args_parser().parse_args(rest), line)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        case ["npm", *_] | ["pip", "install", *_] | ["pytest"] | ["git", "clone", *_] | ["cd", _] | []:
            pass
        case _:
            raise AssertionError(f"{line!r}: a command that no test runs")


def _parses(asked: argparse.Namespace, line: str) -> None:
    """Let our commands parse what a launcher of many processes would give them."""
    assert (asked.module, asked.training_script) == (True, "nce_fx"), line
    name, *arguments = asked.training_script_args
    commands = vars(typer.main.get_command(app))["commands"]
    assert name in commands, line
    # Parses and runs nothing: an option that is not there, or takes another kind of value, is an error.
    commands[name].make_context(name, arguments).close()


def test_a_command_for_many_processes_with_an_option_that_is_not_there_is_found():
    _run("torchrun --nproc-per-node 8 -m nce_fx retrain result --epochs 90")
    with pytest.raises(Exception, match="No such option: --epoch"):
        _run("torchrun --nproc-per-node 8 -m nce_fx retrain result --epoch=90")
    with pytest.raises(Exception, match="should be a valid integer"):
        _run("accelerate launch --num_processes 8 -m nce_fx retrain result --epochs many")


@pytest.mark.parametrize("page", PAGES)
def test_every_measurement_that_a_page_names_is_there(page):
    text = (ROOT / page).read_text()
    for module in set(re.findall(r"python -m ((?:benchmarks|tests)[.\w]*)", text)):
        assert importlib.util.find_spec(module), f"{page} names {module}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_to_is_there(page):
    text = BLOCK.sub("", (ROOT / page).read_text())
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_reference_of_the_command_line_is_of_the_commands():
    """To make it anew: ``python -m tests.command_line_page``."""
    assert command_line_page.PAGE.read_text() == command_line_page.page()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
