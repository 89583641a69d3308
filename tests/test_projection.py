"""How a value at new widths is held against the old one: whole channels copied or left out, and nothing else."""

from typing import Any

import numpy as np
import pytest
import torch

from nce_fx.ids.labels import at_places
from nce_fx.passes.analysis.channels.edits import lay_out
from nce_fx.passes.analysis.channels.projection import Mismatch, Projections, match

SPAN = 10
"""What a copy's number is multiplied by: the channels of these tests are 2 to 9."""


def line(*channels: int, places: int = 1) -> torch.Tensor:
    """Return the ids of channels, each of which lies at so many places in a row."""
    ids = torch.tensor(channels).repeat_interleave(places)
    return at_places(ids, torch.arange(len(ids)) % places, places) if places > 1 else ids


def projected(old: torch.Tensor, new: torch.Tensor) -> list[list[int] | None]:
    counts = np.ones(SPAN, dtype=np.int64)
    maps = Projections(counts).project(old, new)
    return [each if each is None else each.tolist() for each in maps]


@pytest.mark.parametrize(
    ("old", "new", "index", "copies"),
    [
        (line(2, 3, 4), line(2, 12, 3, 13, 4, 14), [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]),
        (line(2, 3, 4), line(4, 2), [2, 0], [0, 0]),
        (line(3, 2, 3), line(3, 13, 2, 3, 13), [0, 0, 1, 2, 2], [0, 1, 0, 0, 1]),
        (line(2, 3, places=2), line(2, 12, 3, places=2), [0, 1, 0, 1, 2, 3], [0, 0, 1, 1, 0, 0]),
    ],
)
def test_what_each_new_channel_repeats_is_told(old: Any, new: Any, index: list[int], copies: list[int]) -> None:
    assert [each.tolist() for each in match(old, new, SPAN)] == [index, copies]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (line(2, 4), line(2, 3), "were not there"),
        (line(2, 4, places=2), line(2, 3, places=2), "were not there"),
        (line(2, 4, places=2), line(2, 14, 5, places=2), "were not there"),
        (line(2, 3), line(2, 2, 3), "a copy arrives twice"),
        (line(3, 2, 3), line(3, 2), "in part"),
    ],
)
def test_a_line_that_is_not_the_old_one_is_refused(old: Any, new: Any, reason: str) -> None:
    with pytest.raises(Mismatch, match=reason):
        match(old, new, SPAN)


def test_places_within_channels_must_stay_in_order_in_each_channel() -> None:
    old = line(2, 3, places=3).reshape(2, 3)
    assert projected(old, old.clone()) == [[0, 1], [0, 1, 2]]
    turned = old[:, [0, 2, 1]]
    assert projected(old, turned) == [[0, 1], [0, 2, 1]]
    # The second channel alone is turned, which its line through the first place does not show.
    with pytest.raises(Mismatch, match="another order"):
        projected(old, torch.stack([old[0], turned[1]]))


@pytest.mark.parametrize("turn", [False, True])
def test_a_value_with_places_is_held_by_ids_against_one_without(turn: bool) -> None:
    plain = torch.tensor([[2, 3], [3, 4]])
    placed = at_places(plain, torch.tensor([[0, 0], [1, 0]]), 2)
    old, new = (placed, plain) if turn else (plain, placed)
    assert projected(old, new) == [[0, 1], [0, 1]]


@pytest.mark.parametrize("size", [0, 2])
def test_channels_must_not_go_missing(size: int) -> None:
    old = line(2, 3, 4).expand(2, 3)
    with pytest.raises(Mismatch, match="missing"):
        projected(old, old[:, :size])
    empty = old[:, :0]
    assert projected(empty, empty) == [None, None]


@pytest.mark.parametrize(
    ("mode", "index", "copies"),
    [
        (0, [0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 0, 0, 1, 1, 1, 1]),
        (1, [0, 1, 0, 1, 2, 3, 2, 3], [0, 0, 1, 1, 0, 0, 1, 1]),
        (2, [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 0, 1, 0, 1]),
    ],
)
def test_copies_of_a_block_stand_behind_it_or_behind_each_piece_of_it(
    mode: int, index: list[int], copies: list[int]
) -> None:
    one_class, twice = np.zeros(6, dtype=np.int64), np.full(6, 2)
    laid = lay_out(torch.arange(2, 6), one_class, twice, mode, frozenset({4}))
    assert [each.tolist() for each in laid] == [index, copies]


def test_a_mismatch_of_no_channels_blames_none() -> None:
    assert Mismatch("a reason").blame.tolist() == []
    assert Mismatch("a reason", line(4, 2), line(2)).blame.tolist() == [2, 4]
