"""ChannelTensor: a tensor without values that knows which channel each of its elements belongs to.

It travels through the user's own graph in the place of activations, parameters and buffers. Ops that own weights, and
those whose meaning is lost below them, are caught as torch functions; everything else arrives here as ATen ops.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nce_fx.ids.labels import NEUTRAL, Label, constant
from nce_fx.ids.rule_interface import NotFollowedError, RuleInterface

_CPU = torch.device("cpu")


class ChannelTensor(torch.Tensor):
    """An activation (one label) or a parameter (one label for each of its axes, made when first asked for)."""

    _run: weakref.ref[RuleInterface]
    """Whoever keeps values keeps their run, which has them all; a value that kept its run would keep all others alive,
    in a cycle that Python cannot see: PyTorch holds what a view is of where no garbage collector looks."""
    path: str | None
    """For a parameter: its path, the first one where modules share it."""
    alias: str | None
    """For a parameter: the path by which it was reached."""
    exact: bool
    """Whether the value is a parameter itself, moved at most: what is done to it can be done to the parameter."""
    elementwise: bool
    """Whether each entry is computed from what parameters have at its place alone: its copies are copies of it."""
    _labels: tuple[Label, ...] | None
    _size: torch.Size
    _type: torch.dtype

    @staticmethod
    def __new__(
        cls,
        run: RuleInterface,
        shape: Sequence[int],
        labels: tuple[Label, ...] | None,
        dtype: torch.dtype = torch.float32,
        path: str | None = None,
        exact: bool = False,
        alias: str | None = None,
        elementwise: bool = False,
    ) -> "ChannelTensor":
        size = torch.Size(shape)
        value: ChannelTensor = torch.Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=_CPU)
        value._run = weakref.ref(run)
        value._size, value._type = size, dtype
        value.path, value.alias = path, alias
        value.exact = exact or path is not None
        value.elementwise = elementwise or value.exact
        value._labels = labels
        return value

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @property
    def run(self) -> RuleInterface:
        """The run of the graph that the value is of."""
        run = self._run()
        assert run is not None
        return run

    # Asked for at every turn, and PyTorch would go through its dispatcher for each answer.

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        """The shape of the tensor that this stands for."""
        return self._size

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The type of the tensor that this stands for."""
        return self._type

    @property
    def data(self) -> torch.Tensor:
        """The tensor without its gradient."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        """Give the tensor another value, which no label follows."""
        raise NotFollowedError("it assigns to the data of a tensor")

    def dim(self) -> int:
        """Return the number of axes."""
        return len(self._size)

    @property
    def labels(self) -> tuple[Label, ...]:
        """One label for an activation, one per axis for a parameter or what was computed from parameters alone."""
        if self._labels is None:
            assert self.path is not None
            labels = self.run.parameter_labels(self.path, tuple(self.shape))
            self._labels = labels or (constant(NEUTRAL, ()),)
        return self._labels

    @labels.setter
    def labels(self, labels: tuple[Label, ...]) -> None:
        self._labels = labels

    @property
    def labelled(self) -> bool:
        """Whether anything has asked for the labels; those of a parameter are made then."""
        return self._labels is not None

    @property
    def is_parameter(self) -> bool:
        """Whether the value comes from parameters alone, so that its axes are labelled one by one."""
        return self._labels is None or len(self._labels) != 1 or self.path is not None

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"ChannelTensor({tuple(self.shape)})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        run = found_run([args, list((kwargs or {}).values())])
        if run is not None:
            return run.called(func, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        run = found_run([args, list((kwargs or {}).values())])
        assert run is not None
        return run.dispatched(func, args, kwargs or {})


def activation(run: RuleInterface, label: Label, dtype: torch.dtype = torch.float32) -> ChannelTensor:
    """Wrap a label as a value."""
    return ChannelTensor(run, label.shape, (label,), dtype)


def channel_tensors(args: Any) -> list[ChannelTensor]:
    """Return the channel tensors among arguments, in order, through lists and tuples."""
    if isinstance(args, ChannelTensor):
        return [args]
    if isinstance(args, list | tuple):
        return [value for arg in args for value in channel_tensors(arg)]
    return []


def found_run(args: Any) -> RuleInterface | None:
    """Return the run that the arguments belong to; ``None`` where no channel tensor is among them."""
    values = channel_tensors(args)
    return values[0].run if values else None


def run_of(args: Any) -> RuleInterface:
    """Return the run that the arguments belong to."""
    return channel_tensors(args)[0].run


@dataclass(frozen=True, slots=True)
class ChannelParameter:
    """A parameter or buffer by its path alone, for rules of layers that nothing else is done with."""

    run: RuleInterface
    path: str
    alias: str
    exact: bool = True
    is_parameter: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter in this run."""
        return self.run.shape_of(self.alias)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameter."""
        return self.run.tensors.tensors[self.alias].dtype

    @property
    def labels(self) -> tuple[Label, ...]:
        """One label for each axis."""
        return self.run.parameter_labels(self.path, self.shape)


Weight = ChannelTensor | ChannelParameter


@dataclass(frozen=True, slots=True)
class ChannelLayer:
    """A module of a graph whose parameters are channel parameters: what the rule of a plain layer is given."""

    run: RuleInterface
    module: Any
    path: str
    given: Any = None
    """Parameter -> what stands in its place where the layer is called with a weight from outside."""

    def parameter(self, name: str) -> Any:
        """Return a parameter or buffer of the module; ``None`` for one that it does not have."""
        if self.given and name in self.given:
            return self.given[name]
        path = f"{self.path}.{name}"
        canonical = self.run.tensors.canonical.get(path)
        return getattr(self.module, name) if canonical is None else ChannelParameter(self.run, canonical, path)
