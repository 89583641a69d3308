"""What rules of operations say of channels and ask about them: the interface that both runs of a graph implement.

The first run (``Tie``) records what is said, the second (``Check``) demands that it still holds at new widths.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from nce_fx.errors import where
from nce_fx.ids.labels import Ids, Label, Layout, core, line_of, memory_key, varies
from nce_fx.ids.space import IdSpace, ParameterAxis, Tensors

_ASIDE = 1000
"""More steps than one node has."""


class NotFollowedError(RuntimeError):
    """What an operation such as ``x.unsqueeze_(0)`` does cannot be followed; the message says what to write instead."""


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


@dataclass(frozen=True, slots=True)
class Statement:
    """What a rule said or asked at one step of one node in the first run, such as the labels of ``x + back(y)``."""

    fact: Fact
    labels: tuple[Label, ...]
    axis: ParameterAxis | None = None
    choice: int = 0
    """Which of a weight's labels runs along its output axis."""
    answer: Any = None
    """To a question, such as whether an axis has channels."""


class RuleInterface(ABC):
    """What a rule can call on a run, such as ``run.tie(a, b)``; what it says is about the node that the run is at."""

    space: IdSpace
    tensors: Tensors
    producers: dict[ParameterAxis, tuple[str, Node]]
    """Axes that make channels, of those that have been met so far: the path of the weight that makes them first, and
    the node."""
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
        """Demand that two labels of one shape name the same channels, element by element: the sides of ``x + y``."""

    @abstractmethod
    def block(self, label: Label, axis: int) -> None:
        """Demand that the channels along an axis are copied together, those of one head: ``run.block(label, 1)``."""

    @abstractmethod
    def uniform(self, label: Label, axis: int) -> None:
        """Demand that the channels along an axis are copied together, equally often: ``x.mean(1)`` goes over them."""

    @abstractmethod
    def still(self, label: Label, axis: int) -> None:
        """Demand that an axis along which ``alternates`` holds stays as it is: what is left of ``x.mean(1)`` has it."""

    @abstractmethod
    def rigid(self, label: Label, axis: int) -> None:
        """Demand that the channels along an axis are copied together and meet no copy: ``x.sum(1)`` goes over them."""

    @abstractmethod
    def root(self, label: Label, axis: int, exponent: float) -> None:
        """Demand what ``uniform`` does; what the operation returns is divided by a power of the number of copies.

        ``exponent``: -0.5 of a root of a sum of squares, 0.5 of what is divided by one.
        """

    @abstractmethod
    def contract(self, a: torch.Tensor, b: torch.Tensor, by_root: bool) -> None:
        """Say that two lines of channels are multiplied and summed in pairs, as in ``q @ k.T``: copies share a product.

        Args:
            a: the ids of one line, int64 (channels,).
            b: those of the other.
            by_root: the sum is divided by the root of its length.
        """

    def share(self, label: Label, axis: int, meet: Callable[[], None]) -> None:
        """Let a parameter, such as a LayerNorm's scale, meet channels: by ``meet()``, or as one for all heads."""
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
        """Demand that channels keep their number: ``run.pin(run.ids(core(label)), "it is written to a file")``.

        Args:
            ids: of the channels, int64 of any shape.
            reason: what the user is told.
            at: the node that is named in it; the one at hand by default.
        """

    @abstractmethod
    def produce(self, weight: Any, axis: int) -> torch.Tensor:
        """Return the ids, int64 (channels,), of what an axis of a weight makes: axis 0 of ``conv.weight``."""

    @abstractmethod
    def consume(self, weight: Any, axis: int, line: torch.Tensor, data: tuple[Any, int] | None = None) -> None:
        """Say that an axis of a weight is summed against channels, divided among copies: 1 of ``linear.weight``.

        Args:
            weight: the weight.
            axis: of it.
            line: the ids of the channels.
            data: the value that has them, and along which axis, counted from the end: where the weight cannot be
                divided, the value is multiplied by shares.
        """

    @abstractmethod
    def follow(self, parameter: Any, axis: int, line: torch.Tensor) -> None:
        """Say that an axis of a parameter has one entry for each of these channels: axis 0 of ``norm.bias``."""

    @abstractmethod
    def constant(self, label: Label, axis: int, plain: torch.Tensor) -> torch.Tensor:
        """Return a constant of the graph at the length of the channels that it meets one by one along an axis.

        Such as the (8,) that ``torch.linspace(0, 1, 8)`` is beside 8 channels: (12,) beside 12, gathered as they are.
        """

    def repeated(self, x: Any, plain: torch.Tensor, axis: int) -> torch.Tensor:
        """Return a constant that the graph repeats along an axis, an index for each head, at the length of ``x`` there.

        Raises:
            RuntimeError: its entries along the axis are not one that is repeated.
        """
        raise RuntimeError(f"an index of shape {tuple(plain.shape)} picks of {tuple(x.shape)}")

    @abstractmethod
    def blocks(self, x: Any, label: Label, axis: int, size: int) -> tuple[Label, Ids, Ids]:
        """Say that channels come in blocks that are copied whole, as the groups of ``F.group_norm(x, 4)``.

        Args:
            x: the value that has them.
            label: its label.
            axis: along which they lie.
            size: channels in one block, as traced.

        Returns:
            The label as it is then; of each block the old index, and which of its copies it is: int64 (blocks,) each.
        """

    @abstractmethod
    def grouped(self, weight: Any, axis: int, size: int, first: torch.Tensor, blocks: tuple[Ids, Ids]) -> torch.Tensor:
        """Return the ids of what a grouped layer makes: for each input block a block of the axis of ``conv.weight``.

        Args:
            weight: the weight.
            axis: of the channels that it makes.
            size: channels in one block of these, as traced.
            first: the first input id of each block, int64 (blocks,).
            blocks: what ``blocks`` returned: old index and copy of each.
        """

    @abstractmethod
    def grouped_outputs(self, weight: Any, size: int, first: torch.Tensor, blocks: tuple[Ids, Ids]) -> torch.Tensor:
        """Return output ids that no axis of the weight holds, a block for each input block: ``conv_transpose2d``.

        The arguments are those of ``grouped``.
        """

    @abstractmethod
    def cut(self, labels: tuple[Label, ...], rows: bool = False) -> None:
        """Say that an axis was cut, as by ``x.chunk(2, 1)``, or folded into rows: copies may have to lie apart."""

    @abstractmethod
    def original(self, value: Any) -> Any:
        """Return what a value was in the first run: ``run.original(x.shape[1])`` is the width as traced."""

    @abstractmethod
    def number(self, values: tuple[Any, ...], label: Label) -> None:
        """Demand that numbers in the computation, such as the 64 of ``x / 64``, stay: a width would change one."""

    @abstractmethod
    def decide(self, word: str, labels: Sequence[Label], question: Callable[[], Any], axis: int | None = None) -> Any:
        """Return the answer of the first run, such as ``True`` for "varies": both runs take one path through the rules.

        Args:
            word: what is asked, in one word.
            labels: what it is asked of.
            question: finds the answer, in the first run.
            axis: along which axis it is asked.
        """

    @abstractmethod
    def laid_out(self, label: Label, moving: frozenset[int]) -> Layout:
        """Return what a view such as ``x.flatten(1)`` does with the axes of a label; ``moving``: of channels."""

    def viewed(self, shape: Sequence[int]) -> None:
        """Say that a view is about to make this shape, such as ``(2, 8, -1)`` once -1 is known."""
        return

    @abstractmethod
    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Say that an attribute or argument has this value now: ``run.attribute(weight, "out_features", 64)``.

        Args:
            owner: a parameter of the module that has it; ``None`` for the module or function that the run is at.
            name: one of the row's ``follows``.
            value: a number or a shape.
        """

    @abstractmethod
    def parameter_labels(self, path: str, shape: tuple[int, ...]) -> tuple[Label, ...]:
        """Return a label for each axis of a parameter, of its shape: two for ``linear.weight``."""

    @abstractmethod
    def ids(self, label: torch.Tensor) -> torch.Tensor:
        """Return the channel ids in a label without the copies, int64: from ``2`` on; 0 is fixed, 1 carries none."""

    def apply(
        self, rule: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], users: bool = False
    ) -> Any:
        """Call a rule and return what it returns; what it says and asks is known to be its own.

        Args:
            rule: such as ``nce_fx.ops.rules.weighted.linear``.
            args: of the rule.
            kwargs: of the rule.
            users: whether the rule is the user's own, which messages then name.
        """
        before = self.rule, self.within
        self.rule = getattr(rule, "__qualname__", type(rule).__name__)
        self.within = self.rule if users else self.within
        try:
            return rule(*args, **kwargs)
        finally:
            self.rule, self.within = before

    def fact(self, word: str, labels: Sequence[Label] = (), axis: int | None = None) -> Fact:
        """Return what the rule at work says or asks, such as ``Fact("linear", "tie", (2, 2))``."""
        return Fact(self.rule, word, tuple([label.dim() for label in labels]), axis, self.within)

    @abstractmethod
    def overwritten(self, value: Any) -> None:
        """Keep what a value was until now, where that is asked for later: ``x.add_(1)`` writes into it."""

    # What rules ask.

    @abstractmethod
    def heads_alike(self, *labels: tuple[Label, int]) -> bool:
        """Say whether all lines along an axis of each ``(label, axis)`` are one line: heads that share a parameter."""

    def computes(self) -> None:
        """Say that the current node does more than move values: ``F.conv2d`` does, ``x.view`` does not."""
        if self.node is not None:
            self.computing.add(self.node)

    def varies(self, label: Label, axis: int) -> bool:
        """Say whether ids differ along an axis of a label: along axis 1 of the output of ``conv2d``."""
        return bool(self.decide("varies", (label,), lambda: varies(label, axis), axis))

    def carries(self, label: Label, axis: int) -> bool:
        """Say whether an axis has channels: several, or the one of ``nn.Conv2d(3, 1, 1)``."""
        return bool(self.decide("carries", (label,), lambda: varies(label, axis) or self._only(label, axis), axis))

    def _only(self, label: Label, axis: int) -> bool:
        if label.shape[axis] != 1 or not label.numel():
            return False
        owners = self.space.owners(self.ids(core(label)).reshape(-1).numpy())
        return bool((self.space.widths(owners) == 1).all())

    def alternates(self, label: Label, axis: int) -> bool:
        """Say whether channels recur along an axis, as along the rows that ``F.pixel_shuffle(x, 2)`` makes: 0, 2, 0, 2.

        Neighbours there are different channels, but the axis is one of places, which no width makes longer.
        """
        return bool(self.decide("alternates", (label,), lambda: self._alternates(label, axis), axis))

    def _alternates(self, label: Label, axis: int) -> bool:
        ids = self.ids(line_of(label, axis)).numpy()
        _, counts = np.unique(ids, return_counts=True)
        return len(counts) > 1 and int(counts.min()) > 1 and ids[0] != ids[1]

    def is_single(self, label: Label, axis: int) -> bool:
        """Say whether an axis has one entry, as the last two of an output of ``F.adaptive_avg_pool2d(x, 1)``."""
        return bool(self.decide("is_single", (label,), lambda: label.shape[axis] == 1, axis))

    def channel_axes(self, label: Label) -> tuple[int, ...]:
        """Return the axes along which neighbours are different channels of one producer: ``(1,)`` behind a convolution.

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
        """Return the ids along one axis of a label at index 0 of all others, int64 ``(label.shape[axis],)``."""

    @abstractmethod
    def called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do to channels what a torch function does that was called on them, such as ``F.linear``."""

    @abstractmethod
    def dispatched(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do to channels what an ATen op does, such as ``aten.add.Tensor``."""

    @abstractmethod
    def shape_of(self, path: str) -> tuple[int, ...]:
        """Return the shape of a parameter in this run, by its path: ``run.shape_of("layer1.0.conv1.weight")``."""

    @property
    def here(self) -> Node:
        """The node at hand, such as ``conv1`` of a traced graph."""
        assert self.node is not None
        return self.node

    def message(self) -> str:
        """Return how messages name the node at hand, ``conv1 (conv1) at model.py:12``; empty between nodes."""
        return "" if self.node is None else where(self.node)

    @staticmethod
    def describe(node: Node) -> str:
        """Return how messages name a node: ``conv1 (conv1) at model.py:12``."""
        return where(node)
