"""Calibration: one pass over data sets the range of every activation quantizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter
from torch.nn.modules.batchnorm import _NormBase

from nce_fx.errors import QuantizeError
from nce_fx.quantizers import ActivationQuantizer, Quantizer, WeightQuantizer


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
    the batch if the graph is in training mode, its running ones else; everything else runs as in evaluation. No
    parameter, buffer or mode of the model changes, only the quantizers.

    Args:
        gm: a quantized graph; its quantizers are changed.
        batches: inputs, or pairs (inputs, target); inputs are a tensor or a tuple of tensors.

    Raises:
        QuantizeError: there is no batch, or an activation is not finite.
    """
    observer = _Observer(gm)
    modes = {module: module.training for module in gm.modules()}
    quantizers = [module for module in gm.modules() if isinstance(module, Quantizer)]
    own = {id(buffer) for quantizer in quantizers for buffer in quantizer.buffers()}
    buffers = [(buffer, buffer.clone()) for buffer in gm.buffers() if id(buffer) not in own]
    count = 0
    try:
        for module in gm.modules():
            module.training = modes[module] and isinstance(module, _NormBase)
        with torch.no_grad():
            for count, batch in enumerate(batches, start=1):
                observer.batch = count
                observer.run(*inputs_of(batch))
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    if not count:
        raise QuantizeError("no batches to calibrate on: give at least one, or None")
    for quantizer in quantizers:
        if isinstance(quantizer, ActivationQuantizer):
            quantizer.settle()


def inputs_of(batch: Any) -> tuple[Any, ...]:
    """Return the model's inputs in a batch: a tensor, a tuple of inputs, or a pair (inputs, target)."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        batch = batch[0]
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


class _Observer(Interpreter):
    """Runs the graph with quantizers that look on."""

    batch = 0

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module: nn.Module = self.module.get_submodule(str(target))
        if isinstance(module, WeightQuantizer):
            return args[0]
        if not isinstance(module, ActivationQuantizer):
            return super().call_module(target, args, kwargs)
        value: Tensor = args[0]
        if module.replaces is not None:
            value = value.relu()
        if not math.isfinite(float(value.sum())) and not bool(value.isfinite().all()):
            raise QuantizeError(
                f"calibration batch {self.batch}: the value at {target} is not finite; look at the data and the weights"
            )
        module.observe(value)
        return value
