"""What rules of products say of channels: matrix products, einsums, attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_channel_rules import Rule, holds, network, parameter
from tests.test_reasons import IMAGE, TOKENS, tokens
from tests.zoo.model import conv


def _heads(x: Tensor, count: int = 2) -> Tensor:
    return x.view(*x.shape[:-1], count, x.shape[-1] // count).transpose(1, 2)


def _over_tokens(scores: Tensor, n: Any, x: Tensor) -> Any:
    """What a network goes on with that looks up a table of positions: ``d`` of tokens that scores weigh."""
    return n.c(scores.softmax(-1) @ n.d(x))


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return ((query @ key.transpose(-1, -2)).softmax(-1) @ value).transpose(1, 2).flatten(2)


BETWEEN = torch.arange(5)[:, None] - torch.arange(5) + 4
"""Where a table of nine distances says what lies between two of five tokens."""
PRODUCTS = [
    Rule(
        "a matrix times features is a layer",
        lambda: network(
            lambda n, x: n.c(torch.bmm(n.w.expand(2, -1, -1), n.a(x).mT).mT.relu()),
            **{"a": nn.Linear(6, 4), "w": parameter(7, 4), "c": nn.Linear(7, 2)},
        ),
        TOKENS,
        {"a": 1, "w": 1},
    ),
    Rule(
        "a matrix times tokens keeps their number and no channels",
        lambda: network(
            lambda n, x: n.c(torch.bmm(n.w.expand(2, -1, -1), n.a(x)).relu()),
            **{"a": nn.Linear(6, 4), "w": parameter(7, 5), "c": nn.Linear(4, 2)},
        ),
        TOKENS,
        {"a": 1},
    ),
    Rule(
        "a matrix of its own for each channel follows the channels",
        lambda: network(lambda n, x: n.c((n.w @ n.a(x)).relu()), a=conv(3, 4), w=parameter(4, 7, 8), c=conv(4, 2)),
        IMAGE,
        {"a": 1},
    ),
    Rule(
        "a constant times features keeps their number",
        tokens(lambda n, x: (torch.ones(3, 4, dtype=x.dtype) @ n.a(x).transpose(1, 2)).transpose(1, 2), 3),
        TOKENS,
        {"b": 1},
    ),
    Rule(
        "an einsum of three values comes apart",
        tokens(lambda n, x: torch.einsum("nti,nts,nsj->nj", n.a(x), x[:, :, :5], n.o(x)), 3, o=nn.Linear(6, 3)),
        TOKENS,
        {"o": 1, "b": 1},
    ),
    Rule(
        "an einsum of two weights is one weight",
        lambda: network(
            lambda n, x: n.c(torch.einsum("nti,ij->ntj", n.a(x), torch.einsum("ij,jk->ik", n.v, n.w)).relu()),
            a=nn.Linear(6, 4),
            v=parameter(4, 3),
            w=parameter(3, 5),
            c=nn.Linear(5, 2),
        ),
        TOKENS,
        {"a": 1, "w": 1},
    ),
    Rule(
        "an einsum that mixes tokens keeps their number and no channels",
        lambda: network(
            lambda n, x: n.c(torch.einsum("nti,st->nsi", n.a(x), n.w).relu()),
            a=nn.Linear(6, 4),
            w=parameter(3, 5),
            c=nn.Linear(4, 2),
        ),
        TOKENS,
        {"a": 1},
    ),
    Rule(
        "a table of distances has the features of what looks them up",
        lambda: network(
            lambda n, x: _over_tokens((n.a(x)[..., None, :] @ n.t[n.i].transpose(1, 2))[:, :, 0], n, x),
            **{"a": nn.Linear(6, 4), "t": parameter(9, 4), "i": BETWEEN, "d": nn.Linear(6, 5), "c": nn.Linear(5, 2)},
        ),
        TOKENS,
        {"a,t": 1, "d": 1},
    ),
    Rule(
        "a table of distances that all heads share has the features of each",
        lambda: network(
            lambda n, x: _over_tokens(
                (_heads(n.a(x))[..., None, :] @ n.t[n.i].transpose(1, 2))[:, :, :, 0].mean(1), n, x
            ),
            **{"a": nn.Linear(6, 6), "t": parameter(9, 3), "i": BETWEEN, "d": nn.Linear(6, 5), "c": nn.Linear(5, 2)},
        ),
        TOKENS,
        {"a,t": 2, "d": 1},
    ),
    Rule(
        "heads of queries and keys that meet a table of distances are copied whole",
        lambda: network(
            lambda n, x: n.c(
                (
                    (
                        _heads(n.a(x)) @ _heads(n.k(x)).transpose(-1, -2)
                        + torch.einsum("nhqd,qkd->nhqk", _heads(n.a(x)), n.t[n.i])
                    ).softmax(-1)
                    @ _heads(n.d(x))
                )
                .transpose(1, 2)
                .flatten(2)
            ),
            **{"a": nn.Linear(6, 6), "k": nn.Linear(6, 6), "t": parameter(9, 3), "i": BETWEEN},
            **{"d": nn.Linear(6, 6), "c": nn.Linear(6, 2)},
        ),
        TOKENS,
        {"a,k,d": 3},
    ),
    Rule(
        "keys that all heads share have the features of each",
        lambda: network(
            lambda n, x: _over_tokens((_heads(n.a(x)) @ n.k(x)[:, None].transpose(-1, -2)).mean(1), n, x),
            **{"a": nn.Linear(6, 6), "k": nn.Linear(6, 3), "d": nn.Linear(6, 5), "c": nn.Linear(5, 2)},
        ),
        TOKENS,
        {"a,k": 2, "d": 1},
    ),
    Rule(
        "a matrix for each head leaves the features of one alone",
        lambda: network(
            lambda n, x: n.c((_heads(n.a(x)).transpose(-1, -2) @ x[:, None]).flatten(1, 2).mean(-1)),
            a=nn.Linear(6, 4),
            c=nn.Linear(4, 2),
        ),
        TOKENS,
        {"a": 2},
    ),
    Rule(
        "weights of a head meet the features of one head",
        lambda: network(
            lambda n, x: n.c(
                (n.g(x).transpose(1, 2)[..., None].expand(-1, -1, -1, 5).softmax(-1) @ _heads(n.a(x)))
                .transpose(1, 2)
                .flatten(2)
            ),
            g=nn.Linear(6, 2),
            a=nn.Linear(6, 4),
            c=nn.Linear(4, 2),
        ),
        TOKENS,
        {"g,a": 2},
    ),
    Rule(
        "products of features by features are made of whole heads",
        lambda: network(
            lambda n, x: n.c(
                (_heads(n.q(x)).relu() @ (_heads(n.k(x)).transpose(-1, -2).relu() @ _heads(n.a(x))))
                .transpose(1, 2)
                .flatten(2)
            ),
            **{"q": nn.Linear(6, 6), "k": nn.Linear(6, 6), "a": nn.Linear(6, 6), "c": nn.Linear(6, 2)},
        ),
        TOKENS,
        {"q,k,a": 3},
    ),
    Rule(
        "a scale that queries of all heads share lets heads be copied whole",
        lambda: network(
            lambda n, x: n.c(_attention(_heads(n.a(x)) * n.s, _heads(n.k(x)), _heads(n.d(x)))),
            **{
                "a": nn.Linear(6, 6),
                "k": nn.Linear(6, 6),
                "d": nn.Linear(6, 6),
                "s": parameter(3),
                "c": nn.Linear(6, 2),
            },
        ),
        TOKENS,
        {"a,k,d": 3},
    ),
    Rule(
        "a gate that queries of all heads share has the features of each",
        lambda: network(
            lambda n, x: n.c(_attention(_heads(n.a(x)) * n.g(x)[:, None], _heads(n.k(x)), _heads(n.d(x)))),
            **{"a": nn.Linear(6, 6), "k": nn.Linear(6, 6), "d": nn.Linear(6, 6), "g": nn.Linear(6, 3)},
            c=nn.Linear(6, 2),
        ),
        TOKENS,
        {"a,g,k": 2, "d": 2},
    ),
    Rule(
        "one head of all features is copied whole",
        lambda: network(
            lambda n, x: n.c(n.a(x).view(2, 5, -1, 4).transpose(1, 2).softmax(-1).transpose(1, 2).flatten(2)),
            **{"a": nn.Linear(6, 4), "c": nn.Linear(4, 2)},
        ),
        TOKENS,
        {"a": 4},
    ),
    Rule(
        "an einsum with a constant keeps what is summed",
        tokens(lambda n, x: torch.einsum("nti,oi->nto", n.a(x), torch.ones(3, 4, dtype=x.dtype)), 3),
        TOKENS,
        {"b": 1},
    ),
    Rule(
        "an einsum of a constant keeps what is summed",
        tokens(lambda n, x: torch.einsum("oi,nti->nto", torch.ones(3, 4, dtype=x.dtype), n.a(x)), 3),
        TOKENS,
        {"b": 1},
    ),
]


@pytest.mark.parametrize("rule", PRODUCTS, ids=lambda rule: rule.what.replace(" ", "_"))
def test_what_may_have_another_width_beside_a_product_is_said_and_the_laws_hold(rule):
    holds(rule)
