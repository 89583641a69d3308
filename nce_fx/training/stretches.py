"""A graph cut into stretches that run one after the other, so that each needs its own weights alone in memory.

    x -> [ conv1 ... layer2.0 ] -> [ layer2.1 ... layer4.0 ] -> [ layer4.1 ... fc ] -> y

A stretch is a graph module of its own, of the same modules and parameters. No cut lies between a value and what writes
into it: gradients would go past the write.
"""

import operator
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from nce_fx.by_mode import ModeCode, runs_in
from nce_fx.frozen import Frozen
from nce_fx.ops.liveness import memory_of

STRETCHES = 16
"""How many a network is cut into, where its weights are small enough and its in-place operations let it."""

_NAME = "stretch_{}"


@dataclass(frozen=True)
class Cut(Frozen):
    """A graph in stretches."""

    whole: nn.Module
    """Runs all of them, as the graph does in training mode."""
    stretches: Mapping[str, frozenset[Tensor]]
    """Their names in ``whole``, each with the weights that it alone reads."""


def cut(model: nn.Module, weights: Collection[Tensor]) -> Cut:
    """Return a model in stretches of about the same size of these weights; as it is, where it is no graph.

    Args:
        model: its modules are shared with the stretches; it is not changed.
        weights: the parameters that are counted.
    """
    if not isinstance(model, GraphModule) or type(model.graph._codegen) not in (CodeGen, ModeCode):
        return Cut(model, {})
    running = runs_in(model.graph.nodes, True)
    reads = {node: _weights_of(model, node) & set(weights) for node in model.graph.nodes}
    groups = list(_groups(model, running, reads))
    modules = [_stretch(model, group, running) for group in groups]
    read = [frozenset[Tensor]().union(*(reads[node] for node in group)) for group in groups]
    often = Counter(weight for own in read for weight in own)
    own = {_NAME.format(index): frozenset(each for each in own if often[each] == 1) for index, own in enumerate(read)}
    return Cut(_caller(model, groups, modules, running), own)


def _weights_of(gm: GraphModule, node: Node) -> set[Tensor]:
    """The parameters that a node reads: its module's, and those that are its arguments."""
    found: set[Tensor] = set()
    if node.op == "call_module":
        found.update(gm.get_submodule(str(node.target)).parameters())
    for source in node.all_input_nodes:
        value = _attribute(gm, source) if source.op == "get_attr" else None
        if isinstance(value, nn.Parameter):
            found.add(value)
    return found


def _attribute(gm: GraphModule, node: Node) -> object:
    return operator.attrgetter(str(node.target))(gm)


def _groups(gm: GraphModule, running: set[Node], reads: dict[Node, set[Tensor]]) -> Iterator[list[Node]]:
    """The nodes of each stretch, in order."""
    memory = memory_of(gm)
    written = ((memory.steps[value], memory.steps[each[-1]]) for value, each in memory.writers.items())
    closed = {step for first, last in written for step in range(first + 1, last + 1)}
    limit = sum(weight.numel() for weight in set().union(*reads.values())) / STRETCHES
    group: list[Node] = []
    held: set[Tensor] = set()
    for step, node in enumerate(gm.graph.nodes):
        if node.op in ("placeholder", "get_attr", "output") or node not in running:
            continue
        new = reads[node] - held
        size = sum(weight.numel() for weight in held | new)
        if held and new and size > limit and step not in closed:
            yield group
            group, held = [], set()
        group.append(node)
        held |= reads[node]
    if group:
        yield group


def _given(group: list[Node], running: set[Node]) -> list[Node]:
    """What a stretch is given, each once, in order."""
    sources = (source for node in group for source in node.all_input_nodes)
    inside = set(group)
    return list(dict.fromkeys(s for s in sources if s.op != "get_attr" and s in running and s not in inside))


def _returned(group: list[Node], running: set[Node]) -> list[Node]:
    """What later stretches, or the caller, need of a stretch."""
    inside = set(group)
    return [node for node in group if any(user in running and user not in inside for user in node.users)]


def _stretch(gm: GraphModule, group: list[Node], running: set[Node]) -> nn.Module:
    graph, copies = Graph(), dict[Node, Node]()
    for node in _given(group, running):
        copies[node] = graph.placeholder(node.name)
    for node in group:
        _copy(node, graph, copies)
    graph.output(tuple(copies[node] for node in _returned(group, running)))
    return GraphModule(gm, graph)


def _copy(node: Node, graph: Graph, copies: dict[Node, Node]) -> None:
    """Add a node; with the attributes that it reads, and with nothing where only evaluation needs an argument."""
    for source in node.all_input_nodes:
        if source.op == "get_attr" and source not in copies:
            copies[source] = graph.node_copy(source)
    copies[node] = graph.node_copy(node, lambda source: copies.get(source))


def _caller(gm: GraphModule, groups: list[list[Node]], modules: list[nn.Module], running: set[Node]) -> GraphModule:
    """What calls the stretches one after the other."""
    graph, copies = Graph(), dict[Node, Node]()
    for node in gm.graph.find_nodes(op="placeholder"):
        copies[node] = graph.node_copy(node)
    for index, group in enumerate(groups):
        result = graph.call_module(_NAME.format(index), tuple(copies[node] for node in _given(group, running)))
        for place, node in enumerate(_returned(group, running)):
            copies[node] = graph.call_function(operator.getitem, (result, place))
    end = gm.graph.output_node()
    _copy(end, graph, copies)
    attributes = {str(each.target): _attribute(gm, each) for each in end.all_input_nodes if each.op == "get_attr"}
    return GraphModule({**{_NAME.format(index): each for index, each in enumerate(modules)}, **attributes}, graph)
