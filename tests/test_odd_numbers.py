"""Numbers at the edge, through the whole compiler: what comes out is finite, and comes back; or words say why not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nce_fx
from nce_fx.data.loaders import Data
from nce_fx.errors import InputError, NceFxError
from nce_fx.passes.transform.quantize import calibrate
from nce_fx.training import Recipe, evaluate, train
from tests.training_runs import same_state

LABELS = torch.tensor([0, 1, 2, 0])
Given = tuple[nn.Sequential, Tensor]


def net(width: int = 6, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    ).eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def samples(x: Tensor) -> Data:
    batches = [(x, LABELS[: len(x)])]
    return Data("odd", batches, batches, tuple(x.shape[1:]), 3)


def filled(path: str, value: float, channels: slice = slice(None)) -> nn.Sequential:
    model = net()
    with torch.no_grad():
        model.get_parameter(path)[channels] = value
    return model


def filled_norm(variance: float) -> nn.Sequential:
    model = net()
    model.get_buffer("1.running_var").fill_(variance)
    return model


def degenerate() -> nn.Sequential:
    """A dead channel, one that is always shut, one without variance, one with a factor of zero, weights all equal."""
    model = net()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    with torch.no_grad():
        model.get_parameter("0.weight")[0] = 0
        norm.bias[1] = -100
        norm.running_var[2] = 0
        norm.weight[3] = 0
        norm.running_var[4] = 1e30
        model.get_parameter("3.weight").fill_(0.5)
    return model


ODD: dict[str, Callable[[], Given]] = {
    "float64": lambda: (net().double(), images().double()),
    "bfloat16": lambda: (net().bfloat16(), images().bfloat16()),
    "half": lambda: (net().half(), images().half()),
    "channels that say nothing": lambda: (degenerate(), images()),
    "every weight zero": lambda: (filled("0.weight", 0.0), images()),
    "subnormal weights": lambda: (filled("3.weight", 1e-42), images()),
    "images of zeros": lambda: (net(), torch.zeros(4, 2, 6, 6)),
    "huge images": lambda: (net(), 1e30 * images()),
    "one sample": lambda: (net(), images(1)),
    "one channel": lambda: (net(width=1), images()),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_numbers_go_through_the_whole_compiler(name, tmp_path):
    model, x = ODD[name]()
    result = nce_fx.rewrite(model, (x,), batches=[(x, LABELS[: len(x)])])
    y = result.graph_module(x)
    assert y.dtype == x.dtype
    assert y.isfinite().all()
    nce_fx.save(result.graph_module, tmp_path / "result")
    assert torch.equal(nce_fx.load(tmp_path / "result", ODD[name]()[0])(x), y)
    if x.dtype == torch.float32 and x.abs().max() < torch.finfo(torch.half).max:
        assert copy.deepcopy(result.graph_module).half()(x.half()).isfinite().all(), "made half afterwards"
    trained = result.graph_module.train()
    if len(x) > 1:
        F.cross_entropy(trained(x).float(), LABELS).backward()
        for path, parameter in trained.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), path


REFUSED: dict[str, tuple[Callable[[], Given], str]] = {
    "NaN in a weight": (lambda: (filled("0.weight", float("nan"), slice(1)), images()), "0.weight holds 18 NaN"),
    "infinity in a weight": (lambda: (filled("3.bias", float("inf"), slice(1)), images()), "1 infinite"),
    "a variance below zero": (lambda: (filled_norm(-1.0), images()), "1.running_var holds values below zero"),
    "NaN in the data": (lambda: (net(), images() * float("nan")), "not finite"),
    "a batch of none": (lambda: (net(), images(0)), "holds no sample"),
    "one class, and a loss of several": (lambda: (net(classes=1), images()), "cross_entropy is for classes"),
    "weights that overflow": (lambda: (filled("3.weight", 1e30), images()), "not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_computed_with_is_refused_in_words(name):
    make, words = REFUSED[name]
    model, x = make()
    with pytest.raises(NceFxError, match=words):
        nce_fx.rewrite(model, (images(),), batches=[(x, LABELS[: len(x)] * (x.shape[0] > 0))])


class Masked(nn.Module):
    """Attention under a mask that the module holds, as many language models do."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(2, 8), nn.Linear(8, 3)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("mask", torch.full((6, 6), float("-inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        scores = self.query(x) @ self.key(x).transpose(1, 2) + self.mask
        y: Tensor = self.head((scores.softmax(2) @ self.value(x)).mean(1))
        return y


def test_a_mask_of_infinities_is_no_weight_that_overflowed():
    model, x = Masked().eval(), torch.randn(4, 6, 2)
    result = nce_fx.rewrite(model, (x,), batches=[(x, LABELS)])
    assert torch.equal(result.graph_module.get_buffer("mask"), model.mask)
    trained = train(result.graph_module, samples(x), Recipe(epochs=1))
    assert trained.model(x).isfinite().all()


def not_a_number(name: str) -> nn.Sequential:
    model = net()
    with torch.no_grad():
        model.state_dict()[name][0] = float("nan")
    return model


