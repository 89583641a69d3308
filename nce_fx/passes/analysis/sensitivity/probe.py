"""A graph made ready to be disturbed: what can be rounded, by what, and running any part of the graph again.

The probe works on a copy in eval mode whose parameters share memory with the model's, so neither the model's mode nor
its state is touched, whatever happens.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from nce_fx.batches import samples_in
from nce_fx.by_mode import idle_in
from nce_fx.copying import copy_graph
from nce_fx.errors import InputError, TrainingError, where
from nce_fx.ops.layers import find_layers
from nce_fx.ops.liveness import overwritten
from nce_fx.ops.spellings import sets_items
from nce_fx.ops.work import Layer, ancestors, descendants, is_floating, source_parameters
from nce_fx.passes.analysis.sensitivity.noise import Noise, Point, Rounding
from nce_fx.passes.analysis.sensitivity.shard import ALONE, Shard
from nce_fx.paths import parameters_of, run_node, tensor_at
from nce_fx.tasks import Loss, LossLike, loss_named, own_loss
from nce_fx.tasks.losses import without_target
from nce_fx.tasks.outputs import classes_of, first_tensor, has_own_loss

Batch = tuple[Any, Any]
Values = dict[Node, Any]
Watch = Callable[[Mapping[Node, Any]], None]
DETACHED = "the model's output does not depend on any layer: is it detached?"
"""What is said where nothing can be derived."""


@dataclass(frozen=True)
class Probe:
    """A copy of a graph, its layers, and how to disturb them."""

    gm: GraphModule
    noise: Noise
    loss: Loss
    shard: Shard = ALONE
    watch: Watch | None = None
    _roundings: dict[Node, Rounding] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        gm: GraphModule,
        noise: Noise,
        loss: LossLike = None,
        shard: Shard | None = None,
        watch: Watch | None = None,
    ) -> "Probe":
        """Copy a graph for disturbing it; its tensors are shared, never written to.

        Raises:
            InputError: weights that are not finite; the message names the layer.
        """
        shared: dict[int, Any] = {id(buffer): buffer for buffer in gm.buffers()}
        shared |= {id(p): nn.Parameter(p.detach(), p.is_floating_point()) for p in gm.parameters()}
        copy = copy_graph(gm, shared).eval()
        _mark(copy, noise.points or ())
        probe = Probe(copy, noise, loss_named(loss), shard or ALONE, watch)
        for layer in probe.layers:
            for path in layer.weights:
                if not bool(torch.isfinite(probe.gm.get_parameter(path)).all()):
                    raise InputError(
                        f"layer {layer.path} has weights that are NaN or infinite: load others, or train again"
                    )
        return probe

    @cached_property
    def working(self) -> tuple[Layer, ...]:
        """Layers that do work, with weights of their own or without."""
        return tuple(layer for layer in find_layers(self.gm) if layer.work)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Layers that own weights and do work."""
        return tuple(layer for layer in self.working if layer.weights)

    @cached_property
    def weights(self) -> Mapping[str, Mapping[str, Tensor]]:
        """For each layer path: its weights by parameter path, after rounding."""
        with torch.no_grad():
            return {
                layer.path: {
                    path: self.noise.weight(layer.path, self.gm.get_parameter(path).detach()) for path in layer.weights
                }
                for layer in self.layers
            }

    @cached_property
    def activations(self) -> tuple[Node, ...]:
        """The floating values that layers read, each once, in graph order; or where the noise says it is."""
        if self.noise.points is not None:
            names = {point.name for point in self.noise.points}
            return tuple(node for node in self.gm.graph.nodes if node.name in names and node not in self.idle)
        read = dict.fromkeys(value for layer in self.working if layer.node not in self.idle for value in layer.inputs)
        order = {node: index for index, node in enumerate(self.gm.graph.nodes)}
        floating = [node for node in read if is_floating(node) and not source_parameters(node)]
        return tuple(sorted(floating, key=order.__getitem__))

    @cached_property
    def idle(self) -> frozenset[Node]:
        """Nodes that only training runs: they have no value here, and write nothing."""
        return frozenset(idle_in(self.gm, training=False))

    @cached_property
    def readers(self) -> Mapping[Node, tuple[str, ...]]:
        """For each activation: the paths of the layers that read it."""
        return {node: tuple(x.path for x in self.working if node in x.inputs) for node in self.activations}

    @cached_property
    def _parameters(self) -> Mapping[str, nn.Parameter]:
        """Every parameter by each of its paths."""
        return dict(parameters_of(self.gm))

    @cached_property
    def computing(self) -> Mapping[Node, tuple[Node, ...]]:
        """For each layer's node: what computes its weights, in graph order."""
        order = {node: index for index, node in enumerate(self.gm.graph.nodes)}
        return {
            layer.node: tuple(
                sorted(ancestors(filter(source_parameters, layer.node.all_input_nodes)), key=order.__getitem__)
            )
            for layer in self.layers
        }

    @cached_property
    def _overwriting(self) -> frozenset[Node]:
        """Nodes that write into their first input and return it: what others read of it then is what it was."""
        nodes = self.gm.graph.nodes
        return frozenset(node for node in nodes if overwritten(self.gm, node) and not sets_items(node.target))

    def rounded(self, node: Node, value: Tensor) -> Tensor:
        """Return an activation after rounding; the first value of a node that comes here sets its range."""
        if node not in self._roundings:
            self._roundings[node] = self.noise.activation(node.name, self.readers[node], value.detach())
        return self._roundings[node](value.detach())

    @torch.no_grad()
    def settle(self, inputs: Any) -> Tensor:
        """Set the range of every activation from one batch; return the first tensor of the output."""
        values = self.forward(inputs)
        for node in self.activations:
            self.rounded(node, values[node])
        return first_tensor(values[self.output])

    def mine(self, batches: Sequence[Batch]) -> Iterator[tuple[int, Batch]]:
        """Return the batches that this process measures, with their numbers; ranges are those of the first of all."""
        if self.shard.processes > 1:
            self.settle(batches[0][0])
        return ((number, batch) for number, batch in enumerate(batches) if self.shard.owns(number))

    def forward(self, inputs: Any, watch: Callable[[Node, Any], Any] | None = None) -> Values:
        """Run the graph and return every value; ``watch`` may replace a value as soon as it is there.

        Raises:
            InputError: the graph does not take these inputs.
        """
        given = iter(inputs if isinstance(inputs, (tuple, list)) else (inputs,))
        values: Values = {}
        for node in self.gm.graph.nodes:
            try:
                values[node] = next(given, *node.args) if node.op == "placeholder" else self.run(node, values)
            except Exception as error:
                raise InputError(f"the batches do not fit the model: {where(node)}: {_line(error)}") from error
            if watch is not None:
                values[node] = watch(node, values[node])
        return values

    def show(self, values: Values) -> None:
        """Let who watches see what the plain graph gave for a batch; where processes share the batches, nobody does."""
        if self.watch is not None and self.shard.processes == 1:
            self.watch(values)

    def run(self, node: Node, values: Mapping[Node, Any]) -> Any:
        """Run one node on the values before it; ``None`` for one that only training runs."""
        if node in self.idle:
            return None
        if node.op == "get_attr":
            return tensor_at(self.gm, str(node.target))
        args, kwargs = map_arg((node.args, node.kwargs), lambda argument: values[argument])
        if node in self._overwriting:
            args = tuple(a.clone() if isinstance(a, Tensor) and i == 0 else a for i, a in enumerate(args))
        if node.op == "output":
            return args[0]
        return run_node(self.gm, node, args, kwargs)

    def again(self, values: Mapping[Node, Any], changed: Mapping[Node, Any], stale: Iterable[Node]) -> Values:
        """Run only ``stale`` nodes (in graph order), on changed values; return all values."""
        fresh = {**values, **changed}
        for node in stale:
            fresh[node] = self.run(node, fresh)
        return fresh

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Let parameters of the copy have other values for a while."""
        parameters = {path: self._parameters[path] for path in weights}
        before = {path: parameter.data for path, parameter in parameters.items()}
        try:
            for path, parameter in parameters.items():
                parameter.data = weights[path]
            yield
        finally:
            for path, parameter in parameters.items():
                parameter.data = before[path]

    def readers_of_weights(self, layer: Layer) -> tuple[Node, ...]:
        """Everything that has to run again when a layer's weights change: all uses of them and what follows."""
        start = [
            node
            for node in self.gm.graph.nodes
            if (node.op == "get_attr" and node.target in layer.weights)
            or (node.op == "call_module" and any(path.startswith(f"{node.target}.") for path in layer.weights))
        ]
        return tuple(start) + tuple(node for node in self.after(start) if node not in start)

    def after(self, start: Sequence[Node]) -> tuple[Node, ...]:
        """Everything that depends on some nodes, in graph order, without them."""
        reached = descendants(self.gm.graph.nodes, start)
        return tuple(node for node in self.gm.graph.nodes if node in reached and node not in start)

    @cached_property
    def output(self) -> Node:
        """The node whose value the graph returns."""
        return self.gm.graph.output_node()

    def seen(self, output: Any) -> Tensor:
        """Return the tensor of an output that gradients are taken of: the model's own loss, where it is trained by
        that and gives it in evaluation too, else the first."""
        return own_loss(output) if self.loss.is_the_models and has_own_loss(output) else first_tensor(output)

    def size(self, inputs: Any, output: Any) -> int:
        """Return how many samples a batch has: rows of its output, or of its inputs where the output is a loss."""
        at = self.seen(output)
        return samples_in(inputs) if at.dim() == 0 else len(at)

    def axis_of_classes(self, output: Any, target: Any) -> int:
        """Return the axis of the first tensor of an output that classes are on: 1, or the last for tokens."""
        if not self.loss.is_of_classes or target is None:
            return 1
        try:
            scores, _ = classes_of(output, target, self.loss.name)
        except TrainingError as error:
            raise InputError(f"the loss does not fit the batches: {error}") from error
        return 1 if scores.shape == first_tensor(output).shape else -1

    def loss_of(self, output: Any, target: Any) -> Tensor:
        """Return the mean loss of a batch; without a target the model's own decision is the target of classes.

        Raises:
            InputError: the loss cannot take them, or is not finite.
        """
        try:
            value = self.loss(output, without_target(self.loss, output) if target is None else target)
        except TrainingError as error:
            raise InputError(f"the loss does not fit the batches: {error}") from error
        if not bool(torch.isfinite(value.detach()).all()):
            raise InputError("the model's loss is NaN or infinite on these batches: check weights and data")
        return value


def _mark(gm: GraphModule, points: Iterable[Point]) -> None:
    """Put a node where a value is rounded on its way to some of its readers: to them only what it gives is noisy."""
    nodes = {node.name: node for node in gm.graph.nodes}
    for point in points:
        value = nodes[point.value]
        with gm.graph.inserting_after(value):
            mark = gm.graph.create_node("call_function", passed_on, (value,), name=point.name)
        mark.meta = {"tensor_meta": value.meta["tensor_meta"]} if "tensor_meta" in value.meta else {}
        for reader in point.readers:
            if reader in nodes:
                nodes[reader].replace_input_with(value, mark)
    gm.recompile()


def passed_on(value: Tensor) -> Tensor:
    """Return a value as a tensor of its own, which has the gradient of those who read it here."""
    return value.view_as(value)


def _line(error: Exception) -> str:
    """An error in one line, whatever torch put into it."""
    return " ".join(str(error).split())
