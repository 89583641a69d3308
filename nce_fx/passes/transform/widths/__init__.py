"""Width choices as visible nodes of the graph: put in for a search, and taken out again.

<group>_width_draw ----+-----------------------+
                       |                       |
conv -> bn_width_norm -+-> relu -> <layer>_width_choice -> layer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.fx import GraphModule

from nce_fx.frozen import freeze
from nce_fx.passes.analysis.channels.ids import Axis
from nce_fx.passes.transform.widths.insert import Mixing, insert_width_choices, remove_width_choices
from nce_fx.passes.transform.widths.modules import WIDTH_MODULES, WidthChoice, WidthDraw, WidthNorm
from nce_fx.passes.transform.widths.places import Order, carried_order, channel_order
from nce_fx.pipeline import Given, Pass


@dataclass(frozen=True)
class InsertWidthChoices(Pass):
    """Let the layers of a graph choose among widths of what they read; candidates by group, the widest last."""

    candidates: Mapping[str, tuple[int, ...]]
    order: Order | None = field(default=None, compare=False)
    mixing: Mixing = "zeros"

    def __post_init__(self) -> None:
        freeze(self)

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        """Return the graph with width choices.

        Raises:
            ChannelError: a width that a group cannot take, or one whose widest is not the graph's own.
        """
        if not self.candidates:
            return gm
        return insert_width_choices(gm, self.candidates, self.order, self.mixing)


@dataclass(frozen=True)
class RemoveWidthChoices(Pass):
    """The way back: the plain network at the widest candidates."""

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        """Return the plain graph."""
        if not any(isinstance(module, WIDTH_MODULES) for module in gm.modules()):
            return gm
        return remove_width_choices(gm)


__all__ = [
    "Axis",
    "InsertWidthChoices",
    "Mixing",
    "Order",
    "RemoveWidthChoices",
    "WidthChoice",
    "WidthDraw",
    "WidthNorm",
    "carried_order",
    "channel_order",
]
