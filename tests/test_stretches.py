"""Where a graph is cut so that its stretches, computed again one by one, need least memory."""

from itertools import combinations, pairwise

import pytest

from nce_fx.training.stretches import _where_little_passes


def needed(made: list[int], passed: list[int], ends: tuple[int, ...]) -> int:
    """What passes from one stretch to the next, and what the largest makes."""
    borders = [0, *ends, len(made)]
    return sum(passed[end] for end in ends) + max(sum(made[start:end]) for start, end in pairwise(borders))


@pytest.mark.parametrize(
    ("made", "passed"),
    [
        ([2, 5, 5], [0, 1, 1, 3]),
        ([7, 8, 9, 5, 3], [0, 3, 0, 2, 0, 1]),
        ([6, 3, 3, 4, 7], [0, 1, 1, 3, 0, 2]),
        ([0, 6, 7, 9, 0, 3, 7], [0, 3, 2, 1, 0, 4, 3, 2]),
        ([4, 9, 0, 9, 3, 4, 0], [0, 3, 3, 1, 0, 3, 0, 4]),
        ([8, 8, 8, 2, 6, 7, 0], [0, 4, 0, 0, 3, 3, 2, 3]),
        ([1, 1, 1], [0, 9, 9, 9]),
    ],
)
def test_no_other_cuts_need_less(made, passed):
    free = range(1, len(made))
    every = [ends for count in range(len(made)) for ends in combinations(free, count)]
    found = tuple(sorted(_where_little_passes(made, passed, set(free))))
    assert needed(made, passed, found) == min(needed(made, passed, ends) for ends in every)


def test_a_deep_network_is_cut_as_finely_as_a_sixty_fourth_of_it():
    """Of 190 steps that is two and no third."""
    assert sorted(_where_little_passes([1000] * 190, [1] * 191, set(range(1, 190)))) == [*range(2, 190, 2)]
