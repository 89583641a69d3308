"""Whether a graph is its model: both are run on the example inputs, in evaluation and in training mode.

The same seed starts both, so that what is random is the same as long as both draw the same numbers in the same order.
What a mode does to buffers counts, too. A mode that the model itself cannot run is left out, and said.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from nce_fx.errors import one_line
from nce_fx.ops.spellings import sets_items
from nce_fx.tracing.gradients import let_go, nothing_kept, own_gradients, reached
from nce_fx.tracing.inputs import Inputs, UnsuitableError, shapes
from nce_fx.tracing.preserved_state import Values, drawn, seed, untouched, values_untouched

_TOLERANCE = {torch.float64: 1e-9, torch.complex128: 1e-9, torch.float32: 1e-4, torch.complex64: 1e-4}
"""Allowed difference, as a share of the largest value; half precision gets `_COARSE`."""
_COARSE = 3e-2
_SEED = 20
_DRAWS = 8
"""So many seeds are tried where a graph may hold random numbers as constants: one branch in 256 is not told."""
MODES = {False: "evaluation", True: "training"}


@dataclass(frozen=True)
class Ran:
    """What a run returned and left in the buffers, or why it could not run."""

    outputs: Any = None
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    again: Any = None
    """What it returned the second time, where the first changed the model."""
    twice: bool = False
    reached: frozenset[str] | None = None
    """The parameters that gradients reach, in training mode, where that can be told."""
    own_gradients: frozenset[str] = frozenset()
    """The functions on the way whose gradient somebody defined, where it can be told."""
    drawn: bool = False
    """Whether it drew random numbers that graphs do not draw: Python's or numpy's."""
    error: Exception | None = None
    recorded: Exception | None = None
    """Why it could not run while gradients are recorded, where it did without."""


@dataclass(frozen=True)
class Reference:
    """A model and its example inputs; it is run once in each mode, when a graph is first compared with it."""

    model: nn.Module
    inputs: Inputs
    values: Values | None = None
    """The values of the model, where somebody else remembers them; they are put back after every run."""
    _more: dict[tuple[bool, int], Ran] = field(default_factory=dict)

    @cached_property
    def ran(self) -> Mapping[bool, Ran]:
        """What the model does in evaluation and in training mode."""
        return {mode: self._run(mode, _SEED) for mode in MODES}

    def _run(self, mode: bool, number: int) -> Ran:
        if (mode, number) not in self._more:
            self._more[mode, number] = _run(
                self.model, self.inputs.args, self.inputs.kwargs, mode, number=number, known=self.values
            )
        return self._more[mode, number]

    @property
    def has_values(self) -> bool:
        """Whether there is something to run: models without values can be traced, but not compared."""
        return not any(t.is_meta for t in _tensors((list(self.model.parameters()), list(self.model.buffers()))))

    def check(self) -> None:
        """Check that the model itself takes the example inputs, in one mode at least.

        Raises:
            UnsuitableError: it does not; the message says how it fails in its own mode.
        """
        if not self.has_values or any(ran.error is None for ran in self.ran.values()):
            return
        error = self.ran[self.model.training].error
        assert error is not None
        raise UnsuitableError(
            f"{type(self.model).__name__} does not take the example input "
            f"({shapes(self.inputs.values)}): {one_line(error, libraries=True)}{self.inputs.hint or self._batched()}"
        ) from error

    def _batched(self) -> str:
        """Return what to give instead where the model takes its one input as a batch of one."""
        only = self.inputs.values[0] if len(self.inputs.values) == 1 else None
        if not isinstance(only, Tensor) or not only.ndim:
            return ""
        batch = only[None]
        args, kwargs = tree_map(lambda value: batch if value is only else value, (self.inputs.args, self.inputs.kwargs))
        ran = _run(self.model, args, kwargs, self.model.training, known=self.values)
        return "" if ran.error else f"; it takes one with a batch: write {shapes(batch)}"

    def compared(self) -> str:
        """Return in words which modes graphs are compared in."""
        if not self.has_values:
            return "not compared with the model, which holds no values"
        left_out = [
            f"not in {MODES[mode]} mode, which the model itself does not run: {one_line(ran.error, libraries=True)}"
            for mode, ran in self.ran.items()
            if ran.error
        ]
        return f"compared with the model, {left_out[0]}" if left_out else "compared with the model in both modes"

    def difference(self, gm: GraphModule, *, constants: bool = False) -> str | None:
        """Return in words where a graph differs from the model; ``None`` where it is the same.

        Args:
            gm: the graph.
            constants: it may hold random numbers that were drawn while it was traced: more than one seed is tried.
        """
        if not self.has_values:
            return None
        self.check()
        for training, ran in self.ran.items():
            for number in range(_SEED, _SEED + (_DRAWS if constants or ran.drawn else 1)):
                ran = self._run(training, number)
                if ran.error is not None:
                    break
                graph = _run(gm, self.inputs.values, {}, training, number=number, known=self.values, twice=ran.twice)
                found = _difference(ran, graph)
                if found is None and graph.recorded is not None and ran.recorded is None:
                    found = f"it does not run while gradients are recorded: {one_line(graph.recorded, libraries=True)}"
                if found is not None:
                    return f"in {MODES[training]} mode {found}"
                lost = sorted(ran.own_gradients - graph.own_gradients)
                if graph.reached is not None and (lost or _writes_over(gm)):
                    found = self._gradients_differ(gm, number, lost)
                    if found:
                        return f"in {MODES[training]} mode {found}"
        return None

    def _gradients_differ(self, gm: GraphModule, number: int, lost: list[str]) -> str:
        """Return how the gradients of a graph are not the model's, whose own definitions of them may be lost."""
        try:
            own = _gradients(self.model, self.inputs.args, self.inputs.kwargs, number, self.values)
        except RuntimeError:
            return ""
        try:
            graph = _gradients(gm, self.inputs.values, {}, number, self.values)
        except RuntimeError:
            return "it has no gradient: what a gradient needs is written over"
        differ = bool(lost) and any(
            name in graph and float((graph[name] - wanted).abs().max()) > _COARSE * float(wanted.abs().max())
            for name, wanted in own.items()
        )
        return f"the gradient is lost that {lost[0]} defines" if differ else ""


