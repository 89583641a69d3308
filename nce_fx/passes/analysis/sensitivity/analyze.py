"""One function, one table of metrics."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from nce_fx.arguments import checked
from nce_fx.batches import gathered, read
from nce_fx.devices import check_values, device_of, same_sums, to_device
from nce_fx.errors import InputError
from nce_fx.nearest import nearest
from nce_fx.passes.analysis.channels.graph import ChannelGraph
from nce_fx.passes.analysis.sensitivity.curvature import hessian
from nce_fx.passes.analysis.sensitivity.gradient import fisher, gauss_newton
from nce_fx.passes.analysis.sensitivity.noise import Bits, Noise, Point, noise_in, real_noise
from nce_fx.passes.analysis.sensitivity.one_at_a_time import kl, loss_increase
from nce_fx.passes.analysis.sensitivity.probe import Batch, Probe, Watch
from nce_fx.passes.analysis.sensitivity.report import NodeSensitivity, SensitivityReport, by_group
from nce_fx.passes.analysis.sensitivity.scores import Scores
from nce_fx.passes.analysis.sensitivity.shard import ALONE, Shard
from nce_fx.passes.analysis.sensitivity.weights import sqnr, sqnr_activation
from nce_fx.passes.transform.quantize import QuantSpec, quantize, weight_bits_of
from nce_fx.progress import Progress, advance
from nce_fx.registry import Registry
from nce_fx.tasks import LossLike, loss_named
from nce_fx.tensor_file import digest


@dataclass(frozen=True)
class Metric:
    """A way to estimate what noise costs."""

    measure: Callable[[Probe, Sequence[Batch], Progress], Scores]
    needs_data: bool
    says: str


METRICS: Registry[Metric] = Registry(
    "metrics",
    {
        "sqnr": Metric(sqnr, False, "noise over signal of the weights; no data"),
        "sqnr_activation": Metric(sqnr_activation, True, "noise over signal of weights and activations; one forward"),
        "gauss_newton": Metric(
            gauss_newton, True, "curvature of the output along the rounding error; no labels, one pass"
        ),
        "fisher": Metric(fisher, True, "squared gradient along the rounding error; labels, one pass"),
        "hessian": Metric(hessian, True, "curvature (Hutchinson) times squared rounding error"),
        "kl": Metric(kl, True, "divergence of the output, one tensor rounded at a time; slow"),
        "loss": Metric(loss_increase, True, "rise of the loss, one tensor rounded at a time; slow"),
    },
    lambda value: isinstance(value, Metric),
    lambda metric: metric.says,
)
"""Name -> metric, cheapest first."""

WITH_DATA = "gauss_newton"
"""What is used where data is given and no metric is named."""
WITHOUT_DATA = "sqnr"
WITHOUT_CURVATURE = "fisher"
"""What is used where the curvature of the loss at the output is not known: of the model's or the user's own."""


@checked
def analyze_sensitivity(
    gm: GraphModule,
    batches: Iterable[Any] | None = None,
    metric: str | None = None,
    bits: Bits | QuantSpec = 2,
    *,
    channels: ChannelGraph | None = None,
    quantized: GraphModule | None = None,
    loss: LossLike = None,
    noise: Noise | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> SensitivityReport:
    """Return how much low-precision noise hurts, per layer (weights and activations apart) and per channel group.

    The model is run in eval mode on a copy; its mode, gradients and buffers stay as they are. Under a running engine
    of several processes each is given the same batches, measures its share, and returns the scores of all.

    Args:
        gm: a traced graph.
        batches: several batches in any form that `nce_fx.batches` reads. Not needed by metrics on weights alone.
        metric: a name in ``METRICS``, on the command line ``--sensitivity``; by default the gradient metric with data,
            the weights' own noise without.
        bits: of weights and activations, 1 to 8, rounded by SAWB and PACT; or per layer path, where layers left out
            stay in float; or a `QuantSpec`: what `nce_fx.quantize` will insert, where and at the bits that it will.
        channels: the channel analysis; made here where not given.
        quantized: ``gm`` as `nce_fx.quantize` makes it, where that is there; goes before ``bits``.
        loss: a name of `nce_fx.tasks.LOSSES`, ``package.module:callable``, or ``loss(output, target)``, a mean over the
            batch; cross entropy of the first output by default.
        noise: what rounding does to a tensor; that of the quantizers by default.
        progress: called with (steps done, steps in all); by default whoever watches, see `nce_fx.progress`.
        watch: called with what every node gave, batch by batch, by metrics that run the plain network over all of them
            (those that need data, but for ``kl`` and ``loss``) in one process.

    Raises:
        InputError: no such metric, no data where it is needed, weights or results that are not finite, or batches
            that the model or the loss does not take.
    """
    given = [read(batch, gm) for batch in gathered(batches)]
    criterion = loss_named(loss)
    with_data = WITH_DATA if criterion.root is not None else WITHOUT_CURVATURE
    name = metric or (with_data if given else WITHOUT_DATA)
    if name not in METRICS:
        raise InputError(f"no sensitivity metric {name!r}: choose one of {', '.join(METRICS)}{nearest(name, METRICS)}")
    if criterion.is_the_models and name == "kl":
        raise InputError("the kl metric compares outputs, and the model gives losses: choose fisher or loss")
    if METRICS[name].needs_data and not given:
        weight_only = ", ".join(other for other, entry in METRICS.items() if not entry.needs_data)
        raise InputError(f"the {name} metric needs data: give batches, or choose {weight_only}")
    if isinstance(bits, QuantSpec) or quantized is not None:
        quantized = quantized or quantize(gm, bits)  # type: ignore[arg-type]
        bits, noise = weight_bits_of(quantized), noise or noise_in(quantized)
    for number in (bits,) if isinstance(bits, int) else bits.values():
        if not 1 <= number <= 8:
            raise InputError(f"{number} bits: choose 1 to 8")
    if channels is None:
        from nce_fx.passes.analysis.channels import analyze_channels

        channels = analyze_channels(gm)
    check_values(gm, "a sensitivity")
    shard = Shard.of(len(given)) if METRICS[name].needs_data else ALONE
    probe = Probe.of(gm, noise or real_noise(bits), criterion, shard, watch)
    device = device_of(gm)
    ready = [(to_device(inputs, device), to_device(target, device)) for inputs, target in given]
    with torch.random.fork_rng(devices=[]), same_sums(gm, given[:1]):
        torch.manual_seed(0)
        scores = METRICS[name].measure(probe, ready, progress or advance)
    return replace(_report(probe, channels, scores, name, bits), batches=_described(given))


def _report(probe: Probe, channels: ChannelGraph, scores: Scores, metric: str, bits: Bits) -> SensitivityReport:
    for name, value in (*scores.weight.items(), *scores.activation.items()):
        if not math.isfinite(value):
            raise InputError(
                f"the {metric} sensitivity of {name} is not finite ({value}): look for weights or inputs so large that"
                " activations overflow, or choose another metric"
            )
    nodes: dict[str, NodeSensitivity] = {}
    for layer in probe.layers:
        read = sum(scores.activation.get(value.name, 0.0) for value in layer.inputs)
        before = nodes[layer.path].activation if layer.path in nodes else 0.0
        nodes[layer.path] = NodeSensitivity(scores.weight.get(layer.path, 0.0), before + read)
    if probe.noise.points is not None:
        scores = replace(scores, activation=_by_value(probe.noise.points, scores.activation))
    return SensitivityReport(metric, bits, nodes, by_group(channels, scores), scores.forwards)


def _by_value(points: Iterable[Point], activation: Mapping[str, float]) -> dict[str, float]:
    """Return scores by the value that is rounded; one that is rounded twice, at two numbers of bits, has the sum."""
    result: dict[str, float] = {}
    for point in points:
        result[point.value] = result.get(point.value, 0.0) + activation.get(point.name, 0.0)
    return result


def _described(batches: Sequence[Batch]) -> dict[str, Any]:
    """Return what tells these batches from others, for plans to say which data they come from."""
    if not batches:
        return {}
    tensors: dict[str, Tensor] = {}
    samples = 0
    for index, batch in enumerate(batches):
        values = [value for value in tree_leaves(batch) if isinstance(value, Tensor)]
        samples += next((len(value) for value in values if value.dim()), 0)
        tensors |= {f"{index}.{place}": value for place, value in enumerate(values)}
    return {"batches": len(batches), "samples": samples, "sha256": digest(tensors)}
