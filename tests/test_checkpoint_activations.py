"""Stretches that are computed again in the backward pass: the same bits, nothing that a network keeps moves twice."""

import copy
import random
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.fx import GraphModule, Tracer
from torch.fx.passes.shape_prop import ShapeProp

import nce_fx
from nce_fx.errors import InputError, NceFxError
from nce_fx.models import MODELS
from nce_fx.processes import Engine
from nce_fx.quantizers.saved_tensors import compact_saving
from nce_fx.training import Recipe, train
from nce_fx.training.forward import Again, Compiled, called, forward_pass
from nce_fx.training.stretches import cut
from tests.drawing import one_of, pattern
from tests.observing import loss_of
from tests.training_runs import Blobs, net, same_state
from tests.zoo import ZOO

ALONE = Engine(torch.device("cpu"))
AGAIN = Recipe(checkpoint_activations=True)


def step(student: nn.Module, model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Return the loss, all gradients and buffers, and the next random number."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model.zero_grad()
    with forward_pass(ALONE, Recipe()):
        loss = loss_of(student(*copy.deepcopy(inputs)))
    loss.backward()
    drawn = torch.stack([torch.rand(()), torch.tensor(random.random()), torch.tensor(np.random.rand())])
    gradients = [torch.zeros(0) if each.grad is None else each.grad for each in model.parameters()]
    return [loss.detach(), drawn, *gradients, *(each.clone() for each in model.buffers())]


def same_steps(model: nn.Module, inputs: tuple[Any, ...], steps: int = 2) -> int:
    """Check that a model steps the same with and without; return how many of its stretches are computed again."""
    other = copy.deepcopy(model)
    student = called(other, ALONE, AGAIN)
    for _ in range(steps):
        pairs = zip(step(model, model, inputs), step(student, other, inputs), strict=True)
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)
    return sum(isinstance(module, Again) for module in student.modules())


@pytest.mark.parametrize("name", one_of(3, ZOO))
def test_a_network_steps_to_the_same_bits(name):
    gm, inputs = copy.deepcopy(pattern(name)), ZOO[name].inputs
    with suppress(NceFxError):  # nothing in it is quantized
        gm = nce_fx.quantize(gm, batches=[(inputs, None)])
    same_steps(gm.train(), inputs)


class Odd(nn.Module):
    """Keeps what PyTorch's checkpoints do not put back: a buffer made anew, counts, draws of Python's and numpy's."""

    seen: Tensor
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(1))
        self.register_buffer("last", torch.ones(1))
        self.register_buffer("large", torch.ones(2**17))
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.seen.mul_(0.5)
        self.last = self.last + 1
        return (
            torch.sin(x) * self.seen * self.last * self.count * self.get_buffer("large")[0]
            + random.random()
            + np.random.rand()
        )