def _writes_over(gm: GraphModule) -> bool:
    """Whether a graph writes to a part of a tensor, as models do that join it anew in training."""
    copies = (torch.ops.aten.copy_.default, "copy_")
    return any(sets_items(node.target) or node.target in copies for node in gm.graph.nodes)


def _run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    training: bool,
    *,
    number: int = _SEED,
    known: Values | None = None,
    twice: bool = False,
) -> Ran:
    """Run a model, in training mode with gradients where it can be; twice where asked or where a run changes it."""

    def own(value: Any) -> Any:
        return tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, value)

    def attempt(gradients: bool) -> Ran:
        try:
            return run(gradients)
        except Exception as error:
            return Ran(error=error)

    def run(gradients: bool) -> Ran:
        # fx prints the line of a graph that fails; whoever asks says it in one line.
        quiet = redirect_stderr(StringIO()), warnings.catch_warnings(action="ignore"), plain_attention()
        with (
            untouched(model) as before,
            values_untouched(model, known) as values,
            quiet[0],
            quiet[1],
            plain_attention(),
        ):
            model.train(training)
            seed(number)
            fresh = drawn()
            with nothing_kept() if gradients else torch.no_grad():
                outputs = model(*own(args), **own(dict(kwargs)))
                goes_to, functions = reached(model, _tensors(outputs)) if gradients else (None, [])
            buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
            defined = own_gradients(functions)
            ran = Ran(own(outputs), buffers, reached=goes_to, own_gradients=defined, drawn=drawn() != fresh)
            del outputs
            let_go(functions)
            if twice or before.changed() or _moved(model, values, known):
                try:
                    with torch.no_grad():
                        others = own(tree_map(_other, (args, dict(kwargs))))
                        ran = replace(ran, twice=True, again=own(model(*others[0], **others[1])))
                except Exception as error:
                    ran = replace(ran, error=error if twice else None)
            return ran

    ran = attempt(gradients=training)
    # What writes to its parameters, for one, runs without gradients alone.
    if ran.error is None or not training:
        return ran
    return replace(attempt(gradients=False), recorded=ran.error)


