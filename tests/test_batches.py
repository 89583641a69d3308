"""One place reads batches: whatever form they have, the model is called with the same tensors, or it is said."""

from collections import OrderedDict, UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nce_fx
from nce_fx.batches import gathered, read, samples_in
from nce_fx.errors import InputError

X, Y, T = torch.randn(4, 3, 8, 8), torch.randn(4, 5), torch.arange(4)
Sample = namedtuple("Sample", "image label")


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, image):
        return self.fc(self.conv(image).relu().mean((2, 3)))


class Two(Image):
    def forward(self, image, meta=None):
        scores = super().forward(image)
        return scores if meta is None else scores + meta.mean(1, keepdim=True)


class OneDict(Image):
    def forward(self, batch):
        return super().forward(batch["image"]) + batch["meta"].mean(1, keepdim=True)


class Several(Image):
    def forward(self, images):
        return super().forward(images[0]) + super().forward(images[1])


@pytest.fixture(scope="module")
def graphs():
    models = {
        "image": (Image(), (X,)),
        "two": (Two(), (X, Y)),
        "one of two": (Two(), (X,)),
        "named": (Two(), {"image": X, "meta": Y}),
        "dict": (OneDict(), ({"image": X, "meta": Y},)),
        "list": (Several(), ([X, X],)),
    }
    return {name: nce_fx.trace(model.eval(), inputs) for name, (model, inputs) in models.items()}


FORMS: dict[str, list[Any]] = {
    "image": [
        (X, None),
        ((X,), None),
        ([X], None),
        ((X, T), T),
        ([X, T], T),
        (Sample(X, T), T),
        (((X,), T), T),
        (({"image": X}, T), T),
        ((X, T, Y), (T, Y)),
        ((X, (T, Y)), (T, Y)),
        ((X, {"class": T, "box": Y}), {"class": T, "box": Y}),
        ((X, [{"box": Y}] * 4), [{"box": Y}] * 4),
        ({"image": X}, None),
        ({"image": X, "label": T}, T),
        (OrderedDict(label=T, image=X), T),
        (UserDict(image=X, label=T), T),
        ({"pixel_values": X, "labels": T}, T),
        ({"x": X, "label": T, "path": ["a", "b", "c", "d"]}, {"label": T, "path": ["a", "b", "c", "d"]}),
    ],
    "two": [
        ((X, Y), None),
        (((X, Y), T), T),
        ([[X, Y], T], T),
        ((X, Y, T), T),
        ({"image": X, "meta": Y, "label": T}, T),
        ({"a": X, "b": Y, "label": T}, T),
        (({"image": X, "meta": Y}, T), T),
        ((X, Y, T, T), (T, T)),
    ],
    "one of two": [((X, T), T), ((X, Y, T), (Y, T))],
    "named": [({"meta": Y, "image": X, "label": T}, T), ((X, Y), None), (({"meta": Y, "image": X}, T), T)],
    "dict": [
        ({"image": X, "meta": Y}, None),
        ({"image": X, "meta": Y, "label": T}, T),
        (({"image": X, "meta": Y}, T), T),
        (({"image": X, "meta": Y},), None),
    ],
    "list": [(([X, X], T), T), ([[X, X], T], T), (([X, X],), None), ([X, X], None), ((X, X), None)],
}


def _equal(a, b):
    flat = [torch.utils._pytree.tree_leaves(value) for value in (a, b)]
    return len(flat[0]) == len(flat[1]) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(*flat, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "index"), [(name, index) for name, forms in FORMS.items() for index in range(len(forms))]
)
def test_a_batch_of_any_form_gives_the_model_the_same_and_keeps_the_target(graphs, name, index):
    gm, (batch, target) = graphs[name], FORMS[name][index]
    whole = {"two": (X, Y), "named": (X, Y), "dict": ({"image": X, "meta": Y},), "list": ([X, X],)}.get(name, (X,))
    inputs, found = read(batch, gm)
    assert torch.equal(gm(*inputs), gm(*whole))
    assert _equal(found, target)
    assert samples_in(inputs, found) == 4


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("image", X[0]),
        ("image", T),
        ("image", (T, X)),
        ("image", {"a": X, "b": X}),
        ("image", X.numpy()),
        ("image", []),
        ("image", "photo.png"),
        ("two", X),
        ("two", (X, T.reshape(4, 1))),
        ("dict", {"image": X}),
        ("list", ([X, X, X], T)),
    ],
)
def test_a_batch_that_fits_in_no_way_is_refused_with_the_form_that_is_wanted(graphs, name, batch):
    with pytest.raises(InputError, match=r"(?s)a batch is .* does not take: give .*, target\)") as caught:
        read(batch, graphs[name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batches", [X, {"image": X}, "digits", 3])
def test_one_batch_where_several_are_wanted_is_said(batches):
    with pytest.raises(InputError, match="give several batches"):
        gathered(batches)


def test_a_generator_without_end_is_no_calibration_data():
    with pytest.raises(InputError, match="more than 4096"):
        gathered(iter(lambda: X, None))


def test_plans_and_ranges_are_the_same_for_every_form():
    model, pairs = Image().eval(), [(X, T), (X + 1, T)]
    wanted = nce_fx.rewrite(model, (X,), batches=pairs)
    forms: dict[str, Any] = {
        "loader": DataLoader(TensorDataset(torch.cat([X, X + 1]), torch.cat([T, T])), 4),
        "generator": (pair for pair in pairs),
        "bare": [x for x, _ in pairs],
        "triples": [(x, t, t) for x, t in pairs],
        "dicts": [{"image": x, "label": t} for x, t in pairs],
    }
    for name, batches in forms.items():
        # By one thing rounded at a time the batches are read twice, which a generator cannot be.
        metric = "kl" if name == "generator" else None
        like = wanted if metric is None else nce_fx.rewrite(model, (X,), batches=pairs, metric=metric)
        found = nce_fx.rewrite(model, (X,), batches=batches, metric=metric)
        assert found.plan.widths == like.plan.widths, name
        assert torch.equal(found.graph_module(X), like.graph_module(X)), name


@pytest.mark.parametrize("empty", [torch.zeros(0, 3, 8, 8), (torch.zeros(0, 3, 8, 8), torch.zeros(0))])
def test_a_batch_without_samples_is_refused_in_words(empty):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    gm = nce_fx.trace(model, (torch.zeros(1, 3, 8, 8),))
    with pytest.raises(InputError, match=r"a batch holds no sample, .*0x3x8x8.*: leave it out"):
        nce_fx.quantize(gm, nce_fx.QuantSpec(), [empty])


def test_a_batch_whose_targets_are_empty_is_none_without_samples():
    model = nn.Conv2d(3, 4, 3)
    targets = [{"boxes": torch.zeros(0, 4)}, {"boxes": torch.zeros(0, 4)}]
    assert read(((x := torch.zeros(2, 3, 8, 8)), targets), model) == ((x,), targets)
