"""Width choices as visible nodes of the graph: put in for a search, and taken out again.

<group>_width_draw ----+-----------------------+
                       |                       |
conv -> bn_width_norm -+-> relu -> <layer>_width_choice -> layer
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from torch.fx import GraphModule

from nce_fx.frozen import Frozen
from nce_fx.ids.space import ParameterAxis
from nce_fx.passes.transform.widths.choice_nodes import Mixing, insert_width_choices, remove_width_choices
from nce_fx.passes.transform.widths.choice_sites import Order, carried_order, channel_order
from nce_fx.passes.transform.widths.modules import WIDTH_MODULES, WidthChoice, WidthDraw, WidthNorm
from nce_fx.pipeline import Given, Pass
from nce_fx.pipeline.pass_options import from_plain, to_plain


@dataclass(frozen=True)
class _Options:
    """The options of `InsertWidthChoices` as plain data."""

    candidates: Mapping[str, tuple[int, ...]]
    order: tuple[tuple[str, int, tuple[int, ...]], ...] | None = None
    mixing: Mixing = "zeros"


@dataclass(frozen=True)
class InsertWidthChoices(Frozen, Pass):
    """Let the layers of a graph choose among widths of what they read; candidates by group, the widest last."""

    candidates: Mapping[str, tuple[int, ...]]
    order: Order | None = field(default=None, compare=False)
    """In which order channels go; as `resize` narrows by default."""
    mixing: Mixing = "zeros"

    def decide(self, gm: GraphModule) -> Self:
        """Write down the order, which the weights give."""
        return self if self.order is not None or not self.candidates else replace(self, order=channel_order(gm))

    def options(self, *, changed: bool = False) -> dict[str, Any]:
        """Return the options, the order as rows (path, axis, ranks)."""
        order = self.order
        rows = None if order is None else tuple((*axis, tuple(ranks.tolist())) for axis, ranks in order.items())
        return to_plain(_Options(self.candidates, rows, self.mixing), changed=changed)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Return the pass with these options."""
        found = from_plain(_Options, options, cls.name)
        rows = found.order
        order = None if rows is None else {(path, axis): np.array(ranks, np.int64) for path, axis, ranks in rows}
        return cls(found.candidates, order, found.mixing)

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
    """Take the width choices out again: the plain network at the widest candidates."""

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        """Return the plain graph."""
        if not any(isinstance(module, WIDTH_MODULES) for module in gm.modules()):
            return gm
        return remove_width_choices(gm)


__all__ = [
    "InsertWidthChoices",
    "Mixing",
    "Order",
    "ParameterAxis",
    "RemoveWidthChoices",
    "WidthChoice",
    "WidthDraw",
    "WidthNorm",
    "carried_order",
    "channel_order",
]
