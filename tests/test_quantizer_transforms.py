"""Quantizers under ``torch.func``: gradients of many samples and networks at once are those of one after another."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from tests.zoo.model import noise

QUANTIZERS = {
    **{f"weight {name}": lambda bits, kind=kind: kind(bits, 0) for name, kind in WEIGHT_QUANTIZERS.items()},
    **{f"signed {name}": lambda bits, kind=kind: kind(bits, True) for name, kind in ACTIVATION_QUANTIZERS.items()},
    **{f"unsigned {name}": lambda bits, kind=kind: kind(bits, False) for name, kind in ACTIVATION_QUANTIZERS.items()},
}


def pair(name: str, bits: int, ewgs: float) -> list[nn.Module]:
    """Return a quantizer and one like it that has learned something else."""
    one = QUANTIZERS[name](bits).double()
    one.ewgs = ewgs
    if name.startswith("weight"):
        one.start(noise(4, 3, 2, 2).double())
    other = copy.deepcopy(one)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.2)
    return [one, other]


@pytest.mark.filterwarnings("ignore:torch.bucketize")
@pytest.mark.parametrize(("bits", "ewgs"), [(1, 0.0), (2, 0.2), (4, 0.0)])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_gradients_of_many_at_once_are_those_of_each(name, bits, ewgs):
    quantizers = pair(name, bits, ewgs)
    values, networks = 2 * noise(3, 4, 3, 2, 2).double(), torch.arange(2.0)
    states = [dict(quantizer.named_parameters()) for quantizer in quantizers]
    parameters = {key: torch.stack([state[key] for state in states]) for key in states[0]}

    def loss(state, x, network):
        return (functional_call(quantizers[0], state, (x,)) * x.cos()).sum() + 0 * network

    both = vmap(vmap(grad(loss, argnums=(0, 1)), (None, 0, None)), (0, None, 0))(parameters, values, networks)
    for index, quantizer in enumerate(quantizers):
        for sample, x in enumerate(values):
            leaf = x.clone().requires_grad_()
            quantizer.zero_grad()
            (quantizer(leaf) * leaf.cos()).sum().backward()
            torch.testing.assert_close(both[1][index][sample], leaf.grad)
            for key, parameter in quantizer.named_parameters():
                torch.testing.assert_close(both[0][key][index][sample], parameter.grad)
    x = values[0].clone().requires_grad_()
    rows = torch.autograd.functional.jacobian(quantizers[0], x)
    torch.testing.assert_close(jacrev(quantizers[0])(x), rows)
