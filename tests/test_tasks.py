"""Tasks: what a loss and a metric mean on any output and target, what they refuse, and examples that run."""

import copy
import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

import nce_fx
from nce_fx.cli.app import app
from nce_fx.data import load_data
from nce_fx.data.user_data import own_data
from nce_fx.errors import InputError, NceFxError, TrainingError
from nce_fx.tasks import LOSSES, METRICS, Task
from nce_fx.tasks.losses import TEMPERATURE
from nce_fx.training import Recipe, evaluate, train

EXAMPLES = Path(__file__).parent.parent / "examples" / "tasks"
X = torch.randn(48, 3, 6, 6, generator=torch.Generator().manual_seed(0))
MASK = (X[:, 0] > 0).long() + 2 * (X[:, 1] > 0).long()
MEAN = 10 * X.mean((1, 2, 3))
TOKENS = torch.randint(11, (48, 6), generator=torch.Generator().manual_seed(1))


def pixels():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))


def number(count=1):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, count))


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)

    def forward(self, ids):
        return {"logits": self.head(self.embed(ids).relu()), "hidden": None}


class Losses(nn.Module):
    """Takes its targets, and returns what it calls losses beside what it found."""

    def __init__(self):
        super().__init__()
        self.body, self.box = number(8), nn.Linear(8, 2)

    def forward(self, image, box):
        found = self.box(self.body(image).relu())
        return {"loss_box": F.l1_loss(found, box), "loss_size": found.square().mean() * 1e-3, "boxes": found}


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        maps = self.body(x).relu()
        return [{"scores": self.head(maps.mean((2, 3)))}, (maps, None)]


def data_of(*tensors):
    parts = TensorDataset(*tensors)
    return own_data("own", lambda: (parts, parts))


class Named(TensorDataset):
    def __getitem__(self, index):
        image, box = super().__getitem__(index)
        return {"image": image, "box": box}


def error(output, target):
    return (output.flatten() - target.flatten()).abs().pow(3).mean()


class Worst:
    """A metric that is no mean over batches."""

    def reset(self):
        self.value = 0.0

    def update(self, output, target):
        self.value = max(self.value, float((output.flatten() - target.flatten()).abs().max()))

    def compute(self):
        return self.value


class Raising(Worst):
    def __init__(self, where="", value=0.0):
        self.where, self.result = where, value

    def reset(self):
        self.at("reset")

    def update(self, output, target):
        self.at("update")

    def compute(self):
        self.at("compute")
        return self.result

    def at(self, where):
        if where == self.where:
            raise KeyError(where)


class Unmade(Worst):
    def __init__(self, classes):
        self.classes = classes


RAISING: tuple[tuple[Any, str], ...] = (
    (Raising("reset"), "cannot be reset: .*'reset'"),
    (Raising("update"), "does not take this output and target: .*'update'"),
    (Raising("compute"), "cannot compute what it was shown: .*'compute'"),
    (Raising(value=torch.ones(3)), "gives 3 numbers: it must give one, of all that was seen"),
    (Raising(value={"a": 1.0}), "gives a dict: it must give one number, of all that was seen"),
    (Raising(value=1j), "gives a complex number: it must give one"),
    (Unmade, "Unmade cannot be made without arguments: .*'classes'"),
    (lambda output, target: {"a": 1.0}, "gives a dict: it must give one number, a mean over the batch"),
)


@pytest.mark.parametrize(("metric", "said"), RAISING)
def test_a_metric_of_ones_own_that_fails_is_said_in_one_line(metric, said):
    with pytest.raises(NceFxError, match=said) as caught:
        evaluate(number(), data_of(X, MEAN), loss="l1", metric=metric)
    assert "\n" not in str(caught.value)


def test_outputs_that_are_nan_are_no_number_of_a_metric_that_keeps_what_it_saw():
    model = number()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(TrainingError, match="holds NaN"):
        evaluate(model, data_of(X, MEAN), loss="l1", metric=Worst())


