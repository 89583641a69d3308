"""What rules of operations say of channels and ask about them: the interface that both runs of a graph implement.

The first run (``Tie``) records what is said, the second (``Check``) demands that it still holds at new widths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.fx import Node

from nce_fx.errors import where
from nce_fx.ids.labels import Ids, Label, Layout, core, memory_key, varies
from nce_fx.ids.space import IdSpace, Tensors

_ASIDE = 1000
"""More steps than one node has."""


class NotFollowedError(RuntimeError):
    """What an operation does cannot be followed on channels; the message says why, and what to write instead."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What a rule said or asked at one step of a node; the second run knows by it that it stands at the same step.

    For example ``Fact("layer_norm", "uniform", (4,), 1)``: the rule of layer norms says of a label with four axes that
    a mean goes over axis 1.
    """

    rule: str
    word: str
    dims: tuple[int, ...] = ()
    """How many axes each label has that a question is about."""
    axis: int | None = None
    within: str = ""
    """The user's own rule that the rule was called by, itself where it is one; empty where there is none."""

    def __str__(self) -> str:
        about = f" of {' and '.join(f'{d} axes' for d in self.dims)}" if self.dims else ""
        along = "" if self.axis is None else f" along axis {self.axis}"
        return f"{self.word!r}{about}{along} (rule {self.rule})"


