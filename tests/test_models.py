"""The built-in networks at their published sizes, and models and weights as users name them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.fx import symbolic_trace
from torch.utils.flop_counter import FlopCounterMode

from nce_fx.errors import ArtifactError, InputError
from nce_fx.models import INPUT_SHAPES, MODELS
from nce_fx.models.loading import arguments_for, load_model, load_weights
from nce_fx.models.resnet_cifar import PaddedShortcut

# Parameters and multiply-accumulates of convolutions and linear layers at the natural input shape. ImageNet's are the
# published ones; the CIFAR nets have convolution shortcuts, the paper's own (0.27 M, 0.85 M) are tested below.
PUBLISHED = {
    "resnet8": (5_214, 864_416),
    "resnet20": (272_474, 40_813_184),
    "resnet56": (855_770, 125_747_840),
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet50": (25_557_032, 4_089_184_256),
    "mobilenet_v2": (3_504_872, 300_774_272),
    "vgg16_bn": (138_365_992, 15_470_264_320),
}
TORCHVISION_NAMES = ("resnet18", "resnet50", "mobilenet_v2", "vgg16_bn")


def built(name: str, **arguments: Any) -> Any:
    with torch.device("meta"):
        return MODELS[name](**arguments).eval()


def macs(model: nn.Module, *shape: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(shape, device=next(model.parameters()).device))
    return int(counter.get_total_flops()) // 2


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def torchvision_models() -> Any:
    try:
        import torchvision.models
    except Exception as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    return torchvision.models


def test_the_tables_name_the_same_models():
    assert set(MODELS) == set(INPUT_SHAPES) == set(PUBLISHED)


@pytest.mark.parametrize("name", MODELS)
def test_size_is_the_published_one(name):
    model = built(name)
    assert (parameters(model), macs(model, 1, *INPUT_SHAPES[name])) == PUBLISHED[name]


@pytest.mark.parametrize(("name", "published"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_padded_shortcuts_give_the_papers_size(name, published):
    assert parameters(built(name, shortcut="pad")) == published


@pytest.mark.parametrize("name", MODELS)
def test_traces_with_any_batch(name):
    gm = symbolic_trace(built(name))
    for batch in (1, 2, 5):
        out = gm(torch.empty(batch, *INPUT_SHAPES[name], device="meta"))
        assert out.shape == (batch, 10 if INPUT_SHAPES[name][1] == 32 else 1000)


@pytest.mark.parametrize("name", MODELS)
def test_no_activation_works_in_place(name):
    assert not [m for m in built(name).modules() if getattr(m, "inplace", False) and not isinstance(m, nn.Dropout)]


@pytest.mark.parametrize("name", MODELS)
def test_every_module_is_called_once(name):
    targets = [node.target for node in symbolic_trace(built(name)).graph.nodes if node.op == "call_module"]
    assert len(targets) == len(set(targets))


@pytest.mark.parametrize("name", MODELS)
def test_classes_and_channels_are_arguments(name):
    model = built(name, num_classes=7, in_channels=2)
    assert model(torch.empty(3, 2, 64, 64, device="meta")).shape == (3, 7)


@pytest.mark.parametrize("size", [8, 16, 28, 32])
def test_small_resnets_take_small_images(size):
    assert MODELS["resnet8"](in_channels=1)(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_resnet8_on_digits_is_the_measured_net():
    """4,964 weights in convolutions and the classifier (its 10 biases apart), and 49,568 multiply-accumulates."""
    model = built("resnet8", in_channels=1)
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert (weights, macs(model, 1, 1, 8, 8)) == (4_964, 49_568)


def test_width_scales_the_small_resnets():
    widths = [m.out_channels for m in built("resnet8", width=6).modules() if isinstance(m, nn.Conv2d)]
    assert widths == [6, 6, 6, 12, 12, 12, 24, 24, 24]


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "mobilenet_v2"])
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    model(torch.randn(4, 3, 32, 32)).logsumexp(1).sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_padded_shortcut_keeps_every_second_pixel():
    x = torch.randn(2, 3, 4, 4)
    y = PaddedShortcut(3, stride=2)(x)
    assert y.shape == (2, 6, 2, 2)
    assert torch.equal(y[:, 1:4], x[:, :, ::2, ::2])
    assert not y[:, :1].any()
    assert not y[:, 4:].any()


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_parameter_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        theirs = getattr(torchvision_models(), name)(weights=None).state_dict()
    assert {k: v.shape for k, v in built(name).state_dict().items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_torchvisions_weights_give_torchvisions_outputs(name):
    torch.manual_seed(0)
    theirs = getattr(torchvision_models(), name)(weights=None)
    theirs(torch.randn(2, 3, 64, 64))  # moves the statistics of BatchNorm away from 0 and 1
    ours = MODELS[name]()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))


# Models by name.


def loaded(spec: str, arguments: dict[str, Any] | None = None) -> Any:
    return load_model(spec, arguments)


USER_FILE = """
import torch
class Net(torch.nn.Sequential):
    def __init__(self, width=3):
        super().__init__(torch.nn.Linear(2, width))
    @classmethod
    def wide(cls):
        return cls(8)
