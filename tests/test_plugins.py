"""What an installed package brings, can be named: the example package, installed into a folder of its own."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from nce_fx.errors import InputError
from nce_fx.quantities import OWN
from nce_fx.registry import Registry

ROOT = Path(__file__).parent.parent
BROUGHT = {
    "models": "two_layers",
    "data": "stripes",
    "weight_quantizers": "ternary",
    "metrics": "numel",
    "quantities": "energy",
    "passes": "count-nodes",
}


PROGRAM = """
import json, sys
from typer.testing import CliRunner
from nce_fx.cli import app
said = []
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (arguments, done.output, done.exception)
    said.append(done.stdout)
print(json.dumps(said))
"""
"""Several commands, one after the other: to start a process and import PyTorch takes longer than any of them."""


@pytest.fixture(scope="module")
def nce_fx_with_example(tmp_path_factory):
    """Return a function that calls commands where the example package is installed, and returns what each said."""
    folder, source = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("source")
    for path in (ROOT / "examples" / "plugin").rglob("*"):
        if path.is_file() and path.suffix in (".py", ".toml"):
            target = source / path.relative_to(ROOT / "examples" / "plugin")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder))
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)

    def call(*commands: list[str]) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(commands)],
            env=environment, cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said: list[str] = json.loads(done.stdout)
        return said

    return call


@pytest.mark.long
def test_everything_that_is_brought_is_listed_and_can_be_used(nce_fx_with_example, tmp_path):
    options = ["--weight-quantizer", "ternary", "--sensitivity", "numel", "--max-energy", "0.8x", "--data", "stripes"]
    again = ["--passes", "resize,count-nodes,quantize", "--weight-quantizer", "ternary", "--out", str(tmp_path / "b")]
    listed, quantities, helped, rewritten, applied = nce_fx_with_example(
        ["list", "--json"],
        ["list", "quantities"],
        ["rewrite", "--help"],
        ["rewrite", "two_layers", *options, "--out", str(tmp_path / "a"), "--json"],
        ["apply", "two_layers", str(tmp_path / "a" / "plan.json"), "--data", "stripes", *again],
    )
    found = json.loads(listed)
    for kind, name in BROUGHT.items():
        assert found[kind][name], f"{name} of {kind} says nothing of itself"
    assert all(says for rows in found.values() for says in rows.values())
    assert "energy" in quantities
    assert "--max-energy" in helped
    result = json.loads(rewritten)
    before, after = result["rewrite"]["original"], result["rewrite"]["rewritten"]
    assert after["energy"] <= 0.8 * before["energy"]
    assert result["rewrite"]["budget"]["energy"] == 0.8
    assert result["rewrite"]["metric"] == "numel"
    assert "nodes" in applied


def test_what_cannot_be_taken_is_refused_in_one_line(monkeypatch):
    def bringing(name, value):
        points = [EntryPoint(name, value, "nce_fx.quantities")]
        monkeypatch.setattr("nce_fx.registry.entry_points", lambda group: points)
        return Registry("quantities", {row.name: row for row in OWN}, lambda value: False)

    with pytest.raises(InputError, match="two quantities are called macs"):
        list(bringing("macs", "json:loads"))
    with pytest.raises(InputError, match="more of quantities, by the entry point no_such_package:x: No module named"):
        list(bringing("more", "no_such_package:x"))
    with pytest.raises(InputError, match="is none of quantities"):
        list(bringing("more", "json:loads"))
    # What is nce-fx's own is there all the same.
    assert bringing("more", "no_such_package:x")["macs"] is OWN[0]
