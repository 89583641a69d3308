"""Graphs that follow train() and eval(): what depends on the mode is a node that chooses.

`ByMode` returns one of two values; what only one mode needs runs in that mode alone (`ModeCode`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen, PythonCode
from torch.fx.node import map_aggregate

_NAME = "_by_mode_"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and every module of it back into its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class ByMode(nn.Module):
    """Return the first of two values in evaluation, the second in training.

    What changes something in place in one mode only is given, too, so that it runs in that mode alone.
    """

    def forward(self, evaluated: Any, trained: Any, first: Any = (), second: Any = ()) -> Any:
        """Return the value of the mode."""
        return trained if self.training else evaluated


def is_by_mode(node: Node) -> bool:
    """Whether a node chooses by the mode."""
    return node.op == "call_module" and re.fullmatch(_NAME + r"\d+", str(node.target)) is not None


def place_by_mode(gm: GraphModule, *values: Any) -> Node:
    """Add a node that chooses between two values; where the graph's insertion point is."""
    index = sum(name.startswith(_NAME) for name in gm._modules)
    gm.add_module(f"{_NAME}{index}", ByMode())
    if not isinstance(gm.graph._codegen, ModeCode):
        gm.graph.set_codegen(ModeCode())
    choice = gm.graph.call_module(f"{_NAME}{index}", values)
    made = [node for node in choice.all_input_nodes if node.stack_trace]
    choice.stack_trace = made[-1].stack_trace if made else None
    return choice


def runs_in(nodes: Iterable[Node], training: bool) -> set[Node]:
    """Return the nodes that run in one mode."""
    needed: set[Node] = set()
    for node in reversed(list(nodes)):
        if node.op in ("placeholder", "output") or not node.users:
            needed.add(node)
        if node in needed:
            chosen = (node.args[training], node.args[2 + training :: 2]) if is_by_mode(node) else None
            map_aggregate(
                (node.args, node.kwargs) if chosen is None else chosen,
                lambda value: needed.add(value) if isinstance(value, Node) else None,
            )
    return needed


def idle_in(gm: GraphModule, training: bool) -> dict[Node, Any]:
    """Return the nodes that one mode does not run, for an interpreter of the graph to start with.

    Its code leaves them out by itself; ``Interpreter(gm).run(x, initial_env=idle_in(gm, training=False))`` does so too.
    """
    running = runs_in(gm.graph.nodes, training)
    return {node: None for node in gm.graph.nodes if node not in running}


def leave_evaluation(gm: GraphModule) -> None:
    """Take out of a graph, in place, what only training runs, for whoever runs each node: ``torch.export`` does."""
    idle = idle_in(gm, training=False)
    for node in reversed(list(gm.graph.nodes)):
        if is_by_mode(node):
            node.replace_all_uses_with(node.args[0])
        if node in idle or is_by_mode(node):
            gm.graph.erase_node(node)
    gm.recompile()


class ModeCode(CodeGen):
    """Code in which what only one mode needs runs in that mode alone."""

    def _gen_python_code(self, nodes: Any, *args: Any, **options: Any) -> PythonCode:
        guards = _guards(list(nodes))
        self._body_transformer = lambda body: _guarded(body, guards)
        try:
            return super()._gen_python_code(nodes, *args, **options)
        finally:
            self._body_transformer = None


def _guards(nodes: list[Node]) -> dict[int, tuple[str, str]]:
    """Return the places of nodes that one mode needs -> name, and the condition under which they run."""
    choice = next((node for node in nodes if is_by_mode(node)), None)
    if choice is None:
        return {}
    evaluated, trained = runs_in(nodes, False), runs_in(nodes, True)
    condition = f"self.{choice.target}.training"
    return {
        index: (node.name, f"if {condition}" if node in trained else f"if not {condition}")
        for index, node in enumerate(nodes)
        if (node in trained) != (node in evaluated)
    }


def _guarded(body: list[str], guards: Mapping[int, tuple[str, str]]) -> list[str]:
    lines, guard = [], None
    for line in "".join(body).splitlines(keepends=True):
        place = re.match(r"# COUNTER: (\d+)", line)
        if place is not None:
            guard = guards.get(int(place[1]))
        elif guard is not None and line.strip() and not line.startswith("#"):
            lines.append(f"{guard[0]} = None\n")
            line = f"{guard[1]}: {line}"
        lines.append(line)
    return lines