def _gradients(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], number: int, known: Values | None
) -> dict[str, Tensor]:
    """Return the gradient of a sum of a model's outputs in training mode, by parameter."""
    with (
        untouched(model),
        values_untouched(model, known),
        redirect_stderr(StringIO()),
        warnings.catch_warnings(action="ignore"),
        plain_attention(),
        torch.enable_grad(),
    ):
        model.train()
        seed(number)
        outputs = [value for value in _tensors(model(*args, **kwargs)) if value.requires_grad]
        weights = [torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device).view_as(y) for y in outputs]
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        found = torch.autograd.grad(outputs, list(named.values()), weights, allow_unused=True)
    return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep PyTorch's transformer layers from what is fused for inference, whose answer to hidden rows is another."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _other(value: Any) -> Any:
    return value * 0.75 if isinstance(value, Tensor) and value.is_floating_point() else value


def _moved(model: nn.Module, values: Values, known: Values | None) -> bool:
    """Whether a run moved more than the statistics of PyTorch's norms."""
    norms = {
        id(buffer)
        for module in model.modules()
        if type(module).__module__.startswith("torch.nn.")
        for buffer in module._buffers.values()
    }
    held = [values, *([known] if known is not None else [])]
    return any(id(tensor) not in norms for each in held for tensor in each.changed())


def outputs_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what a model returns in evaluation mode, which stays as it is; ``None`` where it does not run."""
    return _run(model, args, kwargs, False).outputs


def agrees(
    model: nn.Module, gm: GraphModule, inputs: Inputs, values: Mapping[str, Any], training: bool = False
) -> bool:
    """Whether a graph returns what a model does on other values of its inputs, if it runs there."""
    call = inputs.filled(values)
    ran = _run(model, call.args, call.kwargs, training)
    if ran.error is not None:
        return True
    return _difference(ran, _run(gm, tuple(values.values()), {}, training, twice=ran.twice)) is None


def _difference(model: Ran, graph: Ran) -> str | None:
    if graph.error is not None:
        return f"the graph fails: {one_line(graph.error, libraries=True)}"
    wanted, got = list(_leaves(model.outputs)), list(_leaves(graph.outputs))
    if [path for path, _ in wanted] != [path for path, _ in got]:
        return f"the graph returns {len(got)} values in another structure, the model {len(wanted)}"
    pairs = [(f"output{path}", a, b) for (path, a), (_, b) in zip(wanted, got, strict=True)]
    moved = [(f"buffer {k}", a, graph.buffers[k]) for k, a in model.buffers.items() if k in graph.buffers]
    for name, a, b in pairs + moved:
        found = difference_of(a, b)
        if found is not None:
            return f"{name} {found}"
    if model.reached is not None and graph.reached is not None and model.reached != graph.reached:
        more = sorted(graph.reached - model.reached)
        name = more[0] if more else min(model.reached - graph.reached)
        return f"{name} gets {'a' if more else 'no'} gradient, in the model it gets {'none' if more else 'one'}"
    if model.twice:
        found = _difference(Ran(model.again), Ran(graph.again))
        return None if found is None else f"at the second call, after what the first keeps on the model, {found}"
    return None


def difference_of(wanted: Any, got: Any) -> str | None:
    """Return in words how a value differs from the one that is wanted."""
    if not isinstance(wanted, Tensor) or not isinstance(got, Tensor):
        same = type(wanted) is type(got) and (wanted == got or wanted != wanted)
        return None if same else f"is {got!r:.60}, not {wanted!r:.60}"
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return f"is {got.dtype} of shape {tuple(got.shape)}, not {wanted.dtype} of shape {tuple(wanted.shape)}"
    if not wanted.numel() or wanted.is_meta or got.is_meta:
        return None
    if not (wanted.is_floating_point() or wanted.is_complex()):
        return None if torch.equal(wanted, got) else "has other values"
    finite = wanted.isfinite()
    if not torch.equal(finite, got.isfinite()):
        return "is not finite in other places"
    wanted, got = wanted.masked_fill(~finite, 0), got.masked_fill(~finite, 0)
    scale, off = float(wanted.abs().max()), float((wanted - got).abs().max())
    tolerance = _TOLERANCE.get(wanted.dtype, _COARSE)
    return None if off <= tolerance * scale else f"is off by {off / (scale or 1.0):.2g} of its largest value"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a structure holds with its place; objects that cannot be looked into are passed by."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from _leaves(getattr(value, each.name), f"{path}.{each.name}")
    elif value is None or isinstance(value, Tensor | int | float | str | complex):
        yield path, value


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for _, leaf in _leaves(value) if isinstance(leaf, Tensor))
