"""Metrics that keep what they have seen, as those of torchmetrics do; what they raise is said in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nce_fx.errors import NceFxError, TrainingError, one_line


@runtime_checkable
class StatefulMetric(Protocol):
    """A metric that keeps what it has seen by itself."""

    def reset(self) -> object:
        """Forget what was seen."""

    def update(self, output: Any, target: Any, /) -> object:
        """Look at a batch."""

    def compute(self) -> Any:
        """Return one number, of all that was seen."""


@dataclass(frozen=True)
class Stateful:
    """Such a metric, and how it is called in messages."""

    name: str
    metric: StatefulMetric

    @property
    def synchronizes(self) -> bool:
        """Whether it adds up what several processes saw by itself, as torchmetrics' do; others are shown everything."""
        return bool(getattr(self.metric, "sync_on_compute", False))

    def begin(self, device: torch.device) -> None:
        """Forget what was seen; one that is a module goes where the outputs will be.

        Raises:
            TrainingError: it cannot, as from the other methods where it raises.
        """
        with _asking(f"the metric {self.name} cannot be reset"):
            if isinstance(self.metric, nn.Module):
                self.metric.to(device)
            self.metric.reset()

    def update(self, output: Any, target: Any) -> None:
        """Look at a batch."""
        with taking(self.name):
            self.metric.update(output, target)

    def compute(self) -> float:
        """Return one number, of all that was seen."""
        with _asking(f"the metric {self.name} cannot compute what it was shown"):
            value = self.metric.compute()
        return float(one_number(self.name, value, "of all that was seen"))


def one_number(name: str, value: Any, what: str) -> Tensor:
    """Return what a metric of the user's own says, in double precision; 0-dimensional.

    Raises:
        TrainingError: it is no number, or several.
    """
    try:
        number = torch.as_tensor(value)
    except Exception as error:
        kind = type(value).__name__
        raise TrainingError(f"the metric {name} gives a {kind}: it must give one number, {what}") from error
    if number.numel() != 1 or number.is_complex():
        said = "a complex number" if number.is_complex() else f"{number.numel()} numbers"
        raise TrainingError(f"the metric {name} gives {said}: it must give one, {what}")
    return number.reshape(()).double()


def taking(name: str) -> Any:
    """Say in one line what a metric raises on an output and a target."""
    return _asking(f"the metric {name} does not take this output and target")


@contextmanager
def _asking(said: str) -> Iterator[None]:
    try:
        yield
    except NceFxError:
        raise
    except Exception as error:
        raise TrainingError(f"{said}: {one_line(error)}") from error
