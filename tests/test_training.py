"""Retraining: the recipe, the loss, what a run leaves behind, and that it does what it says to the last bit."""

import csv
import importlib.util
import math
import random
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import nce_fx
from nce_fx.errors import InputError, TrainingError
from nce_fx.models import MODELS
from nce_fx.passes.transform.new_weights import from_scratch
from nce_fx.passes.transform.quantize import integer_weights
from nce_fx.processes import Engine
from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from nce_fx.tasks import Task, scores_of
from nce_fx.training import Recipe, StepReport, evaluate, train
from nce_fx.training.batches import batches_of
from nce_fx.training.optimizer import build_optimizer, learned_ranges, positive_ranges
from nce_fx.training.oscillation import dampen
from nce_fx.training.recipe import bits_at, dampening_at, learning_rate_at
from nce_fx.training.stages import set_bits
from tests.training_runs import Blobs, net, same_state


class TestRecipe:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("epochs", -1),
            ("batch_size", 0),
            ("learning_rate", math.nan),
            ("momentum", 1.0),
            ("distill_temperature", 0.0),
            ("bits", (8, 0)),
            ("precision", "fp8"),
        ],
    )
    def test_out_of_range_is_refused_by_name(self, field, value):
        with pytest.raises(InputError, match=f"recipe: {field} is"):
            Recipe(**{field: value})

    def test_survives_json(self):
        recipe = Recipe(epochs=3, bits=(8, 4, 2), clip_gradient=1.0)
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        with pytest.raises(InputError, match="no such field: lr"):
            Recipe.from_dict({"lr": 1.0})

    def test_learning_rate_rises_then_falls_as_a_cosine(self):
        recipe = Recipe(epochs=5, learning_rate=1.0, warmup_epochs=1)
        rates = [learning_rate_at(recipe, step, 10) for step in range(50)]
        assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert rates[10] == 1.0
        assert rates[30] == pytest.approx(0.5)
        assert rates[10:] == sorted(rates[10:], reverse=True)
        assert 0 < rates[-1] < 0.01

    def test_stages_of_bits_split_the_epochs(self):
        recipe = Recipe(epochs=7, bits=(8, 4, 2))
        assert [bits_at(recipe, epoch) for epoch in range(7)] == [8, 8, 8, 4, 4, 2, 2]
        assert bits_at(Recipe(), 0) is None


class TestLoss:
    def scores(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        student = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
        return student, torch.randn(6, 5, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])

    def test_is_the_formula(self):
        student, teacher, target = self.scores()

        def softmax(values: np.ndarray[Any, Any]) -> Any:
            powers = np.exp(values - values.max(1, keepdims=True))
            return powers / powers.sum(1, keepdims=True)

        s, t, heat, share = student.detach().numpy(), teacher.numpy(), 4.0, 0.9
        entropy = -np.log(softmax(s)[np.arange(6), target.numpy()]).mean()
        p, q = softmax(t / heat), softmax(s / heat)
        expected = (1 - share) * entropy + share * heat**2 * (p * np.log(p / q)).sum(1).mean()
        task = Task.of()
        distilled = task.training_loss(student, target, teacher=teacher, share=0.9, heat=4.0)
        assert distilled.item() == pytest.approx(expected, rel=1e-12)
        assert task.training_loss(student, target).item() == pytest.approx(entropy, rel=1e-12)

    def test_gradient_is_the_closed_form(self):
        student, teacher, target = self.scores()
        loss = Task.of().training_loss(student, target, teacher=teacher, share=0.7, heat=3.0)
        (gradient,) = torch.autograd.grad(loss, student)
        hard = student.detach().softmax(1) - F.one_hot(target, 5)
        soft = (student.detach() / 3).softmax(1) - (teacher / 3).softmax(1)
        torch.testing.assert_close(gradient, (0.3 * hard + 0.7 * 3.0 * soft) / 6, rtol=1e-12, atol=1e-14)

    def test_scores_are_the_first_tensor(self):
        scores = torch.zeros(2, 3)
        assert scores_of((scores, "aux")) is scores
        assert scores_of({"logits": [scores]}) is scores
        with pytest.raises(TrainingError, match="a loss needs a tensor"):
            scores_of(3)


