"""Law 0 at its edges: what is refused in words, what inputs look like, what a model is after it was traced."""

from __future__ import annotations

import copy
import random
import re
import threading
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nce_fx
from nce_fx.by_mode import runs_in
from nce_fx.errors import ChannelError, InputError, TraceError
from nce_fx.models import MODELS
from nce_fx.passes.transform import resize as resizing
from nce_fx.passes.transform.quantize import describe
from nce_fx.tracing.shape_propagation import first_misfit
from tests.laws import LAWS
from tests.observing import counted, seeded
from tests.zoo import ZOO
from tests.zoo.model import Head, conv, image


class Asks(nn.Module):
    """Takes the first way where a question about its input is answered with yes."""

    def __init__(self, question, channels=6):
        super().__init__()
        self.question = question
        self.a, self.b, self.out = conv(3, 6, 1), conv(3, channels, 1), conv(6, 2, 1)

    def forward(self, x):
        return self.out(self.a(x) if self.question(x) else self.b(x))


QUESTIONS = {
    "isinstance": lambda x: isinstance(x, torch.Tensor),
    "is_tensor": torch.is_tensor,
    "jit.isinstance": lambda x: torch.jit.isinstance(x, torch.Tensor),
    "is a proxy": lambda x: not hasattr(x, "tracer"),
    "type": lambda x: type(x) is torch.Tensor,
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("channels", [6, 5])
def test_a_branch_on_what_a_value_is_goes_the_models_way(question, channels):
    model = Asks(QUESTIONS[question], channels).eval()
    gm = nce_fx.trace(model, (image(),))
    torch.testing.assert_close(gm(image()), model(image()))


def test_a_graph_that_no_way_of_tracing_makes_right_is_refused_with_the_difference():
    model = Asks(lambda x: type(x) is torch.Tensor and not torch.compiler.is_compiling()).eval()
    with pytest.raises(
        TraceError, match=r"fx: its graph is not the model, in evaluation mode output is off by"
    ) as caught:
        nce_fx.trace(model, (image(),))
    assert "\n" not in str(caught.value)


class Remembers(nn.Module):
    """Returns at a call what depends on the calls before, or on a coin that no graph throws."""

    def __init__(self, what):
        super().__init__()
        self.what, self.a, self.b, self.head = what, conv(3, 6), conv(6, 6), Head(6)
        self.calls, self.seen, self.scale = 0, [], None

    def forward(self, x):
        x = F.relu(self.a(x))
        self.calls += 1
        self.seen.append(x.mean())
        if self.scale is None:
            self.scale = 1 / x.mean()
        if self.what == "built" and not hasattr(self, "late"):
            self.late = nn.Linear(int(x.shape[-1]), 8)
        more = {
            "calls": lambda: x * self.calls,
            "list": lambda: x + sum(self.seen),
            "first batch": lambda: x * self.scale,
            "built": lambda: self.late(x) if self.what == "built" else x,
            "coin": lambda: self.b(x) if self.training and random.random() < 0.5 else x,
            "torch's coin": lambda: x * (torch.rand(1) < 0.5) if self.training else x,
        }
        return self.head(more[self.what]())


@pytest.mark.parametrize("what", ["calls", "list", "first batch", "built", "coin"])
def test_a_graph_that_forgets_what_the_model_keeps_is_refused(what):
    with pytest.raises(TraceError, match="its graph is not the model") as caught:
        nce_fx.trace(Remembers(what).eval(), (image(),))
    assert "\n" not in str(caught.value)


def test_a_random_number_is_drawn_at_every_call():
    model = Remembers("torch's coin").train()
    gm = nce_fx.trace(model, (image(),))
    assert len({float(gm(image()).detach().abs().sum()) for _ in range(20)}) > 1


class NoGradients(nn.Module):
    """A part of it learns nothing, always or in evaluation, and what is written to a buffer there is constant."""

    slow: torch.Tensor

    def __init__(self, always):
        super().__init__()
        self.always, self.a, self.b, self.head = always, conv(3, 6), conv(6, 6), Head(6)
        self.register_buffer("slow", torch.zeros(6, 3, 3, 3))

    def forward(self, x):
        with torch.set_grad_enabled(not self.always and self.training):
            x = F.relu(self.a(x))
        with torch.no_grad():
            self.slow.copy_(0.5 * self.slow + 0.5 * self.a.weight)
        return self.head(F.relu(self.b(x)))


@pytest.mark.parametrize("always", [False, True])
def test_gradients_go_where_they_go_in_the_model(always):
    model = NoGradients(always)
    gm = nce_fx.trace(model, (image(),))
    wide = nce_fx.resize(gm, {"b": 7})
    copy.deepcopy(wide)
    for each in (model, gm, nce_fx.quantize(wide, nce_fx.QuantSpec(), [image()])):
        each.train().zero_grad()
        each(image()).sum().backward()
        learns = {name.partition(".")[0] for name, p in each.named_parameters() if p.grad is not None}
        assert {"b", "head"} <= learns
        assert ("a" in learns) is not always
        copy.deepcopy(each)


class Masked(nn.Conv2d):
    """Masks its own weight at every call, as networks of pixels in order do."""

    def forward(self, x):
        self.weight.data *= torch.ones(3, 3).tril()
        return super().forward(x)


def test_what_forward_assigns_to_the_data_of_a_weight_is_not_lost():
    model = nn.Sequential(conv(3, 6), Masked(6, 6, 3), nn.Flatten(), nn.Linear(216, 4)).eval()
    model(image())
    gm = nce_fx.trace(model, (image(),))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    torch.testing.assert_close(copy.deepcopy(gm)(image()), model(image()))


def test_a_trace_writes_nothing_to_the_model():
    zoo = ZOO["own_statistics"]
    model = zoo.make().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gm = nce_fx.trace(model, zoo.inputs)
    nce_fx.resize(gm, {"a": 8})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class TwoWays(nn.Module):
    """Needs more than its inputs in one mode, as detectors need targets in training."""

    def __init__(self, mode):
        super().__init__()
        self.mode, self.a, self.head = mode, conv(3, 6), Head(6)

    def forward(self, x):
        if self.training is self.mode:
            raise ValueError("targets are needed")
        return self.head(F.relu(self.a(x)))


def test_a_mode_that_the_model_does_not_run_is_left_out_and_said():
    gm = nce_fx.trace(TwoWays(True).eval(), (image(),))
    assert "not in training mode" in gm.meta["compared"]
    assert "targets are needed" in gm.meta["compared"]
    assert (
        nce_fx.trace(MODELS["resnet8"](), (image(3, 16),)).meta["compared"] == "compared with the model in both modes"
    )


def test_the_graph_of_an_auxiliary_head_has_every_layer_and_runs_what_its_mode_needs():
    zoo = ZOO["auxiliary_head"]
    model = zoo.make()
    gm = nce_fx.trace(model, zoo.inputs)
    assert {name for name, _ in gm.named_parameters()} == {name for name, _ in model.named_parameters()}
    assert (nce_fx.analyze_cost(gm).total.macs, sum(p.numel() for p in gm.parameters())) == counted(gm, zoo.inputs)
    assert counted(gm, zoo.inputs) == counted(model, zoo.inputs)
    skipped = {str(n.target) for n in set(gm.graph.nodes) - runs_in(gm.graph.nodes, training=False)}
    assert {"extra", "norm", "aux.fc"} <= skipped
    wide = nce_fx.resize(gm, {"extra": 9, "a": 8})
    wanted, got = model.train()(*zoo.inputs), wide.train()(*zoo.inputs)
    assert wanted.keys() == got.keys()
    torch.testing.assert_close(got["aux"], wanted["aux"])


class AsksInEachMode(nn.Module):
    """Asks what its input is, which fx does not follow, and has a layer more in training; or takes one batch alone."""

    def __init__(self, size=None):
        super().__init__()
        self.size, self.a, self.b, self.aux = size, nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        y = self.a(x).relu() if torch.is_tensor(x) else x
        if self.size is not None:
            y = y.view(self.size, 6) + torch.zeros(self.size, 6)
        return (self.b(y), self.aux(y)) if self.training else self.b(y)


@pytest.mark.parametrize(
    ("size", "calls"),
    [(None, [(False, False), (True, False)]), (4, [(False, False), (False, True), (False, False), (True, False)])],
)
def test_each_mode_is_exported_once_and_the_second_by_the_way_that_served_the_first(monkeypatch, size, calls):
    """Each call is its mode and whether the compiler's front end reads the model. A batch that is fixed in one mode is
    fixed in both: only the first is tried with a free one, by both ways."""
    made, export = [], torch.export.export

    def counts(model, *args, **options):
        made.append((model.training, options["strict"]))
        return export(model, *args, **options)

    monkeypatch.setattr(torch.export, "export", counts)
    x = torch.randn(4, 4)
    gm = nce_fx.trace(AsksInEachMode(size), (x,))
    assert gm.meta["traced"] == "export"
    assert gm.meta["compared"].startswith("compared with the model in both modes")
    assert made == calls


def test_what_only_training_does_does_not_move_statistics_in_evaluation():
    zoo = ZOO["one_way_each"]
    gm = nce_fx.trace(zoo.make(), zoo.inputs).train()
    first, second = (gm.get_buffer(f"{name}.running_mean").clone() for name in ("first", "second"))
    gm(*zoo.inputs)
    assert torch.equal(gm.get_buffer("first.running_mean"), first)
    assert not torch.equal(gm.get_buffer("second.running_mean"), second)


class DropsForALayer(nn.Module):
    """What a layer reads is chosen by the mode."""

    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, x):
        x = self.a(x).relu()
        return self.b(self.drop(x) if self.training else x)


