"""What a user gives as text on the command line, made real: arguments, shapes, bits, an example input."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nce_fx.batches import read
from nce_fx.data import Data
from nce_fx.errors import InputError
from nce_fx.export.pt2 import read_program
from nce_fx.models import INPUT_SHAPES, MODELS
from nce_fx.models.loading import load_model, load_weights
from nce_fx.nearest import nearest
from nce_fx.passes.transform.quantize import QuantSpec
from nce_fx.plain_text import read_json

PUBLISHED_RECIPE = "published"
"""The one recipe with a name: the quantizers of `nce_fx.passes.transform.quantize.PUBLISHED`, and a distillation."""


def one_process(command: str) -> None:
    """Check that this process is alone: every process of torchrun would write the same folder.

    Raises:
        InputError: it is one of several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"`nce-fx {command}` runs in one process: run it without torchrun, then train its folder on many devices"
            " by `torchrun ... -m nce_fx retrain DIR`"
        )


def build_model(reference: str, args: Mapping[str, Any], *, seed: int, weights: Path | None = None) -> nn.Module:
    """Build the model that a reference names, in eval mode; the same seed gives the same random weights.

    Raises:
        InputError: the model cannot be found or built, or the weights do not fit.
        ArtifactError: the weights cannot be read.
    """
    torch.manual_seed(seed)
    if reference.endswith(".pt2"):
        if args:
            raise InputError(f"model {reference!r}: is a program that was exported already and takes no arguments")
        model: nn.Module = read_program(reference)
    else:
        model = load_model(reference, args)
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def example_input(reference: str, shape: str | None, data: Data | None, args: Mapping[str, Any]) -> Tensor:
    """Return one example batch: of the shape given, the data's, or the built-in model's own.

    Raises:
        InputError: no shape is known, it does not parse, or it is not the data's.
    """
    own = tuple(data.input_shape) if data is not None else INPUT_SHAPES.get(reference)
    if shape is not None:
        sizes = parse_shape(shape)
        if data is not None and sizes[1:] != own:
            raise InputError(
                f"--input {shape} is not what {data.name} gives: 1x{shown(data.input_shape)}; leave it out"
            )
    elif own is not None:
        channels = args.get("in_channels", own[0]) if data is None else own[0]
        sizes = (1, int(channels), *own[1:])
    else:
        raise InputError(f"the input of {reference} is not known: give its shape, such as --input 1x3x224x224")
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0))


def example_inputs(
    reference: str, shape: str | None, data: Data | None, args: Mapping[str, Any], model: nn.Module
) -> Any:
    """Return inputs to trace a model with: one random batch, or a sample of data where that has others than images.

    Raises:
        InputError: as `example_input` does, or the data gives what the model does not take.
    """
    if data is not None and shape is None and reference not in MODELS:
        inputs, _ = read(data.batches(1, 1)[0], model)
        values = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
        if len(values) > 1 or not (isinstance(values[0], Tensor) and values[0].is_floating_point()):
            return inputs
    return (example_input(reference, shape, data, args),)


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the sizes of a shape such as ``1x3x224x224``.

    Raises:
        InputError: not a shape.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", text):
        raise InputError(f"--input {text} is not a shape: write batch x channels x height x width, such as 1x3x224x224")
    return tuple(int(size) for size in text.split("x"))


def parse_args(text: str | None, option: str = "--model-args") -> dict[str, Any]:
    """Return the fields of an option that is a JSON object.

    Raises:
        InputError: not a JSON object.
    """
    example = "'{\"num_classes\": 10}'"
    if option != "--model-args":
        example = f"'{{\"learning_rate\": 0.1}}', or {PUBLISHED_RECIPE}"
    try:
        args = read_json(text or "{}")
    except ValueError as error:
        hint = nearest(text or "", [PUBLISHED_RECIPE]) if option == "--recipe" else ""
        raise InputError(f"{option} is not JSON ({error}): write such as {example}{hint}") from error
    if not isinstance(args, dict):
        raise InputError(f"{option} is not a JSON object: write such as {example}")
    return args


def recipe_fields(text: str | None, published: Mapping[str, Any] | None = None, **own: Any) -> dict[str, Any]:
    """Return the fields of ``--recipe``, which has a name or is JSON, with those that options of their own give.

    Raises:
        InputError: not a JSON object, or a field whose own option says something else.
    """
    asked = dict(published or {}) if text == PUBLISHED_RECIPE else parse_args(text, "--recipe")
    for name, value in own.items():
        if name in asked and (asked[name] != value or type(asked[name]) is not type(value)):
            raise InputError(f"--recipe says {name} is {asked[name]!r}, its own option says {value!r}: give that one")
    return asked | own


def quant_spec(bits: int, override: Sequence[str] | None = None, **others: Any) -> QuantSpec:
    """Return the quantizers that the options name; ``others`` are more fields of the spec, such as ``exact=True``.

    Raises:
        InputError: bits outside 1 to 8, or an override that is not PATTERN=BITS.
        QuantizeError: an unknown name, or bits out of range elsewhere, or a negative ewgs.
    """
    if not 1 <= bits <= 8:
        raise InputError(f"--bits {bits} is outside 1 to 8: give 2, or another number of bits from 1 to 8")
    overrides: dict[str, int | str] = {}
    for text in override or ():
        pattern, found, value = text.rpartition("=")
        if not found or not (value.isdigit() or value == "float"):
            raise InputError(f"--override {text} is not PATTERN=BITS: write such as 'layer1.*=4' or 'fc=float'")
        overrides[pattern] = int(value) if value.isdigit() else value
    return QuantSpec(weight_bits=bits, activation_bits=bits, overrides=overrides, **others)


def shown(shape: tuple[int, ...]) -> str:
    """Return a shape as it is written: ``3x224x224``."""
    return "x".join(str(size) for size in shape)
