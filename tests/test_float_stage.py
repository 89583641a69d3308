"""Training in float first: a quantized network whose quantizers let everything pass, and are then started anew."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nce_fx
from nce_fx import artifacts
from nce_fx.cli.commands import Retrain
from nce_fx.cli.retraining import asked_for
from nce_fx.errors import InputError, QuantizeError
from nce_fx.passes.transform.quantize import RemoveQuantizers, calibrate
from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, ActivationQuantizer, Quantizer
from nce_fx.quantizers.base import Replaced
from nce_fx.quantizers.pact import Pact
from nce_fx.report.records import Retraining
from nce_fx.training import Recipe, train
from nce_fx.training.checkpoint import read_checkpoint
from nce_fx.training.recipe import bits_at, dampening_at, distillation_at, learning_rate_at
from nce_fx.training.stages import stages_of
from tests.training_runs import Blobs, same_state

RECIPE = Recipe(epochs=4, float_epochs=2, batch_size=50)
STEPS = 3
"""In an epoch."""
BORDER = 2 * STEPS


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.relu, self.conv3, self.fc = nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)))
        return self.fc((x + self.conv3(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def float_network() -> Any:
    torch.manual_seed(0)
    return nce_fx.trace(Net().train(), (torch.zeros(2, 1, 6, 6),))


def quantized(gm: Any, **spec: Any) -> Any:
    return nce_fx.quantize(gm, nce_fx.QuantSpec(**spec), [torch.randn(8, 1, 6, 6, generator=torch.Generator())])


@pytest.mark.parametrize("name", [*WEIGHT_QUANTIZERS.names(), *ACTIVATION_QUANTIZERS.names()])
def test_what_is_bypassed_lets_values_and_gradients_pass(name):
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    relu = Replaced("relu", "call_function", torch.relu, (), {}, False)
    made: list[Any] = []
    if name in WEIGHT_QUANTIZERS:
        made.append(WEIGHT_QUANTIZERS[name](2, 0))
        made[0].start(x.detach())
    if name in ACTIVATION_QUANTIZERS:
        made += [ACTIVATION_QUANTIZERS[name](2), ACTIVATION_QUANTIZERS[name](2, False, "graph", relu)]
    for quantizer in made:
        before = quantizer(x)
        quantizer.bypassed = True
        passed = x.relu() if getattr(quantizer, "replaces", None) else x
        assert torch.equal(quantizer(x), passed)
        (gradient,) = torch.autograd.grad(quantizer(x).sum(), x)
        assert torch.equal(gradient, torch.ones_like(x) if passed is x else (x > 0).float())
        quantizer.bypassed = False
        assert torch.equal(quantizer(x), before)
        assert not torch.equal(before, passed)


def test_the_rate_rises_and_falls_in_each_part():
    recipe = Recipe(epochs=10, float_epochs=4, learning_rate=1.0, warmup_epochs=1.0)
    rates = [learning_rate_at(recipe, step, 5) for step in range(50)]
    alone = [learning_rate_at(Recipe(epochs=n, learning_rate=1.0), s, 5) for n in (4, 6) for s in range(5 * n)]
    assert rates == alone
    # One epoch alone: no warm-up that takes all of it.
    short = Recipe(epochs=2, float_epochs=1, learning_rate=1.0)
    assert max(learning_rate_at(short, step, 4) for step in range(4)) == 1.0
    assert [bits_at(Recipe(epochs=7, float_epochs=3, bits=(8, 2)), e) for e in range(7)] == [32, 32, 32, 8, 8, 2, 2]
    damped = Recipe(epochs=10, float_epochs=4, dampen=1.0)
    assert [dampening_at(damped, step, 5) for step in (0, 19, 20)] == [0, 0, 0]
    assert dampening_at(damped, 50, 5) == 1.0
    taught = Recipe(epochs=10, float_epochs=4, distill_alpha=0.5, distill_falls=True)
    shares = [distillation_at(taught, step, 5) for step in (0, 10, 20, 35, 49)]
    assert shares[:4] == pytest.approx([0.5, 0.25, 0.5, 0.25])
    assert 0 < shares[4] < 0.01


def stop_at(step: int) -> Any:
    def stop(report: Any) -> None:
        if report.step == step:
            raise RuntimeError("power cut")

    return stop


def run(gm: Any, directory: Path, recipe: Recipe = RECIPE, progress: Any = None) -> Any:
    return train(gm, Blobs(), recipe, directory=directory, progress=progress, checkpoint_seconds=0)


@pytest.mark.parametrize("spec", [{}, {"weight": "lsq", "activation": "lsq"}, {"weight": "dorefa", "sums": "int8"}])
def test_the_first_epochs_are_those_of_the_float_network_bit_for_bit(float_network, tmp_path, spec):
    gm = quantized(float_network, **spec)
    alone = run(RemoveQuantizers()(gm).graph_module, tmp_path / "alone", Recipe(epochs=2, batch_size=50))
    with pytest.raises(RuntimeError, match="power cut"):
        run(gm, tmp_path / "both", progress=stop_at(BORDER))
    # The last two checkpoints of both: a step before the stage ends, and at its end.
    ours, theirs = (read_checkpoint(min((tmp_path / name).glob("checkpoint-*"))) for name in ("both", "alone"))
    assert ours.steps == theirs.steps == BORDER - 1
    assert all(torch.equal(ours.tensors[name], tensor) for name, tensor in theirs.tensors.items())
    resumed = run(gm, tmp_path / "both")
    assert [(r.loss, r.test_accuracy) for r in resumed.history[:2]] == [
        (r.loss, r.test_accuracy) for r in alone.history
    ]


def test_the_history_says_what_was_in_float(float_network, tmp_path):
    result = run(quantized(float_network), tmp_path)
    assert [record.bits for record in result.history] == [32, 32, None, None]
    assert [record.moved is None for record in result.history] == [True, True, False, False]
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert [line.split(",")[3] for line in lines] == ["bits", "32", "32", "", ""]
    assert not any(m.bypassed for m in result.model.modules() if isinstance(m, Quantizer))
    assert result.accuracy == result.history[-1].test_accuracy


@pytest.mark.parametrize("recipe", [RECIPE, Recipe(epochs=4, float_epochs=2, batch_size=50, average=0.9, freeze=0.01)])
def test_stopped_at_the_border_it_ends_with_the_same_weights(float_network, tmp_path, recipe):
    whole = run(quantized(float_network), tmp_path / "whole", recipe)
    for step in (BORDER - 1, BORDER, BORDER + 1):
        with pytest.raises(RuntimeError, match="power cut"):
            run(quantized(float_network), tmp_path / str(step), recipe, stop_at(step))
        again = run(quantized(float_network), tmp_path / str(step), recipe)
        assert same_state(again.model.state_dict(), whole.model.state_dict())
        assert again.history == whole.history
        assert (tmp_path / str(step) / "steps.csv").read_bytes() == (tmp_path / "whole" / "steps.csv").read_bytes()


@pytest.mark.parametrize("weight", WEIGHT_QUANTIZERS.names())
@pytest.mark.parametrize("activation", ["pact", "lsq"])
def test_quantizers_start_anew_as_on_a_network_that_was_always_so(float_network, weight, activation):
    """Other weights under old quantizers, started again, are what `quantize` makes of these weights."""
    spec = {"weight": weight, "activation": activation}
    gm = quantized(float_network, **spec).eval()
    other = nce_fx.trace(Net().eval(), (torch.zeros(2, 1, 6, 6),))
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            gm.get_parameter(name).copy_(parameter)
    batches = [torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(s)) for s in range(3)]

    def look() -> None:
        for batch in batches:
            gm(batch)

    stages_of(gm, RECIPE).start_again(look)
    expected = calibrate(nce_fx.quantize(other, nce_fx.QuantSpec(**spec)), batches)
    assert same_state(gm.state_dict(), expected.state_dict())
    for path, ours in gm.named_modules():
        if isinstance(ours, ActivationQuantizer):
            assert str(ours) == str(expected.get_submodule(path))


def test_values_that_are_not_finite_are_said(float_network):
    gm = quantized(float_network).eval()
    with torch.no_grad():
        gm.get_parameter("conv2.weight").fill_(float("nan"))
    with pytest.raises(QuantizeError, match=r"conv2\.weight_quant: .* not finite after the epochs in float"):
        stages_of(gm, RECIPE).start_again(lambda: gm(torch.zeros(2, 1, 6, 6)))


class OwnForward(Pact):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_what_cannot_be_trained_in_float_first_is_refused():
    with pytest.raises(InputError, match="float_epochs is 3 of 3 epochs; leave at least one"):
        Recipe(epochs=3, float_epochs=3)
    with pytest.raises(InputError, match="float_epochs is -1"):
        Recipe(float_epochs=-1)
    with pytest.raises(InputError, match="has no quantizers: all its epochs are in float"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), Blobs(), RECIPE)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), OwnForward(2))
    with pytest.raises(InputError, match=r"2 \(OwnForward\) has a forward of its own.*override rounded"):
        train(model, Blobs(), RECIPE)


def asked(directory: Path, before: Retraining | None = None, **options: Any) -> int:
    """The epochs in float that `nce-fx retrain` would have."""
    manifest = artifacts.read_manifest(directory).model_copy(update={"retraining": before})
    found: int = asked_for(Retrain(directory=directory, data="digits", **options), manifest).recipe["float_epochs"]
    return found


def test_a_quarter_of_the_epochs_are_in_float_where_widths_changed_and_nobody_says(float_network, tmp_path):
    for name, widths in (("same", {}), ("wide", {"conv1": 9})):
        gm = nce_fx.resize(float_network, widths) if widths else float_network
        nce_fx.save(nce_fx.quantize(gm), tmp_path / name)
    wide = tmp_path / "wide"
    assert asked(tmp_path / "same", epochs=8) == 0
    assert [asked(wide, epochs=epochs) for epochs in (1, 2, 7, 12)] == [0, 1, 1, 3]
    assert asked(wide, epochs=8, from_scratch=True) == 0
    assert asked(wide, epochs=8, float_epochs=1) == asked(wide, epochs=8, recipe='{"float_epochs": 1}') == 1
    # A folder goes on as it began: those of earlier versions without.
    began = Retraining(data="digits", recipe={"epochs": 8}, float_epochs=8)
    assert asked(wide, began) == asked(wide, began, epochs=4) == 0
    began = Retraining(data="digits", recipe=Recipe(epochs=8, float_epochs=3).to_dict(), float_epochs=8)
    assert [asked(wide, began), asked(wide, began, epochs=8), asked(wide, began, epochs=12)] == [3, 3, 3]
    assert asked(wide, began, epochs=10, float_epochs=2) == 2
    with pytest.raises(InputError, match="its own option says 2"):
        asked(wide, epochs=8, float_epochs=2, recipe='{"float_epochs": 1}')
