"""A model as torch.export's program, in one of its modes: by the way that serves, with a free batch where it can be."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from nce_fx.batches import leading_size
from nce_fx.tracing.attention_decomposition import attention_opened
from nce_fx.tracing.checks import answered, asking
from nce_fx.tracing.inputs import Inputs
from nce_fx.tracing.symbolic import UntraceableError


@dataclass(frozen=True)
class Exported:
    """What torch.export made of a model in one of its modes, and how."""

    program: ExportedProgram
    size: int | None
    """The size of the batch that it takes alone, where it takes no other."""
    strict: bool
    """Whether the compiler's front end read the model."""
    checks: tuple[str, ...] = ()
    """Where the model checks values, which the program does not."""


def export(
    model: nn.Module,
    inputs: Inputs,
    *,
    by: tuple[bool, ...] = (False, True),
    lengths: bool = False,
    like: Exported | None = None,
) -> Exported:
    """Export a model in its own mode with a free batch where it allows it; else with the batch that it takes alone.

    The length of a tensor as a whole number, ``len(x)`` or ``int(x.shape[0])``, and what type a tensor is, is followed
    by the compiler's front end alone (``True`` in ``by``), which takes longer and takes fewer models. What was made of
    the model's other mode is exported ``like`` it: the way that served there is tried first, and where one mode takes
    one batch alone, so do both.

    Raises:
        Exception: whatever torch.export raises.
    """

    def axes(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.dim():
            return None
        return dict.fromkeys((0, 1) if lengths and is_of_ids(value) else (0,), Dim.AUTO)

    def doubled(value: Any) -> Any:
        return tree_map(
            lambda v: torch.cat([v, v]) if isinstance(v, torch.Tensor) and v.dim() and v.shape[0] == 1 else v, value
        )

    bound = inputs.filled(inputs.named)
    args, kwargs, shapes = bound.args, bound.kwargs, tree_map(axes, bound.arguments)
    size = leading_size(inputs.values)
    by = tuple(sorted(by, key=lambda strict: like is not None and strict != like.strict))
    fixed: ExportedProgram | None = None
    # With gradients on, torch's transformer layers take their plain path, not the one that is fused for inference.
    with torch.enable_grad(), _quietly(), attention_opened(), nullcontext([]) if all(by) else _Watching() as checks:
        for strict in by if like is None or like.size is None else ():
            try:
                program = torch.export.export(
                    model, doubled(args), doubled(kwargs), dynamic_shapes=shapes, strict=strict
                )
            except Exception:
                if lengths:
                    raise
                if strict == by[0]:
                    # Where it does not run at all, the other way does not take it either.
                    fixed = torch.export.export(model, args, kwargs, strict=strict)
            else:
                if size is None or _is_free(program):
                    return Exported(program, None, strict, tuple(checks))
        fixed = fixed or torch.export.export(model, args, kwargs, strict=by[0])
        return Exported(fixed, size, by[0], tuple(checks))


def is_of_ids(value: Any) -> bool:
    """Whether a value is ids or a mask of several sequences, whose second axis is their length."""
    if not isinstance(value, torch.Tensor) or value.dim() != 2 or not value.shape[1]:
        return False
    return not (value.is_floating_point() or value.is_complex())


class _Watching(TorchFunctionMode):
    """Answers checks of values, and stops where the model assigns to the data of a tensor: torch.export loses that."""

    def __init__(self) -> None:
        super().__init__()
        self.checks: list[str] = []

    def __enter__(self) -> list[str]:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self.checks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__self__", None) is torch.Tensor.data and func.__name__ == "__set__":
            raise UntraceableError("forward assigns to the data of a tensor")
        if func is torch.Tensor.__bool__:
            answer = answered(asking(sys._getframe(1)), self.checks)
            if answer is not None:
                return answer
        return func(*args, **(kwargs or {}))


def _is_free(program: Any) -> bool:
    """Whether the first axis of the first input is of any length."""
    given = set(program.graph_signature.user_inputs)
    values = (node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in given)
    first = next((value for value in values if isinstance(value, torch.Tensor) and value.dim()), None)
    size = None if first is None else first.shape[0]
    return size is None or not (isinstance(size, int) or size.node.maybe_as_int() is not None)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back what torch.export prints of a model that it does not take; the error says it in one line."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