def test_what_the_mode_chooses_is_quantized_for_the_layer_that_reads_it():
    x = torch.randn(4, 4)
    quantized = nce_fx.quantize(nce_fx.trace(DropsForALayer().eval(), (x,)), nce_fx.QuantSpec(), [x])
    assert [row.activation_bits for row in describe(quantized)] == [8, 8]
    assert torch.equal(quantized(x), quantized(x))
    assert not torch.equal(quantized.train()(x), quantized(x))


class Detector(nn.Module):
    """Scales what it finds where it finds much."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16), nn.ReLU()), conv(16, 2, 1)

    def forward(self, x):
        scores = self.head(self.backbone(x)).flatten(1)
        return scores * 2 if scores.mean() > 0 else scores


def test_a_refusal_names_the_parts_that_can_be_traced():
    model = Detector().eval()
    with pytest.raises(TraceError, match=r"a part of the model alone \(backbone \(99% of the parameters\), head"):
        nce_fx.trace(model, (image(),))
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert nce_fx.trace(model.backbone, (image(),)).meta["traced"] == "fx"


class OneByOne(nn.Module):
    """Has as many steps as there are samples."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 6), conv(6, 2)

    def forward(self, x):
        return torch.cat([self.b(self.a(x[i : i + 1]).relu()) for i in range(len(x))])