def test_a_network_with_nan_is_traced_as_it_is():
    # A NaN equals nothing, itself included: it looked as if the forward pass had written to it.
    for name in ("0.weight", "1.running_var"):
        model, x = not_a_number(name), images()
        gm = nce_fx.trace(model, (x,))
        assert torch.equal(gm(x).isnan(), model(x).isnan())
        assert torch.equal(gm.state_dict()[name].isnan(), model.state_dict()[name].isnan())


UNTRAINABLE: dict[str, tuple[Callable[[], Given], dict[str, Any], str]] = {
    "weights in half, sums in bf16": (ODD["half"], {"precision": "bf16"}, "0.weight is in torch.float16"),
    "weights in bf16, sums in half": (ODD["bfloat16"], {"precision": "fp16"}, "0.weight is in torch.bfloat16"),
    "an infinite weight": (lambda: (filled("3.weight", float("inf")), images()), {}, "the loss is nan at step 1"),
    "a variance that overflows": (ODD["huge images"], {}, "1.running_var has values that are not finite after step 1"),
}


@pytest.mark.parametrize("name", UNTRAINABLE)
def test_what_cannot_be_trained_is_refused_in_words(name):
    make, options, words = UNTRAINABLE[name]
    model, x = make()
    with pytest.raises(NceFxError, match=words):
        train(model, samples(x), Recipe(epochs=1, learning_rate=1e-9, **options))


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_what_says_nan_has_no_accuracy(metric):
    assert evaluate(net(), samples(images()), metric=metric) >= 0
    with pytest.raises(NceFxError, match="output on the test split holds NaN"):
        evaluate(not_a_number("8.bias"), samples(images()), metric=metric)


def test_a_batch_that_a_network_fails_on_is_said_in_one_line():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(5, 4)
    last = Data("five", [(x[:4], LABELS), (x[4:], LABELS[:1])], [(x[:4], LABELS)], (4,), 3)
    with pytest.raises(InputError, match=r"tensor 1x4.*Expected more than 1 value per channel.*another batch size"):
        train(model, last, Recipe(epochs=1))
    narrow = samples(x[:4, :3])
    quantized = nce_fx.quantize(nce_fx.trace(model.eval(), (x,)))
    doors: dict[str, Callable[[], object]] = {
        "train": lambda: train(model, narrow, Recipe(epochs=1)),
        "evaluate": lambda: evaluate(model, narrow),
        "calibrate": lambda: calibrate(quantized, [(x[:4, :3], LABELS)]),
    }
    for door, work in doors.items():
        with pytest.raises(InputError, match=r"fails on a batch, .*tensor 4x3.*shapes cannot be multiplied"):
            pytest.fail(f"{door} gives {work()}")


def test_counts_beyond_32_bits_are_exact():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(60_000, 60_000), nn.ReLU(), nn.Linear(60_000, 50_000))
    gm = nce_fx.trace(model, (torch.zeros(1, 60_000, device="meta"),))
    cost = nce_fx.analyze_cost(gm)
    assert cost.total.macs == 60_000 * 60_000 + 60_000 * 50_000
    wide = {"0": 2**31 + 1}
    assert cost.at(wide).total.params == (60_000 + 1) * (2**31 + 1) + (2**31 + 1 + 1) * 50_000


def test_a_network_without_values_is_planned_and_resized_and_no_more(tmp_path):
    with torch.device("meta"):
        model, x = net(), torch.zeros(2, 2, 6, 6)
    gm = nce_fx.trace(model, (x,))
    widths = {group.id: group.width + 2 for group in nce_fx.analyze_channels(gm) if group.pinned is None}
    wide = nce_fx.resize(gm, widths)
    assert wide(x).shape == (2, 3)
    assert sum(each.numel() for each in wide.parameters()) == nce_fx.analyze_cost(gm).at(widths).total.params
    doors: dict[str, Callable[[], object]] = {
        "quantizing": lambda: nce_fx.rewrite(model, (x,)),
        "a sensitivity": lambda: nce_fx.analyze_sensitivity(gm, [(images(), LABELS)]),
        "training": lambda: train(gm, samples(images()), Recipe(epochs=1)),
        "evaluation": lambda: evaluate(gm, samples(images())),
        "saving": lambda: nce_fx.save(wide, tmp_path / "result"),
    }
    for door, work in doors.items():
        with pytest.raises(NceFxError, match=f"0.weight is on the meta device and has no values, which {door} needs"):
            work()


@pytest.mark.parametrize("scale", [1e-25, 1e30])
def test_widening_keeps_the_function_of_weights_of_any_size(scale):
    model, x = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)), torch.randn(5, 4)
    with torch.no_grad():
        model[2].weight *= scale
        expected = model(x)
        found = nce_fx.resize(nce_fx.trace(model, (x,)), {"0": 9})(x)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_two_rewrites_in_two_threads_are_those_of_one():
    # Made beforehand: the generator that they are drawn from is one for all threads.
    networks, inputs = (net(6), net(9)), images()

    def rewritten(model: nn.Module) -> tuple[str, dict[str, Tensor]]:
        result = nce_fx.rewrite(model, (inputs,), batches=[(inputs, LABELS)])
        return result.plan.to_json(), result.graph_module.state_dict()

    alone = [rewritten(model) for model in networks]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(rewritten, networks))
    for (one, state), (two, other) in zip(alone, together, strict=True):
        assert one == two
        assert same_state(state, other)