def broken(): raise ValueError('no weights\\nsecond line')
def spoiled():
    net = Net(); net[0].weight.data[0, 1] = float('nan'); return net
def number(): return 5
ready = Net(4)
constant = 3
"""


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "network.py"
    path.write_text(USER_FILE)
    return path


def test_builtin_by_name_takes_arguments():
    assert loaded("resnet8", {"num_classes": 3, "in_channels": 1}).fc.out_features == 3


def test_model_from_a_file(user_file):
    assert loaded(f"{user_file}:Net")[0].out_features == 3
    assert loaded(f"{user_file}:Net", {"width": 5})[0].out_features == 5
    assert loaded(f"{user_file}:Net.wide")[0].out_features == 8
    assert loaded(f"{user_file}:ready")[0].out_features == 4


def test_model_from_a_module(user_file, monkeypatch):
    monkeypatch.chdir(user_file.parent)
    assert loaded("network:Net")[0].out_features == 3
    assert loaded("torch.nn:Linear", {"in_features": 2, "out_features": 3}).out_features == 3


def test_a_file_imports_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_model.py").write_text("import torch\nlayer = torch.nn.Linear(2, 2)\n")
    (tmp_path / "model.py").write_text("from neighbour_of_model import layer\ndef build(): return layer\n")
    assert loaded(f"{tmp_path}/model.py:build").in_features == 2


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("resnet9", {}, r"no model 'resnet9': there are resnet8, .* did you mean 'resnet8'\?"),
        ("resnet8", {"num_clases": 3}, r"takes no 'num_clases'; it takes num_classes, .* did you mean 'num_classes'\?"),
        ("resnet8", {"width": 0}, "width is 0; it must be a whole number of 1 or more"),
        ("resnet8", {"num_classes": "ten"}, "num_classes is 'ten'; it must be a whole number"),
        ("mobilenet_v2", {"multiplier": "a"}, "multiplier is 'a'; it must be a number of 0 or more"),
        ("mobilenet_v2", {"multiplier": 0.0}, "multiplier is 0.0; it must be above 0"),
        ("resnet8", {"shortcut": "maybe"}, "shortcut 'maybe' is not one of conv, pad"),
        ("no_such_package.models:net", {}, "no module named 'no_such_package': is it installed"),
        ("torch.nn:Lineal", {}, r"torch.nn has no 'Lineal'; did you mean 'Linear'\?"),
        ("torch.nn:", {}, "write package.module:callable"),
        ("FILE:broken", {}, "building it raised ValueError: no weights .at FILE:\\d+.$"),
        ("FILE:Net", {"depth": 2}, "building it with .*depth.* raised TypeError"),
        ("FILE:number", {}, "returns int, not a torch.nn.Module"),
        ("FILE:constant", {}, "'constant' is of type int, not a callable"),
        ("FILE:ready", {"width": 2}, "built already and takes no arguments"),
        ("FILE:spoiled", {}, "0.weight holds 1 NaN and 0 infinite of 6 values"),
        ("missing/file.py:net", {}, "there is no file missing/file.py"),
    ],
)
def test_models_that_cannot_be_had_are_one_line(user_file, spec, arguments, message):
    with pytest.raises(InputError, match=message.replace("FILE", str(user_file))) as caught:
        load_model(spec.replace("FILE", str(user_file)), arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["import no_such_package_here", "1 / 0", "def x(:"])
def test_a_file_that_does_not_run_is_one_line(tmp_path, text):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(InputError, match=r"running .*bad\.py failed: \w+Error: ") as caught:
        load_model(f"{tmp_path}/bad.py:net")
    assert "\n" not in str(caught.value)


def test_data_fills_in_what_the_user_left_open():
    assert arguments_for("resnet8", None, (1, 8, 8), 10) == {"num_classes": 10, "in_channels": 1}
    assert arguments_for("resnet8", {"num_classes": 3, "width": 8}, (1, 8, 8), 10)["num_classes"] == 3
    assert arguments_for("torch.nn:Linear", {"in_features": 2}, (1, 8, 8), 10) == {"in_features": 2}


# Weights from files.


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = MODELS["resnet8"]()
    path = tmp_path / "weights.safetensors"

    def save(**changes):
        weights = {**model.state_dict(), **{key.replace("__", "."): value for key, value in changes.items()}}
        save_file({key: value for key, value in weights.items() if value is not None}, path)
        return path

    return model, save


def test_weights_load(saved):
    model, save = saved
    other: Any = load_weights(MODELS["resnet8"](), save())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_half_precision_weights_load_into_single(saved):
    model, save = saved
    other: Any = load_weights(MODELS["resnet8"](), save(fc__weight=model.fc.weight.detach().half()))
    assert other.fc.weight.dtype == torch.float32
    assert torch.equal(other.fc.weight, model.fc.weight.half().float())


def test_counters_of_batchnorm_may_be_missing(saved):
    _, save = saved
    load_weights(MODELS["resnet8"](), save(bn1__num_batches_tracked=None))


def test_a_shared_parameter_needs_one_name(tmp_path):
    model: Any = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    save_file({"1.weight": torch.eye(2)}, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model[0].weight, torch.eye(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc__weight": None}, "missing: fc.weight$"),
        ({"fc__wieght": torch.zeros(10, 16), "fc__weight": None}, "missing: fc.weight; did you mean 'fc.wieght'?"),
        ({"extra": torch.zeros(1)}, "unexpected: extra$"),
        ({"fc__bias": torch.zeros(3)}, "wrong shape: fc.bias is 3 and should be 10"),
        ({"conv1__weight": torch.full((4, 3, 3, 3), float("nan"))}, "conv1.weight holds 108 NaN and 0 infinite"),
        ({"fc__bias": torch.tensor([0.0] * 9 + [float("inf")])}, "fc.bias holds 0 NaN and 1 infinite of 10"),
    ],
)
def test_weights_that_do_not_fit_are_one_line_and_load_nothing(saved, changes, message):
    _, save = saved
    model = MODELS["resnet8"]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message) as caught:
        load_weights(model, save(**changes))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_many_missing_keys_are_counted(saved):
    _, save = saved
    with pytest.raises(InputError, match=r"missing: layer1.1.conv1.weight, .* and \d+ more"):
        load_weights(MODELS["resnet20"](width=4), save())


def test_files_that_are_not_weights(tmp_path):
    with pytest.raises(ArtifactError, match="there is no such file"):
        load_weights(MODELS["resnet8"](), tmp_path / "none.safetensors")
    torch.save({"epoch": 3, "loss": 0.5}, tmp_path / "old.pth")
    with pytest.raises(ArtifactError, match="holds no state_dict, but epoch, loss: save model"):
        load_weights(MODELS["resnet8"](), tmp_path / "old.pth")
    torch.save(MODELS["resnet8"](), tmp_path / "whole.pt")
    with pytest.raises(ArtifactError, match="holds Python objects beside tensors, which are not loaded"):
        load_weights(MODELS["resnet8"](), tmp_path / "whole.pt")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ArtifactError, match=r"weights .*text\.pth"):
        load_weights(MODELS["resnet8"](), tmp_path / "text.pth")


FORMS: dict[str, Callable[[dict[str, Any], Path], Any]] = {
    "plain.pth": torch.save,
    "lightning.ckpt": lambda state, path: torch.save(
        {"epoch": 3, "optimizer_states": [], "state_dict": {f"model.{k}": v for k, v in state.items()}}, path
    ),
    "compiled.pt": lambda state, path: torch.save({f"module._orig_mod.{k}": v for k, v in state.items()}, path),
    "parallel.safetensors": lambda state, path: save_file({f"module.{k}": v for k, v in state.items()}, path),
}


@pytest.mark.filterwarnings("ignore:weights")
@pytest.mark.parametrize("form", FORMS)
def test_weights_come_in_the_forms_that_people_have(tmp_path, form):
    model = MODELS["resnet8"]()
    FORMS[form](model.state_dict(), tmp_path / form)
    other: Any = load_weights(MODELS["resnet8"](), tmp_path / form)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_weights_in_shards_are_one_and_what_is_taken_off_is_said(tmp_path):
    state = {f"module.{name}": value for name, value in MODELS["resnet8"]().state_dict().items()}
    shards = {name: f"{index % 2}.safetensors" for index, name in enumerate(state)}
    for shard in set(shards.values()):
        save_file({name: state[name] for name in state if shards[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.warns(UserWarning, match=r"weights .*index.json: read names without 'module\.'"):
        other: Any = load_weights(MODELS["resnet8"](), tmp_path / "model.safetensors.index.json")
    assert torch.equal(other.state_dict()["fc.weight"], state["module.fc.weight"])


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)


def named(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        (lambda state: named("module._orig_mod.", state), "names without 'module._orig_mod.'"),
        (lambda state: named("backbone.", state), "names without 'backbone.'"),
        (lambda state: {"model": {"state_dict": state}, "epoch": 3}, "the entry 'model.state_dict'"),
        (lambda state: {"model_ema": named("module.", state)}, "the entry 'model_ema', names without 'module.'"),
        (
            lambda state: {"state_dict": named("net.", state) | {"metric.total": torch.ones(())}, "hparams": {}},
            "the entry 'state_dict', names without 'net.', 1 others left out",
        ),
    ],
)
def test_what_wraps_weights_is_taken_off_and_said(tmp_path, wrap, says):
    torch.manual_seed(0)
    trained, model = Small(), Small()
    torch.save(wrap(trained.state_dict()), tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=f"read {re.escape(says)}$"):
        load_weights(model, tmp_path / "w.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(trained.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_weights_of_two_such_models_are_not_chosen_from(tmp_path):
    state = Small().state_dict()
    torch.save(named("teacher.", state) | named("student.", state), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"do not fit the model: missing: stem.weight"):
        load_weights(Small(), tmp_path / "w.pth")


def test_shards_of_pytorchs_own_files_are_read(tmp_path):
    torch.manual_seed(0)
    trained, model = Small(), Small()
    names = list(trained.state_dict())
    for index, part in enumerate((names[:3], names[3:])):
        torch.save({name: trained.state_dict()[name] for name in part}, tmp_path / f"part-{index}.bin")
    files = {name: f"part-{int(name not in names[:3])}.bin" for name in names}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    load_weights(model, tmp_path / "pytorch_model.bin.index.json")
    assert torch.equal(model.fc.weight, trained.fc.weight)
