"""What is kept to save time is what would be found anew."""

from __future__ import annotations

import ast
import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nce_fx
from nce_fx.passes.analysis.channels import analysis_of
from nce_fx.tracing.shape_propagation import propagate_shapes


class Mixer(nn.Module):
    """Something that no rule is known of at first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1)[: x.numel()].reshape(x.shape)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.last, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)
        self.register_buffer("order", torch.arange(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.norm(self.first(x)).relu())[:, self.order]
        return self.head(self.last(x).mean((2, 3)))  # type: ignore[no-any-return]


def _traced() -> Any:
    torch.manual_seed(0)
    return nce_fx.trace(Net().eval(), (torch.randn(2, 4, 6, 6),))


def _node(gm: Any, name: str) -> Any:
    return next(node for node in gm.graph.nodes if node.name == name)


def _other_arguments(gm: Any) -> None:
    """Without recompiling: the analysis is of the graph, not of its code."""
    _node(gm, "mean").kwargs = {"keepdim": False}
    _node(gm, "getitem").args = (_node(gm, "second"), (slice(None), slice(0, 8)))


def _other_function(gm: Any) -> None:
    _node(gm, "relu").target = "softmax"
    _node(gm, "relu").args = (*_node(gm, "relu").args, 1)


def _fixed(gm: Any) -> None:
    gm.order.data[:] = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def _without_rows(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.flip(1)


CHANGES: dict[str, Callable[[Any], object]] = {
    "shapes": lambda gm: propagate_shapes(gm, (torch.randn(2, 4, 9, 9),)),
    "arguments": _other_arguments,
    "function": _other_function,
    "values of an index": _fixed,
    "a buffer in another's place": lambda gm: gm.register_buffer("order", torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])),
    "another module": lambda gm: setattr(gm, "second", nn.Conv2d(8, 8, 1, groups=2)),
    "a setting": lambda gm: setattr(gm.first, "padding", (0, 0)),
    "a shared parameter": lambda gm: setattr(gm.last, "weight", gm.second.weight),
    "a hook": lambda gm: gm.second.register_forward_hook(_without_rows),
    "another graph": lambda gm: setattr(gm, "graph", copy.deepcopy(gm.graph)),
    "the mode": lambda gm: gm.train(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_analysis_is_made_anew_where_what_it_depends_on_has_changed(change: str) -> None:
    gm = _traced()
    nce_fx.analyze_channels(gm)
    CHANGES[change](gm)
    fresh = copy.deepcopy(gm)
    assert nce_fx.analyze_channels(gm) == nce_fx.analyze_channels(fresh)
    assert nce_fx.analyze_cost(gm) == nce_fx.analyze_cost(fresh)


def test_the_structure_is_of_the_tensors_that_are_there() -> None:
    """A resize copies tensors: those of the graph as it is now, also where shapes and code are as they were."""
    gm = _traced()
    width = {"first": 10}
    nce_fx.resize(gm, width)
    gm.first.weight = nn.Parameter(torch.ones_like(gm.first.weight))
    assert nce_fx.resize(gm, width).get_parameter("first.weight").eq(1).all()


def test_a_rule_that_comes_later_counts() -> None:
    class Unknown(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.matrix_exp(x)  # type: ignore[no-any-return]

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Unknown(), nn.Conv2d(4, 2, 1)).eval()
    nce_fx.channel_rule(lambda module, x: x.sort(1).values)(Unknown)
    gm = nce_fx.trace(model, (torch.randn(2, 3, 4, 4),))
    assert nce_fx.analyze_channels(gm)["0"].pinned is not None
    nce_fx.channel_rule(lambda module, x: x * 1.0)(Unknown)
    assert nce_fx.analyze_channels(gm)["0"].pinned is None


def test_an_analysis_is_made_once() -> None:
    gm = _traced()
    assert analysis_of(gm) is analysis_of(gm)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda gm: pickle.loads(pickle.dumps(gm))])
def test_a_copy_of_an_analyzed_graph_goes_through_passes(copied: Callable[[Any], Any]) -> None:
    """A copy begins without the analysis: to make one is nothing that a pass changes."""
    gm = _traced()
    wide = nce_fx.resize(gm, {"first": 10})
    again = nce_fx.resize(copied(gm), {"first": 10})
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(wide(x), again(x))


def test_a_graph_traced_again_has_the_costs_of_its_new_size() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    small, large = (torch.randn(1, 3, size, size) for size in (4, 16))
    gm = nce_fx.trace(model, (small,))
    before = nce_fx.analyze_cost(gm)
    again = nce_fx.trace(gm, (large,))
    assert nce_fx.analyze_cost(again).total == nce_fx.analyze_cost(nce_fx.trace(model, (large,))).total
    assert nce_fx.analyze_cost(gm) == before
    assert again.get_parameter("0.weight") is model[0].weight
    torch.testing.assert_close(again(large), model(large))


def _sources() -> Iterator[tuple[str, ast.Module]]:
    root = Path(nce_fx.__file__).parent
    for path in sorted(root.rglob("*.py")):
        yield str(path.relative_to(root)), ast.parse(path.read_text())


def _name(decorator: ast.expr) -> str:
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator).rpartition(".")[2]


def test_what_is_kept_on_a_value_is_kept_on_a_frozen_one() -> None:
    """A cached property is of fields that nobody can set."""
    for file, source in _sources():
        for owner in (node for node in ast.walk(source) if isinstance(node, ast.ClassDef)):
            for function in (node for node in owner.body if isinstance(node, ast.FunctionDef)):
                if "cached_property" in map(_name, function.decorator_list):
                    frozen = [ast.unparse(d) for d in owner.decorator_list if _name(d) == "dataclass"]
                    name = f"{file}: {owner.name}.{function.name}"
                    # What is installed is looked up once.
                    assert any("frozen=True" in each for each in frozen) or name == "registry.py: Registry._all", name


_OF_ITS_ARGUMENTS = {
    "arguments.py:kind_of",  # what an argument of a function is annotated with
    "ops/spellings.py:spellings_of",  # the functions and ops of a name
    "ops/table.py:argument_names",  # of a signature
    "ops/table.py:default",
    "pipeline/pass_options.py:_adapter",  # how values of a type are checked
    "report/page.py:_asset",  # a file of the package
    "report/page.py:_template",
    "tracing/symbolic.py:_is_inner",  # whether a file is torch's own, by its name
}


def test_what_is_kept_for_ever_is_of_its_arguments_alone() -> None:
    found = {
        f"{file}:{function.name}"
        for file, source in _sources()
        for function in ast.walk(source)
        if isinstance(function, ast.FunctionDef) and {"cache", "lru_cache"} & set(map(_name, function.decorator_list))
    }
    assert found == _OF_ITS_ARGUMENTS
