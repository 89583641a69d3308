"""How a network is called in training: what surrounds a forward pass, and what its stretches are wrapped in.

A stretch that is computed again keeps what it was given alone (activation checkpointing; Chen et al. 2016, "Training
deep nets with sublinear memory cost", arXiv 1604.06174); the backward pass runs it once more, from the same random
numbers, buffers and counts, which are afterwards as if it had run once. PyTorch's checkpoints restore its generators
alone: their second run would move BatchNorm's statistics twice.

What is compiled in several processes has no mode of PyTorch's around it, which the compiler would enter: it is given
the graph with the BatchNorm of the whole batch in its place.
"""

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nce_fx.errors import InputError, one_line
from nce_fx.processes import Engine
from nce_fx.quantizers.saved_tensors import plain_saving
from nce_fx.random_state import put_back
from nce_fx.training.batch_norm import SyncBatchStatistics, in_whole_batches
from nce_fx.training.recipe import Recipe
from nce_fx.training.stretches import Cut, cut


@dataclass(frozen=True)
class _Pass:
    """A forward pass that is under way."""

    engine: Engine
    recipe: Recipe
    compiled: bool


_under_way: list[_Pass] = []
_LARGE = 2**16
"""Numbers in a buffer of which no copy is kept where nothing wrote to it."""


@contextmanager
def forward_pass(engine: Engine, recipe: Recipe, *, compiled: bool = False) -> Iterator[None]:
    """What surrounds a forward pass in training: the precision, and the statistics of the whole batch.

    Args:
        engine: where it runs.
        recipe: how to train.
        compiled: whether what is compiled runs as such; it is for batches of one size.
    """
    half = torch.float16 if recipe.precision == "fp16" else torch.bfloat16
    alone = engine.processes == 1 or compiled
    _under_way.append(_Pass(engine, recipe, compiled))
    try:
        with (
            torch.autocast(engine.device.type, half, enabled=recipe.precision != "no"),
            nullcontext() if alone else SyncBatchStatistics(),
        ):
            yield
    finally:
        _under_way.pop()


def called(model: nn.Module, engine: Engine, recipe: Recipe, *, learns: bool = True) -> nn.Module:
    """Return what is called in the place of a model that every process holds whole.

    Args:
        model: its parameters are those of the result.
        engine: where it runs.
        recipe: how to train.
        learns: False for a teacher.
    """
    again = recipe.checkpoint_activations and learns
    if not again and (engine.processes == 1 or not learns):
        return compiled(model, engine, learns=learns) if recipe.compile else model
    if not again and not recipe.compile:
        return model
    # In several processes each stretch is compiled by itself: its gradients are summed while others are computed.
    weights = [] if engine.processes == 1 else list(model.parameters())
    return in_stretches(model, weights, engine, recipe, again=again).whole


def in_stretches(
    model: nn.Module,
    weights: Collection[Tensor],
    engine: Engine,
    recipe: Recipe,
    *,
    again: bool,
    learns: bool = True,
) -> Cut:
    """Return a model in stretches, which are compiled, and computed again, where the recipe says so.

    Args:
        model: it is not changed.
        weights: the parameters that stretches are cut by.
        engine: where it runs.
        recipe: how to train.
        again: whether stretches are computed again.
        learns: False for a teacher.

    Raises:
        InputError: nothing can be computed again, since the network is no graph.
    """
    made = cut(model, weights, activations=again)
    if again and not made.stretches:
        raise InputError(
            "recipe: checkpoint_activations cuts a graph in stretches, and the model is none: trace it first, or"
            " set accumulate instead"
        )
    if recipe.compile and not made.stretches:
        return replace(made, whole=compiled(made.whole, engine, learns=learns))
    # What the last one keeps is needed at once.
    last = next(reversed(made.stretches), None)
    for name in made.stretches:
        stretch = made.whole.get_submodule(name)
        if recipe.compile:
            stretch = compiled(stretch, engine, learns=learns)
        if again and name != last and name not in made.once:
            stretch = Again(stretch)
        setattr(made.whole, name, stretch)
    return made


def compiled(model: nn.Module, engine: Engine, *, learns: bool = True) -> "Compiled":
    """Return a model as ``compile`` of a recipe has it called."""
    return Compiled(model, engine, whole=learns and engine.processes > 1)


