"""What a pass is: a frozen value with a name, options and one method, from graph to graph.

    @dataclass(frozen=True)
    class Scale(Pass):
        \"\"\"Multiply what the model returns.\"\"\"

        factor: float = 2.0

        def apply(self, gm: GraphModule, given: Given) -> GraphModule:
            result = copy.deepcopy(gm)
            ...
            result.recompile()
            return result

    gm = Scale(factor=3.0)(gm).graph_module

Options are the dataclass's fields, plain data. Data that a pass only looks at (batches, ranges) is `Given` to it.
"""

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self

from torch import nn
from torch.fx import GraphModule

from nce_fx.errors import NceFxError, PassError
from nce_fx.pipeline.contract import Snapshot, check_sound
from nce_fx.pipeline.history import HISTORY, Step, continued, settings_of
from nce_fx.pipeline.pass_options import from_plain, to_plain
from nce_fx.up_to_date import bring_up_to_date

Property = Callable[[GraphModule], None]
"""Something that graphs have or have not, such as `in_float`: raises an `NceFxError` where one has it not."""


@dataclass(frozen=True)
class Given:
    """What a pass is given beside the graph, such as ``Given(batches)``: for values, never for nodes."""

    batches: Iterable[Any] | None = None
    """In any form that `nce_fx.batches` reads."""
    like: GraphModule | None = None
    """The same network quantized at other widths, whose ranges are taken."""
    fresh: nn.Module | None = None
    """The model with new random weights, which new ones are drawn from."""


NOTHING = Given()


@dataclass(frozen=True)
class PassResult:
    """The graph that a pass returned, and whether it differs from the one that went in."""

    graph_module: GraphModule
    modified: bool


Between = Callable[["Pass", GraphModule, PassResult], None]
"""Called between passes, to print, time or verify (`nce_fx.pipeline.verify`)."""


class Pass(ABC):
    """One step from graph to graph; subclasses are frozen dataclasses that implement ``apply``."""

    name: ClassVar[str]
    """In kebab case, for people and for histories; by default the class's name so written."""
    requires: ClassVar[tuple[Property, ...]] = ()
    """What a graph must be before."""
    ensures: ClassVar[tuple[Property, ...]] = ()
    """What the *result* is."""
    keeps: ClassVar[Literal["interface", "function"]] = "interface"
    """What stays: the form of what the model returns, or its values in evaluation mode too, to rounding."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__.lstrip("_")).lower()

    @abstractmethod
    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        """Return a new graph, or the given one where there is nothing to do; never change the given one.

        What nodes, modules and shapes the result has must follow from the options and the graph, not from weights: a
        network that is loaded is made again from a model of other weights. See ``decide``.
        """

    def decide(self, gm: GraphModule) -> Self:
        """Return this pass with whatever it would decide from the values of the graph written into its options.

        It is what is applied, and what a history repeats. A pass that looks at no values has nothing to do here.
        """
        return self

    def options(self, *, changed: bool = False) -> dict[str, Any]:
        """Return the options as JSON values; with ``changed`` those only that are not as by default.

        Raises:
            PassError: one is not plain data.
        """
        return to_plain(self, changed=changed)

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of the options: the dataclass's fields."""
        return [entry.name for entry in fields(cls)]  # type: ignore[arg-type]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Return the pass with these options.

        Raises:
            PassError: an option that is unknown, missing or of another type.
        """
        return from_plain(cls, options, cls.name)

    def __call__(self, gm: GraphModule | PassResult, given: Given = NOTHING) -> PassResult:
        """Apply the pass, check what it did, and write it into the history of the result.

        Raises:
            PassError: it failed in a way it did not put into words itself, changed its input, or made no sound graph.
        """
        before = gm.graph_module if isinstance(gm, PassResult) else gm
        bring_up_to_date(before)
        for holds in self.requires:
            holds(before)
        seen = Snapshot(before)
        try:
            decided = self.decide(before)
            after: Any = decided.apply(before, given)
        except NceFxError:
            raise
        except Exception as error:
            raise PassError(f"pass {self.name} failed: {type(error).__name__}: {error}") from error
        changed = seen.difference(Snapshot(before))
        if changed is not None:
            raise PassError(f"pass {self.name} changed {changed} of the graph it was given: let it work on a deep copy")
        if not isinstance(after, GraphModule):
            raise PassError(
                f"pass {self.name} returned a {type(after).__name__}: its apply has to return a GraphModule"
            )
        check_sound(after, self.name)
        for holds in self.ensures:
            holds(after)
        if after is before or seen.difference(Snapshot(after)) is None:
            return PassResult(after, modified=False)
        if "inputs" not in after.meta:
            after.meta = {**before.meta, **after.meta}  # A graph module that was built anew has lost them.
        after.meta[HISTORY] = continued(before).then(_step(decided, after))
        return PassResult(after, modified=True)


def source_of(kind: type[Pass]) -> str | None:
    """Return where the class of a pass is, ``package.module:Class``; ``None`` for nce-fx's own, which have a name."""
    module = kind.__module__
    if module.startswith("nce_fx."):
        return None
    if module.startswith("nce_fx_user_"):  # Of a file that no import finds, see `nce_fx.callables`.
        module = str(sys.modules[module].__file__)
    return f"{module}:{kind.__qualname__}"


def _step(decided: Pass, after: GraphModule) -> Step:
    from nce_fx.plan import model_fingerprint

    kind = type(decided)
    source = source_of(kind)
    graph = model_fingerprint(after)
    try:
        return Step(kind.name, decided.options(), graph, source, settings_of(after))
    except PassError as error:
        return Step(kind.name, None, graph, source, problem=f"pass {kind.name} cannot be replayed: {error}")


@dataclass(frozen=True)
class Pipeline:
    """Passes applied in order, pipelines among them; ``between`` is called with each pass, its input and its result."""

    passes: "tuple[Pass | Pipeline, ...]"
    between: Between | None = field(default=None, compare=False)

    @property
    def steps(self) -> tuple[Pass, ...]:
        """The passes, those of inner pipelines in their places."""
        inner = (each.steps if isinstance(each, Pipeline) else (each,) for each in self.passes)
        return tuple(step for steps in inner for step in steps)

    def __call__(self, gm: GraphModule | PassResult, given: Given = NOTHING) -> PassResult:
        """Apply the passes in order.

        Raises:
            PassError: a pass failed; the message names it and the passes before it.
        """
        result = gm if isinstance(gm, PassResult) else PassResult(gm, modified=False)
        for index, step in enumerate(self.steps):
            try:
                after = step(result, given)
            except PassError as error:
                done = ", ".join(p.name for p in self.steps[:index]) or "nothing"
                raise PassError(f"{error} (after {done})") from error
            before = result.graph_module
            result = PassResult(after.graph_module, result.modified or after.modified)
            if self.between is not None:
                self.between(step, before, after)
        return result
