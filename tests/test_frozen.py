"""Frozen values stay as they were made, mappings in them included; and their fields are what they say."""

from __future__ import annotations

import ast
import copy
import json
import pickle
from dataclasses import asdict, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import nce_fx
from nce_fx.cli.parsing import recipe_fields
from nce_fx.errors import InputError, QuantizeError
from nce_fx.frozen import FrozenDict
from nce_fx.models import MODELS
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.plan import WidthPlan
from nce_fx.search import SearchRecipe
from nce_fx.training import Recipe

# What one analysis, trace, search, export or page works on: nobody is handed it as a value.
AT_WORK = {
    *("Structure", "Part", "ChoiceSites", "Marked", "Piece", "Format", "Stages", "Run", "Grown", "Start", "Choices"),
    *("Ran", "Modes", "Inputs", "Lowered", "View", "NodeView", "Widths", "Line"),
}


@cache
def frozen_classes() -> list[tuple[str, ast.ClassDef]]:
    found = []
    for file in Path(nce_fx.__file__).parent.rglob("*.py"):
        text = file.read_text()
        for node in ast.walk(ast.parse(text)) if "frozen=True" in text or "validated(" in text else ():
            if isinstance(node, ast.ClassDef):
                decorators = " ".join(map(ast.unparse, node.decorator_list))
                if "frozen=True" in decorators or "validated(" in decorators:
                    found.append((file.name, node))
    return found


FREEZING = {"Frozen", *(n.name for _, n in frozen_classes() if "Frozen" in map(ast.unparse, n.bases))}
"""The base, and the classes that are bases in turn."""


def mappings_of(node: ast.ClassDef) -> list[str]:
    fields = [(ast.unparse(a.target), ast.unparse(a.annotation)) for a in node.body if isinstance(a, ast.AnnAssign)]
    return [n for n, kind in fields if not n.startswith("_") and ("Mapping" in kind or kind.startswith("dict"))]


@pytest.mark.parametrize(
    ("file", "node"), [pytest.param(f, n, id=f"{f}:{n.name}") for f, n in frozen_classes() if mappings_of(n)]
)
def test_every_frozen_dataclass_freezes_its_mappings(file, node):
    if node.name in AT_WORK or node.name.startswith("_"):
        return
    freezes = FREEZING & set(map(ast.unparse, node.bases)) or "freeze(self)" in ast.unparse(node)
    assert freezes, f"{file}: {node.name} holds {mappings_of(node)}"


@pytest.fixture(scope="module")
def result() -> Any:
    torch.manual_seed(0)
    batches = [(torch.randn(4, 1, 8, 8), torch.arange(4))]
    spec = nce_fx.QuantSpec(overrides={"layer1.*": {"weight_bits": 4}})
    model = MODELS["resnet8"](in_channels=1).eval()
    return nce_fx.rewrite(model, (torch.randn(1, 1, 8, 8),), batches=batches, spec=spec)


def dicts_in(value: Any, place: str, seen: set[int]) -> list[tuple[str, Any]]:
    if id(value) in seen or isinstance(value, torch.nn.Module | torch.Tensor):
        return []
    seen.add(id(value))
    found = [(place, value)] if isinstance(value, dict) else []
    if is_dataclass(value):
        public = [name for name in value.__dataclass_fields__ if not name.startswith("_")]
        parts = [(f"{place}.{name}", getattr(value, name)) for name in public]
    elif isinstance(value, dict):
        parts = [(f"{place}[{key!r}]", each) for key, each in value.items()]
    else:
        parts = [(f"{place}[{i}]", each) for i, each in enumerate(value)] if isinstance(value, tuple | list) else []
    return found + [pair for name, part in parts for pair in dicts_in(part, name, seen)]


def test_nothing_that_a_plan_or_a_report_holds_can_be_changed(result):
    gm = result.original
    values = {
        "plan": result.plan,
        "channels": nce_fx.analyze_channels(gm),
        "cost": nce_fx.analyze_cost(gm),
        "sensitivity": nce_fx.analyze_sensitivity(gm),
        "spec": result.graph_module.meta["spec"],
        "resize": ResizeChannels({"a": 1}),
        "hardware": HardwareTable({("conv", 2): ((1.0, 1.0, 1.0, 1.0, 1.0),)}),
    }
    found = [pair for name, value in values.items() for pair in dicts_in(value, name, set())]
    assert len(found) > 5
    for place, mapping in found:
        key = next(iter(mapping), "new")
        for change in (
            lambda m, k: m.__setitem__(k, 0), lambda m, k: m.pop(k), lambda m, k: m.update({k: 0}),
            lambda m, k: m.clear(), lambda m, k: m.setdefault("another", 0), lambda m, k: m.__delitem__(k),
            lambda m, k: m.popitem(), lambda m, k: m.__ior__({k: 0}),
        ):  # fmt: skip
            before = dict(mapping)
            with pytest.raises(TypeError, match="cannot be changed"):
                change(mapping, key)
            assert mapping == before, place


