"""Graphs whose user changes modules of theirs: they follow before they run, and before anything looks at them."""

from typing import Any

BEFORE_CALL = "before_call"
"""In ``meta`` of a graph: a function of it that brings it up to what its user has changed of its modules."""


def bring_up_to_date(model: Any) -> None:
    """Let a graph follow what its user has changed; anything else is left alone."""
    follow = vars(model).get("meta", {}).get(BEFORE_CALL)
    if follow is not None:
        follow(model)
