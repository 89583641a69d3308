"""Tracing a graph again, as a pass: the same nodes, with the shapes that they have at other inputs."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import GraphModule

from nce_fx.pipeline import Given, Pass
from nce_fx.signature import call_of
from nce_fx.tracing import trace


@dataclass(frozen=True)
class TraceAgain(Pass):
    """Give a graph the shapes that it has at other inputs; what `nce_fx.trace` does with one that is given to it."""

    name: ClassVar[str] = "trace"
    inputs: tuple[dict[str, Any], ...]
    """Their signature: ``{"tensor": [1, 3, 32, 32], "dtype": "float32"}``."""

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        """Return the graph, which shares its parameters with the one that was given."""
        return trace(gm, call_of(list(self.inputs)))
