"""Networks in parts: stretches compute what their graph does, and what cannot be trained so is refused in words."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import nce_fx
from nce_fx.errors import InputError, TrainingError
from nce_fx.launcher import check_launched, shards_are_asked_for
from nce_fx.processes import Engine
from nce_fx.training import Recipe
from nce_fx.training.shards import check_search, in_one_piece, is_part, sharded, total_norm, whole, whole_weights
from tests.observing import loss_of
from tests.zoo import ZOO

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Everything that FSDP2 does, in one process: weights are gathered, and their memory is given back."""
    meeting = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield Engine(CPU, shards=True)
    dist.destroy_process_group()


def step(called: nn.Module, model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    model.zero_grad()
    loss = loss_of(called(*copy.deepcopy(inputs)))
    loss.backward()
    named = model.named_parameters()
    return loss.detach(), {name: whole(each.grad) for name, each in named if each.grad is not None}


# A view of a weight that goes far, what writes into its input, weights of several readers, of one mode, of none.
PATTERNS = (
    *("cross_attention", "in_place", "tied_embedding", "shared_module", "functions_of_the_mode", "lstm_tail"),
    *("residual_add", "no_tokens", "parametrized", "nested_output", "keyword_defaults"),
)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_network_in_stretches_steps_as_it_does_whole(name, alone):
    pattern = ZOO[name]
    quantized = nce_fx.quantize(nce_fx.trace(pattern.make(), pattern.inputs), batches=[(pattern.inputs, None)]).train()
    model = copy.deepcopy(quantized)
    student = sharded(model, alone, Recipe())
    for _ in range(2):
        expected, found = step(quantized, quantized, pattern.inputs), step(student, model, pattern.inputs)
        assert torch.equal(found[0], expected[0])
        assert found[1].keys() == expected[1].keys()
        assert all(torch.equal(found[1][key], gradient) for key, gradient in expected[1].items())
        for one, other in zip(quantized.buffers(), model.buffers(), strict=True):
            assert torch.equal(one, other)
    parts = {name for name, parameter in model.named_parameters() if is_part(parameter)}
    assert parts
    with whole_weights(student):
        assert not any(is_part(parameter) for parameter in model.parameters())
    assert {name for name, parameter in model.named_parameters() if is_part(parameter)} == parts
    back = in_one_piece(model, quantized)
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in quantized.state_dict().items())
    assert not any(is_part(parameter) for parameter in back.parameters())


def test_a_network_has_the_weights_of_one_stretch_in_memory(alone):
    layers = [layer for _ in range(20) for layer in (nn.Linear(8, 8), nn.ReLU(inplace=True))]
    gm = nce_fx.trace(nn.Sequential(*layers).eval(), (torch.randn(2, 8),)).train()
    student = sharded(gm, alone, Recipe())
    gathered = []
    for module in gm.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda *_: gathered.append(sum(not is_part(m.weight) for m in gm.modules() if isinstance(m, nn.Linear)))
            )
    student(torch.randn(2, 8)).sum().backward()
    assert gathered == [1] * 20


def test_the_norm_of_gradients_is_that_of_the_whole_network(alone):
    layers = [layer for _ in range(20) for layer in (nn.Linear(8, 8), nn.ReLU(inplace=True))]
    gm = nce_fx.trace(nn.Sequential(*layers).eval(), (torch.randn(2, 8),)).train()
    model = copy.deepcopy(gm)
    inputs = (torch.randn(4, 8),)
    step(gm, gm, inputs)
    step(sharded(model, alone, Recipe()), model, inputs)
    gradients = [[each.grad for each in one.parameters() if each.grad is not None] for one in (gm, model)]
    assert {is_part(each) for each in gradients[1]} == {False, True}
    torch.testing.assert_close(total_norm(gradients[1]), nn.utils.get_total_norm(gradients[0]))


@pytest.mark.parametrize(
    ("engine", "options", "said"),
    [
        (
            Engine(CPU, 0, 2, shards=True),
            {},
            "a search resizes the network that it trains, and shards cannot be resized",
        ),
        (Engine(CPU), {"checkpoint_activations": True}, "recipe: checkpoint_activations .* a search resizes: set acc"),
        (Engine(CPU, 0, 2), {"compile": True}, "recipe: compile is for one process where a search resizes"),
    ],
)
def test_what_does_not_go_with_a_search_is_refused(engine, options, said):
    check_search(engine, Recipe(**options), {})
    with pytest.raises(InputError, match=said):
        check_search(engine, Recipe(**options), {"search": "widths"})


def test_a_teacher_in_parts_is_one_in_evaluation(alone):
    pattern = ZOO["functions_of_the_mode"]
    gm = nce_fx.trace(pattern.make(), pattern.inputs).eval()
    expected = loss_of(gm(*copy.deepcopy(pattern.inputs)))
    called = sharded(copy.deepcopy(gm), alone, Recipe(), learns=False)
    assert torch.equal(loss_of(called(*copy.deepcopy(pattern.inputs))), expected)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "version 1 of FSDP, .*: add --fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "parameters in the host's memory .*: start more processes"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed: --use_fsdp --fsdp_version 2"),
    ],
)
def test_what_the_launcher_asks_for_and_is_not_there_is_said(asked, said, monkeypatch):
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=f"accelerate launch asks for {said}"):
        shards_are_asked_for()


def test_the_launcher_and_the_recipe_say_the_same(monkeypatch):
    for name, value in {
        "MIXED_PRECISION": "bf16",
        "GRADIENT_ACCUMULATION_STEPS": "2",
        "DYNAMO_BACKEND": "INDUCTOR",
    }.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    check_launched("bf16", 2, True)
    with pytest.raises(
        InputError, match="says --mixed_precision bf16 and the recipe precision no: say it in the recipe"
    ):
        check_launched("no", 2, True)
    with pytest.raises(InputError, match="says --gradient_accumulation_steps 2 and the recipe accumulate 1"):
        check_launched("bf16", 1, True)
    with pytest.raises(InputError, match="says --dynamo_backend inductor and the recipe compile False"):
        check_launched("bf16", 2, False)