CASES: dict[str, Any] = {
    "pixels": (pixels, (X, MASK), {}, lambda y: float((y.argmax(1) == MASK).float().mean())),
    "overlap": (
        pixels,
        (X, MASK),
        {"metric": "mean_iou"},
        lambda y: (
            sum(
                float(((y.argmax(1) == c) & (c == MASK)).sum() / ((y.argmax(1) == c) | (c == MASK)).sum())
                for c in range(4)
            )
            / 4
        ),
    ),
    "column": (number, (X, MEAN[:, None]), {"loss": "mean_squared_error"}, lambda y: F.mse_loss(y, MEAN[:, None])),
    "flat": (number, (X, MEAN), {"loss": "mean_squared_error"}, lambda y: F.mse_loss(y[:, 0], MEAN)),
    "absolute": (number, (X, MEAN), {"loss": "l1"}, lambda y: F.l1_loss(y[:, 0], MEAN)),
    "double": (number, (X, MEAN.double()), {"loss": "l1"}, lambda y: F.l1_loss(y[:, 0], MEAN)),
    "sides": (
        number,
        (X, (MEAN > 0).float()),
        {"loss": "binary_cross_entropy"},
        lambda y: float(((y[:, 0] > 0) == (MEAN > 0)).float().mean()),
    ),
    "labels": (
        lambda: number(3),
        (X, torch.stack([MEAN > 0, MEAN > 1, MEAN > 2], 1)),
        {"loss": "binary_cross_entropy", "metric": "loss"},
        lambda y: F.binary_cross_entropy_with_logits(y, torch.stack([MEAN > 0, MEAN > 1, MEAN > 2], 1).float()),
    ),
    "callable": (number, (X, MEAN), {"loss": error}, lambda y: error(y, MEAN)),
    "by path": (number, (X, MEAN), {"loss": f"{__file__}:error"}, lambda y: error(y, MEAN)),
    "stateful": (
        number,
        (X, MEAN),
        {"loss": "l1", "metric": Worst()},
        lambda y: float((y[:, 0] - MEAN).abs().max()),
    ),
    "tokens": (
        Language,
        (TOKENS, TOKENS.flip(1)),
        {},
        lambda y: float((y["logits"].argmax(-1) == TOKENS.flip(1)).float().mean()),
    ),
    "triples": (lambda: number(4), (X, MASK[:, 0, 0], torch.arange(48)), {}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_a_task_trains_quantized_and_says_what_the_model_does(name):
    build, tensors, task, truth = CASES[name]
    torch.manual_seed(0)
    model, data = build().eval(), data_of(*tensors)
    gm = nce_fx.trace(model, (tensors[0][:2],))
    q = nce_fx.quantize(gm, nce_fx.QuantSpec(weight_bits=8, activation_bits=8), data.batches(2, 16))
    result = train(q, data, Recipe(epochs=2, batch_size=16, learning_rate=0.02), teacher=gm, **task)
    assert result.score == evaluate(result.model, data, batch_size=16, **task)
    assert result.accuracy == (result.score if result.metric == "accuracy" else None)
    assert [record.accuracy is None for record in result.history] == [result.metric != "accuracy"] * 2
    if truth is not None:
        with torch.no_grad():
            assert result.score == pytest.approx(float(truth(result.model.eval()(tensors[0]))), rel=1e-4)


def test_a_model_that_returns_its_losses_is_trained_by_them():
    torch.manual_seed(0)
    parts = Named(X, torch.stack([MEAN, -MEAN], 1))
    data, model = own_data("own", lambda: (parts, parts)), Losses().eval()
    batches = data.batches(2, 16)
    result = nce_fx.rewrite(model, batches[0], batches=batches, loss="own")
    before = evaluate(result.graph_module, data, loss="own")
    recipe = Recipe(epochs=4, batch_size=16, learning_rate=0.02)
    trained = train(result.graph_module, data, recipe, loss="own", teacher=result.original)
    assert trained.metric == "loss"
    assert trained.score < before
    with pytest.raises(TrainingError, match="no loss of its own: it returns Tensor"):
        train(number(), data_of(X), recipe, loss="own")


def test_a_student_learns_from_every_tensor_of_its_teacher():
    torch.manual_seed(0)
    student, teacher, target = Both(), Both(), torch.randint(4, (4,))
    own, theirs = student(X[:4]), teacher(10 * X[:4])
    assert theirs[1][0].var() > 1
    loss = Task.of().training_loss(own, target, teacher=theirs, share=0.5, heat=2.0)
    p, q = (F.log_softmax(y[0]["scores"] / 2, 1) for y in (theirs, own))
    divergence = 4 * F.kl_div(q, p, reduction="batchmean", log_target=True)
    share = F.mse_loss(own[1][0], theirs[1][0]) / theirs[1][0].var(correction=0)
    distance = (divergence + share) / 2
    expected = 0.5 * F.cross_entropy(own[0]["scores"], target) + 0.5 * distance
    torch.testing.assert_close(loss, expected)
    with pytest.raises(TrainingError, match="nothing can be learnt"):
        Task.of().training_loss(own, target, teacher={"loss": torch.zeros(())}, share=0.5)


REFUSED: dict[str, Any] = {
    "numbers": (number(), X, MEAN[:, None], {}, "cross_entropy is for classes.*mean_squared_error"),
    "one class": (number(), X, MASK[:, 0, 0], {}, "one number a sample is no class"),
    "several numbers": (number(3), X, torch.randn(48, 3), {}, "neither whole numbers nor a probability"),
    "pixels for images": (number(4), X, MASK, {}, "no class for each position"),
    "broadcast": (number(3), X, MEAN, {"loss": "l1"}, r"output is float32 16x3, the target float32 16;"),
    "no target": (number(4), X, None, {}, "needs a target in every batch"),
    "beyond": (pixels(), X, MASK + 250, {}, "the loss cross_entropy does not take"),
    "not in 0 to 1": (number(), X, MEAN, {"loss": "binary_cross_entropy"}, r"targets in \[0, 1\]"),
    "many values": (number(), X, MEAN, {"loss": lambda y, t: y[:, 0] - t}, "not one number"),
    "raises": (number(), X, MEAN, {"loss": lambda y, t: y["out"]}, "does not take this output and target"),
    "constant": (number(), X, MEAN, {"loss": lambda y, t: t.mean()}, "does not depend on the model's weights"),
    "unknown": (number(), X, MEAN, {"loss": "mean_squared_eror"}, "did you mean 'mean_squared_error'"),
    "unknown metric": (number(), X, MEAN, {"loss": "l1", "metric": "iou"}, "no metric 'iou'"),
    "smoothing": (number(), X, MEAN, {"loss": "l1"}, "label_smoothing is for classes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_nothing_is_refused_in_one_line(name):
    model, inputs, target, task, message = REFUSED[name]
    data = data_of(inputs) if target is None else data_of(inputs, target)
    recipe = Recipe(epochs=1, batch_size=16, label_smoothing=0.1 if name == "smoothing" else 0.0)
    with pytest.raises((TrainingError, InputError), match=message) as caught:
        train(copy.deepcopy(model), data, recipe, **task)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mean_squared_error"])
def test_sensitivity_is_of_the_loss_that_is_named(loss):
    """Random directions have the curvature of the loss at the output as their covariance."""
    torch.manual_seed(0)
    warm = torch.tensor([[0.3, -1.0, 0.8]])
    output = (warm * TEMPERATURE).expand(20000, 3)
    root = LOSSES[loss].root
    assert root is not None
    u = root(output, torch.randint(0, 2, output.shape) * 2.0 - 1, 1)
    p, s = warm[0].softmax(0), warm[0].sigmoid()
    exact = {
        "cross_entropy": torch.diag(p) - torch.outer(p, p),
        "binary_cross_entropy": torch.diag(s * (1 - s)),
        "mean_squared_error": torch.eye(3),
    }[loss]
    torch.testing.assert_close(u.T @ u / len(u), exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("task", "tensors", "build"),
    [({"loss": "l1"}, (X, MEAN), number), ({"loss": error}, (X, MEAN), number), ({}, (X, MASK), pixels)],
)
def test_rewrite_takes_the_loss_and_needs_targets_for_all_but_classes(task, tensors, build):
    batches = [tuple(tensor[:16] for tensor in tensors)]
    result = nce_fx.rewrite(build().eval(), (X[:2],), batches=batches, metric="fisher", **task)
    assert all(math.isfinite(layer.weight) for layer in result.report.layers)
    if task:
        with pytest.raises(InputError, match="needs a target"):
            nce_fx.rewrite(build().eval(), (X[:2],), batches=[X[:16]], metric="fisher", **task)


@pytest.mark.parametrize("name", ["regression", "segmentation", "detection"])
def test_examples_run(name, capsys):
    """Each trains, is rewritten and trained again, and prints what it was asked to improve."""
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](epochs=1)
    said = capsys.readouterr().out
    assert {"regression": "mean_squared_error: float", "segmentation": "mean_iou: float"}.get(name, "objects") in said


def test_the_command_line_takes_a_loss_and_a_metric_and_prints_no_accuracy(tmp_path):
    place = EXAMPLES / "regression.py"
    command = ["rewrite", f"{place}:model", "--data", f"{place}:data", "--loss", "mean_squared_error", "--json"]
    out = CliRunner().invoke(app, [*command, "--retrain", "1", "--out", str(tmp_path / "out")])
    assert out.exit_code == 0, out.output
    said = json.loads(out.stdout)["comparison"]
    assert said["metric"] == "mean_squared_error"
    assert all(row["accuracy"] is None and row["score"] > 0 for row in said["rows"])
    assert "accuracy" not in out.stderr
    assert load_data(f"{place}:data").classes is None
    assert set(METRICS) >= {"accuracy", "mean_iou"}
