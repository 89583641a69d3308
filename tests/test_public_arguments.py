"""What a public function says to an argument of another kind than its annotation names."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch
from torch import nn

import nce_fx
from nce_fx.errors import InputError
from nce_fx.export import to_integer
from nce_fx.passes.transform.quantize import calibrate, describe
from nce_fx.search import search
from nce_fx.training import Recipe, evaluate, train

# As from a program that nobody checked the types of.
api: Any = nce_fx
fit: Any = train
X = (torch.zeros(1, 3),)
TRACE_IT = "trace it first: gm = nce_fx.trace(model, example_inputs)"


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


@functools.cache
def traced() -> torch.fx.GraphModule:
    return nce_fx.trace(net(), X)


REFUSED = {
    "a class": (lambda: api.trace(nn.Linear, X), "trace: model is the class Linear: give one of it: Linear(...)"),
    "a name": (lambda: api.rewrite("resnet18", X), "rewrite: model is 'resnet18': give a torch.nn.Module"),
    "weights": (lambda: api.trace(net().state_dict(), X), "trace: model is of type OrderedDict: give a torch.nn"),
    "a program": (lambda: api.trace(torch.export.export(net(), X), X), "give its module: program.module()"),
    "TorchScript": (lambda: api.rewrite(torch.jit.trace(net(), X), X), "TorchScript has no Python left to trace"),
    "a lazy one": (lambda: api.rewrite(nn.LazyLinear(2), X), "rewrite: weight of model has no shape yet: run it once"),
    "not traced": (lambda: api.quantize(net()), f"quantize: gm is of type Sequential: {TRACE_IT}"),
    "fx's own": (lambda: api.resize(torch.fx.symbolic_trace(net()), {}), f"no node of gm has a shape: {TRACE_IT}"),
    "half a channel": (lambda: api.resize(traced(), {"0": 4.5}), "plan is of type dict: give WidthPlan or whole"),
    "a list": (lambda: api.resize(traced(), [("0", 4)]), "resize: plan is of type list: give WidthPlan or whole"),
    "a spec": (lambda: api.quantize(traced(), {"weight_bits": 2}), "spec is of type dict: give a QuantSpec, such"),
    "a budget": (lambda: api.rewrite(net(), X, budget="0.5x"), "budget is '0.5x': give a Budget, such as"),
    "letters": (lambda: api.rewrite(net(), X, freeze="stem"), "freeze is 'stem': give a list of strings"),
    "a count": (lambda: api.rewrite(net(), X, round_to="4"), "round_to is '4': give a whole number"),
    "a path": (lambda: api.export_onnx(traced(), 5), "export_onnx: path is 5: give a string or a path"),
    "no data": (lambda: fit(net(), None, Recipe(epochs=1)), "train: data is None: give Data"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_kind_is_refused_in_a_line(case):
    call, said = REFUSED[case]
    with pytest.raises(InputError) as error:
        call()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


PUBLIC = [getattr(nce_fx, name) for name in nce_fx.__all__ if name != "channel_rule"]
FUNCTIONS = [*filter(inspect.isfunction, PUBLIC), calibrate, describe, evaluate, search, to_integer, train]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_public_function_looks_at_its_first_argument(function):
    first = next(iter(inspect.signature(function).parameters))
    with pytest.raises(InputError, match=f"{function.__name__}: {first} is of type object: give "):
        function(**{first: object()})


def test_numbers_of_numpy_and_paths_of_any_kind_are_taken(tmp_path):
    np = pytest.importorskip("numpy")
    gm = nce_fx.resize(traced(), {"0": np.int64(6)})
    nce_fx.save(nce_fx.quantize(gm), str(tmp_path / "a"))
    assert nce_fx.load(tmp_path / "a", net()).get_parameter("0.weight").shape == (6, 3)


def test_a_graph_of_fxs_own_is_a_module_to_what_takes_modules():
    gm = nce_fx.trace(torch.fx.symbolic_trace(net()), X)
    assert gm(*X).shape == (1, 2)