class TestEvaluate:
    def test_counts_exactly_and_leaves_the_model_alone(self):
        data = Blobs()
        truth = data.parts["test"].tensors[1]

        class Oracle(nn.Module):
            """Right on all but every tenth sample; only in eval mode."""

            def __init__(self) -> None:
                super().__init__()
                self.seen = 0

            def forward(self, x):
                assert not self.training
                classes = truth[self.seen : self.seen + len(x)].clone()
                wrong = torch.arange(self.seen, self.seen + len(x)) % 10 == 0
                classes[wrong] = (classes[wrong] + 1) % 4
                self.seen += len(x)
                return F.one_hot(classes, 4).float().to(x.device)

        model = Oracle()
        assert evaluate(model, data, batch_size=7) == 1 - math.ceil(len(truth) / 10) / len(truth)
        assert model.training

    def test_no_samples_is_an_error(self):
        with pytest.raises(TrainingError, match="no samples"):
            evaluate(net(), Blobs(test=0))


class TestTrain:
    def test_learns_and_leaves_its_arguments_and_generators_alone(self):
        model, teacher, data = net(), net(seed=5), Blobs()
        before, taught = ({k: v.clone() for k, v in m.state_dict().items()} for m in (model, teacher))
        generators = torch.random.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
        result = train(model, data, Recipe(epochs=4, batch_size=16, distill_alpha=0.1), teacher=teacher)
        assert result.score > 0.9 > evaluate(model, data)
        assert result.accuracy == evaluate(result.graph_module, data)
        assert result.history[-1].loss < result.history[0].loss
        assert [record.steps for record in result.history] == [10, 20, 30, 40]
        assert same_state(model.state_dict(), before)
        assert same_state(teacher.state_dict(), taught)
        assert model.training
        assert teacher.training
        assert torch.equal(torch.random.get_rng_state(), generators[0])
        assert random.getstate() == generators[1]
        np.testing.assert_equal(np.random.get_state(legacy=False), generators[2])

    def test_a_teacher_whose_part_falls_is_left_in_the_end(self, monkeypatch):
        shares: list[float] = []
        plain = Task.training_loss

        def seen(self: Task, *given: Any, share: float, **named: Any) -> Tensor:
            shares.append(share)
            return plain(self, *given, share=share, **named)

        monkeypatch.setattr(Task, "training_loss", seen)
        recipe = Recipe(epochs=2, batch_size=16, distill_alpha=0.5, distill_falls=True)
        train(net(), Blobs(), recipe, teacher=net(seed=5))
        assert shares == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 20)) for step in range(20)])

    def test_seed_decides_every_bit(self):
        recipe, data = Recipe(epochs=2, batch_size=16), Blobs()
        first, again = train(net(), data, recipe), train(net(), data, recipe)
        other = train(net(), data, Recipe(epochs=2, batch_size=16, seed=1))
        assert first.history == again.history
        assert same_state(first.model.state_dict(), again.model.state_dict())
        assert not same_state(first.model.state_dict(), other.model.state_dict())

    def test_is_plain_sgd_with_nesterov_momentum(self):
        """Against the update written out, on a linear model: the schedule, the decay and the momentum all show."""
        data = Blobs()
        linear = nn.Linear(36, 4).double()
        model = nn.Sequential(nn.Flatten(), linear)
        data.to_double()
        recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.1, weight_decay=0.01)
        weight, bias = (p.detach().clone() for p in model.parameters())
        speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
        step = 0
        for epoch in range(2):
            for x, y in data.loader("train", batch_size=16, seed=0, epoch=epoch, shuffle=True):
                error = ((x.flatten(1) @ weight.T + bias).softmax(1) - F.one_hot(y, 4)) / len(x)
                gradients = (error.T @ x.flatten(1) + 0.01 * weight, error.sum(0))
                rate = learning_rate_at(recipe, step, 10)
                for index, (value, gradient) in enumerate(zip((weight, bias), gradients, strict=True)):
                    speed[index] = 0.9 * speed[index] + gradient
                    value -= rate * (gradient + 0.9 * speed[index])
                step += 1
        trained = train(model, data, recipe).model
        for value, expected in zip(trained.parameters(), (weight, bias), strict=True):
            torch.testing.assert_close(value.detach(), expected, rtol=1e-10, atol=1e-12)

    def test_adamw_is_its_formula(self):
        """Against the update written out (Loshchilov and Hutter 2019): the decay stands beside the gradient."""
        data = Blobs()
        linear = nn.Linear(36, 4).double()
        model = nn.Sequential(nn.Flatten(), linear)
        data.to_double()
        recipe = Recipe(epochs=2, batch_size=16, optimizer="adamw", learning_rate=0.01, weight_decay=0.1)
        weight, bias = (p.detach().clone() for p in model.parameters())
        mean, square = ([torch.zeros_like(weight), torch.zeros_like(bias)] for _ in range(2))
        step = 0
        for epoch in range(2):
            for x, y in data.loader("train", batch_size=16, seed=0, epoch=epoch, shuffle=True):
                error = ((x.flatten(1) @ weight.T + bias).softmax(1) - F.one_hot(y, 4)) / len(x)
                rate, step = learning_rate_at(recipe, step, 10), step + 1
                weight -= rate * 0.1 * weight
                for index, (value, gradient) in enumerate(
                    zip((weight, bias), (error.T @ x.flatten(1), error.sum(0)), strict=True)
                ):
                    mean[index] = 0.9 * mean[index] + 0.1 * gradient
                    square[index] = 0.999 * square[index] + 0.001 * gradient**2
                    size = (square[index] / (1 - 0.999**step)).sqrt() + 1e-8
                    value -= rate * mean[index] / (1 - 0.9**step) / size
        trained = train(model, data, recipe).model
        for value, expected in zip(trained.parameters(), (weight, bias), strict=True):
            torch.testing.assert_close(value.detach(), expected, rtol=1e-9, atol=1e-11)

    def test_the_rate_of_the_other_optimizer_is_refused(self):
        with pytest.raises(InputError, match=r"learning_rate is 0\.05 with the optimizer adamw.*give learning_rate"):
            Recipe(optimizer="adamw")

    def test_a_perfect_student_of_its_teacher_stands_still(self):
        """With a = 1 the gradient at the teacher's own weights is zero, so nothing but decay could move them."""
        model = net(dropout=0.0, norm=False)
        recipe = Recipe(epochs=1, batch_size=16, distill_alpha=1.0, weight_decay=0.0)
        trained = train(model, Blobs(), recipe, teacher=model).model
        for name, value in model.state_dict().items():
            torch.testing.assert_close(trained.state_dict()[name], value, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_half_precision_trains(self, precision):
        exact, half = (train(net(), Blobs(), Recipe(epochs=3, batch_size=16, precision=p)) for p in ("no", precision))
        assert half.score > 0.9
        assert half.history[0].loss != exact.history[0].loss
        assert half.history[0].loss == pytest.approx(exact.history[0].loss, rel=0.02)
        assert all(value.dtype == torch.float32 for value in half.model.parameters())

    def test_a_step_whose_gradients_overflow_in_fp16_is_left_out(self, monkeypatch):
        """The scale of the loss begins at 2^16: gradients of more than one overflow until it has halved a few times."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4, bias=False))
        kept: list[int] = []
        step = torch.optim.SGD.step

        def counted(*given: Any, **named: Any) -> Any:
            kept.append(1)
            return step(*given, **named)

        monkeypatch.setattr(torch.optim.SGD, "step", counted)
        recipe = Recipe(epochs=2, batch_size=16, precision="fp16", learning_rate=1e-6)

        def loud(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return 1e4 * nn.functional.cross_entropy(output, target)

        trained = train(model, Blobs(), recipe, loss=loud)
        steps = trained.history[-1].steps
        assert 0 < len(kept) < steps
        assert all(bool(value.isfinite().all()) for value in trained.model.parameters())

    def test_gradient_norm_is_limited(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
        recipe = Recipe(
            epochs=1,
            batch_size=1000,
            learning_rate=1.0,
            momentum=0.0,
            nesterov=False,
            weight_decay=0.0,
            warmup_epochs=0,
            clip_gradient=1e-3,
        )
        trained = train(model, Blobs(), recipe).model
        moved = [new - old for new, old in zip(trained.parameters(), model.parameters(), strict=True)]
        assert torch.cat([part.reshape(-1) for part in moved]).norm().item() == pytest.approx(1e-3, rel=1e-3)

    def test_zero_epochs_change_nothing(self):
        model = net()
        result = train(model, Blobs(), Recipe(epochs=0))
        assert result.history == ()
        assert same_state(result.model.state_dict(), model.state_dict())

    def test_nothing_to_train(self):
        with pytest.raises(TrainingError, match="requires a gradient"):
            train(net().requires_grad_(False), Blobs(), Recipe(epochs=1))
        with pytest.raises(TrainingError, match="train split has no batches"):
            train(net(), Blobs(train=0), Recipe(epochs=1))

    def test_only_weights_decay(self):
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), ACTIVATION_QUANTIZERS["lsq"](2))
        groups = build_optimizer(model, Recipe(weight_decay=0.1, clip_decay=0.2)).param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
            "0.weight": 0.1,
            "0.bias": 0.0,
            "1.weight": 0.0,
            "1.bias": 0.0,
            "2.step": 0.2,
        }


class QuantizedLinear(nn.Linear):
    """A linear layer with its two quantizers."""

    def __init__(self, kinds: tuple[str, str], inputs: int, outputs: int, bits: int = 2) -> None:
        super().__init__(inputs, outputs)
        self.weight_quant = WEIGHT_QUANTIZERS[kinds[0]](bits)
        self.weight_quant.start(self.weight)
        self.activation_quant = ACTIVATION_QUANTIZERS[kinds[1]](bits)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.activation_quant(x), self.weight_quant(self.weight), self.bias)


KINDS = [("sawb", "pact"), ("lsq", "lsq"), ("dorefa", "dorefa"), ("minmax", "minmax"), ("seq", "lsq+")]


class TestProgressiveBits:
    def test_learned_thresholds_are_refused(self):
        model = nn.Sequential(nn.Flatten(), QuantizedLinear(("sawb", "n2uq"), 36, 8))
        with pytest.raises(InputError, match=r"1\.activation_quant.*threshold.*lsq or pact"):
            train(model, Blobs(), Recipe(epochs=2, bits=(8, 2)))

    @pytest.mark.parametrize("kinds", KINDS)
    @pytest.mark.parametrize("signed", [True, False])
    def test_the_range_stays_when_bits_change(self, kinds, signed):
        """A quantizer brought from 2 to 8 bits is close to its input where it did not clip, and has 8-bit levels."""
        x = torch.linspace(-1 if signed else 0, 1, 4001)[None]
        act = ACTIVATION_QUANTIZERS[kinds[1]](2)
        act.observe(x)
        act.settle()
        before = act(x)
        inside = (x >= before.min()) & (x <= before.max())
        set_bits(act, 8)
        assert act.bits == 8
        assert (act(x) - x)[inside].abs().max() < 0.01 * (before.max() - before.min())
        assert 64 < act(x).unique().numel() <= 256
        set_bits(act, 2)
        torch.testing.assert_close(act(x), before)

    @pytest.mark.parametrize("kinds", KINDS)
    def test_stages_are_walked_through_and_resumed(self, kinds, tmp_path):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), QuantizedLinear(kinds, 36, 8, bits=8), nn.ReLU(), QuantizedLinear(kinds, 8, 4)
        )
        recipe = Recipe(epochs=6, batch_size=16, bits=(8, 4, 2))
        seen = []

        def watch(report: StepReport) -> None:
            seen.append(report.epoch)
            if report.step == 25:
                raise RuntimeError

        whole = train(model, Blobs(), recipe)
        with pytest.raises(RuntimeError):
            train(model, Blobs(), recipe, directory=tmp_path, progress=watch, checkpoint_seconds=0)
        resumed = train(model, Blobs(), recipe, directory=tmp_path)
        assert [record.bits for record in whole.history] == [8, 8, 4, 4, 2, 2]
        assert same_state(whole.model.state_dict(), resumed.model.state_dict())
        assert whole.history == resumed.history
        ends = {name: m.bits for name, m in resumed.model.named_modules() if hasattr(m, "bits")}
        assert list(ends.values()) == [8, 8, 2, 2]
        assert whole.history != train(model, Blobs(), Recipe(epochs=6, batch_size=16)).history

    def test_stages_that_cannot_be(self):
        with pytest.raises(InputError, match="the model has no quantizers"):
            train(net(), Blobs(), Recipe(bits=(8, 2)))
        model = nn.Sequential(nn.Flatten(), QuantizedLinear(KINDS[0], 36, 4))
        with pytest.raises(InputError, match=r"bits end with 4, 1\.weight_quant has 2"):
            train(model, Blobs(), Recipe(bits=(8, 4)))


class TestLogs:
    def test_tables_hold_every_step_and_epoch(self, tmp_path):
        result = train(net(), Blobs(), Recipe(epochs=3, batch_size=16, evaluate_every=2), directory=tmp_path)
        steps = list(csv.DictReader((tmp_path / "steps.csv").open()))
        epochs = list(csv.DictReader((tmp_path / "log.csv").open()))
        assert [int(row["step"]) for row in steps] == list(range(1, 31))
        assert [float(row["learning_rate"]) for row in steps] == [
            learning_rate_at(Recipe(epochs=3), step, 10) for step in range(30)
        ]
        first = [(float(row["loss"]), size) for row, size in zip(steps[:10], [16] * 9 + [6], strict=True)]
        assert sum(loss * size for loss, size in first) / 150 == pytest.approx(float(epochs[0]["loss"]), rel=1e-12)
        assert [row["test_accuracy"] for row in epochs] == [
            "" if record.test_accuracy is None else repr(record.test_accuracy) for record in result.history
        ]
        assert [record.test_accuracy is None for record in result.history] == [True, False, False]

    def test_tensorboard_where_it_is_installed(self, tmp_path):
        train(net(), Blobs(), Recipe(epochs=1), directory=tmp_path)
        installed = importlib.util.find_spec("tensorboard") is not None
        assert bool(list(tmp_path.glob("tensorboard/events*"))) == installed

    def test_progress_is_told_and_drawn_on_terminals_only(self, capsys, monkeypatch):
        reports: list[StepReport] = []
        result = train(net(), Blobs(), Recipe(epochs=2, batch_size=16), progress=reports.append)
        assert [(report.epoch, report.step, report.steps) for report in reports[9:11]] == [(1, 10, 20), (2, 11, 20)]
        # An epoch's last step is said with the accuracy on the test split after it, not with that of the epoch before.
        assert reports[8].test_accuracy is None
        assert [reports[at].test_accuracy for at in (9, 19)] == [each.test_accuracy for each in result.history]
        assert reports[-1].seconds_left == 0
        train(net(), Blobs(), Recipe(epochs=1), progress=True)
        assert capsys.readouterr() == ("", "")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        train(net(), Blobs(), Recipe(epochs=1), progress=True)
        assert "epoch 1/1  loss" in capsys.readouterr().err

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(TrainingError, match="cannot write"):
            train(net(), Blobs(), Recipe(epochs=1), directory=tmp_path / "file")


class TestBatches:
    @pytest.mark.parametrize("kind", ["loader", "list"])
    @pytest.mark.parametrize("processes", [1, 2, 3])
    def test_shares_make_up_the_batches_that_are_left(self, kind, processes):
        dataset = TensorDataset(torch.arange(25).float(), torch.arange(25))
        loader = DataLoader(dataset, batch_size=8)
        batches = loader if kind == "loader" else [tuple(batch) for batch in loader]
        shares = [
            [y for _, y in batches_of(batches, Engine(torch.device("cpu"), rank, processes), 1, drop_empty=True)]
            for rank in range(processes)
        ]
        whole = [target for _, target in list(loader)[1:]]
        for index, batch in enumerate(whole):
            parts = [share[index] for share in shares if index < len(share)]
            assert torch.equal(torch.cat(parts), batch)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1

    def test_a_batch_that_is_too_small_stops_every_process(self):
        loader = DataLoader(TensorDataset(torch.arange(9), torch.arange(9)), batch_size=8)
        for batches in (loader, [tuple(batch) for batch in loader]):
            for rank in range(2):
                with pytest.raises(TrainingError, match="a batch of 1 is too small for 2 processes"):
                    list(batches_of(batches, Engine(torch.device("cpu"), rank, 2)))


@pytest.mark.slow
def test_a_compiled_run_compiles_once_and_learns_the_same():
    """Full batches only: the last batch of an epoch, of another size, starts no second compilation."""
    eager, compiled = (train(net(), Blobs(), Recipe(epochs=2, batch_size=16, compile=c)) for c in (False, True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert compiled.history[0].loss == pytest.approx(eager.history[0].loss, abs=0.05)
    assert list(compiled.model.state_dict()) == list(eager.model.state_dict())


def test_from_scratch_keeps_nothing_of_the_weights_and_all_of_the_scales():
    torch.manual_seed(0)
    x = torch.randn(8, 1, 8, 8)
    trained, fresh = (MODELS["resnet8"](in_channels=1) for _ in range(2))
    gm = nce_fx.trace(trained, (x,))
    widths = {group.id: 2 * group.width for group in nce_fx.analyze_channels(gm).groups if group.pinned is None}
    spec = nce_fx.QuantSpec()
    wide = nce_fx.quantize(nce_fx.resize(gm, widths), spec, [x])
    first, again = (from_scratch(wide, fresh, spec, [x], seed=1) for _ in range(2))
    assert same_state(first.state_dict(), again.state_dict())
    assert list(first.state_dict()) == list(wide.state_dict())
    weights = {name: p for name, p in first.named_parameters() if p.ndim > 1}
    for name, weight in weights.items():
        source = fresh.get_parameter(name)
        assert not torch.equal(weight, wide.get_parameter(name)), name
        fan_in = source[0].numel() / weight[0].numel()
        assert weight.std().item() == pytest.approx(source.std().item() * math.sqrt(fan_in), rel=0.25), name
    assert bool((first.get_parameter("bn1.weight") == 1).all())
    assert bool(first(x).isfinite().all())


def quantized_net(weight: str = "seq", activation: str = "pact") -> Any:
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(32, 4))
    spec = nce_fx.QuantSpec(first_last_bits=2, weight=weight, activation=activation)
    return nce_fx.quantize(nce_fx.trace(model, (torch.randn(2, 1, 6, 6),)), spec)


class TestLearnedRanges:
    """Clip values and steps that training learns stay lengths."""

    @pytest.mark.parametrize(
        ("weight", "activation"), [(w, "pact") for w in WEIGHT_QUANTIZERS] + [("lsq", a) for a in ACTIVATION_QUANTIZERS]
    )
    def test_no_step_of_the_optimizer_takes_one_below_zero(self, weight, activation):
        gm = quantized_net(weight, activation)
        ranges = {
            f"{path}.{name}": getattr(module, name).detach().clone()
            for path, module in gm.named_modules()
            for name in getattr(module, "positive", ())
            if getattr(module, name).requires_grad
        }
        recipe = Recipe(epochs=1, batch_size=16, learning_rate=3.0, clip_rate=1e3, warmup_epochs=0, clip_gradient=1.0)
        after = dict(train(gm, Blobs(train=48), recipe).model.named_parameters())
        for name, before in ranges.items():
            change = after[name] / before
            assert bool(((change >= 0.9**3 - 1e-6) & (change <= 1.1**3 + 1e-6)).all()), (
                f"{name}: {before} -> {after[name]}"
            )
        assert ranges
        if "lsq" in (weight, activation):
            assert any(not torch.equal(after[name], before) for name, before in ranges.items())

    def test_a_range_that_was_left_below_zero_is_not_held_there(self):
        gm = quantized_net("lsq", "lsq")
        step = gm.get_parameter("0.weight_quant.step")
        step.data.fill_(-1.0)
        with positive_ranges(learned_ranges(gm)):
            step.data.fill_(2.0)
        assert float(step) == 2.0


class TestRestlessness:
    """Levels that weights leave, statistics taken anew, the rate of scales."""

    def test_the_share_of_weights_that_left_their_level_is_in_the_log(self, tmp_path):
        gm, data = quantized_net(), Blobs()
        recipe = Recipe(epochs=1, batch_size=16, learning_rate=0.1)
        result = train(gm, data, recipe, directory=tmp_path)
        before, after = (
            torch.cat([w.integers.flatten() for w in integer_weights(x).values()]) for x in (gm, result.model)
        )
        assert result.history[0].moved == float((before != after).double().mean())
        assert 0 < result.history[0].moved < 0.9
        (row,) = csv.DictReader((tmp_path / "log.csv").read_text().splitlines())
        assert float(row["moved"]) == result.history[0].moved
        still = train(gm, data, Recipe(epochs=1, learning_rate=1e-12, weight_decay=0))
        assert still.history[0].moved == 0
        assert train(net(), data, Recipe(epochs=1)).history[0].moved is None

    def test_a_run_stopped_within_an_epoch_logs_the_same_share(self, tmp_path):
        data, recipe = Blobs(), Recipe(epochs=2, batch_size=16, learning_rate=0.1)
        whole = train(quantized_net(), data, recipe)

        def stop(report: StepReport) -> None:
            if report.step == 13:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(quantized_net(), data, recipe, directory=tmp_path, progress=stop, checkpoint_seconds=0)
        again = train(quantized_net(), data, recipe, directory=tmp_path)
        assert [record.moved for record in again.history] == [record.moved for record in whole.history]
        assert same_state(again.model.state_dict(), whole.model.state_dict())

    def test_statistics_taken_anew_are_the_means_over_the_batches(self):
        data, recipe = Blobs(), Recipe(epochs=1, batch_size=16, learning_rate=0.1)
        as_trained = train(quantized_net(), data, recipe).model
        anew = train(quantized_net(), data, replace(recipe, reestimate=5)).model
        for name, value in as_trained.named_parameters():
            assert torch.equal(value, anew.get_parameter(name)), name
        seen: list[Tensor] = []
        loader = data.loader("train", batch_size=16, seed=0, epoch=1, shuffle=True)
        batches = [batch[0] for batch, _ in zip(loader, range(5), strict=False)]
        norm = next(module for module in anew.modules() if isinstance(module, nn.BatchNorm2d))
        norm.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
        for batch in batches:
            anew.eval()(batch)
        torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
        assert norm.momentum == 0.1
        assert int(norm.get_buffer("num_batches_tracked")) == 5

    @pytest.mark.parametrize("kind", ["sawb", "seq", "minmax"])
    def test_dampening_adds_the_gradient_of_the_distance_to_the_levels(self, kind):
        gm = quantized_net(kind)
        gm(torch.randn(8, 1, 6, 6)).square().sum().backward()
        before = {name: value.grad.clone() for name, value in gm.named_parameters() if value.grad is not None}
        dampen(gm, 0.3)
        for name, value in gm.named_parameters():
            if f"{name}_quant" not in dict(gm.named_modules()):
                assert value.grad is None or torch.equal(value.grad, before[name]), name
                continue
            quantizer: Any = gm.get_submodule(f"{name}_quant")
            w = value.detach().requires_grad_()
            levels = quantizer(value).detach()
            clipped = torch.where((w - levels).abs() <= quantizer.step_size(w).detach() / 2, w, levels)
            (0.3 * (clipped - levels).square().sum()).backward()
            assert w.grad is not None
            assert bool(w.grad.any())
            torch.testing.assert_close(value.grad, before[name] + w.grad)

    def test_dampening_rises_from_zero_and_calms_the_weights(self):
        recipe = Recipe(epochs=4, batch_size=16, learning_rate=0.1, warmup_epochs=0, dampen=1.0)
        strengths = [dampening_at(recipe, step, 10) for step in range(40)]
        assert strengths[0] == 0
        assert strengths == sorted(strengths)
        assert strengths[-1] == pytest.approx(1.0, rel=0.01)
        ends = []
        for dampened in (recipe, replace(recipe, dampen=0.0)):
            model = train(quantized_net("sawb"), Blobs(), dampened).model
            weights = integer_weights(model).items()
            pairs = [(levels.dequantize(), model.get_parameter(f"{path}.weight")) for path, levels in weights]
            ends.append(sum(float((w - levels).square().sum().detach()) for levels, w in pairs))
        assert ends[0] < 0.8 * ends[1]

    def test_scales_learn_at_a_rate_of_their_own(self):
        data, recipe = Blobs(), Recipe(epochs=1, batch_size=150, learning_rate=0.1, warmup_epochs=0, cosine=False)
        gm = quantized_net()
        plain, faster = (train(gm, data, replace(recipe, clip_rate=rate)).model for rate in (1.0, 3.0))
        for name, value in gm.named_parameters():
            one, three = (model.get_parameter(name) - value for model in (plain, faster))
            scale = 3.0 if name.endswith(("alpha", "clip")) else 1.0
            torch.testing.assert_close(three, scale * one, rtol=1e-4, atol=1e-7)
