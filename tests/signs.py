"""Whether what the graph says of signs is so where it runs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter

from nce_fx.ops.sign import never_negative


class _Signs(Interpreter):
    """Says of which nodes the graph shows that they are never negative, though they are."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.gm = gm
        self.wrong: list[str] = []

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        numbers = isinstance(value, torch.Tensor) and value.is_floating_point() and n.op.startswith("call_")
        if numbers and never_negative(self.gm, n) and not bool((value >= 0).all()):
            self.wrong.append(n.name)
        return value


def wrong_signs(gm: GraphModule, inputs: tuple[Any, ...]) -> list[str]:
    """Return the nodes of which the graph says that they are never negative, and that are; the graph is not changed."""
    signs = _Signs(copy.deepcopy(gm))
    torch.manual_seed(0)
    with torch.no_grad():
        signs.run(*copy.deepcopy(inputs))
    return signs.wrong
