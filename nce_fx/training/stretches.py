"""A graph cut into stretches that run one after the other: each needs its own weights alone in memory, and what it
keeps for the backward pass can be computed again.

    x -> [ conv1 ... layer2.0 ] -> [ layer2.1 ... layer4.0 ] -> [ layer4.1 ... fc ] -> y

A stretch is a graph module of its own, of the same modules and parameters. No cut lies between a value and what writes
into it: gradients would go past the write.
"""

import math
import operator
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate, pairwise

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from nce_fx.by_mode import ModeCode, runs_in
from nce_fx.frozen import Frozen
from nce_fx.ops.liveness import memory_of, storages
from nce_fx.ops.work import shape_of

STRETCHES = 16
"""How many a network is cut into by its weights, where these are small enough and its in-place operations let it."""
MOST = 64
"""How many may be tried by what is computed."""

_NAME = "stretch_{}"


@dataclass(frozen=True)
class Cut(Frozen):
    """A graph in stretches."""

    whole: nn.Module
    """Runs all of them, as the graph does in the mode that it was in."""
    stretches: dict[str, frozenset[Tensor]]
    """Their names in ``whole``, in order, each with the weights that it alone reads."""
    once: frozenset[str] = frozenset()
    """Those that would not compute the same twice: they write into what they are given."""


def cut(model: nn.Module, weights: Collection[Tensor] = (), *, activations: bool = False) -> Cut:
    """Return a model in stretches of about the same size; as it is, where it is no graph.

    Args:
        model: its modules are shared with the stretches; it is not changed.
        weights: the parameters that are counted.
        activations: whether what is computed is counted, too.
    """
    if not isinstance(model, GraphModule) or type(model.graph._codegen) not in (CodeGen, ModeCode):
        return Cut(model, {})
    running = runs_in(model.graph.nodes, model.training)
    reads = {node: _weights_of(model, node) & set(weights) for node in model.graph.nodes}
    steps = [
        node for node in model.graph.nodes if node.op not in ("placeholder", "get_attr", "output") and node in running
    ]
    memory = memory_of(model)
    written = ((memory.steps[value], memory.steps[each[-1]]) for value, each in memory.writers.items())
    closed = {step for first, last in written for step in range(first + 1, last + 1)}
    free = {place for place, node in enumerate(steps) if place and memory.steps[node] not in closed}
    ends = _where_weights_suffice([reads[node] for node in steps], free)
    if activations:
        ends |= _where_little_passes(*_made_and_passed(model, steps), free)
    borders = [0, *sorted(ends), len(steps)]
    groups = [steps[start:end] for start, end in pairwise(borders) if end > start]
    modules = [_stretch(model, group, running) for group in groups]
    names = [_NAME.format(index) for index in range(len(groups))]
    read = [frozenset[Tensor]().union(*(reads[node] for node in group)) for group in groups]
    often = Counter(weight for own in read for weight in own)
    own = {name: frozenset(each for each in held if often[each] == 1) for name, held in zip(names, read, strict=True)}
    writing = {writer for value, each in memory.writers.items() if value.op == "placeholder" for writer in each}
    once = frozenset(name for name, group in zip(names, groups, strict=True) if writing.intersection(group))
    return Cut(_caller(model, groups, modules, running), own, once)


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


def _where_weights_suffice(reads: list[set[Tensor]], free: set[int]) -> set[int]:
    """Return the steps that stretches begin with, each as soon as the one before has enough weights."""
    limit = sum(weight.numel() for weight in set().union(*reads)) / STRETCHES
    held, ends = set[Tensor](), set[int]()
    for place, read in enumerate(reads):
        if held and read - held and sum(weight.numel() for weight in held | read) > limit and place in free:
            ends.add(place)
            held = set()
        held |= read
    return ends


def _made_and_passed(gm: GraphModule, steps: list[Node]) -> tuple[list[int], list[int]]:
    """How many numbers each step puts into memory of its own, and how many lie there between a step and the next."""
    index = {step: place for place, step in enumerate(steps)}
    places = [index.get(node) for node in gm.graph.nodes]
    made, change = [0] * len(steps), [0] * (len(steps) + 1)
    for each in storages(gm):
        if each.node not in index:
            continue
        first = index[each.node]
        last = max(place for place in places[each.first : each.last + 1] if place is not None)
        made[first] = math.prod(shape_of(each.node)) if shape_of(each.node) else 0
        change[first + 1] += made[first]
        change[last + 1] -= made[first]
    return made, list(accumulate(change))


def _where_little_passes(made: list[int], passed: list[int], free: set[int]) -> set[int]:
    """Return the steps that stretches begin with, so that two things are least together: what passes from one to the
    next, and what the largest makes. They are in memory when the backward pass computes a stretch again.

    For each size that stretches may have, where the least passes follows step by step.
    """
    sums = [0, *accumulate(made)]
    best, least = set[int](), sums[-1]
    for count in range(2, MOST + 1):
        cost, before = {0: 0}, dict[int, int]()
        window = deque([0])  # where a stretch may begin that ends here, the costs rising
        for place in (*sorted(free), len(made)):
            while len(window) > 1 and sums[place] - sums[window[0]] > sums[-1] / count:
                window.popleft()
            before[place] = window[0]
            cost[place] = cost[window[0]] + (passed[place] if place < len(made) else 0)
            while window and cost[window[-1]] >= cost[place]:
                window.pop()
            window.append(place)
        ends, place, largest = set[int](), len(made), 0
        while place:
            largest = max(largest, sums[place] - sums[before[place]])
            place = before[place]
            ends.add(place)
        if cost[len(made)] + largest < least:
            best, least = ends - {0}, cost[len(made)] + largest
    return best


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
