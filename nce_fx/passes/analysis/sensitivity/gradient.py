"""Rounding error times gradient, squared: the second order of the loss, all layers at once from one backward pass.

Rounding moves a tensor by d, and with it the model's output z by about J d. What that costs is 1/2 (J d)' H (J d), with
H the curvature of the loss at the output. Writing H = E[u u'], it is the mean over random u of

    1/2 (g . d)^2,   g = J' u,

and g is what one backward pass from z with u gives, for every tensor of the graph at once, sample by sample:

    fisher         u = dloss/dz: the empirical Fisher; needs labels, vanishes where the data is fitted exactly
    gauss_newton   u = sqrt(p) e - p (sqrt(p) . e), p = softmax(z / T), e random signs: E[u u'] = diag(p) - p p', which
                   is the curvature of the cross entropy, and of the KL divergence of the output; needs no labels

Rounding to 2 bits moves outputs far: where p is nearly 1 the curvature at p says nothing of what lies beyond. T = 1.5
lets such samples count: on the study's ResNet-20, of 1.5, 2, 3 and 4 it ranked layers best against the truth.

The error of a layer's weights is seen at its output, as what the layer gives with rounded weights minus what it gave.
First-order terms (g . d itself) are left out: on networks that are trained they are small and mostly noise, and ranked
layers worse (``benchmarks/sensitivity.py``).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from nce_fx.errors import InputError
from nce_fx.passes.analysis.sensitivity.probe import DETACHED, Batch, Probe, Values
from nce_fx.passes.analysis.sensitivity.scores import Scores
from nce_fx.progress import Progress
from nce_fx.tasks.outputs import first_tensor

Directions = Callable[[Any, Any], list[Tensor]]
"""(output, target) -> vectors u at the first tensor of the output, one row a sample."""

DRAWS = 2
"""Random vectors per batch of the Gauss-Newton metric."""


def fisher(probe: Probe, batches: Sequence[Batch], progress: Progress) -> Scores:
    """The empirical Fisher: half the squared product of each sample's gradient with the rounding error."""

    def slopes(output: Any, target: Any) -> list[Tensor]:
        at = probe.seen(output)
        loss = probe.loss_of(output, target)
        if not loss.requires_grad:
            raise InputError("the loss does not depend on the model's output: is it detached?")
        # The loss is a mean over the batch: times its size, row n is the gradient of sample n's own loss.
        samples = len(at) if at.dim() else 1
        return [torch.autograd.grad(loss * samples, at, retain_graph=True)[0]]

    return _squared_products(probe, batches, progress, slopes, lambda output: None)


def gauss_newton(probe: Probe, batches: Sequence[Batch], progress: Progress) -> Scores:
    """The Gauss-Newton curvature of the output's divergence along the rounding error; without labels.

    Raises:
        InputError: the curvature of the loss at the output is not known.
    """
    root = probe.loss.root
    if root is None:
        raise InputError(f"the gauss_newton metric does not know the curvature of {probe.loss.name}: choose fisher")
    generator = torch.Generator().manual_seed(0)

    def draws(output: Any, target: Any) -> list[Tensor]:
        at, axis = first_tensor(output).detach(), probe.axis_of_classes(output, target)
        return [root(at, random_signs(at.shape, generator).to(at), axis) for _ in range(DRAWS)]

    def skip(shape: torch.Size) -> None:
        for _ in range(DRAWS):
            random_signs(shape, generator)

    return _squared_products(probe, batches, progress, draws, skip)


def random_signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return random signs, 1 and -1."""
    return torch.randint(0, 2, shape, generator=generator) * 2 - 1


def _squared_products(
    probe: Probe,
    batches: Sequence[Batch],
    progress: Progress,
    directions: Directions,
    skip: Callable[[torch.Size], None],
) -> Scores:
    """Measure along directions; ``skip`` draws those of a batch that another process measures, whose output has that
    shape."""
    layers = {layer.node: layer for layer in probe.layers if layer.node not in probe.idle}
    keys = [("weight", layer.path) for layer in probe.layers]
    keys += [("activation", node.name) for node in probe.activations]
    total = dict.fromkeys(keys, 0.0)
    samples = draws = done = 0
    shape, shard = torch.Size(), probe.shard
    if shard.processes > 1:
        shape = probe.settle(batches[0][0]).shape
    for index, (inputs, target) in enumerate(batches):
        if not shard.owns(index):
            skip(torch.Size((shape[0] * _length(inputs) // _length(batches[0][0]), *shape[1:])))
            continue
        values, wanted = _tracked(probe, inputs, (*layers, *probe.activations))
        probe.show(values)
        with torch.enable_grad():
            output, size = probe.seen(values[probe.output]), probe.size(inputs, values[probe.output])
        samples += size
        with torch.no_grad():
            errors = {node: _output_error(probe, values, node, layer.path) for node, layer in layers.items()}
            roundings = {node: probe.rounded(node, values[node]) - values[node] for node in probe.activations}
        with torch.enable_grad():
            vectors = directions(values[probe.output], target)
        draws = len(vectors)
        for vector in vectors:
            gradients = torch.autograd.grad(output, wanted, vector, retain_graph=True, allow_unused=True)
            found = dict(zip((*layers, *probe.activations), gradients, strict=True))
            moved: dict[tuple[str, str], Tensor] = {}
            for node, layer in layers.items():
                key = ("weight", layer.path)
                moved[key] = moved.get(key, 0) + _per_sample(found[node], errors[node], size)
            for node in probe.activations:
                moved["activation", node.name] = _per_sample(found[node], roundings[node], size)
            for key, product in moved.items():
                total[key] += 0.5 * float(product.double().square().sum())
        progress(done := done + 1, shard.count(len(batches)))
    total, samples = shard.sums(total), int(shard.sums({"samples": samples})["samples"])
    scores = Scores(forwards=2.0 + 2.0 * draws)
    for (kind, name), value in total.items():
        (scores.weight if kind == "weight" else scores.activation)[name] = value / (samples * draws)
    return scores


def _length(inputs: Any) -> int:
    return len(first_tensor(inputs))


def _tracked(probe: Probe, inputs: Any, wanted: Sequence[Node]) -> tuple[Values, list[Tensor]]:
    """Run a batch; return every value, and those at the wanted nodes, all part of one autograd graph.

    Raises:
        InputError: the output does not depend on any of them.
    """
    asked = set(wanted)

    def watch(node: Node, value: Any) -> Any:
        if node in asked and isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad:
            return value.detach().requires_grad_()
        return value

    with torch.enable_grad():
        values = probe.forward(inputs, watch)
    with torch.enable_grad():
        depends = probe.seen(values[probe.output]).requires_grad
    if not depends:
        raise InputError(DETACHED)
    return values, [first_tensor(values[node]) for node in wanted]


def _output_error(probe: Probe, values: Values, node: Node, path: str) -> Tensor:
    """What a layer gives with rounded weights minus what it gave."""
    with probe.holding(probe.weights[path]):
        rounded = first_tensor(probe.run(node, probe.again(values, {}, probe.computing[node])))
    error: Tensor = rounded - first_tensor(values[node])
    return error


def _per_sample(gradient: Tensor | None, error: Tensor, samples: int) -> Tensor:
    """Sum everything that belongs to a sample; tensors without a batch axis are shared out evenly."""
    if gradient is None:
        return error.new_zeros(samples)
    product = (gradient * error).detach()
    if product.dim() and len(product) == samples:
        return product.flatten(1).sum(1) if product.dim() > 1 else product
    return (product.sum() / samples).expand(samples)
