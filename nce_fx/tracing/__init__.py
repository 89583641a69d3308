"""Model -> GraphModule with shapes, by whichever way takes the model.

    fx               torch.fx's symbolic tracing: keeps the user's modules, and a batch of any size
    export           torch.export, its ops put back into the modules they came from
    fx with leaves   symbolic tracing that leaves the modules it cannot enter whole
    the front end    of torch.compile, before torch.export: it follows what type a value is, and takes the longest

Whatever way it is, the graph is the model: both are run on the example inputs, in evaluation and in training mode, and
where they differ the next way is tried. The way is in ``gm.meta["traced"]``, in words, and what was compared in
``gm.meta["compared"]``.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from nce_fx.arguments import checked
from nce_fx.batches import FIXED_SIZE
from nce_fx.copying import shallow_copy
from nce_fx.errors import TraceError, one_line, raised_by
from nce_fx.ops import Ops
from nce_fx.ops.table import default
from nce_fx.paths import modules_of
from nce_fx.pipeline import Given, Pass
from nce_fx.pipeline.history import begin, traced_again
from nce_fx.signature import call_of, signature
from nce_fx.traced import ATTRIBUTES, FROZEN, ORIGIN, kept_attributes
from nce_fx.tracing.batch_size import follow_batch
from nce_fx.tracing.checks import CHECKS
from nce_fx.tracing.equivalence import MODES, Reference
from nce_fx.tracing.exported import export_graph, graph_of_module, is_of_program
from nce_fx.tracing.exporting import export, is_of_ids
from nce_fx.tracing.gradients import detach_marked
from nce_fx.tracing.inputs import UnsuitableError, bind_inputs
from nce_fx.tracing.joining import join
from nce_fx.tracing.matmul_to_linear import products_to_linear
from nce_fx.tracing.modes import Modes, modes_of
from nce_fx.tracing.parts import traceable_parts
from nce_fx.tracing.preserved_state import Kept, Values, keep_unused, untouched, values_untouched
from nce_fx.tracing.shape_propagation import propagate_shapes
from nce_fx.tracing.symbolic import UntraceableError, symbolic_graph

__all__ = ["TraceAgain", "trace"]

_ONE_AT_A_TIME = threading.RLock()
"""What tracing replaces in PyTorch, every thread meets."""


@checked
def trace(model: nn.Module, example_inputs: Any, *, ops: Ops | None = None) -> GraphModule:
    """Return the graph of a model, in the model's own mode, with fx's ``tensor_meta`` on its nodes.

    The graph shares the model's parameters and follows ``train()`` and ``eval()`` as the model does; the model itself
    is as it was. ``gm.meta["traced"]`` says how the graph was made.

    Args:
        model: any module; of one that is a graph already it is a copy with these shapes.
        example_inputs: a tensor, a tuple in the order of ``forward``, or a dict by the names of its arguments; what is
            left out keeps its default.
        ops: a table of operations with rows of your own, ``OPS.adding(MINE)``; it goes with the graph.

    Raises:
        TraceError: no way makes a graph that is the model, or it does not take the example inputs.
    """
    with _ONE_AT_A_TIME, untouched(model) as before:
        if isinstance(model, GraphModule):
            return _with_table(_given(model, example_inputs, ops), ops)
        with values_untouched(model) as values:
            return _with_table(_Tracing(model, example_inputs, before, values, ops or default()).graph(), ops)


def _with_table(gm: GraphModule, ops: Ops | None) -> GraphModule:
    if ops is not None:
        gm.meta["ops"] = ops
    return gm


class _Tracing:
    def __init__(self, model: nn.Module, example_inputs: Any, before: Kept, values: Values, ops: Ops) -> None:
        _check_names(model)
        self.model = model
        self.ops = ops
        self.before = before
        self.values = values
        self.inputs = bind_inputs(model, example_inputs)
        self.reference = Reference(model, self.inputs, values)
        self.modes: Modes = modes_of(model, before)

    def graph(self) -> GraphModule:
        """Return the first graph that is the model."""
        failures: list[str] = []
        stopped = ""
        for way, make in self._ways():
            fresh = torch.random.get_rng_state()
            try:
                gm = self._left_as_it_was(make())
                drawn = not torch.equal(torch.random.get_rng_state(), fresh)
                way = way + ", ".join(gm.meta.pop("leaves", ()))
                self._finish(gm, way)
                difference = self.reference.difference(gm, constants=drawn)
            except UnsuitableError:
                raise
            except Exception as error:
                stopped = stopped or raised_by(error)
                self.before.restore()
                self.values.restore()
                text = str(error) if isinstance(error, UntraceableError) else one_line(error, libraries=True)
                difference = None if any(text in failure for failure in failures) else text
            else:
                if difference is None:
                    begin(gm, self.model)
                    return gm
                difference = f"its graph is not the model, {difference}"
            if difference is not None:
                failures.append(f"{way.removesuffix(': ')}: {difference}")
        self.reference.check()
        _check_words(self.model)
        named = traceable_parts(self.model, self.inputs, self.ops) or [name for name, _ in self.model.named_children()]
        parts = ", ".join(named) or "none"
        at = f", which stops at {stopped}" if stopped else ""
        if drawing := [MODES[mode] for mode, ran in self.reference.ran.items() if ran.drawn]:
            at += (
                f", for in {drawing[0]} mode it draws numbers that no graph draws, Python's or numpy's (torch's can be)"
            )
        raise TraceError(
            f"{type(self.model).__name__} cannot be traced as one graph{at}: write that so that no tensor's values "
            "decide what runs (torch.where for an if), put it into a module of its own, which is then left whole, or "
            f"give a part of the model alone ({parts}). {'; '.join(failures)}"
        )

    def _left_as_it_was(self, gm: GraphModule) -> GraphModule:
        """Return a graph whose making has written nothing to the model: what was written then, it would not write."""
        written = {id(tensor) for tensor in self.values.changed()}
        if not written:
            return gm
        self.values.restore()
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        names = [name for name, tensor in named if id(tensor) in written]
        raise UntraceableError(f"forward writes to {', '.join(names) or 'a tensor of the model'} as it is traced")

    def _ways(self) -> Iterator[tuple[str, Callable[[], GraphModule]]]:
        hidden: list[GraphModule] = []

        def entered() -> GraphModule:
            gm = self._symbolic(enter=True)
            if _hides_weights(gm):
                hidden.append(gm)
                raise UntraceableError("a function it does not enter holds weights")
            return gm

        yield "fx", entered
        if any(map(is_of_ids, tree_leaves(self.inputs.values))):
            yield "export", lambda: self._exported(by=(False,), lengths=True)
        yield "export", self._exported
        if hidden:
            yield "fx", hidden.pop
        else:
            yield "fx with leaves: ", lambda: self._symbolic(enter=False)
        yield "export by the compiler's front end", lambda: self._exported(by=(True,))

    def _symbolic(self, *, enter: bool) -> GraphModule:
        def of_its_mode(_: bool) -> GraphModule:
            following = self.modes.following
            return symbolic_graph(self.model, self.inputs, self.before, following, self.ops, enter=enter)

        gm = of_its_mode(self.model.training)
        return self._joined(of_its_mode, gm) if gm.meta.pop("decided") else gm

    def _exported(self, by: tuple[bool, ...] = (False, True), lengths: bool = False) -> GraphModule:
        self.model.train(False)
        evaluating = export(self.model, self.inputs, by=by, lengths=lengths)
        gm = export_graph(self.model, self.inputs, evaluating, self.ops, lengths=lengths)
        self.before.restore()

        def of_one_mode(training: bool) -> GraphModule:
            exported = evaluating
            if training:
                exported = export(self.model, self.inputs, by=by, lengths=lengths, like=evaluating)
            return export_graph(self.model, self.inputs, exported, self.ops, one_of_two=True, lengths=lengths)

        if self.modes.following:
            self._finish(gm, "export")
            if self.reference.difference(gm) is not None:
                return self._joined(of_one_mode)
        return gm

    def _joined(self, make: Callable[[bool], GraphModule], own: GraphModule | None = None) -> GraphModule:
        """Return one graph of the two that a model has in its two modes."""
        graphs = []
        for training in (False, True):
            if own is not None and self.modes.is_pure(self.model, training):
                graphs.append(own)
                continue
            self.model.train(training)
            graphs.append(make(training))
            self.before.restore()
        joined = join(*graphs, name=type(self.model).__name__, ops=self.ops)
        joined.meta["leaves"] = graphs[0].meta.get("leaves", ())
        joined.meta[CHECKS] = tuple(check for gm in graphs for check in gm.meta.get(CHECKS, ()))
        for gm in graphs:
            if FIXED_SIZE in gm.meta:
                joined.meta[FIXED_SIZE] = gm.meta[FIXED_SIZE]
        return joined

    def _finish(self, gm: GraphModule, way: str) -> None:
        propagate_shapes(gm, self.inputs.values, self.ops)
        if detach_marked(gm):
            gm.recompile()
            propagate_shapes(gm, self.inputs.values, self.ops)
        if follow_batch(gm, self.model, self.inputs, self.ops):
            propagate_shapes(gm, self.inputs.values, self.ops)
        if products_to_linear(gm, self.ops):
            gm.recompile()
            propagate_shapes(gm, self.inputs.values, self.ops)
        gm.meta["traced"] = way
        gm.meta["inputs"] = signature(self.inputs.named, by_name=bool(self.inputs.kwargs))
        keep_unused(gm, self.model)
        _give_memory(gm, self.model)
        _keep_names(gm, self.model)
        gm.meta[FROZEN] = self.modes.frozen
        gm.meta[ORIGIN] = type(self.model)
        gm.meta[ATTRIBUTES] = kept_attributes(self.model)
        gm.meta["compared"] = self.reference.compared()
        if FIXED_SIZE in gm.meta:
            gm.meta["compared"] += f"; it takes batches of {gm.meta[FIXED_SIZE]} alone"
        if checks := gm.meta.get(CHECKS):
            gm.meta["compared"] += f"; it does not check values as its model does at {', '.join(dict.fromkeys(checks))}"
        _take_modes(gm, self.model)


def _given(given: GraphModule, example_inputs: Any, ops: Ops | None) -> GraphModule:
    """Return a graph that is given, with the shapes that it has at these inputs."""
    inputs = bind_inputs(given, example_inputs)
    gm = shallow_copy(given)
    if is_of_program(gm):
        gm = graph_of_module(gm, inputs.named, type(given).__name__)
    try:
        propagate_shapes(gm, inputs.values, ops)
    except Exception:
        Reference(gm, inputs).check()
        raise
    gm.meta["traced"] = gm.meta.get("traced", "given as a graph")
    gm.meta["inputs"] = signature(inputs.named, by_name=bool(inputs.kwargs))
    traced_again(gm, given)
    return gm


def _check_names(model: nn.Module) -> None:
    """Check that no part has a name that torch.fx's graphs have for something of their own."""
    taken = {"code", "graph", "meta", *vars(GraphModule)}
    for name in (*model._modules, *model._parameters, *model._buffers):
        if name in taken:
            raise TraceError(
                f"{type(model).__name__}.{name} cannot be traced: torch.fx's graphs have a {name!r} of their own; "
                "rename it, or put the model into an nn.Sequential"
            )


