"""The laws of quantization over every pattern of the zoo, as it is and resized."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import nce_fx
from nce_fx.passes.transform.quantize import QuantSpec, RemoveQuantizers, describe, integer_weights, quantize
from nce_fx.quantizers import Quantizer
from tests.drawing import pattern
from tests.zoo import ZOO

UNQUANTIZED = {
    "embedding",
    "lstm",
    "gru",
    "rnn",
    "lstmcell",
    "grucell",
    "matmul",
    "einsum",
    "attention",
    "bilinear",
    "Deciding",
}


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for each in values for tensor in tensors(each)]


def run(gm: GraphModule, inputs: tuple[Any, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return tensors(gm(*copy.deepcopy(inputs)))


def without_gradient(gm: GraphModule, inputs: tuple[Any, ...]) -> set[str]:
    gm = copy.deepcopy(gm)
    torch.autograd.backward([out.sin().sum() for out in run(gm, inputs) if out.requires_grad])
    gradients = {name: parameter.grad for name, parameter in gm.named_parameters() if parameter.grad is not None}
    broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    assert not broken
    return {name for name, parameter in gm.named_parameters() if parameter.grad is None}


def check(gm: GraphModule, inputs: tuple[Any, ...], spec: QuantSpec) -> None:
    code = gm.code
    quantized = quantize(gm, spec, [(inputs, None)])
    levels: dict[str, tuple[int, int]] = {}
    for name, module in quantized.named_modules():
        if isinstance(module, Quantizer):
            module.register_forward_hook(
                lambda m, _, out, name=name: levels.update({name: (len(out.unique()), 2**m.bits)})
            )
    assert all(bool(out.isfinite().all()) for out in run(quantized, inputs))
    assert levels
    assert all(count <= allowed for count, allowed in levels.values()), levels
    # What only training runs is not run here, and its quantizers are not either.
    idle = {
        f"{path}.{name}"
        for path, module in quantized.named_modules()
        if isinstance(module, Quantizer) and path not in levels
        for name, _ in module.named_parameters()
    }
    # Nor does a gradient reach what is rounded for layers alone that none reaches: those that only choose.
    unreached = without_gradient(gm, inputs)
    layers = {path.rpartition(".")[0].replace(".", "_") for path in unreached}
    for node in quantized.graph.nodes:
        module = quantized.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, Quantizer) and {user.name for user in node.users} <= layers:
            idle |= {f"{node.target}.{name}" for name, _ in module.named_parameters()}
    assert without_gradient(quantized, inputs) - idle <= unreached
    for row in describe(quantized):
        wanted = row.op not in UNQUANTIZED
        assert (row.weight_bits is not None) == (row.activation_bits is not None) == wanted, row
    integers = integer_weights(quantized)
    assert set(integers) == {row.layer for row in describe(quantized) if row.weight_bits}
    back = RemoveQuantizers()(quantized).graph_module
    assert all(torch.equal(a, b) for a, b in zip(run(back, inputs), run(gm, inputs), strict=True))
    assert set(back.state_dict()) == set(gm.state_dict())
    assert gm.code == code


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name):
    gm, inputs = pattern(name), ZOO[name].inputs
    check(gm, inputs, QuantSpec())
    # Nothing is lost on the way: with bits enough it computes what it did, to what they round.
    fine = quantize(gm, QuantSpec("minmax", "minmax", 8, 8, 8, "int8"), [(inputs, None)])
    for found, wanted in zip(run(fine, inputs), run(gm, inputs), strict=True):
        assert float((found - wanted).detach().abs().max()) <= 0.1 * float(wanted.detach().abs().max())


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize(
    "name", ["residual_add", "dense_cascade", "depthwise_residual", "squeeze_excite_conv", "u_net"]
)
def test_resized(name, factor):
    model = ZOO[name]
    gm = nce_fx.trace(model.make(), model.inputs)
    groups = [group for group in nce_fx.analyze_channels(gm).groups if group.pinned is None]
    widths = {group.id: max(1, int(group.width * factor) // group.step) * group.step for group in groups}
    assert any(widths[group.id] != group.width for group in groups)
    check(nce_fx.resize(gm, widths), model.inputs, QuantSpec("lsq", "lsq", 3, 3))
