"""The model and the data that a command's options name, built and loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from nce_fx.cli.options import NetworkOptions
from nce_fx.cli.parsing import build_model, example_inputs, parse_args
from nce_fx.cli.terminal import Terminal
from nce_fx.data import Data, load_data
from nce_fx.data.loaders import CALIBRATION_BATCHES, CALIBRATION_SIZE
from nce_fx.frozen import Frozen
from nce_fx.models.loading import arguments_for
from nce_fx.progress import begin, counted


@dataclass(frozen=True)
class Network(Frozen):
    """What a command works on: a model in eval mode, with what it was built from and is looked at with."""

    model: nn.Module
    args: Mapping[str, Any]
    """Of the model's callable."""
    data: Data | None
    inputs: Any
    """What it is traced with, in a tuple or by its names."""
    seed: int

    @cached_property
    def calibration(self) -> list[Any] | None:
        """The batches that sensitivity and the quantizers' first ranges come from."""
        return calibration(self.data, self.seed)


def network_of(job: NetworkOptions, reference: str, terminal: Terminal, *, strict: bool = False) -> Network:
    """Build the network that the options say, and load its data.

    Raises:
        InputError: the model or the data cannot be found or built, or they do not fit each other.
        ArtifactError: the weights cannot be read.
    """
    args = parse_args(job.model_args)
    with terminal.busy("read the data"):
        data = None if job.data is None else load_data(job.data, seed=job.seed, strict=strict)
    if data is not None:
        args = arguments_for(reference, args, data.input_shape, data.classes)
    with terminal.busy("build the model"):
        model = build_model(reference, args, seed=job.seed, weights=job.weights)
        inputs = example_inputs(reference, job.input_shape, data, args, model)
    return Network(model, args, data, inputs, job.seed)


def calibration(data: Data | None, seed: int) -> list[Any] | None:
    """Return the batches that sensitivity and the quantizers' first ranges come from."""
    if data is None:
        return None
    begin("read batches")
    return list(counted(data.batches(CALIBRATION_BATCHES, CALIBRATION_SIZE, seed), CALIBRATION_BATCHES))
