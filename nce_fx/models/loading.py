"""Models and weights that a user names, checked before anything is done with them."""

import json
import math
import warnings
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nce_fx.callables import load_callable
from nce_fx.errors import InputError, NceFxError, one_line
from nce_fx.models import MODELS
from nce_fx.models.checkpoints import read_weights
from nce_fx.nearest import nearest


def load_model(spec: str, model_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Return the model that ``spec`` names, built with ``model_args``.

    Args:
        spec: a name of ``MODELS``, ``package.module:callable`` or ``path/to/file.py:callable``. The callable returns an
            ``nn.Module``, or is one that was built already.
        model_args: keyword arguments of the builder.

    Raises:
        InputError: no such model, a builder that raises or returns something else, or weights that are not finite.
    """
    arguments = dict(model_args or {})
    if spec.endswith(".onnx"):
        raise InputError(
            f"model {spec!r}: ONNX files are not read, for no converter was found that takes them all "
            "(onnx2torch 1.5.15: none of opset 18 and later; onnx2pytorch 0.6.0: not those of the older exporter); "
            "give the PyTorch model, or a program that torch.export.save wrote (.pt2)"
        )
    if ":" not in spec and spec not in MODELS:
        if spec.endswith(".py"):
            raise InputError(f"model {spec!r}: say what in the file builds the model, such as {spec}:build")
        names = ", ".join(MODELS)
        raise InputError(
            f"no model {spec!r}: there are {names}, package.module:callable and path/to/file.py:callable"
            f"{nearest(spec, MODELS)}"
        )
    builder = MODELS[spec] if spec in MODELS else load_callable(spec, "model")
    if isinstance(builder, nn.Module):
        if arguments:
            raise InputError(f"model {spec!r}: is a model that was built already and takes no arguments")
        model: Any = builder
    else:
        if spec in MODELS:
            _check_arguments(spec, arguments)
        try:
            model = builder(**arguments)
        except NceFxError:
            raise
        except Exception as error:
            given = f" with {json.dumps(arguments, default=repr)}" if arguments else ""
            raise InputError(f"model {spec!r}: building it{given} raised {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model {spec!r}: the callable returns {type(model).__name__}, not a torch.nn.Module")
    check_finite(model, f"model {spec!r}")
    return model


def arguments_for(
    spec: str, model_args: Mapping[str, Any] | None, input_shape: tuple[int, ...], classes: int | None
) -> dict[str, Any]:
    """Return ``model_args`` with what the data settles filled in: a built-in model's input channels and classes.

    What the user gave stays; a model of the user's own gets nothing added.
    """
    if spec not in MODELS:
        return dict(model_args or {})
    known = {} if classes is None else {"num_classes": classes}
    return {**known, "in_channels": input_shape[0], **(model_args or {})}


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a file of weights into ``model``, in place, and return it; nothing is loaded unless all of it fits.

    The file may leave out BatchNorm's ``num_batches_tracked`` and all but one name of a shared parameter. What wraps
    the names in it is taken off, with a warning that says so: see `nce_fx.models.checkpoints`.

    Raises:
        ArtifactError: the file is missing or damaged, or holds no weights.
        InputError: keys are missing, unexpected or of the wrong shape, or a value is not finite.
    """
    path = Path(path).expanduser()
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    weights, taken_off = read_weights(path, state)
    if taken_off:
        warnings.warn(f"weights {path}: read {taken_off}", stacklevel=2)
    shared = {_identity(state[name]) for name in weights if name in state}
    missing = [
        name
        for name, value in state.items()
        if name not in weights and not name.endswith("num_batches_tracked") and _identity(value) not in shared
    ]
    unexpected = [name for name in weights if name not in state]
    misshaped = [
        f"{name} is {_shape(value)} and should be {_shape(state[name])}"
        for name, value in weights.items()
        if name in state and value.shape != state[name].shape
    ]
    problems = [
        _some("missing", missing) + (nearest(missing[0], unexpected) if missing else ""),
        _some("unexpected", unexpected),
        _some("wrong shape", misshaped),
    ]
    if any(problems):
        raise InputError(f"weights {path} do not fit the model: {'; '.join(filter(None, problems))}")
    check_finite(model, f"weights {path}", weights)
    model.load_state_dict(weights, strict=False)
    return model


def check_finite(model: nn.Module, what: str, state: Mapping[str, Any] | None = None) -> None:
    """Check that a model, or a state for it, holds no NaN, and no infinity but in buffers such as a mask of attention.

    Raises:
        InputError: one does; the message names the first and says how many there are.
    """
    masks = {name for name, _ in model.named_buffers() if not name.endswith(("running_mean", "running_var"))}
    for name, value in (model.state_dict() if state is None else state).items():
        if not isinstance(value, Tensor) or is_lazy(value) or value.is_meta or not value.dtype.is_floating_point:
            continue
        if not torch.isfinite(value).all():
            nans, infinities = int(value.isnan().sum()), int(value.isinf().sum())
            if nans or name not in masks:
                raise InputError(
                    f"{what}: {name} holds {nans} NaN and {infinities} infinite of {value.numel()} values: "
                    "these weights cannot be used"
                )
        elif name.endswith("running_var") and bool((value < 0).any()):
            raise InputError(f"{what}: {name} holds values below zero, which no variance is: do not use these weights")


def _check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    known = signature(MODELS[name]).parameters
    for argument, value in arguments.items():
        if argument not in known:
            raise InputError(
                f"model {name!r}: takes no {argument!r}; it takes {', '.join(known)}{nearest(argument, known)}"
            )
        default = known[argument].default
        if isinstance(default, int) and not (type(value) is int and value >= 1):
            raise InputError(f"model {name!r}: {argument} is {value!r}; it must be a whole number of 1 or more")
        if isinstance(default, float) and not (type(value) in (int, float) and 0 <= value < math.inf):
            raise InputError(f"model {name!r}: {argument} is {value!r}; it must be a number of 0 or more")


def _identity(tensor: Tensor) -> object:
    """Equal for two names of one parameter. A tensor without storage (on the meta device) is only itself."""
    if tensor.is_meta or is_lazy(tensor) or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _some(label: str, names: list[str]) -> str:
    """``label: a, b, c and 4 more``; an empty string for no names."""
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{label}: {', '.join(names[:3])}{more}"