class LeavingWhole(Tracer):
    """A tracer that does not look into `Odd`."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Odd) or super().is_leaf_module(m, module_qualified_name)


def test_what_a_module_that_is_left_whole_keeps_moves_once():
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(8, 8), Odd(), nn.Dropout(0.3))))
    inputs = (torch.randn(16, 8),)
    gm = GraphModule(model, LeavingWhole().trace(model)).train()
    ShapeProp(gm).propagate(*inputs)
    other = copy.deepcopy(gm)
    student = called(other, ALONE, AGAIN)
    assert any(isinstance(module, Again) for module in student.modules())
    for _ in range(2):
        assert all(map(torch.equal, step(gm, gm, inputs), step(student, other, inputs)))
    assert {module.count for module in other.modules() if isinstance(module, Odd)} == {3}


def test_less_is_kept_for_the_backward_pass():
    def kept(student: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(count, lambda tensor: tensor):
            student(x)
        return sum(sizes.values())

    x = torch.randn(8, 3, 32, 32)
    gm = nce_fx.trace(MODELS["resnet20"](), (x,))
    gm = nce_fx.quantize(gm, batches=[x]).train()
    assert same_steps(gm, (x,), 1) == len(cut(gm, activations=True).stretches) - 1
    # Of the last stretch alone, which is needed at once.
    assert kept(called(gm, ALONE, AGAIN)) < kept(gm) / 5


@pytest.mark.parametrize("activations", [False, True])
def test_it_goes_with_compact_saving(activations):
    x = torch.randn(4, 3, 32, 32)
    gm = nce_fx.quantize(nce_fx.trace(MODELS["resnet20"](), (x,)), batches=[x]).train()

    class Compact(nn.Module):
        def __init__(self, student: nn.Module) -> None:
            super().__init__()
            self.student = student

        def forward(self, x: Tensor) -> Tensor:
            with compact_saving(activations=activations):
                return self.student(x)  # type: ignore[no-any-return]

    other = copy.deepcopy(gm)
    # Activations kept as integers add up their gradients in another order.
    close = {"rtol": 1e-4, "atol": 1e-5} if activations else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(step(Compact(called(other, ALONE, AGAIN)), other, (x,)), step(gm, gm, (x,)), **close)


def test_a_network_of_one_layer_or_that_writes_to_its_input_has_nothing_to_compute_again():
    one = nce_fx.trace(nn.Sequential(nn.Linear(8, 4)), (torch.randn(2, 8),)).train()
    assert same_steps(one, (torch.randn(2, 8),)) == 0
    layers = [layer for _ in range(8) for layer in (nn.Linear(8, 8), nn.ReLU())]
    writing = nce_fx.trace(nn.Sequential(nn.ReLU(inplace=True), *layers), (torch.randn(2, 8),)).train()
    made = cut(writing, activations=True)
    assert made.once == {"stretch_0"}
    assert same_steps(writing, (torch.randn(2, 8),)) == len(made.stretches) - 2 > 0


def test_batch_norms_that_are_frozen_stay_so():
    x = torch.randn(8, 3, 32, 32)
    gm = nce_fx.trace(MODELS["resnet20"](), (x,)).train()
    for module in gm.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    mean = gm.get_buffer("layer1.0.bn1.running_mean").clone()
    assert same_steps(gm, (x,)) > 0
    assert torch.equal(gm.get_buffer("layer1.0.bn1.running_mean"), mean)


RECIPES = {
    "plain": Recipe(epochs=2, batch_size=16),
    "parts": Recipe(epochs=2, batch_size=16, accumulate=3, precision="bf16", optimizer="adamw", learning_rate=0.003),
    "all": Recipe(
        epochs=3,
        batch_size=32,
        float_epochs=1,
        distill_features=5.0,
        dampen=1e-3,
        freeze=1e-3,
        average=0.9,
        reestimate=2,
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_ends_with_the_same_bits(name, tmp_path):
    x = torch.randn(16, 1, 6, 6)
    gm = nce_fx.trace(net().eval(), (x,))
    quantized = nce_fx.quantize(gm, batches=[x])
    recipe = RECIPES[name]
    expected = train(quantized, Blobs(), recipe, teacher=gm)
    again = replace(recipe, checkpoint_activations=True)

    def stop(report: nce_fx.training.StepReport) -> None:
        if report.step == report.steps - 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(quantized, Blobs(), again, teacher=gm, directory=tmp_path, progress=stop, checkpoint_seconds=0)
    found = train(quantized, Blobs(), again, teacher=gm, directory=tmp_path)
    assert same_state(found.model.state_dict(), expected.model.state_dict())
    assert [record.loss for record in found.history] == [record.loss for record in expected.history]


def test_what_cannot_be_compiled_whole_is_said():
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum().item() > 0 else x

    called_by_two = Compiled(Branching(), Engine(torch.device("cpu"), 0, 2), whole=True)
    with forward_pass(ALONE, Recipe(), compiled=True), pytest.raises(InputError, match=r"in one piece, .*: leave comp"):
        called_by_two(torch.ones(2))


def test_a_module_that_is_no_graph_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"checkpoint_activations cuts a graph in stretches, and .*: trace it"):
        train(net(), Blobs(), replace(AGAIN, epochs=1))