@pytest.mark.parametrize("size", [1, 3])
def test_a_graph_of_as_many_steps_as_samples_refuses_other_batches(size):
    model, x = OneByOne().eval(), image(batch=size)
    gm = nce_fx.trace(model, (x,))
    assert f"batches of {size} alone" in gm.meta["compared"]
    torch.testing.assert_close(gm(x), model(x))
    for act in (gm, lambda batch: nce_fx.quantize(gm, nce_fx.QuantSpec(), [batch])):
        with pytest.raises(InputError, match=rf"a batch of 2: this graph takes batches of {size} alone") as caught:
            act(image(batch=2))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["batch_by_length", "batch_by_number"])
@pytest.mark.parametrize("size", [1, 2, 16])
def test_a_batch_whose_size_is_written_down_is_followed(name, size):
    model = ZOO[name].make()
    if name == "batch_by_number":
        model.size = size
    x = image(batch=size)
    gm = nce_fx.trace(model, (x,))
    torch.testing.assert_close(gm(x), model(x))
    quantized = nce_fx.quantize(gm, nce_fx.QuantSpec(), [image(batch=5)])
    assert len(quantized(image(batch=7))) == 7


class KeepsPlaces(nn.Module):
    """Keeps what it computes for the shape of a batch until another shape comes, as YOLO's heads do."""

    def __init__(self, auxiliary):
        super().__init__()
        self.a, self.b = conv(3, 6), conv(6, 4)
        self.auxiliary, self.shape, self.places = auxiliary, None, torch.empty(0)

    def forward(self, x):
        x = self.b(self.a(x).relu())
        flat = x.view(x.shape[0], 4, -1)
        if self.training and self.auxiliary:
            return {"raw": flat}
        if self.shape != x.shape:
            # As long as a batch that it is traced with.
            self.places, self.shape = torch.arange(2.0 * flat.shape[-1], dtype=x.dtype).view(2, 1, -1), x.shape
        batch, length = x.shape[0], flat.shape[-1]
        windows = flat.transpose(1, 2).reshape(batch * 4, length // 4, 4)
        windows = windows.view(windows.shape[0], length // 4, 2, 2).softmax(3).reshape(windows.shape[0] // 4, -1, 4)
        out = flat.view(batch, 2, 2, -1).softmax(1).sum(1) + self.places.sum(0) + windows.view(batch, -1, 4).mean()
        return (out, {"raw": flat}) if self.auxiliary else out


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_is_followed_whose_shape_a_model_remembers(auxiliary, size):
    model, x = KeepsPlaces(auxiliary).eval(), image(batch=size)
    model(x)
    gm = nce_fx.trace(model, (x,))
    assert "alone" not in gm.meta["compared"]
    for count in (1, 2, 5):
        torch.testing.assert_close(gm(image(batch=count)), model(image(batch=count)))


def test_a_graph_is_compared_on_inputs_that_tell_branches_apart(tmp_path):
    model = DoublesTensors().eval()
    gm = nce_fx.trace(model, (image(),))
    nce_fx.save(gm, tmp_path / "saved")
    # Of zeros the other branch would have the same outputs.
    assert torch.equal(nce_fx.load(tmp_path / "saved", DoublesTensors())(image()), gm(image()))


class DoublesTensors(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(3, 4)

    def forward(self, x):
        return self.a(x * 2 if isinstance(x, torch.Tensor) else x)


@pytest.mark.parametrize("passes", ["resize", "quantize", "deepcopy"])
def test_a_frozen_norm_stays_frozen_after_every_pass(passes):
    zoo = ZOO["frozen_norm"]
    gm = nce_fx.trace(zoo.make(), zoo.inputs)
    done: Any = {
        "resize": lambda: nce_fx.resize(gm, {"a": 9}),
        "quantize": lambda: nce_fx.quantize(gm, nce_fx.QuantSpec(), zoo.inputs),
        "deepcopy": lambda: copy.deepcopy(gm),
    }[passes]()
    done.train()
    assert not done.get_submodule("norm").training
    assert done.get_submodule("moving").training
    before = done.get_buffer("norm.running_mean").clone()
    done(*zoo.inputs)
    assert torch.equal(done.get_buffer("norm.running_mean"), before)


class Named(nn.Module):
    classes = 4

    def __init__(self):
        super().__init__()
        self.c, self.f, self.scale = conv(3, 8), nn.Linear(8, 4), 2.0

    def forward(self, image, gain=None, *, mask=None):
        x = self.c(image).relu()
        x = x if gain is None else x * gain
        x = x if mask is None else x * mask
        return self.f(x.mean((2, 3)))

    def predict(self, image):
        return self(image).argmax(1)

    @property
    def doubled(self):
        return self.scale * 2


GIVEN: tuple[Any, ...] = (
    image(),
    (image(),),
    [image(), image(1)],
    {"image": image()},
    {"mask": image(1), "image": image()},
    {"image": image(), "gain": image(1), "mask": image(1)},
    {"gain": None, "image": image()},
)


@pytest.mark.parametrize("given", GIVEN)
def test_inputs_are_given_in_any_form(given):
    model = Named().eval()
    gm = nce_fx.trace(model, given)
    args, kwargs = (
        ((), given) if isinstance(given, dict) else (given if isinstance(given, tuple | list) else (given,), {})
    )
    torch.testing.assert_close(gm(*args, **kwargs), model(*args, **kwargs))
    assert {name for name, _ in gm.named_parameters()} == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("given", [{"picture": image()}, (image(),) * 4, {"gain": image()}])
def test_inputs_that_the_model_does_not_take_are_refused_with_its_arguments(given):
    with pytest.raises(TraceError, match=r"Named does not take the example input.*\(image, gain=None, \*, mask=None\)"):
        nce_fx.trace(Named(), given)


def test_a_graph_of_named_inputs_is_saved_and_loaded(tmp_path):
    model, given = Named().eval(), {"mask": image(1), "image": image()}
    quantized = nce_fx.quantize(nce_fx.resize(nce_fx.trace(model, given), {"c": 12}))
    nce_fx.save(quantized, tmp_path / "result")
    assert torch.equal(nce_fx.load(tmp_path / "result", Named())(**given), quantized(**given))


def test_what_the_users_class_has_is_there_on_every_result():
    gm = nce_fx.trace(Named().eval(), (image(),))
    for result in (gm, nce_fx.resize(gm, {"c": 12}), nce_fx.quantize(gm), copy.deepcopy(gm)):
        own: Any = result
        assert torch.equal(own.predict(image()), own(image()).argmax(1))
        assert (own.classes, own.scale, own.doubled) == (4, 2.0, 4.0)
        with pytest.raises(AttributeError, match="nothing_like_it"):
            own.nothing_like_it  # noqa: B018


def test_the_random_state_is_what_it_was():
    zoo = ZOO["functions_of_the_mode"]
    model = zoo.make().train()
    state = torch.get_rng_state()
    nce_fx.trace(model, zoo.inputs)
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_trace_and_run_at_the_same_time():
    models = [MODELS["resnet8"]().eval() for _ in range(4)]
    x, failures, done = image(3, 16), [], threading.Event()

    def run(model: nn.Module) -> None:
        wanted = model(x)
        while not done.is_set():
            if not torch.equal(model(x), wanted):
                failures.append("another output")

    def trace(model: nn.Module) -> None:
        try:
            for _ in range(3):
                torch.testing.assert_close(nce_fx.trace(model, (x,))(x), model(x))
        except Exception as error:
            failures.append(repr(error))

    runner = threading.Thread(target=run, args=(MODELS["resnet8"]().eval(),))
    tracers = [threading.Thread(target=trace, args=(model,)) for model in models]
    for thread in (runner, *tracers):
        thread.start()
    for thread in tracers:
        thread.join()
    done.set()
    runner.join()
    assert failures == []


def test_a_graph_that_does_not_fit_its_shapes_says_where():
    gm = nce_fx.trace(MODELS["resnet8"]().eval(), (image(3, 16),))
    assert first_misfit(gm) is None
    wrong = copy.deepcopy(gm)
    wrong.get_submodule("layer1.0.conv2").stride = (2, 2)  # type: ignore[assignment]
    assert re.match(r"layer1_0_conv2 .*resnet.py:\d+ gives \(2, ", first_misfit(wrong) or "")
    wrong.get_submodule("layer1.0.conv1").groups = 3  # type: ignore[assignment]
    assert re.match(r"layer1_0_conv1 .*: RuntimeError", first_misfit(wrong) or "")


def test_a_resized_graph_that_cannot_run_is_not_returned(monkeypatch):
    gm = nce_fx.trace(MODELS["resnet8"]().eval(), (image(3, 16),))
    resized = resizing._resized

    def broken(*args: Any) -> Any:
        result = resized(*args)
        result.get_submodule("layer2.0.conv1").groups = 2  # type: ignore[assignment]
        return result

    monkeypatch.setattr(resizing, "_resized", broken)
    with pytest.raises(ChannelError, match=r"does not fit at layer2_0_conv1 .*please report it"):
        nce_fx.resize(gm, {"conv1": 8})


def exported(model):
    """Let a model ask for a tensor, which fx's values are not: torch.export alone traces it."""
    kind = type(model)
    model.__class__ = type(
        "Exported", (kind,), {"forward": lambda self, x: kind.forward(self, x if torch.is_tensor(x) else None)}
    )
    return model


@pytest.mark.parametrize("way", ["fx", "export"])
@pytest.mark.parametrize(
    ("name", "layers", "left_out"),
    [
        ("own_linears", ["rows", "columns", "letters", "proj", "out"], []),
        ("left_and_named", ["left", "letters", "scaled", "named", "out"], ["batch"]),
    ],
)
def test_every_way_of_writing_a_linear_layer_is_quantized_under_the_name_of_its_parameter(name, layers, left_out, way):
    zoo = ZOO[name]
    model = exported(zoo.make()) if way == "export" else zoo.make()
    gm = nce_fx.trace(model, zoo.inputs)
    assert way in (gm.meta["traced"], "fx")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quantized = nce_fx.quantize(gm, nce_fx.QuantSpec(), zoo.inputs)
    assert list(nce_fx.integer_weights(quantized)) == layers
    assert [str(warning.message).partition(" is not quantized: einsum")[0] for warning in said] == left_out
    quantized.train()(*zoo.inputs).sum().backward()
    assert not [name for name, parameter in quantized.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", ["auxiliary_head", "frozen_norm", "own_linears", "asks_for_tensors"])
def test_torch_saves_and_loads_a_result_whole(tmp_path, name):
    zoo = ZOO[name]
    gm = nce_fx.trace(zoo.make(), zoo.inputs)
    for result in (gm, nce_fx.quantize(gm, nce_fx.QuantSpec(), zoo.inputs)):
        torch.save(result, tmp_path / "whole.pt")
        again = torch.load(tmp_path / "whole.pt", weights_only=False)
        assert str(again.graph) == str(result.graph)
        assert again.state_dict().keys() == result.state_dict().keys()
        for mode in (False, True):
            pair = [seeded(network.train(mode), zoo.inputs) for network in (result, again)]
            torch.testing.assert_close(pair[1], pair[0], rtol=0, atol=0)
        assert nce_fx.analyze_cost(again).total == nce_fx.analyze_cost(result).total


def test_the_names_of_a_state_dict_are_the_models():
    class Normalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.3), persistent=False)
            self.scale, self.a, self.head = torch.tensor(2.0), conv(3, 6), Head(6)

        def forward(self, x):
            return self.head(F.relu(self.a((x - self.mean) * self.scale)))

    model = Normalized().eval()
    gm = nce_fx.trace(model, (image(),))
    wide = nce_fx.resize(gm, {"a": 9})
    assert gm.state_dict().keys() == wide.state_dict().keys() == model.state_dict().keys()
    gm.load_state_dict(model.state_dict())
    torch.testing.assert_close(wide(image()), model(image()))


@pytest.mark.parametrize("rotary", [2, 4])
def test_a_slice_that_is_empty_holds_no_channels(rotary):
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            q, k = (f(x).view(2, 5, 2, 4).permute(0, 2, 1, 3).reshape(4, 5, 4) for f in (self.q, self.k))
            q = torch.cat((q[..., :rotary] * 2, q[..., rotary:]), -1)
            y = (q @ k.transpose(1, 2)).softmax(-1) @ q
            return self.out(y.view(2, 2, 5, 4).permute(0, 2, 1, 3).reshape(2, 5, 8))

    x = torch.randn(2, 5, 8)
    model = Turned().eval()
    gm = nce_fx.trace(model, (x,))
    free = {group.id: group.width + group.step for group in nce_fx.analyze_channels(gm) if group.pinned is None}
    torch.testing.assert_close(nce_fx.resize(gm, free)(x), model(x))


@pytest.mark.parametrize("way", ["fx", "export"])
def test_a_cache_that_is_still_empty_has_no_channels(way):
    """Keys are joined to a tensor of shape (0,), as in models of transformers that keep them."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            if way == "export" and not torch.is_tensor(x):
                return x
            q, k = (f(x).view(2, 5, 2, 4).transpose(1, 2) for f in (self.q, self.k))
            k = torch.cat([torch.tensor([]), k], -2)
            y = (q @ k.transpose(2, 3)).softmax(-1) @ k
            return self.out(y.transpose(1, 2).reshape(2, 5, 8))

    x = torch.randn(2, 5, 8)
    model = Cached().eval()
    gm = nce_fx.trace(model, (x,))
    assert gm.meta["traced"] == way
    channels = nce_fx.analyze_channels(gm)
    assert [(group.id, group.pinned is None, group.step) for group in channels] == [("q", True, 4), ("out", False, 1)]
    for law in ("1_widening_keeps_the_function", "3_narrowing_is_removal", "6_cost_is_exact"):
        LAWS[law](model, (x,))


def test_what_a_view_is_joined_to_says_how_its_literal_size_is_read():
    """A norm over channels widens them evenly: of 16 that were 8, ``reshape(2, -1, 8)`` could be two rows."""

    class ClassToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.a, self.norm = nn.Parameter(torch.randn(8)), nn.Linear(6, 8), nn.LayerNorm(8)
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            token = self.token.unsqueeze(0).expand(x.shape[0], -1).reshape(x.shape[0], -1, 8)
            return self.out(torch.cat([token, self.norm(self.a(x)).reshape(x.shape[0], -1, 8)], 1))

    x = torch.randn(2, 4, 6)
    model = ClassToken().eval()
    gm = nce_fx.trace(model, (x,))
    wide = nce_fx.resize(gm, {"a": 16})
    torch.testing.assert_close(wide(x), model(x))
    assert wide(torch.cat([x, x, x])).shape == (6, 5, 3)


class OneRowForAll(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.arange(4) < 3).expand(2, 3, 4)


def test_a_constant_whose_rows_share_memory_can_be_loaded() -> None:
    gm = nce_fx.trace(OneRowForAll(), (torch.randn(2, 3, 4),))
    gm.load_state_dict(gm.state_dict())
    with torch.no_grad():
        for buffer in gm.buffers():
            buffer.copy_(buffer.clone())


class Added(nn.Module):
    """Adds a constant of its own, which only some batches fit."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Buffer(torch.ones(3, 4))

    def forward(self, x):
        return x + self.offset


@pytest.mark.parametrize("copied", [False, True])
def test_a_graph_that_fails_raises_and_prints_nothing(capsys, copied):
    gm = nce_fx.trace(Added(), (torch.zeros(3, 4),))
    with pytest.raises(RuntimeError, match="must match"):
        (copy.deepcopy(gm) if copied else gm)(torch.zeros(2, 4))
    assert capsys.readouterr().err == ""


class Decided(nn.Module):
    """Runs what the values of its features decide, in one of several ways."""

    def __init__(self, way, inside=False):
        super().__init__()
        self.way, self.features, self.last = way, nn.Sequential(conv(3, 6), nn.ReLU()), nn.Linear(6, 3)
        self.part = Decided(way) if inside else None

    def forward(self, x):
        f = self.features(x).mean((2, 3))
        if self.part is not None:
            return self.part(x) + self.last(f)
        return self.last(self.way(f))


def halved(f):
    if f.sum() > 0:
        return f
    return f * 0.5


def shrunk(f):
    while f.norm() > 1.0:
        f = f * 0.5
    return f


def by_item(f):
    return f / (f.abs().max().item() + 1)


def by_int(f):
    return f * int((f > 0).sum())


def by_list(f):
    return f[:, f.sum(0).argsort().tolist()]


@pytest.mark.parametrize(("way", "line"), [(halved, "if f.sum() > 0:"), (shrunk, "while f.norm() > 1.0:")])
def test_what_values_decide_is_refused_with_the_line_that_asks_and_the_parts_that_can_be_traced(way, line):
    with pytest.raises(TraceError) as caught:
        nce_fx.trace(Decided(way).eval(), (image(),))
    text = str(caught.value)
    assert "\n" not in text
    assert re.search(rf'which stops at \S+test_tracing.py:\d+, "{re.escape(line)}": write that so that', text)
    assert "put it into a module of its own, which is then left whole" in text
    assert "(features (89% of the parameters), last (11% of the parameters))" in text


@pytest.mark.parametrize("way", [halved, shrunk, by_int])
def test_a_part_that_values_decide_is_left_whole(way):
    model = Decided(way, inside=True).eval()
    gm = nce_fx.trace(model, (image(),))
    assert gm.meta["traced"] == "fx with leaves: part"
    groups = nce_fx.analyze_channels(gm)
    assert groups["features.0"].pinned is None
    torch.testing.assert_close(nce_fx.resize(gm, {"features.0": 9})(image()), model(image()))


def test_that_a_part_which_is_left_whole_stays_in_float_is_said():
    gm = nce_fx.trace(Decided(by_int, inside=True).eval(), (image(),))
    with pytest.warns(
        UserWarning, match=r"part is not quantized: .*no tracer can enter it, so its 189 parameters are in"
    ):
        nce_fx.quantize(gm, batches=[((image(),), None)])


@pytest.mark.parametrize("way", [by_item, by_list])
def test_numbers_that_are_read_from_values_leave_the_rest_free(way):
    model = Decided(way).eval()
    gm = nce_fx.trace(model, (image(),))
    pinned = nce_fx.analyze_channels(gm)["features.0"].pinned
    assert (pinned is None) == (way is by_item)
    assert "mixed by sort" in (pinned or "mixed by sort")
    torch.testing.assert_close(gm(image()), model(image()))


class Fades(nn.Module):
    """Is left whole, since values decide what it runs, and has another weight after every call."""

    def __init__(self):
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, f):
        self.weight.data = self.weight.data * 0.5
        self.get_buffer("calls").add_(1)
        return self.last(halved(f) * self.weight + self.calls)


def test_finding_the_shapes_of_what_is_left_whole_writes_nothing_to_it():
    model = nn.Sequential(conv(3, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Fades()).eval()
    first = copy.deepcopy(model)(image())
    gm = nce_fx.trace(model, (image(),))
    assert gm.meta["traced"] == "fx with leaves: 3"
    torch.testing.assert_close(gm(image()), first)


class Sentences(nn.Module):
    """Attends to tokens before each, by positions counted from its ids; what it asks first sends it to torch.export."""

    def __init__(self, decides=None):
        super().__init__()
        self.decides = decides
        self.embed, self.places = nn.Embedding(20, 8), nn.Embedding(32, 8)
        self.q, self.k, self.v, self.last = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, ids, mask=None):
        if not torch.is_tensor(ids):
            return ids
        batch, length = ids.shape
        x = self.embed(ids) + self.places(torch.arange(length))
        if self.decides is not None and self.decides(length):
            x = x * 2
        q, k, v = (layer(x).view(batch, length, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) + torch.full((length, length), -1e9).triu(1)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -1e9)
        return self.last((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, 8))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(2, 7), (6, 6)])
