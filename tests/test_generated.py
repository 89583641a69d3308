"""The laws over random networks: 24 of them with a fixed seed, or as many others as NCE_FX_EXAMPLES says.

A failure prints its program: paste it into ``tests/generator/regressions.py``, where it stays.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, seed, settings
from torch import nn
from torch.utils._pytree import tree_flatten

import nce_fx
from tests.drawing import keep, traced, wider
from tests.generator import KINDS, Op, Program, inputs_of, network, programs
from tests.generator.program import Generated
from tests.generator.regressions import REGRESSIONS
from tests.goldens import KEPT, MEANT, line
from tests.laws import LAWS
from tests.observing import difference, run

EXAMPLES = os.environ.get("NCE_FX_EXAMPLES")
PLANS, PARTS, VARIANTS = 3, 4, 4
OTHERS = ("0", "2", "3", "4", "5", "6", "7", "10")
"""The laws checked besides the first."""


def widening_keeps_the_function(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Law 1 at three plans, in float64: float32 says little of a network that nobody designed."""
    t = traced(model, inputs)
    before = run(t.gm, t.inputs)
    for plan in range(PLANS):
        widths = wider(t.channels, plan)
        off = difference(before, run(t.resized(widths, plan), t.inputs))
        assert off <= 1e-9, f"off by {off:.1e} at {widths}"


def says_something(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether there is anything to compare: an output that some weight makes, and that is not zero everywhere."""
    outputs = tree_flatten(model(*inputs))[0]
    return any(x.requires_grad for x in outputs) and any(bool(x.any()) for x in outputs)


def obeys_the_laws(program: Program) -> None:
    """Build the network of a program and hold it to every law that one network can break."""
    model, inputs = network(program), inputs_of(program)
    if not says_something(model, inputs):
        return
    for name, law in LAWS.items():
        if name.startswith(OTHERS):
            law(model, inputs)
        if name.startswith("0"):
            # Its trace serves every other law: what else float32 could show, law 1 over the zoo shows.
            keep(model, torch.float32, traced(model, inputs))
            widening_keeps_the_function(model, inputs)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.long
def test_random_networks(part):
    """In parts, so that no process waits for one test at the end."""

    @settings(
        max_examples=int(EXAMPLES or 24) // PARTS,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def drawn(program):
        note(f"paste this: {program!r}")
        obeys_the_laws(program)

    if EXAMPLES is None:
        drawn = seed(part)(drawn)
    drawn()


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_broke_once(name):
    obeys_the_laws(REGRESSIONS[name])
    assert golden_of_program(name) == KEPT[f"program {name}"], MEANT


def golden_of_program(name: str) -> str:
    """Return what is said of what broke once, by the graph that its laws have traced."""
    program = REGRESSIONS[name]
    return line(traced(network(program), inputs_of(program)).gm)


def golden_of_kind(kind: str) -> list[str]:
    """Return what is said of the variants of an operation, each between two layers."""
    programs_of = [program_of(kind, variant) for variant in range(VARIANTS)]
    return [line(nce_fx.trace(network(program), inputs_of(program))) for program in programs_of]


def program_of(kind: str, variant: int) -> Program:
    before = {"image": (), "tokens": (Op("to_tokens"),), "vector": (Op("to_vector"),)}[KINDS[kind].takes]
    also = {
        "merge": (Op("strided"),),
        "modulate": (Op("to_vector"),),
        "option_a": (Op("conv", size=3),),
    }.get(kind, (Op("conv", size=2),))
    return Program((*before, *also, Op(kind, of=int(kind == "merge"), variant=variant)))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_operation_is_built(kind):
    """No operation is dead: each is applied in some program, and tracing it keeps what it computes."""
    applied, said = 0, []
    for variant in range(VARIANTS):
        program = program_of(kind, variant)
        model, inputs = network(program), inputs_of(program)
        assert isinstance(model, Generated)
        applied += len(model.steps) == len(program.ops)
        gm = nce_fx.trace(model, inputs)
        assert difference(run(model, inputs), run(gm, inputs)) <= 1e-12
        said.append(line(gm))
    assert applied > 0
    assert said == KEPT[f"kind {kind}"], MEANT
