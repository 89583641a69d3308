"""Random networks: programs of small operations that hypothesis draws, composes and shrinks.

A failure prints its program; pasted into ``regressions.py`` it stays as a test.
"""

from __future__ import annotations

from hypothesis import strategies as st
from torch import nn

from tests.generator.images import IMAGES
from tests.generator.order import ORDER
from tests.generator.positions import POSITIONS
from tests.generator.program import ENDS, TAKES, Op, Program, build, inputs_of
from tests.generator.tokens import TOKENS
from tests.generator.weights import WEIGHTS

KINDS = {**IMAGES, **ORDER, **TOKENS, **WEIGHTS, **POSITIONS}
"""Name of an operation -> how it is built. ``again`` stands beside them: an earlier layer, used once more."""

__all__ = ["ENDS", "KINDS", "TAKES", "Op", "Program", "inputs_of", "network", "programs"]


def network(program: Program, seed: int = 0) -> nn.Module:
    """Return the network of a program: eval mode, float64, every parameter random."""
    return build(program, KINDS, seed)


def operations() -> st.SearchStrategy[Op]:
    """Draw one operation; it shrinks towards the newest values and the plainest variants."""
    return st.builds(
        Op,
        st.sampled_from(["conv", *sorted({*KINDS, "again"} - {"conv"})]),
        of=st.sampled_from([0, 0, 0, 1, 2, 3]),
        other=st.integers(0, 5),
        size=st.integers(0, 3),
        variant=st.integers(0, 3),
    )


def programs(least: int = 3, most: int = 30) -> st.SearchStrategy[Program]:
    """Draw a program of ``least`` to ``most`` operations."""
    return st.builds(
        Program,
        st.lists(operations(), min_size=least, max_size=most).map(tuple),
        end=st.sampled_from(ENDS),
        takes=st.sampled_from(TAKES),
    )
