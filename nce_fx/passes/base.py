"""What a pass is: a frozen value with a name and one method, from graph to graph.

A pass never changes the graph it is given. Its options are its dataclass fields. Pipelines are passes, so they nest.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from torch.fx import GraphModule

from nce_fx.errors import NceFxError, PassError


@dataclass(frozen=True)
class PassResult:
    """The graph a pass returns, and whether it differs from the one that went in."""

    graph_module: GraphModule
    modified: bool


class Pass(ABC):
    """One step from graph to graph; subclasses are frozen dataclasses that implement ``apply``."""

    @property
    def name(self) -> str:
        """The kebab-case name, derived from the class: ``ResizeChannels`` is ``resize-channels``."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(self).__name__).lower()

    @abstractmethod
    def apply(self, gm: GraphModule) -> PassResult:
        """Return a new graph, or the given one and ``modified=False``; never change the given one."""

    def ensures(self, result: PassResult) -> None:
        """Raise where the *result* is not a sound graph; called after every ``apply``."""
        result.graph_module.graph.lint()

    def __call__(self, gm: GraphModule | PassResult) -> PassResult:
        """Apply the pass and check its result.

        Raises:
            PassError: the pass failed in a way it did not put into words itself.
        """
        before = gm.graph_module if isinstance(gm, PassResult) else gm
        try:
            result = self.apply(before)
            self.ensures(result)
        except NceFxError:
            raise
        except Exception as error:
            raise PassError(f"pass {self.name} failed: {type(error).__name__}: {error}") from error
        return result


@dataclass(frozen=True)
class Pipeline(Pass):
    """Passes applied in order; ``between`` is called with each pass and its result (to print, time or verify)."""

    passes: tuple[Pass, ...]
    between: Callable[[Pass, PassResult], None] | None = field(default=None, compare=False)

    def apply(self, gm: GraphModule) -> PassResult:
        """Apply the passes in order.

        Raises:
            PassError: a pass failed; the message names it and the passes before it.
        """
        result = PassResult(gm, modified=False)
        for index, step in enumerate(self.passes):
            try:
                after = step(result)
            except PassError as error:
                done = ", ".join(p.name for p in self.passes[:index]) or "nothing"
                raise PassError(f"{error} (after {done})") from error
            result = PassResult(after.graph_module, result.modified or after.modified)
            if self.between is not None:
                self.between(step, after)
        return result
