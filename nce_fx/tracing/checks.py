"""Checks of values, whose one answer only raises: ``assert x.isfinite().all()``, ``if bad.any(): raise ValueError``.

No graph asks them. The model runs on the example inputs, so there the answer is the other one: tracing goes on with it,
leaves the check out, and says so. What the compiler of Python made of the line tells which answer that is.
"""

import dis
from itertools import pairwise
from pathlib import Path
from types import FrameType

import torch

CHECKS = "checks"
"""In ``meta`` of a graph: where its model checks values."""
_TORCH, _OURS = str(Path(torch.__file__).parent), str(Path(__file__).parent)
_ENDS = ("RETURN", "YIELD", "RERAISE", "JUMP", "FOR_ITER", "SEND")


def answered(frame: FrameType, checks: list[str]) -> bool | None:
    """Answer a check that a frame is at with what does not raise, and take down where it is, ``model.py:12``.

    ``None`` of what is no check.
    """
    answer = answer_that_goes_on(frame)
    if answer is not None:
        checks.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
    return answer


def answer_that_goes_on(frame: FrameType) -> bool | None:
    """Return the truth with which the branch that a frame is at does not raise.

    ``None`` where both answers go on, as in ``if x.sum() > 0: x = -x``, where what is raised may be caught by the model
    itself, or where no branch asks.
    """
    steps = [*dis.get_instructions(frame.f_code)]
    places = {step.offset: place for place, step in enumerate(steps)}
    at = places.get(frame.f_lasti, len(steps))
    while at < len(steps) and steps[at].opname in ("TO_BOOL", "NOP"):
        at += 1
    ways = _ways(steps, places, at)
    if ways is None or _is_caught(frame):
        return None
    for answer in (True, False):
        if _raises(steps, ways[not answer]) and not _raises(steps, ways[answer]):
            return answer
        if _goes_on_alone(steps, places, ways[not answer], ways[answer]):
            return answer
    return None


def asking(frame: FrameType) -> FrameType:
    """Return the frame that asks, from one inside of PyTorch on."""
    while frame.f_code.co_filename.startswith((_TORCH, _OURS)) and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _is_caught(frame: FrameType | None) -> bool:
    """Whether a frame or one that it was called by, up to those of the tracer, stands inside of a ``try``."""
    while frame is not None and not frame.f_code.co_filename.startswith(_OURS):
        if not frame.f_code.co_filename.startswith(_TORCH):
            code = dis.Bytecode(frame.f_code)
            entries = code.exception_entries  # type: ignore[attr-defined]
            handlers = {entry.target for entry in entries if entry.start <= frame.f_lasti < entry.end}
            # A ``with`` has a handler, too, which tells its context and raises again.
            entered = [two.opname for one, two in pairwise(code) if one.offset in handlers]
            if any(name != "WITH_EXCEPT_START" for name in entered):
                return True
        frame = frame.f_back
    return False


def _ways(steps: list[dis.Instruction], places: dict[int, int], at: int) -> dict[bool, int] | None:
    """Return where a branch goes on for each answer; ``None`` of what is no branch."""
    step = steps[at] if at < len(steps) else None
    if step is None or not step.opname.startswith("POP_JUMP") or not step.opname.endswith(("IF_TRUE", "IF_FALSE")):
        return None
    jumps = step.opname.endswith("IF_TRUE")
    return {jumps: places[step.argval], not jumps: at + 1}


def _end(steps: list[dis.Instruction], at: int) -> int:
    """Return the first place from here on that does not go on to the next one."""
    while at < len(steps) and steps[at].opname != "RAISE_VARARGS" and not any(e in steps[at].opname for e in _ENDS):
        at += 1
    return at


def _raises(steps: list[dis.Instruction], at: int) -> bool:
    end = _end(steps, at)
    return end < len(steps) and steps[end].opname == "RAISE_VARARGS"


def _same(steps: list[dis.Instruction], a: int, b: int) -> bool:
    """Whether two places are one, or return the same: each way out of a function may have its own ``return None``."""
    if a == b:
        return True
    ends = [steps[place : _end(steps, place) + 1] for place in (a, b)]
    one, two = ([(step.opname, step.argval) for step in end] for end in ends)
    return one == two and bool(one) and one[-1][0].startswith("RETURN")


def _goes_on_alone(steps: list[dis.Instruction], places: dict[int, int], at: int, on: int) -> bool:
    """Whether all that follows raises or goes on at one place: what is asked after ``a`` in ``assert a or b``."""
    ways = _ways(steps, places, _end(steps, at))
    others = [] if ways is None else [way for way in ways.values() if not _same(steps, way, on)]
    if len(others) != 1:
        return False
    return _raises(steps, others[0]) or _goes_on_alone(steps, places, others[0], on)
