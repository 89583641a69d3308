"""Noise over signal of the rounded tensors themselves; nothing is known of what follows them.

For a tensor t and its rounded form q: ``|q - t|^2 / |t|^2``, the reciprocal of the signal-to-quantization-noise ratio.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nce_fx.passes.analysis.sensitivity.probe import Batch, Probe
from nce_fx.passes.analysis.sensitivity.scores import Scores
from nce_fx.progress import Progress


def sqnr(probe: Probe, batches: Sequence[Batch], progress: Progress) -> Scores:
    """Noise over signal of the weights alone; no data."""
    scores = Scores()
    for done, (path, rounded) in enumerate(probe.weights.items(), 1):
        noise = sum(float((q - probe.gm.get_parameter(name)).detach().square().sum()) for name, q in rounded.items())
        signal = sum(float(probe.gm.get_parameter(name).detach().square().sum()) for name in rounded)
        scores.weight[path] = _ratio(noise, signal)
        progress(done, len(probe.weights))
    return scores


@torch.no_grad()
def sqnr_activation(probe: Probe, batches: Sequence[Batch], progress: Progress) -> Scores:
    """Noise over signal of the weights, and of the activations over the batches: one forward pass."""
    scores = sqnr(probe, batches, lambda done, total: None)
    noise, signal = dict.fromkeys(probe.activations, 0.0), dict.fromkeys(probe.activations, 0.0)
    shard, done = probe.shard, 0
    for _, (inputs, _target) in probe.mine(batches):
        values = probe.forward(inputs)
        probe.show(values)
        for node in probe.activations:
            value: Tensor = values[node]
            noise[node] += float((probe.rounded(node, value) - value).square().sum())
            signal[node] += float(value.square().sum())
        progress(done := done + 1, shard.count(len(batches)))
    noise, signal = shard.sums(noise), shard.sums(signal)
    scores.activation.update({node.name: _ratio(noise[node], signal[node]) for node in probe.activations})
    scores.forwards = 1.0
    return scores


def _ratio(noise: float, signal: float) -> float:
    return noise / signal if signal > 0 else 0.0