def _check_words(model: nn.Module) -> None:
    """Check that no module or tensor has a name that torch.fx cannot write into the code of a graph."""
    for path, module in modules_of(model):
        for name in (*module._modules, *module._parameters, *module._buffers):
            if iskeyword(name) or not {'"', "\\", "\n"}.isdisjoint(name):
                raise TraceError(
                    f"{type(model).__name__} cannot be traced: torch.fx cannot write a part named {name!r} into the "
                    f"code of a graph; rename {f'{path}.{name}' if path else name}"
                )


def _keep_names(gm: GraphModule, model: nn.Module) -> None:
    """Leave out of the graph's ``state_dict`` what is not in the model's: buffers that are not kept, constants."""
    own = model.state_dict().keys()
    for path, module in modules_of(gm):
        for name in module._buffers:
            if (f"{path}.{name}" if path else name) not in own:
                module._non_persistent_buffers_set.add(name)


def _give_memory(gm: GraphModule, model: nn.Module) -> None:
    """Give constants whose entries share memory, such as ``torch.ones(4).expand(3, 4)``, memory for each: else
    nothing can be written to them, by ``load_state_dict`` or by who puts a state back."""
    users = dict(model.named_buffers())
    for path, buffer in list(gm.named_buffers()):
        if path not in users and any(n > 1 and s == 0 for n, s in zip(buffer.shape, buffer.stride(), strict=True)):
            owner, _, name = path.rpartition(".")
            gm.get_submodule(owner)._buffers[name] = buffer.contiguous()


