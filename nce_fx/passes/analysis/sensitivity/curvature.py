"""Hutchinson's trace of the Hessian times the size of the rounding error (HAWQ-V2, arXiv 1911.03852).

For a tensor of n elements that rounding moves by d: ``1/2 trace(H) / n x |d|^2``, with ``trace(H) = E[v' H v]`` over
random signs v. All tensors share every product: with independent signs the blocks between tensors average out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nce_fx.errors import InputError
from nce_fx.passes.analysis.sensitivity.gradient import random_signs
from nce_fx.passes.analysis.sensitivity.probe import DETACHED, Batch, Probe
from nce_fx.passes.analysis.sensitivity.scores import Scores
from nce_fx.passes.analysis.sensitivity.shard import Shard
from nce_fx.progress import Progress

PROBES = 4
"""Random vectors per batch."""


def hessian(probe: Probe, batches: Sequence[Batch], progress: Progress) -> Scores:
    """Average curvature times squared error, of weights and of activations."""
    names = [
        (layer.path, path) for layer in {layer.path: layer for layer in probe.layers}.values() for path in layer.weights
    ]
    weights = [probe.gm.get_parameter(path) for _, path in names]
    curvature = [0.0] * (len(names) + len(probe.activations))
    squared = [
        float((probe.weights[layer][path] - probe.gm.get_parameter(path)).detach().square().mean())
        for layer, path in names
    ]
    squared += [0.0] * len(probe.activations)
    samples, done, shard = 0, 0, probe.shard
    for number, (inputs, target) in probe.mine(batches):
        # Of each batch its own, whoever measures it.
        generator = torch.Generator().manual_seed(number)
        with torch.enable_grad():
            values = probe.forward(inputs, lambda node, value: _tracked(value) if node in probe.activations else value)
            probe.show(values)
            count = probe.size(inputs, values[probe.output])
            loss = probe.loss_of(values[probe.output], target) * count
            if not loss.requires_grad:
                raise InputError(DETACHED)
            tensors = [*weights, *(values[node] for node in probe.activations)]
            gradients = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
        samples += count
        for index, node in enumerate(probe.activations, len(names)):
            value = values[node].detach()
            squared[index] += float((probe.rounded(node, value) - value).square().mean()) * count
        for _ in range(PROBES):
            signs = [random_signs(tensor.shape, generator).to(tensor) for tensor in tensors]
            pairs = [(g, v) for g, v in zip(gradients, signs, strict=True) if g is not None and g.requires_grad]
            products = torch.autograd.grad(
                [g for g, _ in pairs], tensors, [v for _, v in pairs], retain_graph=True, allow_unused=True
            )
            for index, (product, sign) in enumerate(zip(products, signs, strict=True)):
                if product is not None:
                    curvature[index] += float((product.detach() * sign).sum()) / PROBES
        progress(done := done + 1, shard.count(len(batches)))
    curvature, squared[len(names) :] = _summed(shard, curvature), _summed(shard, squared[len(names) :])
    samples = int(*_summed(shard, [samples]))
    scores = Scores(forwards=3.0 + 6.0 * PROBES)
    for index, (layer, _) in enumerate(names):
        # The mean squared error times the trace is |d|^2 trace / n.
        rise = 0.5 * max(curvature[index] / samples, 0.0) * squared[index]
        scores.weight[layer] = scores.weight.get(layer, 0.0) + rise
    for index, node in enumerate(probe.activations, len(names)):
        scores.activation[node.name] = 0.5 * max(curvature[index] / samples, 0.0) * squared[index] / samples
    return scores


def _summed(shard: Shard, values: Sequence[float]) -> list[float]:
    return list(shard.sums(dict(enumerate(values))).values())


def _tracked(value: Tensor) -> Tensor:
    return value if value.requires_grad else value.detach().requires_grad_()