class Compiled(nn.Module):
    """A network, or a stretch of one, compiled for batches of one size; all others it runs as it is.

    Args:
        code: what is compiled.
        engine: where it runs.
        whole: whether its BatchNorms take the statistics of all processes, and nothing may be left to the interpreter.
    """

    def __init__(self, code: nn.Module, engine: Engine, *, whole: bool = False) -> None:
        super().__init__()
        self.code, self.whole = code, whole
        options: dict[str, Any] = {}
        if engine.device.type == "cpu":
            # The compiler's change to channels-last layouts corrupts the heap in the backward pass of narrow
            # convolutions (torch 2.13; see pytorch issue 181618), and gains nothing here.
            options = {"layout_optimization": False}
        # No submodule: whoever walks over the parameters shall find each once.
        self._compiled: tuple[Callable[..., Any], ...] = (
            (torch.compile(code, backend=in_whole_batches(options), fullgraph=True),)
            if whole
            else (torch.compile(code, options=options or None),)
        )

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run it."""
        if not (_under_way and _under_way[-1].compiled):
            return self.code(*inputs, **named)
        if not self.whole:
            return self._compiled[0](*inputs, **named)
        from torch._dynamo.exc import TorchDynamoException

        try:
            with torch._dynamo.config.patch(optimize_ddp=False):  # which would split it, and leave parts uncompiled
                return self._compiled[0](*inputs, **named)
        except TorchDynamoException as error:
            raise InputError(
                "recipe: compile in several processes takes a network that PyTorch compiles in one piece, and this one"
                f" is not ({one_line(error)}): leave compile out"
            ) from error


class Again(nn.Module):
    """A stretch that keeps its inputs alone, and is computed again when the backward pass comes to it."""

    def __init__(self, code: nn.Module) -> None:
        super().__init__()
        self.code = code
        self._modules_of_it = (tuple(code.modules()),)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run it."""
        if not torch.is_grad_enabled():
            return self.code(*inputs, **named)
        state = _State(self._modules_of_it[0])
        under_way = _under_way[-1] if _under_way else None

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return plain_saving(), _second_run(state, under_way)

        # To its end: what an operation fills as it runs, such as the slopes of RReLU, is saved before.
        result = checkpoint(self.code, *inputs, use_reentrant=False, context_fn=contexts, early_stop=False, **named)
        state.forget_unchanged()
        return result


class _State:
    """What modules keep beside parameters, as it is before a stretch runs: buffers, counts, generators."""

    def __init__(self, modules: tuple[nn.Module, ...]) -> None:
        self.attributes = [(vars(module), dict(vars(module))) for module in modules]
        self.buffers = [
            (module._buffers, name, buffer, buffer._version, buffer.detach().clone())
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self.python, self.numpy = random.getstate(), np.random.get_state()

    def forget_unchanged(self) -> None:
        """Keep no copy of a large buffer that nothing wrote to."""
        self.buffers = [
            (own, name, buffer, version, buffer if buffer._version == version and buffer.numel() > _LARGE else copy)
            for own, name, buffer, version, copy in self.buffers
        ]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Have it as it was; in the end it is what it has become since."""
        attributes = [(own, dict(own)) for own, _ in self.attributes]
        buffers = [(own, name, own[name]) for own, name, *_ in self.buffers]
        try:
            with put_back():
                random.setstate(self.python)
                np.random.set_state(self.numpy)
                _put(self.attributes)
                for own, name, _, _, start in self.buffers:
                    own[name] = start.clone()
                yield
        finally:
            _put(attributes)
            for own, name, value in buffers:
                own[name] = value


def _put(attributes: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Give modules these attributes; where they have them already a compiler must see no change."""
    for own, wanted in attributes:
        if own.keys() != wanted.keys() or any(own[name] is not value for name, value in wanted.items()):
            own.clear()
            own.update(wanted)


@contextmanager
def _second_run(state: _State, first: _Pass | None) -> Iterator[None]:
    with state.again():
        if first is None:
            yield
        else:
            with forward_pass(first.engine, first.recipe, compiled=first.compiled):
                yield
