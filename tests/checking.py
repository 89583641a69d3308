"""Checks and branches of models, apart from the tests: pytest writes the assertions of its own files in another way."""

import torch
from torch import Tensor


def finite(x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        raise ValueError(f"{tuple(x.shape)} with values that are not finite")
    return x


def of_one_sign(h: Tensor) -> None:
    assert (h >= 0).all() or (h <= 0).all() or h.numel() < 2, "of both signs"


def an_assertion(h: Tensor) -> None:
    assert not torch.isnan(h).any(), "not a number"


def two_in_one(h: Tensor) -> None:
    assert h.min() >= 0 and h.isfinite().all()  # noqa: PT018  (one assertion of two values)


def one_of_three(h: Tensor) -> None:
    of_one_sign(h)


def two_ways_to_be_wrong(h: Tensor) -> None:
    if h.isnan().any() or h.max() > 1e9:
        raise ValueError("too large")


def by_numbers(h: Tensor) -> None:
    if h.max().item() > 1e9:
        raise ValueError("too large")


def a_function_of_its_own(h: Tensor) -> None:
    finite(h)


def inside_of_a_context(h: Tensor) -> None:
    with torch.no_grad():
        if not h.isfinite().all():
            raise ValueError("not finite")


CHECKS = [an_assertion, two_in_one, one_of_three, two_ways_to_be_wrong, a_function_of_its_own, inside_of_a_context]


def turns_what_is_large(h: Tensor) -> Tensor:
    if h.sum() > 0:
        h = -h
    return h


def gives_up(h: Tensor) -> Tensor:
    if h.sum() > 1e6:
        return h * 0
    return h


def repeats(h: Tensor) -> Tensor:
    while h.sum() > 1e6:
        h = h / 2
    return h


def asserts_of_one_way(h: Tensor) -> Tensor:
    if h.sum() > 0:
        assert h.shape[0] == 3
        h = h + 1
    return h


def catches_what_it_raises(h: Tensor) -> Tensor:
    try:
        if h.sum() > 1e6:
            raise OverflowError
    except OverflowError:
        h = h / 2
    return h


def catches_what_a_function_raises(h: Tensor) -> Tensor:
    try:
        by_numbers(h)
    except ValueError:
        h = h / 2
    return h


BRANCHES = [
    turns_what_is_large,
    gives_up,
    repeats,
    asserts_of_one_way,
    catches_what_it_raises,
    catches_what_a_function_raises,
]
