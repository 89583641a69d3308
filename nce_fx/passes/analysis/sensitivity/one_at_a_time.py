"""The truth, slow: round one thing, run what depends on it again, and look at the output.

Everything before the rounded tensor is kept from one plain run and not run again, so a metric costs less than half of
one forward pass per thing rounded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nce_fx.errors import InputError
from nce_fx.passes.analysis.sensitivity.probe import Batch, Probe
from nce_fx.passes.analysis.sensitivity.scores import Scores
from nce_fx.passes.transform.fold import FoldBatchNorm
from nce_fx.progress import Progress
from nce_fx.tasks.outputs import first_tensor

Measure = Callable[[Any, Any], Callable[[Any], float]]
"""(undisturbed output, target) -> output -> what the disturbance costs, a mean over the batch."""

Weights = Mapping[str, Mapping[str, Tensor]]
"""Layer path -> parameter path -> weights."""


def loss_increase(probe: Probe, batches: Sequence[Batch], progress: Progress) -> Scores:
    """By how much the loss rises when one layer's weights, or one activation, is rounded."""

    def rise(before: Any, target: Any) -> Callable[[Any], float]:
        plain = probe.loss_of(before, target)
        return lambda output: float(probe.loss_of(output, target) - plain)

    return _one_by_one(probe, batches, progress, rise)


def kl(probe: Probe, batches: Sequence[Batch], progress: Progress) -> Scores:
    """Kullback-Leibler divergence of the disturbed output from the undisturbed one; needs no targets."""

    def divergence(before: Any, target: Any) -> Callable[[Any], float]:
        plain = _log_probabilities(first_tensor(before))

        def of(output: Any) -> float:
            disturbed = _log_probabilities(first_tensor(output))
            return float(F.kl_div(disturbed, plain, reduction="batchmean", log_target=True))

        return of

    return _one_by_one(probe, batches, progress, divergence)


def _log_probabilities(output: Tensor) -> Tensor:
    return F.log_softmax(output, dim=1 if output.dim() > 1 else 0)


@torch.no_grad()
def _one_by_one(probe: Probe, batches: Sequence[Batch], progress: Progress, measure: Measure) -> Scores:
    scores = Scores()
    probe, weights = _folded(probe, batches[0][0])
    by_weight = {layer.path: probe.readers_of_weights(layer) for layer in probe.layers}
    by_activation = {node: probe.after([node]) for node in probe.activations}
    work = {layer.node for layer in probe.working}
    scores.weight = dict.fromkeys(by_weight, 0.0)
    scores.activation = {node.name: 0.0 for node in by_activation}
    steps, done, samples = probe.shard.count(len(batches)) * (len(by_weight) + len(by_activation)), 0, 0
    for _, (inputs, target) in probe.mine(batches):
        values = probe.forward(inputs)
        size = probe.size(inputs, values[probe.output])
        samples += size
        cost = measure(values[probe.output], target)
        for path, stale in by_weight.items():
            with probe.holding(weights[path]):
                after = probe.again(values, {}, stale)
            scores.weight[path] += cost(after[probe.output]) * size
            progress(done := done + 1, steps)
        for node, stale in by_activation.items():
            after = probe.again(values, {node: probe.rounded(node, values[node])}, stale)
            scores.activation[node.name] += cost(after[probe.output]) * size
            progress(done := done + 1, steps)
    samples = int(probe.shard.sums({"samples": samples})["samples"])
    scores.weight = {path: value / samples for path, value in probe.shard.sums(scores.weight).items()}
    scores.activation = {name: value / samples for name, value in probe.shard.sums(scores.activation).items()}
    reruns = [*by_weight.values(), *by_activation.values()]
    scores.forwards = 1 + sum(len(work.intersection(stale)) for stale in reruns) / max(len(work), 1)
    return scores


def _folded(probe: Probe, inputs: Any) -> tuple[Probe, Weights]:
    """Return a probe that computes the same in fewer steps, and its layers' weights after rounding.

    A BatchNorm goes into the layer before it, once the layer's weights are rounded: its factor multiplies the levels.
    """
    exact = FoldBatchNorm()(probe.gm).graph_module
    folded = replace(probe, gm=exact, _roundings={})
    _lay_out(folded, inputs)
    weights = {
        layer.path: {path: torch.empty_like(exact.get_parameter(path)) for path in layer.weights}
        for layer in folded.layers
    }
    with probe.holding({path: value for own in probe.weights.values() for path, value in own.items()}):
        rounded = FoldBatchNorm()(probe.gm).graph_module
        for path, value in (item for own in weights.values() for item in own.items()):
            value.copy_(rounded.get_parameter(path))
    return folded, weights


def _lay_out(probe: Probe, inputs: Any) -> None:
    """Lay the convolutions' weights channels last where the graph gives the same: a CPU is then up to a third faster.

    What follows a convolution has its layout. A ``view`` may refuse it, and an op that looks at strides may answer
    otherwise.
    """
    kernels = [parameter for parameter in probe.gm.parameters() if parameter.dim() == 4]
    if not kernels:
        return
    plain = first_tensor(probe.forward(inputs)[probe.output])
    before = [kernel.data for kernel in kernels]
    for kernel in kernels:
        kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    try:
        other = first_tensor(probe.forward(inputs)[probe.output])
        same = bool((other - plain).abs().max() <= 1e-3 * plain.abs().max())
    except InputError:
        same = False
    if not same:
        for kernel, data in zip(kernels, before, strict=True):
            kernel.data = data
