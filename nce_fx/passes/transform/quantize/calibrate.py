"""Calibration: one pass over data sets the range of every activation quantizer.

The pass is `set_ranges`, or another that runs the float graph anyway and lets `Observers` see its values. What a
network found at its own widths holds at others as well, see `carry_ranges`.
"""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_map

from nce_fx.arguments import checked
from nce_fx.batches import on_a_batch, read
from nce_fx.by_mode import evaluating, idle_in, is_by_mode, runs_in
from nce_fx.devices import device_of, to_device
from nce_fx.errors import QuantizeError
from nce_fx.ops import table_of
from nce_fx.paths import called
from nce_fx.progress import counted
from nce_fx.quantizers import ActivationQuantizer, Quantizer, WeightQuantizer


@checked
def calibrate(gm: GraphModule, batches: Iterable[Any]) -> GraphModule:
    """Return a copy of a quantized graph whose activation quantizers have seen ``batches``.

    See `set_ranges`.
    """
    result = copy.deepcopy(gm)
    set_ranges(result, batches)
    return result


def set_ranges(gm: GraphModule, batches: Iterable[Any]) -> None:
    """Run the float network on every batch once, and let each activation quantizer see what it will quantize.

    Quantizers let everything pass meanwhile (those that stand for a ReLU act as one). BatchNorm uses the statistics of
    the batch if the graph is in training mode, its running ones else; everything else runs as in evaluation. What only
    training runs, an auxiliary head say, is run after that. No parameter, buffer or mode of the model changes, only the
    quantizers.

    Args:
        gm: a quantized graph; its quantizers are changed.
        batches: several batches in any form that `nce_fx.batches` reads, on any device.

    Raises:
        QuantizeError: there is no batch, or an activation is not finite.
        InputError: the model does not take a batch.
    """
    evaluation, device, ops = _Observer(gm, training=False), device_of(gm), table_of(gm)
    runs = [evaluation, _Observer(gm, training=True)] if evaluation.misses else [evaluation]
    norms = [module for module in gm.modules() if module.training and ops.is_norm(module)]
    quantizers = [module for module in gm.modules() if isinstance(module, Quantizer)]
    own = {id(buffer) for quantizer in quantizers for buffer in quantizer.buffers()}
    buffers = [(buffer, buffer.clone()) for buffer in gm.buffers() if id(buffer) not in own]
    count = 0
    try:
        with evaluating(gm), torch.no_grad():
            for norm in norms:
                norm.training = True
            for count, batch in enumerate(counted(batches), start=1):
                for observer in runs:
                    observer.look_at(count, to_device(read(batch, gm)[0], device))
                    if len(runs) > 1:
                        _put_back(buffers)
    finally:
        _put_back(buffers)
    if not count:
        raise QuantizeError("no batches to calibrate on: give at least one, or None")
    for quantizer in quantizers:
        if isinstance(quantizer, ActivationQuantizer):
            quantizer.settle()


@torch.no_grad()
def _put_back(buffers: Iterable[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in buffers:
        buffer.copy_(value)


def quantized_value(quantizer: ActivationQuantizer, node: Node) -> str:
    """Return the name of the value in the float graph that the quantizer of a node quantizes."""
    return quantizer.replaces.name if quantizer.replaces is not None else node.all_input_nodes[0].name


def quantizers_by_value(quantized: GraphModule) -> dict[str, list[ActivationQuantizer]]:
    """Return by the name of a value in the float graph what quantizes it."""
    found: dict[str, list[ActivationQuantizer]] = {}
    for node in quantized.graph.nodes:
        module = called(quantized, node, ActivationQuantizer)
        if module is not None:
            found.setdefault(quantized_value(module, node), []).append(module)
    return found


@dataclass
class Observers:
    """The activation quantizers of a graph, shown the values of its float graph while that runs elsewhere."""

    quantized: GraphModule
    batches: int = 0
    """How many were shown."""
    _by_value: dict[str, list[ActivationQuantizer]] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # The float graph runs as in evaluation: where that misses a quantizer, all have a pass of their own.
        misses = _Observer(self.quantized, training=False).misses
        self._by_value = None if misses else quantizers_by_value(self.quantized)

    def see(self, values: Mapping[Node, Any]) -> None:
        """Look at what the nodes of the float graph gave for one batch.

        Raises:
            QuantizeError: an activation is not finite.
        """
        if self._by_value is None:
            return
        self.batches += 1
        for node, value in values.items():
            for quantizer in self._by_value.get(node.name, ()):
                _look(quantizer, value, self.batches, node.name)

    def settle(self, batches: Iterable[Any]) -> None:
        """Set the ranges; where nothing was shown, in a pass over ``batches``.

        Raises:
            QuantizeError: as `set_ranges` does.
        """
        if not self.batches or self._by_value is None:
            set_ranges(self.quantized, batches)
            return
        for quantizers in self._by_value.values():
            for quantizer in quantizers:
                quantizer.settle()


def carry_ranges(calibrated: GraphModule, gm: GraphModule) -> bool:
    """Give a rewritten network the ranges of the same network at its own widths; False where one of them is missing.

    Widening keeps every value, so its range. What was narrowed has to be trained again, and its range with it.
    """
    own = {path: module for path, module in gm.named_modules() if isinstance(module, ActivationQuantizer)}
    found = dict(calibrated.named_modules())
    if not own.keys() <= found.keys():
        return False
    for path, quantizer in own.items():
        quantizer.load_state_dict(found[path].state_dict())
        quantizer.origin = found[path].origin
    return True


class _Observer(Interpreter):
    """Runs the graph as one mode does, with quantizers that look on; in training those that evaluation has not."""

    batch = 0

    def __init__(self, gm: GraphModule, training: bool) -> None:
        super().__init__(gm)
        self.extra_traceback = False  # an error is one line, which says where
        self.choices = [(gm.get_submodule(str(node.target)), training) for node in gm.graph.nodes if is_by_mode(node)]
        self.idle = idle_in(gm, training)
        evaluated = runs_in(gm.graph.nodes, training=False) if training else ()
        self.seen = {str(node.target) for node in evaluated if node.op == "call_module"}

    @property
    def misses(self) -> bool:
        """Whether a quantizer is not reached in this mode."""
        return any(called(self.module, node, ActivationQuantizer) is not None for node in self.idle)

    def look_at(self, batch: int, inputs: tuple[Any, ...]) -> None:
        """Run one batch."""
        self.batch = batch
        for module, training in self.choices:
            module.training = training
        # A network may write to what it is given.
        copies = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)
        with on_a_batch(inputs):
            self.run(*copies, initial_env=dict(self.idle))

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module: nn.Module = self.module.get_submodule(str(target))
        if isinstance(module, WeightQuantizer):
            return args[0]
        if not isinstance(module, ActivationQuantizer):
            return super().call_module(target, args, kwargs)
        value: Tensor = args[0]
        if module.replaces is not None:
            value = value.relu()
        if target not in self.seen:
            _look(module, value, self.batch, str(target))
        return value


def _look(quantizer: ActivationQuantizer, value: Tensor, batch: int, place: str) -> None:
    if not math.isfinite(float(value.detach().sum())) and not bool(value.isfinite().all()):
        raise QuantizeError(
            f"calibration batch {batch}: the value at {place} is not finite; look at the data and the weights"
        )
    quantizer.observe(value)