def test_ids_and_masks_are_of_any_length(shape, masked):
    model = Sentences().eval()

    def inputs(*size):
        ids, mask = torch.randint(20, size), torch.ones(size, dtype=torch.bool)
        mask[0, 1:] = False
        return (ids, mask) if masked else (ids,)

    gm = nce_fx.trace(model, inputs(*shape))
    assert gm.meta["traced"] == "export"
    wide = nce_fx.resize(gm, {"embed": 11})
    for size in (shape, (3, 7), (2, 12), (1, 4)):
        given = inputs(*size)
        for graph in (gm, wide):
            torch.testing.assert_close(graph(*given), model(*given))


@pytest.mark.parametrize("decides", [lambda length: length > 16, lambda length: length % 2])
def test_what_the_length_of_a_sequence_decides_keeps_its_length(decides):
    model, ids = Sentences(decides).eval(), torch.randint(20, (2, 7))
    gm = nce_fx.trace(model, (ids,))
    torch.testing.assert_close(gm(ids), model(ids))
    torch.testing.assert_close(gm(ids[:1]), model(ids[:1]))
    for length in (8, 20):
        with pytest.raises(RuntimeError):
            gm(torch.zeros(2, length, dtype=torch.long))


class ChosenThenAttended(nn.Module):
    """One head of attention, whose copies share a product, behind a choice by a condition."""

    def __init__(self):
        super().__init__()
        self.a, self.q, self.k, self.out = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 3)

    def forward(self, x):
        x = self.a(x)
        x = torch.where(x > 0.1, x, 0.5 * x)
        return self.out((self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ x)


def test_what_is_chosen_by_a_condition_has_the_type_of_the_choices():
    x = torch.randn(2, 4, 4)
    model = ChosenThenAttended().eval()
    wide = nce_fx.resize(nce_fx.trace(model, (x,)), {"q": 7})
    assert [buffer.dtype for name, buffer in wide.named_buffers() if "share" in name] == [torch.float32]
    torch.testing.assert_close(wide(x), model(x))


class TiedUnderMask(nn.Module):
    """A language model whose last layer is its table, with a mask that makes torch.export the way to trace it."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True)
        self.out.weight = self.table.weight

    def forward(self, ids):
        mask = torch.triu(torch.full((4, 4), float("-inf")), 1)
        return self.out(self.layer(self.table(ids), src_mask=mask))


def test_gradients_of_a_tied_weight_are_those_of_all_its_names():
    model, ids = TiedUnderMask().eval(), torch.tensor([[3, 1, 5, 0], [2, 4, 1, 3]])
    gm = nce_fx.trace(model, ids)
    assert gm.meta["traced"] == "export"
    assert gm.state_dict().keys() == model.state_dict().keys()
    assert nce_fx.analyze_channels(gm)["layer.linear1"].pinned is None
    torch.testing.assert_close(nce_fx.resize(gm, {"layer.linear1": 11})(ids), model(ids))
