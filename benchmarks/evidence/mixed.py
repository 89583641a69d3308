"""Mixed precision, the rival: widths as given, bits layer by layer, at what uniform costs.

Each layer may have 1, 2, 3 or 4 bits of weights and of activations, both alike. Least is the sum of the layers'
sensitivities at uniform bits, times how far the squared distance of two levels is from uniform's: ((2^u - 1) / (2^b -
1))^2. That is a linear program over zeros and ones, with the budget's quantities as its constraints; scipy's solver
proves its optimum.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

import nce_fx
from benchmarks.evidence.bench import Bench, Choice
from nce_fx.passes.transform.quantize import describe
from nce_fx.report.records import CostRecord

BITS = (1, 2, 3, 4)


def mixed(bench: Bench) -> Choice:
    """Return the bits of every layer that has uniform's, within the budget."""
    uniform, layers = bench.spec.weight_bits or 32, inner_layers(bench)
    noise = {name: node.weight + node.activation for name, node in bench.analyses.sensitivity.by_node.items()}
    objective = [
        max(noise.get(layer, 0.0), 0.0) * ((2**uniform - 1) / (2**bits - 1)) ** 2 for layer in layers for bits in BITS
    ]
    before = CostRecord.of(bench.uniform).cost
    limits = bench.budget.limits(before)
    # What a layer's bits change of each quantity, taken from the network that has them.
    rises = np.zeros((len(limits), len(objective)))
    for column, (layer, bits) in enumerate((layer, bits) for layer in layers for bits in BITS):
        if bits != uniform:
            spent = CostRecord.of(nce_fx.quantize(bench.untrained, at(bench, {layer: bits}))).cost
            rises[:, column] = [spent[name] - before[name] for name in limits]
    room = np.array([limit - before[name] for name, limit in limits.items()])
    one = np.kron(np.eye(len(layers)), np.ones(len(BITS)))
    # Tensors that several layers read at other bits each are counted together only when all are known: ask again.
    for _ in range(20):
        budget = LinearConstraint(rises, -np.inf, room)
        found = milp(
            objective, integrality=np.ones(len(objective)), bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one, 1, 1), budget],
        )  # fmt: skip
        picks = found.x.reshape(len(layers), len(BITS)).argmax(1)
        spec = at(bench, {layer: BITS[pick] for layer, pick in zip(layers, picks, strict=True)})
        spent = CostRecord.of(nce_fx.quantize(bench.untrained, spec)).cost
        over = np.array([max(0, spent[name] - limit) for name, limit in limits.items()])
        if not over.any():
            break
        room = room - over
    return Choice(bench.channels.widths, spec)


def inner_layers(bench: Bench) -> list[str]:
    """Return the layers whose weights have uniform's bits: all but the ends, and those that stay in float."""
    found = describe(bench.uniform)
    return [layer.layer for layer in found if layer.weight_bits == bench.spec.weight_bits]


def at(bench: Bench, bits: dict[str, int]) -> nce_fx.QuantSpec:
    """Return uniform's quantizers with some layers at other bits."""
    return replace(bench.spec, overrides={**bench.spec.overrides, **bits})