def test_what_is_given_may_change_later(result):
    widths, overrides = {"a": 4}, {"fc": {"weight_bits": 4}}
    plan, spec = WidthPlan(widths, {"a": 4}, ""), nce_fx.QuantSpec(overrides=overrides)
    widths["a"], overrides["fc"]["weight_bits"] = 8, 2
    assert plan.widths == {"a": 4}
    assert spec.overrides == {"fc": {"weight_bits": 4}}


def test_a_frozen_mapping_is_a_dict_in_all_else():
    spec = nce_fx.QuantSpec(overrides={"b": {"weight_bits": 4}, "a": "float"})
    assert list(spec.overrides) == ["b", "a"]
    assert copy.deepcopy(spec) == pickle.loads(pickle.dumps(spec)) == replace(spec) == spec
    assert hash(copy.deepcopy(spec)) == hash(spec)
    assert json.loads(json.dumps(asdict(spec)))["overrides"] == {"b": {"weight_bits": 4}, "a": "float"}
    assert {**spec.overrides, "c": 2} == {"b": {"weight_bits": 4}, "a": "float", "c": 2}
    assert isinstance(copy.deepcopy(spec).overrides, FrozenDict)


WRONG: list[tuple[Any, type[Exception], dict[str, Any]]] = [
    *((Recipe, InputError, {name: value}) for name, value in (
        ("learning_rate", "0.1"), ("learning_rate", None), ("learning_rate", [1]), ("learning_rate", True),
        ("bits", 4), ("bits", ["2"]), ("bits", [2.5]), ("bits", None), ("bits", "84"), ("epochs", 1.5),
        ("epochs", True), ("nesterov", 1), ("nesterov", "no"), ("precision", ["no"]), ("clip_gradient", "1"),
        ("batch_size", 64.0), ("seed", "a"), ("seed", None), ("compile", "yes"), ("momentum", float("nan")),
        ("weight_decay", float("inf")),
    )),
    *((SearchRecipe, InputError, {name: value}) for name, value in (
        ("ratios", "a"), ("ratios", [1, "a"]), ("ratios", 1.0), ("epochs", "3"), ("mixing", []), ("expand", "a"),
        ("width_learning_rate", "a"), ("warmup_epochs", 1.5), ("seed", "b"), ("quantized", 2),
    )),
    *((nce_fx.QuantSpec, QuantizeError, {name: value}) for name, value in (
        ("weight", ["sawb"]), ("weight_bits", "2"), ("activation_bits", [2]), ("first_last_bits", True),
        ("shortcuts", 1), ("overrides", ["fc"]), ("overrides", {"fc": [1]}), ("exact", "no"), ("overrides", {1: 2}),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("made", "error", "values"), WRONG)
def test_a_field_that_is_not_what_it_says_is_one_line_that_names_it(made, error, values):
    with pytest.raises(error) as raised:
        made(**values)
    assert next(iter(values)) in str(raised.value) or "override" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_list_is_a_tuple_and_a_whole_number_a_real_one():
    recipe = Recipe.from_dict({"bits": [8, 4], "learning_rate": 1})
    assert recipe.bits == (8, 4)
    assert isinstance(recipe.learning_rate, float)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_recipe_may_not_contradict_an_option():
    assert recipe_fields('{"learning_rate": 0.1, "epochs": 3}', epochs=3) == {"learning_rate": 0.1, "epochs": 3}
    for text in ('{"epochs": 2}', '{"epochs": "3"}', '{"epochs": 3.0}', '{"epochs": null}'):
        with pytest.raises(InputError, match=r"--recipe says epochs is .*, its own option says 3"):
            recipe_fields(text, epochs=3)
    with pytest.raises(InputError, match="epochs is True, its own option says 1"):
        recipe_fields('{"epochs": true}', epochs=1)