class RuleInterface(ABC):
    """What a rule can call on a run, such as ``run.tie(a, b)``; what it says is about the node that the run is at."""

    space: IdSpace
    tensors: Tensors
    node: Node | None
    step: int
    """How many meetings the current node has had: the two runs meet in the same order."""
    asked: int
    rule: str
    """The name of the rule at work; empty between rules."""
    within: str
    """The user's own rule that is at work, itself or through the operations it calls; empty where there is none."""
    _axes: dict[Any, tuple[tuple[int, ...], Label]]
    """The channel axes of every label that was asked for, by where it lies."""
    computing: set[Node]

    # What rules say.

    @abstractmethod
    def tie(self, a: Label, b: Label) -> None:
        """Demand that two labels of one shape mean the same channels, element by element."""

    @abstractmethod
    def block(self, label: Label, axis: int) -> None:
        """Demand that the channels along an axis are copied together."""

    @abstractmethod
    def uniform(self, label: Label, axis: int) -> None:
        """Demand that the channels along an axis are copied together, and equally often (a mean goes over them)."""

    @abstractmethod
    def rigid(self, label: Label, axis: int) -> None:
        """Demand that the channels along an axis are copied together and never meet a copy (a sum goes over them)."""

    @abstractmethod
    def contract(self, a: torch.Tensor, b: torch.Tensor, by_root: bool) -> None:
        """The channels of two lines are multiplied and summed in pairs: copies of a pair share its product.

        ``by_root``: the sum is divided by the root of its length.
        """

    def share(self, label: Label, axis: int, meet: Callable[[], None]) -> None:
        """A parameter meets the channels along an axis: as ``meet`` says, or as one that all heads share."""
        if any(other != axis for other in self.channel_axes(label)):
            self._share(label, axis, partial(self.apply, meet, (), {}))
        else:
            meet()

    @abstractmethod
    def _share(self, label: Label, axis: int, meet: Callable[[], None]) -> None:
        """The same where channels run along other axes too."""

    def _aside(self, step: int, meet: Callable[[], None]) -> None:
        """Let something meet with steps of its own, so that it may happen later in the first run."""
        before = self.step, self.asked
        self.step = self.asked = _ASIDE * (step + 1)
        meet()
        self.step, self.asked = before

    @abstractmethod
    def pin(self, ids: torch.Tensor, reason: str, at: Node | None = None) -> None:
        """Demand that these channels stay as they are."""

    @abstractmethod
    def produce(self, weight: Any, axis: int) -> torch.Tensor:
        """Return the ids of the output channels that an axis of a weight makes."""

    @abstractmethod
    def consume(self, weight: Any, axis: int, line: torch.Tensor) -> None:
        """An axis of a weight is summed against these channels: one entry for each, divided among copies."""

    @abstractmethod
    def follow(self, parameter: Any, axis: int, line: torch.Tensor) -> None:
        """An axis of a parameter has one entry for each of these channels."""

    @abstractmethod
    def blocks(self, x: Any, label: Label, axis: int, size: int) -> tuple[Label, Ids, Ids]:
        """Channels come in blocks of this size, copied whole; return the label, and each block's (old index, copy)."""

    @abstractmethod
    def grouped(self, weight: Any, axis: int, size: int, first: torch.Tensor, blocks: tuple[Ids, Ids]) -> torch.Tensor:
        """Return the output channels of a grouped op: for each input block, a block of the weight's axis."""

    @abstractmethod
    def grouped_outputs(self, weight: Any, size: int, first: torch.Tensor, blocks: tuple[Ids, Ids]) -> torch.Tensor:
        """Return output channels that no axis of the weight holds: a block of this size for each input block."""

    @abstractmethod
    def cut(self, labels: tuple[Label, ...], rows: bool = False) -> None:
        """An axis was cut, or folded into rows: a producer may have to lay its copies out piece by piece."""

    @abstractmethod
    def original(self, value: Any) -> Any:
        """Return what this value was in the first run."""

    @abstractmethod
    def number(self, values: tuple[Any, ...], label: Label) -> None:
        """Demand that numbers that enter the computation are the same: one computed from a width would change."""

    @abstractmethod
    def decide(self, word: str, labels: Sequence[Label], question: Callable[[], Any], axis: int | None = None) -> Any:
        """Return the answer that the first run gave: both runs take the same path through the rules.

        Args:
            word: what is asked, in one word.
            labels: what it is asked of.
            question: finds the answer, in the first run.
            axis: along which axis it is asked.
        """

    @abstractmethod
    def laid_out(self, label: Label, moving: frozenset[int]) -> Layout:
        """Return what a view does with the axes of a label: as in the first run, where one channel may be left."""

    @abstractmethod
    def viewed(self, shape: Sequence[int]) -> None:
        """A view is about to make this shape."""

    @abstractmethod
    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """A module attribute or function argument follows the widths."""

    @abstractmethod
    def parameter_labels(self, path: str, shape: tuple[int, ...]) -> tuple[Label, ...]:
        """Return a label for each axis of a parameter."""

    @abstractmethod
    def ids(self, label: torch.Tensor) -> torch.Tensor:
        """Return the channel ids in a label, without the copies."""

    def apply(
        self, rule: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], users: bool = False
    ) -> Any:
        """Call a rule; what it says and asks is known to come from it."""
        before = self.rule, self.within
        self.rule = getattr(rule, "__qualname__", type(rule).__name__)
        self.within = self.rule if users else self.within
        try:
            return rule(*args, **kwargs)
        finally:
            self.rule, self.within = before

    def fact(self, word: str, labels: Sequence[Label] = (), axis: int | None = None) -> Fact:
        """Return what the rule at work says or asks."""
        return Fact(self.rule, word, tuple([label.dim() for label in labels]), axis, self.within)

    @abstractmethod
    def overwritten(self, value: Any) -> None:
        """Keep what a value has been until now where that is asked for later: a node writes into it."""

    # What rules ask.

    @abstractmethod
    def heads_alike(self, *labels: tuple[Label, int]) -> bool:
        """Whether all lines along the axis of each label are one line of channels: heads that share a parameter."""

    def computes(self) -> None:
        """The current node does more than move values."""
        if self.node is not None:
            self.computing.add(self.node)

    def varies(self, label: Label, axis: int) -> bool:
        """Say whether ids differ along an axis of a label."""
        return bool(self.decide("varies", (label,), lambda: varies(label, axis), axis))

    def carries(self, label: Label, axis: int) -> bool:
        """Say whether an axis has channels: several, or the one of a producer of one channel."""
        return bool(self.decide("carries", (label,), lambda: varies(label, axis) or self._only(label, axis), axis))

    def _only(self, label: Label, axis: int) -> bool:
        if label.shape[axis] != 1 or not label.numel():
            return False
        owners = self.space.owners(self.ids(core(label)).reshape(-1).numpy())
        return bool((self.space.widths(owners) == 1).all())

    def is_single(self, label: Label, axis: int) -> bool:
        """Say whether an axis has one entry."""
        return bool(self.decide("is_single", (label,), lambda: label.shape[axis] == 1, axis))

    def channel_axes(self, label: Label) -> tuple[int, ...]:
        """Return the axes along which neighbours are different channels of one producer.

        An axis along which ids differ only because tensors were joined (a class token before patches) is not one.
        A producer of one channel has no neighbours of its own, so its channel counts wherever it is joined.
        """
        axes: tuple[int, ...] = self.decide("channel_axes", (label,), lambda: self._channel_axes(label))
        return axes

    def _channel_axes(self, label: Label) -> tuple[int, ...]:
        key = memory_key(label)
        if key not in self._axes:
            # What was looked at is kept, or another label could come to lie in its place.
            self._axes[key] = self._find_channel_axes(label), label
        return self._axes[key][0]

    def _find_channel_axes(self, label: Label) -> tuple[int, ...]:
        moving = [axis for axis in range(label.dim()) if varies(label, axis)]
        if not moving:
            return ()
        ids = self.ids(core(label)).numpy()
        owners = self.space.owners(ids)
        single = self.space.widths(owners) == 1
        axes = []
        for axis in moving:
            before, after = (slice(None),) * axis + (slice(-1),), (slice(None),) * axis + (slice(1, None),)
            own = (owners[before] == owners[after]) & (owners[before] >= 0)
            if bool(((own | single[before] | single[after]) & (ids[before] != ids[after])).any()):
                axes.append(axis)
        return tuple(axes)

    @abstractmethod
    def line(self, label: Label, axis: int) -> torch.Tensor:
        """Return the ids along one axis of a label at the first index of all others."""

    @abstractmethod
    def called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do to channels what a torch function does that was called on them."""

    @abstractmethod
    def dispatched(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do to channels what an ATen op does."""

    @abstractmethod
    def shape_of(self, path: str) -> tuple[int, ...]:
        """Return the shape of a parameter in this run."""

    def message(self) -> str:
        """Return how messages name the node at hand."""
        return "" if self.node is None else where(self.node)

    @staticmethod
    def describe(node: Node) -> str:
        """Return how messages name a node."""
        return where(node)
