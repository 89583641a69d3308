"""What makes a tensor like another one, or overwrites one: constants, noise, masks."""

from collections.abc import Callable
from typing import Any

from torch import rand, randn

from nce_fx.ops.op import family, same_order
from nce_fx.ops.rules import movement


def _tokens(*rest: Any) -> Callable[[], tuple[Any, ...]]:
    return lambda: (randn(2, 6, 8), *rest)


_made = family(kind="movement")

ROWS = (
    *(
        _made(name, movement.alike, "input", _tokens())
        for name in ("zeros_like", "ones_like", "empty_like", "rand_like", "randn_like")
    ),
    _made("full_like", movement.alike, "input, fill_value", _tokens(0.5)),
    _made("uniform", movement.alike, "input, from_=0, to=1", _tokens()),
    _made("exponential", movement.alike, "input, lambd=1", _tokens()),
    _made("bernoulli", movement.alike, "input", lambda: (rand(2, 6, 8),)),
    _made("tril", movement.triangle, "input, diagonal=0", _tokens(2)),
    _made("triu", movement.triangle, "input, diagonal=0", _tokens(2)),
    *(
        _made(name, movement.new_shape, "input, size", _tokens([2, 6, 8]))
        for name in ("new_zeros", "new_ones", "new_empty")
    ),
    _made("new_full", movement.new_shape, "input, size, fill_value", _tokens([2, 6, 8], 0.5)),
    _made("fill", movement.filled, "input, value", _tokens(0.5)),
    _made("zero", movement.filled, "input", _tokens()),
    _made("copy", movement.write, "input, src", lambda: (randn(2, 6, 8), randn(2, 6, 8))),
    _made("_assert_tensor_metadata", movement.asserted, "input", _tokens(), spellings=same_order("_assert_scalar")),
)
