"""The weight bits of the first and the last layers, planned together with all widths.

Their usual 8 bits are dear where images are small: an 8-bit stem can have more than half of a network's bit operations,
and then no group near it may widen. So each of 2, 4 and 8 bits is tried for the weights of the first layers, and for
those of the last, and widths are planned for every pair, within the budget of the network as it was asked for. Least
is the noise of all groups together, pinned ones included. What the ends read keeps its bits.

Noise is a sum over tensors, so a pair's follows from what the first layers and the last ones change by themselves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from torch.fx import GraphModule

from nce_fx.analyses import Analyses
from nce_fx.errors import BudgetError
from nce_fx.passes.analysis.channels.graph import ChannelGraph
from nce_fx.passes.analysis.sensitivity import SensitivityReport, analyze_sensitivity
from nce_fx.passes.planning import Budget, plan_widths
from nce_fx.passes.planning.budget import budget_at
from nce_fx.passes.transform.quantize import QuantSpec, quantize
from nce_fx.passes.transform.quantize.quantizable_layers import find_quantizable_layers
from nce_fx.plan import WidthPlan
from nce_fx.progress import counted
from nce_fx.tasks import LossLike

BITS = (2, 4, 8)
WAYS = ("given", "plan")
"""What may be said of the ends' bits: as given, or planned."""


def plan_ends(
    given: Analyses,
    budget: Budget,
    batches: Iterable[Any] | None,
    metric: str | None,
    limits: Mapping[str, Any],
    loss: LossLike = None,
) -> tuple[Analyses, dict[str, int]]:
    """Return the analyses at the bits of the ends whose plan has the least noise, and these bits by layer.

    Args:
        given: at the bits as they are, which stay where no others are better; the budget's ratios are of its cost.
        budget: the limits.
        batches: that sensitivity is measured on, as `analyze_sensitivity` takes them, and ``metric`` and ``loss``.
        metric: how.
        limits: of widths, as `plan_widths` takes them.
        loss: what the network is trained for.

    Raises:
        BudgetError: no plan, whatever the bits, meets the budget.
    """
    gm, channels = given.graph_module, given.channels
    first, last = _ends(gm, given.spec)
    asked = {**first, **last}
    reports: dict[frozenset[tuple[str, int]], SensitivityReport] = {frozenset(asked.items()): given.sensitivity}

    def quantized(bits: Mapping[str, int]) -> GraphModule:
        changed = {path: {"weight_bits": number} for path, number in bits.items() if asked[path] != number}
        spec = replace(given.spec, overrides={**given.spec.overrides, **changed})
        return quantize(gm, spec, like=given.uniform)

    def changed(bits: Mapping[str, int]) -> SensitivityReport:
        key = frozenset({**asked, **bits}.items())
        if key not in reports:
            reports[key] = analyze_sensitivity(
                gm, batches, metric, channels=channels, quantized=quantized(bits), loss=loss
            )
        return reports[key]

    best, chosen, least, refused = given, asked, float("inf"), ""
    # The bits as given come first: others have to be better.
    pairs = [(first, last), *((_all(first, a), _all(last, b)) for a, b in product(BITS, BITS))]
    for ours, theirs in counted(pairs):
        bits, together = {**ours, **theirs}, _together(given.sensitivity, changed(ours), changed(theirs))
        same = replace(given, sensitivity=together)
        tried = same if bits == asked else given.quantized_as(quantized(bits), together)
        try:
            found = plan_widths(channels, tried.cost, together, budget_at(tried.cost, given.cost, budget), **limits)
        except BudgetError as error:
            refused = refused or str(error)
            continue
        total = total_noise(channels, together, found)
        if total < least:
            best, chosen, least = tried, bits, total
    if least == float("inf"):
        raise BudgetError(refused)
    return best, chosen


def total_noise(channels: ChannelGraph, sensitivity: SensitivityReport, plan: WidthPlan) -> float:
    """Return the noise of all groups at a plan's widths, of those that cannot change as well."""
    exponent = float(plan.source.get("exponent", 1.0))
    ratios = {group.id: plan.widths.get(group.id, group.width) / group.width for group in channels if group.width}
    return float(sum(max(sensitivity.by_group.get(name, 0.0), 0.0) * r**-exponent for name, r in ratios.items()))


def _ends(gm: GraphModule, spec: QuantSpec) -> tuple[dict[str, int], dict[str, int]]:
    """Return the layers at the start, and the others at the end, that have quantized weights: path -> bits.

    A layer whose bits the user gives by name keeps them.
    """
    ends = (layer for layer in find_quantizable_layers(gm, spec) if layer.end and layer.bits.weight is not None)
    found = [layer for layer in ends if not any(fnmatchcase(layer.path, name) for name in spec.overrides)]
    first = {layer.path: int(layer.bits.weight or 0) for layer in found if layer.first}
    return first, {layer.path: int(layer.bits.weight or 0) for layer in found if layer.path not in first}


def _all(layers: Mapping[str, int], bits: int) -> dict[str, int]:
    return dict.fromkeys(layers, bits)


def _together(base: SensitivityReport, first: SensitivityReport, last: SensitivityReport) -> SensitivityReport:
    """Return a report where both ends are as in the report of each."""
    nodes = {
        path: replace(
            node,
            weight=first.by_node[path].weight + last.by_node[path].weight - node.weight,
            activation=first.by_node[path].activation + last.by_node[path].activation - node.activation,
        )
        for path, node in base.by_node.items()
    }
    groups = {name: first.by_group[name] + last.by_group[name] - value for name, value in base.by_group.items()}
    return replace(base, by_node=nodes, by_group=groups)
