"""How the command line behaves: on narrow terminals, piped, quiet, verbose, from a file, and when a name is wrong."""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
import typer.main
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

import nce_fx
from nce_fx.cli import app, python_names
from nce_fx.cli.completing import known_names
from nce_fx.cli.exporting import remedy
from nce_fx.cli.python_names import another_name, python_name
from nce_fx.cli.terminal import Terminal
from nce_fx.comparison import other_split
from nce_fx.errors import NceFxError
from nce_fx.passes.transform.quantize import QuantSpec
from nce_fx.plain_table import broken, table_of
from nce_fx.quantities import QUANTITIES
from nce_fx.report.records import Comparison, ResultRow
from nce_fx.training import Recipe

COMMANDS = ("rewrite", "search", "analyze", "inspect", "diff", "apply", "retrain", "export", "models", "passes", "list")
PLAN = ("rewrite", "resnet8", "--dry-run")
ESCAPE = re.compile(r"\x1b\[")


def call(*arguments, **environment):
    return CliRunner().invoke(app, list(arguments), env=environment)


def process(*arguments, **environment):
    """A process of its own, whose output is a pipe."""
    return subprocess.run(
        [sys.executable, "-m", "nce_fx", *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_quiet_says_results_alone():
    loud, quiet = call(*PLAN), call(*PLAN, "--quiet")
    assert loud.exit_code == quiet.exit_code == 0
    assert "random weights" in loud.stderr
    assert quiet.stderr == ""
    assert quiet.stdout == loud.stdout
    assert call("rewrite", "resnet9", "-q").stderr.startswith("nce-fx: no model")
    assert call(*PLAN, "--quiet", "--json").stdout == call(*PLAN, "--json").stdout


def test_the_graph_is_a_line_unless_all_is_asked_for():
    short, long = (call(*PLAN, *more, COLUMNS="160").stdout for more in ((), ("--verbose",)))
    assert re.search(r"The rewritten graph: \d+ nodes, \d+ of them quantizers", short)
    assert "layer1_0_conv1_weight_quant" not in short
    assert "layer1_0_conv1_weight_quant" in long
    assert call(*PLAN, "-q", "-v").exit_code == 2


def test_a_warning_is_a_line_and_none_under_quiet(here, monkeypatch):
    """What Python says of a warning, the file and its line of code, is of no use to who did not write them."""
    (here / "nets.py").write_text(
        "import warnings\nfrom nce_fx.models import MODELS\ndef make():\n    warnings.warn('two\\nlines of [red]')\n"
        "    return MODELS['resnet8']()\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # pytest keeps warnings for itself; Python prints them so.
        monkeypatch.setattr(
            warnings, "showwarning", lambda *said: print(warnings.formatwarning(*said[:4]), file=sys.stderr)
        )
        for quiet, said in (((), ["nce-fx: two lines of [red]"]), (("--quiet",), [])):
            shown = call("analyze", "nets.py:make", "--input", "1x3x8x8", "--why", "fc", *quiet)
            assert shown.exit_code == 0
            assert [line for line in shown.stderr.splitlines() if "lines" in line or "warn" in line] == said


@pytest.mark.parametrize("columns", [40, 63, 80])
def test_nothing_is_cut_and_no_line_is_longer_than_the_terminal(columns):
    lines = call(*PLAN, COLUMNS=str(columns)).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    if columns < 64:
        text = "\n".join(lines)
        assert "layer3.0.downsample.0" in text
        assert "…" not in text


def _words(text):
    return re.sub(r"[\[\]]", " ", text).split()


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_plain_text_in_which_no_word_is_broken(columns, command):
    shown = call(*filter(None, [command]), "--help", COLUMNS=str(columns), NO_COLOR="1").stdout
    assert shown.isascii()
    assert not ESCAPE.search(shown)
    assert all(len(line) <= columns or len(line.split()) == 1 for line in shown.splitlines())
    group: Any = typer.main.get_command(app)
    asked = group.commands[command] if command else group
    parts = [(asked.help or "").partition("Examples:")[0], *(each.help or "" for each in asked.params)]
    parts += [name for each in asked.params if each.param_type_name == "option" for name in each.opts]
    parts += [each.metavar or "" for each in asked.params]
    said = " ".join(_words(shown))
    for part in parts:
        assert " ".join(_words(part)) in said


def _there(name):
    """What a Python name says, and its arguments: the function or class must have them."""
    path, _, arguments = name.partition("(")
    module, _, attribute = f"nce_fx.{path}".rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    takes = set(inspect.signature(found).parameters) | ({*QUANTITIES} if found is nce_fx.Budget else set())
    return set(re.findall(r"(\w+)=", arguments)) <= takes


def test_every_option_says_what_it_is_in_python():
    group: Any = typer.main.get_command(app)
    commands, seen = group.commands, set()
    for command in COMMANDS:
        shown = " ".join(call(command, "--help", COLUMNS="80").stdout.split())
        for each in commands[command].params:
            if each.param_type_name == "option":
                spellings = (*each.opts, *each.secondary_opts)
                option = next(spelling for spelling in spellings if spelling.startswith("--"))
                name = python_name(command, option)
                seen.add(option)
                assert not name or _there(name), f"{command} {option}: {name}"
                if other := another_name(command, spellings):
                    assert f"[in Python: {other}]" in shown
    assert seen | {"--help"} == {*python_names._EVERYWHERE, *python_names.OWN}
    assert another_name("rewrite", ["--sensitivity"]) == "rewrite(metric=)"
    assert another_name("rewrite", ["--seed"]) == another_name("search", ["--float", "--quantized"]) == ""


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("command", ["list", "models", "passes"])
def test_lists_are_as_wide_as_the_terminal_and_break_no_word(columns, command):
    piped = call(command, COLUMNS="").stdout
    shown = call(command, COLUMNS=str(columns)).stdout
    assert all(len(line) <= columns or len(line.split()) == 1 for line in shown.splitlines())
    assert shown.split() == piped.split()
    if command == "list":
        assert len(piped.splitlines()) == sum(1 + len(rows) for rows in known_names().values())


@pytest.mark.parametrize("columns", [40, 80])
def test_a_name_that_is_wider_than_the_terminal_stays_whole(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal, name = Terminal.of(False), "blocks." + "a" * 90
    terminal.show(f"it is pinned by {name} alone")
    terminal.note(f"written to {name} now")
    terminal.show(table_of("Layers", ("layer", "why"), [(name, "one two")]))
    captured = capsys.readouterr()
    assert captured.out.split().count(name) == 2
    assert name in captured.err.split()


@pytest.mark.parametrize("width", [8, 14, 24])
def test_a_cell_breaks_a_name_at_its_dots_and_only_where_it_must(width):
    text = "layer1.0.conv1, layer12.0.downsample.0"
    lines = [line.plain for line in broken(Text(text), width, inside=True)]
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(len(line) <= width or line == "downsample." for line in lines)
    assert ("layer1.0.conv1," in lines) == (width > 14)


@pytest.mark.parametrize("columns", ["40", "120"])
def test_names_are_shown_as_they_are_and_no_terminal_obeys_them(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    terminal = Terminal.of(False)
    table = Table(title="[/t]", caption="[/c]")
    table.add_column("[/g]")
    table.add_column("[/h]")
    for name in ("[/red]", "[bold]conv", ":warning:", "a\x1b[2Jb", "a\u202eb"):
        table.add_row(name, name)
        terminal.show(name)
        terminal.note(name)
    terminal.show(table)
    with terminal.steps() as steps:
        steps("[/red]")
    captured = capsys.readouterr()
    for said in (captured.out, captured.err):
        for shown in ("[/red]", "[bold]conv", ":warning:", r"a\x1b[2Jb", r"a\u202eb"):
            assert shown in said
        assert "\x1b" not in said
    for shown in ("[/t]", "[/h]", "[/c]"):
        assert shown in captured.out


@pytest.mark.parametrize("begun", ["steps", "training"])
def test_a_step_that_fails_leaves_no_bar_behind(capsys, begun):
    terminal = Terminal.of(False)

    def fail():
        if begun == "training":
            with terminal.training("train"):
                raise NceFxError("no such layer")
        with terminal.steps() as step:
            step("trace")
            step("rebuild")
            raise NceFxError("no such layer")

    with pytest.raises(NceFxError):
        fail()
    said = capsys.readouterr().err
    assert "rebuild" not in said
    assert "train" not in said
    assert "?" not in said
    assert ("trace" in said) == (begun == "steps")
    assert len(said.splitlines()) == (begun == "steps")


def test_what_keeps_sums_in_float_has_a_remedy_until_it_is_taken():
    said = "rewrite with --sums int8 --shortcuts quantized"
    for reason in ('Add: it reads a float, which sums="int8" quantizes', "Conv: several quantizers read it"):
        assert remedy([reason, "Add: " + reason], QuantSpec()).startswith(said)
        assert remedy([reason], QuantSpec(sums="int8", shortcuts="quantized")) == ""
    assert remedy(["ReduceMean: computed as in PyTorch"], QuantSpec()) == ""


def test_one_of_a_kind_is_no_plural():
    row = ResultRow(network="NCE 2-bit", accuracy=0.5, epochs=1, seconds=0.0)
    once = Comparison(data="digits", epochs=1, seed=0, recipe={}, rows=(row,))
    assert once.trained == "1 epoch each"
    assert once.model_copy(update={"epochs": 1797}).trained == "1,797 epochs each"
    split = other_split(Recipe(epochs=4), 1)
    assert split is not None
    assert split[0] == "1 epoch in float"
    whole = other_split(replace(Recipe(epochs=4), float_epochs=1), 1)
    assert whole is not None
    assert whole[0] == "all 4 epochs at 1 bit"


def test_what_rises_though_nothing_limits_it_is_said_with_its_limit():
    """Peak activation bytes: no budget but what is asked for."""
    plan = ("rewrite", "resnet8", "--dry-run", "--json")
    for option, said in (((), True), (("--max-activation-bytes", "1.0x"), False)):
        result = call(*plan, *option, COLUMNS="200")
        cost = json.loads(result.stdout)["rewrite"]
        rises = cost["rewritten"]["activation_bytes"] > cost["original"]["activation_bytes"]
        assert rises is said
        assert ("--max-activation-bytes 1.0x" in result.stderr) is said


@pytest.mark.long
def test_plain_output_for_plain_terminals():
    plain = process(*PLAN, LC_ALL="C", TERM="dumb")
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.decode("ascii")
    assert b"####" in plain.stdout
    assert b"?" not in plain.stdout
    coloured = call(*PLAN, NO_COLOR="1")
    for said in (plain.stdout.decode(), plain.stderr.decode(), coloured.stdout, coloured.stderr):
        assert not ESCAPE.search(said)


@pytest.mark.long
def test_a_run_can_be_followed_as_json_lines(here):
    done = call("rewrite", "resnet8", "--data", "digits", "--retrain", "2", "--log", "run.jsonl", "--json")
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (here / "run.jsonl").read_text().splitlines()]
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    epochs = [(line["run"], line["epoch"]) for line in lines if line["event"] == "epoch"]
    runs = ("float resnet8", "uniform 2-bit", "uniform 2-bit, all 2 epochs at 2 bits", "NCE 2-bit")
    assert epochs == [(run, epoch) for run in runs for epoch in (1, 2)]
    assert [line["name"] for line in lines if line["event"] == "step"][:3] == [
        "read batches",
        "trace",
        "analyze channels",
    ]
    result = {key: value for key, value in lines[-1].items() if key not in ("time", "event")}
    content = json.loads(done.stdout)
    assert [line["text"] for line in lines if line["event"] == "note"] == content.pop("notes")
    assert result == content
    rows = {row["network"]: row["accuracy"] for row in content["comparison"]["rows"]}
    assert set(rows) == {"float", *runs[1:]}
    logs = [(here / "nce-fx-out" / "training" / name / "log.csv").read_text().splitlines()[1:] for name in (
        "uniform-2-bit", "uniform-2-bit-all-2-epochs-at-2-bits", "nce-2-bit")]  # fmt: skip
    assert [["32" in line.split(",")[3] for line in log] for log in logs] == [[True, False], [False] * 2, [True, False]]
    assert call("models", "--log", str(here)).exit_code == 2


def test_the_lines_end_with_why_a_run_stopped(here):
    assert call("analyze", "resnet9", "--log", "run.jsonl").exit_code == 1
    (line,) = map(json.loads, (here / "run.jsonl").read_text().splitlines())
    assert line["event"] == "stopped"
    assert line["why"].startswith("no model 'resnet9'")


def test_the_recipe_of_a_run_can_be_run(here):
    given = ["resnet8", "--max-macs", "0.8x", "--freeze", 'a"\\b', "--freeze", "fc", "--input", "1x3x16x16", "--exact"]
    printed = call("rewrite", *given, "--recipe", '{"learning_rate": 0.1}', "--dry-run", "--print-config")
    assert printed.exit_code == 0, printed.output
    fields = tomllib.loads(printed.stdout)
    assert fields["max_macs"] == "0.8x"
    assert fields["freeze"] == ['a"\\b', "fc"]
    assert fields["input"] == "1x3x16x16"
    (here / "recipe.toml").write_text(printed.stdout)
    again = call("rewrite", "--config", "recipe.toml", "--print-config")
    assert again.stdout == printed.stdout
    assert call("rewrite", "--config", "recipe.toml").stdout == call("rewrite", *given, "--dry-run").stdout
    other = call("rewrite", "--config", "recipe.toml", "--max-macs", "0.9x", "--print-config")
    assert tomllib.loads(other.stdout) == fields | {"max_macs": "0.9x"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_recipe_and_help(command):
    shown = call(command, "--help").stdout
    for option in ("--quiet", "--verbose", "--config", "--print-config"):
        assert option in shown
    examples = shown.partition("Examples:")[2]
    assert re.findall(rf"nce-fx {command}\b", examples), f"--help of {command} has no example"
    targets = {"models": [], "passes": [], "list": [], "apply": ["resnet8", "plan.json"], "diff": ["a", "b"]}
    printed = call(command, *targets.get(command, ["resnet8"]), "--print-config")
    assert printed.exit_code == 0, printed.output
    tomllib.loads(printed.stdout)


def test_tables_of_a_recipe_are_for_options_that_take_json(here):
    (here / "recipe.toml").write_text('model = "resnet8"\n[model-args]\nnum_classes = 3\n')
    printed = call("rewrite", "--config", "recipe.toml", "--print-config")
    assert tomllib.loads(printed.stdout)["model_args"] == '{"num_classes": 3}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('model = "resnet8"\nbits = "two"\n', "recipe.toml, line 2: bits"),
        ("\n\nmax_mcas = 1\n", "recipe.toml, line 3: rewrite has no option max_mcas; did you mean 'max_macs'?"),
        ('model = "resnet8"\nfreeze = "a"\n', "line 2: freeze"),
        ('model = "resnet8"\n[freeze]\na = 1\n', "line 2: freeze"),
        ("model = \n", "line 1"),
    ],
)
def test_a_mistake_in_a_recipe_is_said_with_its_line(here, text, said):
    (here / "recipe.toml").write_text(text)
    result = call("rewrite", "--config", "recipe.toml", COLUMNS="200")
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_a_recipe_may_say_what_every_command_takes(here):
    (here / "recipe.toml").write_text('model = "resnet8"\ndry_run = true\nquiet = true\nlog = "run.jsonl"\n')
    result = call("rewrite", "--config", "recipe.toml")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert (here / "run.jsonl").exists()


def test_a_recipe_that_is_not_there():
    assert call("rewrite", "--config", "none.toml").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["rewrit", "resnet8"], "rewrite"),
        (["rewrite", "resnet9"], "resnet8"),
        (["rewrite", "resnet8", "--weight-quantizer", "sabw"], "sawb"),
        (["rewrite", "resnet8", "--sensitivity", "fishr", "--data", "digits"], "fisher"),
        (["rewrite", "resnet8", "--data", "digit"], "digits"),
        (["rewrite", "resnet8", "--sed", "1"], "--seed"),
        (["rewrite", "resnet8", "--model-args", '{"widht": 2}'], "width"),
    ],
)
def test_wrong_names_are_told_the_right_one(arguments, meant):
    result = call(*arguments)
    assert result.exit_code in (1, 2)
    assert meant in result.stderr.split(arguments[-1], 1)[-1] or f"did you mean '{meant}'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["rewrite", "net.py:build"], "nets.py"),
        (["rewrite", "jsn:loads"], "json"),
        (["rewrite", "resnet8", "--weights", "met.pt"], "net.pt"),
        (["rewrite", "resnet8", "--data", "imagefoldr:x"], "imagefolder"),
        (["rewrite", "resnet8", "--data", "imagefolder:resutl"], "result"),
        (["rewrite", "resnet8", "--freeze", "layr1.*", "--dry-run"], "layer1.*"),
        (["rewrite", "resnet8", "--only", "layer1.0.cnv1", "--dry-run"], "layer1.0.conv1"),
        (["rewrite", "resnet8", "--override", "layr1.*.conv1=4", "--dry-run"], "layer1.*.conv1"),
        (["rewrite", "resnet8", "--end-bits", "pln"], "plan"),
        (["rewrite", "resnet8", "--recipe", "publishd"], "published"),
        (["rewrite", "resnet8", "--recipe", '{"lerning_rate": 1.0}'], "learning_rate"),
        (["rewrite", "resnet8", "--recipe", '{"optimizer": "adamm"}'], "adamw"),
        (["rewrite", "resnet8", "--print-after", "rezise"], "resize"),
        (["rewrite", "resnet8", "--hardware", "tabel.csv", "--max-custom", "1x"], "table.csv"),
        (["rewrite", "--config", "recip.toml"], "recipe.toml"),
        (["search", "resnet8", "--data", "digits", "--method", "gradeint"], "gradient"),
        (["apply", "resnet8", "plann.json"], "plan.json"),
        (["list", "weight_quantizer"], "weight_quantizers"),
        (["inspect", "resutl"], "result"),
        (["diff", "resnet8", "resutl"], "result"),
        (["retrain", "resutl"], "result"),
        (["export", "resutl", "--onnx", "m.onnx"], "result"),
    ],
)
def test_every_kind_of_name_is_told_the_right_one(here, arguments, meant):
    (here / "result").mkdir()
    for name in ("nets.py", "net.pt", "table.csv", "recipe.toml", "plan.json"):
        (here / name).touch()
    result = call(*arguments, COLUMNS="300")
    assert result.exit_code in (1, 2)
    assert f"did you mean '{meant}'?" in result.stderr
    assert not (here / "nce-fx-out").exists()


@pytest.mark.parametrize(
    ("begun", "found"),
    [
        ("re", {"rewrite", "retrain"}),
        ("rewrite resnet5", {"resnet56", "resnet50"}),
        ("rewrite resnet8 --max-m", {"--max-macs"}),
        ("rewrite resnet8 --weight-quantizer saw", {"sawb", "sawb-channel"}),
        ("rewrite resnet8 --shortcuts ", {"int8", "quantized", "float"}),
        ("rewrite nets.py:bu", set()),
        ("analyze resnet8 --sensitivity fi", {"fisher"}),
        ("analyze resnet8 --data image", {"imagefolder:"}),
        ("apply resnet8 plan.json --print-after quan", {"quantize"}),
        ("retrain result --metric mean_i", {"mean_iou"}),
        ("search resnet8 --method su", {"surface"}),
        ("list weight", {"weight_quantizers"}),
    ],
)
def test_the_shell_completes_commands_options_and_names(begun, found):
    words = f"nce-fx {begun}"
    asked = {"_NCE_FX_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": f"{words.count(' ')}"}
    assert set(CliRunner().invoke(app, [], prog_name="nce-fx", env=asked).stdout.split()) == found