def _take_modes(gm: GraphModule, model: nn.Module) -> None:
    """Give what tracing made the mode of what it stands for; what the graph shares with the model keeps its own."""
    own = dict(modules_of(model))
    for path, module in modules_of(gm):
        original = own.get(path, model)
        if module is not original:
            module.training = original.training


def _hides_weights(gm: GraphModule) -> bool:
    """Whether a function outside torch, which the tracer did not enter, is given parameters."""

    def foreign(node: Node) -> bool:
        package = defining_module(node).partition(".")[0]
        return node.op == "call_function" and package not in ("torch", "_operator", "builtins", "math")

    return any(
        foreign(node) and defining_module(node) and any(a.op == "get_attr" for a in node.all_input_nodes)
        for node in gm.graph.nodes
    )


def defining_module(node: Node) -> str:
    """Return the name of the module that defines a function node's target, or an empty string."""
    return str(getattr(node.target, "__module__", None) or "")


@dataclass(frozen=True)
class TraceAgain(Pass):
    """Give a graph the shapes that it has at other inputs; what `nce_fx.trace` does with one that is given to it."""

    name: ClassVar[str] = "trace"
    inputs: tuple[dict[str, Any], ...]
    """Their signature: ``{"tensor": [1, 3, 32, 32], "dtype": "float32"}``."""

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        """Return the graph, which shares its parameters with the one that was given."""
        return trace(gm, call_of(list(self.inputs)))
