"""What is asked of every pass under ``--verify-each``, beyond what `nce_fx.pipeline.contract` always asks.

shapes      what the nodes say of their values is what they give
interface   the outputs have the structure, shapes and types that they had; the values, where a pass ``keeps`` those
replay      the pass makes the same graph of other weights: what it decides from weights is in its options
"""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_flatten

from nce_fx.devices import device_of, to_device
from nce_fx.errors import PassError, one_line, where
from nce_fx.pipeline.base import Pass, PassResult
from nce_fx.pipeline.history import history_of
from nce_fx.plan import model_fingerprint
from nce_fx.signature import example_of, signature_of

TOLERANCE = 1e-4
"""Of the largest output, where a pass keeps the function."""


def verify(step: Pass, before: GraphModule, result: PassResult) -> None:
    """Check what a pass made; for ``Pipeline(passes, between=verify)``.

    Raises:
        PassError: says what is wrong, and where.
    """
    after = result.graph_module
    inputs = to_device(example_of(signature_of(before)), device_of(before))
    old, new = _outputs(step, before, inputs), _outputs(step, after, inputs)
    if old[1] != new[1] or [_form(x) for x in old[0]] != [_form(x) for x in new[0]]:
        raise PassError(
            f"pass {step.name} changed the form of what the model returns: {_forms(old[0])} became {_forms(new[0])}; "
            "that is the user's"
        )
    if step.keeps == "function":
        _check_equal(step, old[0], new[0])
    _check_shapes(step, after, inputs)
    if result.modified:
        _check_replay(step, before, after)


def _check_equal(step: Pass, old: list[Any], new: list[Any]) -> None:
    for x, y in zip(old, new, strict=True):
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
            off, largest = float((x - y).abs().max()), float(x.abs().max())
            if not off <= TOLERANCE * largest:
                raise PassError(
                    f"pass {step.name} changed the function: an output is off by {off:.1e} of {largest:.1e}"
                )


def _check_shapes(step: Pass, gm: GraphModule, inputs: tuple[Any, ...]) -> None:
    wrong: list[str] = []

    class Run(Interpreter):
        def run_node(self, n: Node) -> Any:
            value: Any = super().run_node(n)
            meta: Any = n.meta.get("tensor_meta")
            if isinstance(value, Tensor) and hasattr(meta, "shape") and tuple(meta.shape) != tuple(value.shape):
                wrong.append(f"{where(n)} gives {_form(value)} and says {tuple(meta.shape)}")
            return value

    with torch.no_grad():
        Run(_evaluating(gm)).run(*inputs)
    if wrong:
        raise PassError(f"pass {step.name} left shapes that are not right: {wrong[0]}")


def _check_replay(step: Pass, before: GraphModule, after: GraphModule) -> None:
    known = history_of(after).steps[-1]
    if known.options is None:
        raise PassError(known.problem)
    other = copy.deepcopy(before)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in other.parameters():
            if value.is_floating_point() and value.numel():
                order = torch.randperm(value.numel(), generator=generator).to(value.device)
                value.copy_(-value.reshape(-1)[order].reshape(value.shape))
    again = type(step).from_options(known.options)(other).graph_module
    if model_fingerprint(again) != known.graph:
        raise PassError(
            f"pass {step.name} makes another graph of other weights: what it decides from weights belongs into its "
            "options (Pass.decide)"
        )


def _outputs(step: Pass, gm: GraphModule, inputs: tuple[Any, ...]) -> tuple[list[Any], Any]:
    try:
        with torch.no_grad():
            return tree_flatten(_evaluating(gm)(*inputs))
    except Exception as error:
        raise PassError(
            f"pass {step.name}: the graph does not run on {_forms(list(inputs))}: {one_line(error)}"
        ) from error


def _evaluating(gm: GraphModule) -> GraphModule:
    return copy.deepcopy(gm).eval()


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{'x'.join(map(str, value.shape)) or 'a number'} {str(value.dtype).removeprefix('torch.')}"


def _forms(values: list[Any]) -> str:
    return ", ".join(_form(value) for value in values[:3]) or "nothing"
