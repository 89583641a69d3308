"""From layers and activations to channel groups: the noise that falls when a group widens.

A group carries the noise of the weights that produce its channels, and of every activation that its channels are part
of, in proportion to its share of the activation's channels.
"""

from collections.abc import Iterable

from nce_fx.passes.analysis.channels.graph import AxisWidth, ChannelGraph
from nce_fx.passes.analysis.sensitivity.scores import Scores


def by_group(channels: ChannelGraph, scores: Scores) -> dict[str, float]:
    """Return the sensitivity of every group, in the order of the channel graph."""
    result = {group.id: 0.0 for group in channels}
    for group in channels:
        result[group.id] += sum(scores.weight.get(_layer_of(path, scores), 0.0) for path in group.producers)
    for name, value in scores.activation.items():
        for group_id, share in group_shares(channels, channels.value_axes.get(name, ())).items():
            result[group_id] += share * value
    return result


def group_shares(channels: ChannelGraph, axes: Iterable[AxisWidth]) -> dict[str, float]:
    """Return which groups a value's channels belong to, and how much of its channel axis each has."""
    widths = tuple(part.width for part in channels.parts)
    shares: dict[str, float] = {}
    for axis in axes:
        length = axis.at(widths)
        for part, factor in axis.terms:
            group = channels.parts[part].group
            shares[group] = shares.get(group, 0.0) + float(factor) * widths[part] / max(length, 1)
    return shares


def _layer_of(path: str, scores: Scores) -> str:
    """Producers are layers by path, or parameters by path; a layer is named without a trailing ``.weight``."""
    return path if path in scores.weight else path.removesuffix(".weight")
