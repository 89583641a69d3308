"""What others rely on: the public names, the links at the root, the commands that the README shows, a quick help."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nce_fx

ROOT = Path(__file__).parent.parent
NAMES = [
    "Budget",
    "ChannelGraph",
    "ChannelGroup",
    "CostReport",
    "QuantSpec",
    "RewriteResult",
    "SensitivityReport",
    "WidthPlan",
    "__version__",
    "analyze_channels",
    "analyze_cost",
    "analyze_sensitivity",
    "channel_rule",
    "export_onnx",
    "integer_weights",
    "load",
    "plan_widths",
    "quantize",
    "resize",
    "rewrite",
    "save",
    "to_networkx",
    "trace",
]


def test_public_names_are_these_and_no_others():
    assert sorted(nce_fx.__all__) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(nce_fx, name)
    assert name == "__version__" or value.__doc__
    if isinstance(value, type):
        assert "``" in str(value.__doc__).partition("\n\n")[0], "its first sentence gives an example value"


@pytest.mark.parametrize("place", ["ids/rule_interface.py", "ops/rules/*.py", "export/integer/*.py"])
def test_what_a_rule_and_an_integer_file_are_written_with_gives_an_example(place):
    """Every public function, class and method: an expression, a shape or a value stands in its docstring."""
    files = sorted((ROOT / "nce_fx").glob(place))
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            owned = [node, *node.body] if isinstance(node, ast.Module | ast.ClassDef) else []
            for each in (each for each in owned if isinstance(each, ast.FunctionDef | ast.ClassDef)):
                shown = each.name.startswith("_") or "``" in (ast.get_docstring(each) or "")
                assert shown, f"{path.name}: {each.name} has no example in its docstring"


def test_rewrite_stays_the_function_when_its_module_is_imported(monkeypatch):
    module = importlib.import_module("nce_fx.rewrite")
    # As Python does when it imports a module of a package, once.
    monkeypatch.setattr(nce_fx, "rewrite", module)
    assert nce_fx.rewrite is module.rewrite
    assert inspect.isfunction(nce_fx.rewrite)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'widen'"):
        _ = nce_fx.widen


@pytest.mark.parametrize("link", ["passes", "models"])
def test_links_at_the_root_resolve(link):
    path = ROOT / link
    if not path.is_symlink():
        pytest.skip("downloaded without links; nothing in the package depends on them")
    assert path.resolve() == (ROOT / "nce_fx" / link).resolve()
    assert any(path.iterdir())


def test_help_does_not_import_torch():
    script = "import sys; from nce_fx.cli import app; import nce_fx; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("args", [["--help"], ["rewrite", "--help"], ["--version"], ["rewrite"], ["no-such-command"]])
def test_help_and_usage_answer_without_torch(args):
    script = (
        "import sys\nfrom nce_fx.cli import app\n"
        f"try: app({args!r})\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0


def commands_of(text):
    blocks = re.findall(r"```(?:sh|bash|console)?\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return sorted({line.removeprefix("$ ").strip() for line in lines if line.removeprefix("$ ").startswith("nce-fx ")})


README = (ROOT / "README.md").read_text()


def test_readme_starts_with_the_two_commands():
    shown = README.index("make demo"), README.index("make test")
    assert max(shown) < 2000
    for command in (
        'pip install -c constraints.txt -e ".[demo,test]"',
        "nce-fx rewrite resnet18 --model-args '{\"width\": 4}' --data digits --retrain 30 --end-bits plan --no-trial",
    ):
        assert command in README


REFERENCE = (ROOT / "docs" / "command_line.md").read_text()
"""Made from the help of the commands, examples and all."""


@pytest.mark.parametrize("command", sorted({*commands_of(README), *commands_of(REFERENCE.replace("```text", "```"))}))
def test_commands_that_are_shown_have_options_that_exist(command):
    import shlex

    import typer.main

    from nce_fx.cli import app

    words = shlex.split(command, comments=True)[1:]
    known: Any = typer.main.get_command(app)
    if words and not words[0].startswith("-"):
        assert words[0] in known.commands, f"{command!r} is shown"
        known = known.commands[words[0]]
    options = {name for parameter in known.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in options, f"{command!r} is shown"
