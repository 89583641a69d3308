"""What a recipe may ask for beside the steps: weights that are frozen, averaged weights, features to learn from."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nce_fx
from nce_fx.errors import InputError
from nce_fx.passes.transform.quantize import integer_weights
from nce_fx.training import Recipe, StepReport, train
from nce_fx.training.extras import Average
from nce_fx.training.features import feature_loss, tapped
from nce_fx.training.oscillation import MOMENTUM, Freezing
from tests.training_runs import Blobs, net, same_state

RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.1, warmup_epochs=0, cosine=False)


def float_net() -> Any:
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return nce_fx.trace(nn.Sequential(*body, nn.Flatten(), nn.Linear(32, 4)), (torch.randn(2, 1, 6, 6),))


def quantized_net(weight: str = "sawb") -> Any:
    return nce_fx.quantize(float_net(), nce_fx.QuantSpec(weight, first_last_bits=2), [torch.randn(16, 1, 6, 6)])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sawb", "lsq", "minmax", "seq", "statsq"])
def test_a_weight_that_goes_back_and_forth_is_held_on_its_usual_level(kind):
    gm = quantized_net(kind)
    weight: Any = gm.get_parameter("3.weight")
    quantizer: Any = gm.get_submodule("3.weight_quant")
    freezing, first = Freezing(gm, 0.015), weight[0, 0].clone()
    levels = [quantizer.integers(weight).values.clone()]
    moved = weight.clone()
    moved[0, 0] = -first
    assert not torch.equal(quantizer.integers(moved).values, levels[0])
    for step in range(8):
        # Two steps of three on its own side: there and back are two moves in three steps.
        weight[0, 0] = -first if step % 3 == 1 else first
        freezing.after_step(1.0)
    frozen = freezing.tensors()["frozen/3.weight"]
    turned = quantizer.integers(moved).values != levels[0]
    assert torch.equal(frozen, turned), "those that went back and forth, and no others"
    assert freezing.share == int(turned.sum()) / sum(w.integers.numel() for w in integer_weights(gm).values())
    weight.mul_(-1.7)
    freezing.after_step(1.0)
    assert torch.equal(quantizer.integers(weight).values[turned], levels[0][turned])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sawb", "sawb-channel", "lsq", "minmax", "seq", "statsq"])
def test_weights_that_are_all_frozen_stay_what_they_are(kind):
    """Where the scale follows from the weights, weights that followed the scale would shrink or grow at every step."""
    gm = quantized_net(kind)
    weight: Any = gm.get_parameter("3.weight")
    quantizer: Any = gm.get_submodule("3.weight_quant")
    freezing = Freezing(gm, 0.015)
    freezing.tensors()["frozen/3.weight"].fill_(True)
    size, levels = weight.norm().item(), quantizer.integers(weight).values.clone()
    for _ in range(300):
        weight.add_(0.01 * torch.randn_like(weight))
        freezing.after_step(1.0)
    assert 0.5 * size < weight.norm().item() < 2 * size
    assert torch.equal(quantizer.integers(weight).values, levels)


def test_the_frequency_is_the_published_average():
    gm = quantized_net()
    weight: Any = gm.get_parameter("0.weight")
    freezing, start = Freezing(gm, 1.0), gm.get_parameter("0.weight").detach().clone()
    expected, signs = 0.0, [1, -1, -1, 1, -1]
    for step, sign in enumerate(signs):
        with torch.no_grad():
            weight.copy_(sign * start)
        freezing.after_step(0.5)
        turns = step > 0 and signs[step - 1] != sign and step > 1
        expected = MOMENTUM * turns + (1 - MOMENTUM) * expected
    np.testing.assert_allclose(freezing.tensors()["frequency/0.weight"], expected, rtol=1e-6)


def test_freezing_calms_a_run():
    recipe, ends = replace(RECIPE, epochs=10), []
    for freeze in (0.004, 0.0):
        history = train(quantized_net(), Blobs(), replace(recipe, freeze=freeze)).history
        ends.append(sum(record.moved or 0.0 for record in history[-3:]))
    assert ends[0] < 0.6 * ends[1]


def test_freezing_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="no quantized weights"):
        train(net(), Blobs(), replace(RECIPE, freeze=0.01))
    with pytest.raises(InputError, match=r"0\.weight goes through dorefa"):
        train(quantized_net("dorefa"), Blobs(), replace(RECIPE, freeze=0.01))
    with pytest.raises(InputError, match="freeze is given and bits"):
        Recipe(freeze=0.01, bits=(8, 2))


def test_an_average_is_its_formula():
    model = nn.BatchNorm1d(3)
    weight, average = model.weight, Average(model, 0.5)
    expected = np.ones(3)
    for step in range(20):
        with torch.no_grad():
            weight.copy_(torch.full((3,), float(step)))
        average.after_step(0.0)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.shown():
        np.testing.assert_allclose(weight.detach(), expected, rtol=1e-6)
    assert torch.equal(weight, torch.full((3,), 19.0))
    average.put()
    np.testing.assert_allclose(weight.detach(), expected, rtol=1e-6)


def test_an_average_is_returned_and_changes_no_step():
    plain, averaged = (train(quantized_net(), Blobs(), replace(RECIPE, average=a)) for a in (0.0, 0.95))
    assert [r.loss for r in plain.history] == [r.loss for r in averaged.history]
    assert not same_state(plain.model.state_dict(), averaged.model.state_dict())
    distances = [
        sum(float((p - q).detach().norm()) for p, q in zip(quantized_net().parameters(), x.parameters(), strict=True))
        for x in (plain.model, averaged.model)
    ]
    assert distances[1] < distances[0], "an average lies behind"


def test_features_are_compared_as_published():
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(5, channels, 3, 4, generator=generator) for channels in (2, 6)]
    tokens = [torch.randn(5, 7, channels, generator=generator) for channels in (3, 3)]

    def attention(values: Any, axis: int) -> Any:
        flat = (values.numpy() ** 2).sum(axis).reshape(5, -1)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    expected = [
        ((attention(a, axis) - attention(b, axis)) ** 2).sum(1).mean() for (a, b), axis in ((images, 1), (tokens, 2))
    ]
    found = feature_loss((images[0], tokens[0]), (images[1], tokens[1]))
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_student_looks_where_its_teacher_does():
    teacher = train(float_net(), Blobs(), RECIPE).model
    start = nce_fx.quantize(teacher, nce_fx.QuantSpec(first_last_bits=2), [torch.randn(16, 1, 6, 6)])
    x, distances = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1)), []
    for strength in (0.0, 30.0):
        student = train(start, Blobs(), replace(RECIPE, distill_features=strength), teacher=teacher).model
        pair = [model.eval()(x)[1] for model in tapped(student, teacher)]
        assert [maps.shape[2:] for maps in pair[0]] == [(4, 4)], "the last of each size that is an image"
        distances.append(float(feature_loss(*pair)))
    assert distances[1] < 0.7 * distances[0]


def test_features_without_a_place_are_refused():
    with pytest.raises(InputError, match="none in common"):
        train(float_net(), Blobs(), replace(RECIPE, distill_features=1.0), teacher=float_net())
    with pytest.raises(InputError, match="trace them first"):
        train(quantized_net(), Blobs(), replace(RECIPE, distill_features=1.0), teacher=net())


def test_a_batch_in_parts_gives_the_step_of_the_whole():
    recipe = replace(RECIPE, epochs=1, batch_size=32, dampen=0.1, clip_gradient=2.0)
    results = [
        train(net(norm=False, dropout=0.0).double(), double(), replace(recipe, accumulate=parts))
        for parts in (1, 3, 64)
    ]
    for other in results[1:]:
        assert other.history[0].loss == pytest.approx(results[0].history[0].loss, rel=1e-12)
        pairs = zip(results[0].model.parameters(), other.model.parameters(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-10) for a, b in pairs)


def test_the_largest_memory_is_that_of_a_part(monkeypatch):
    seen: list[int] = []
    model = net()
    model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    train(model, Blobs(), replace(RECIPE, epochs=1, batch_size=50, accumulate=4))
    assert max(seen[:12]) == 13


def test_a_network_with_exact_scales_trains():
    gm = nce_fx.quantize(float_net(), nce_fx.QuantSpec(exact=True), [torch.randn(16, 1, 6, 6)])
    result = train(gm, Blobs(), replace(RECIPE, epochs=2))
    assert result.history[1].loss < result.history[0].loss


def double() -> Blobs:
    data = Blobs()
    data.to_double()
    return data


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "adamw", "learning_rate": 0.002}])
def test_a_run_that_was_stopped_ends_with_the_same_weights(optimizer, tmp_path):
    recipe = replace(RECIPE, freeze=0.004, average=0.9, distill_features=3.0, reestimate=2, **optimizer)
    teacher, data = float_net(), Blobs()
    whole = train(quantized_net(), data, recipe, teacher=teacher)

    def stop(report: StepReport) -> None:
        if report.step == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(quantized_net(), data, recipe, teacher=teacher, directory=tmp_path, progress=stop, checkpoint_seconds=0)
    again = train(quantized_net(), data, recipe, teacher=teacher, directory=tmp_path)
    assert same_state(again.model.state_dict(), whole.model.state_dict())
    assert again.history == whole.history
