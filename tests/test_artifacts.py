"""Result folders: bit-equal when loaded, whole or not there, clear words for every damaged, foreign or newer file."""

import json
import os
import pickle
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nce_fx
from nce_fx import artifacts, tensor_file
from nce_fx.errors import ArtifactError, NceFxError, PlanError
from nce_fx.models import MODELS
from nce_fx.passes.analysis.channels.plan_check import check_plan
from nce_fx.report.records import Manifest

SOURCE = Path(nce_fx.__file__).parent


def net(width=4):
    torch.manual_seed(0)
    return MODELS["resnet8"](width=width).eval()


def batch(size=16, seed=0):
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def result():
    labels = torch.randint(10, (4,), generator=torch.Generator().manual_seed(2))
    return nce_fx.rewrite(net(), (batch()[:1],), batches=[(batch(seed=1), labels)])


@pytest.fixture(scope="module")
def saved(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts") / "result"
    nce_fx.save(result.graph_module, folder, report=result.report, float_model=result.original)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "result"))


def test_loaded_outputs_are_bit_equal(result, folder):
    torch.manual_seed(7)
    other = MODELS["resnet8"]().eval()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    loaded = nce_fx.load(folder, other)
    assert torch.equal(loaded(batch()), result.graph_module(batch()))
    assert loaded.state_dict().keys() == result.graph_module.state_dict().keys()
    assert not loaded.training
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())


def test_after_a_training_step_too(result, tmp_path):
    import copy

    gm = copy.deepcopy(result.graph_module).train()
    optimizer = torch.optim.SGD(gm.parameters(), lr=0.1)
    gm(batch()).square().mean().backward()
    optimizer.step()
    nce_fx.save(gm, tmp_path / "trained")
    loaded = nce_fx.load(tmp_path / "trained", net())
    assert loaded.training
    assert torch.equal(loaded(batch()), gm(batch()))
    assert torch.equal(loaded.eval()(batch()), gm.eval()(batch()))


def test_a_loaded_network_can_be_saved_again(folder, tmp_path):
    nce_fx.save(nce_fx.load(folder, net()), tmp_path / "again")
    for name in (artifacts.PLAN, artifacts.WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_only_resized_or_only_quantized_networks_are_kept_too(tmp_path):
    gm = nce_fx.trace(net(), (batch()[:1],))
    group = next(group for group in nce_fx.analyze_channels(gm).groups if group.pinned is None)
    wide = nce_fx.resize(gm, {group.id: group.width + group.step})
    nce_fx.save(wide, tmp_path / "wide")
    assert torch.equal(nce_fx.load(tmp_path / "wide", net())(batch()), wide(batch()))
    for name, spec in {
        "quantized": nce_fx.QuantSpec(weight_bits=3, activation_bits=4),
        "exact": nce_fx.QuantSpec(exact=True),
    }.items():
        quantized = nce_fx.quantize(gm, spec)
        nce_fx.save(quantized, tmp_path / name)
        assert torch.equal(nce_fx.load(tmp_path / name, net())(batch()), quantized(batch()))


def test_folded_networks_are_kept_too(result, tmp_path):
    from nce_fx.passes.transform.fold import FoldBatchNorm

    late = FoldBatchNorm()(result.graph_module).graph_module
    early = nce_fx.quantize(FoldBatchNorm()(result.original).graph_module)
    for name, gm in {"late": late, "early": early}.items():
        nce_fx.save(gm, tmp_path / name)
        assert torch.equal(nce_fx.load(tmp_path / name, net())(batch()), gm(batch()))


def test_shared_parameters_are_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

    packed = tensor_file.to_bytes(Tied().state_dict())
    tensors = tensor_file.from_bytes(packed, tmp_path / "tied")
    assert tensors.keys() == Tied().state_dict().keys()
    assert len(packed) < 6 * 6 * 4 * 2 + 1000
    gm = nce_fx.quantize(nce_fx.trace(Tied(), (torch.randn(2, 6),)))
    nce_fx.save(gm, tmp_path / "tied")
    loaded = nce_fx.load(tmp_path / "tied", Tied())
    x = torch.randn(3, 6)
    assert torch.equal(loaded(x), gm(x))
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in gm.parameters())


def test_the_model_of_another_architecture_is_refused(folder):
    with pytest.raises(PlanError, match="another model"):
        nce_fx.load(folder, net(width=6))
    with pytest.raises(NceFxError):
        nce_fx.load(folder, nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)))


@pytest.mark.parametrize("name", [artifacts.PLAN, artifacts.HISTORY, artifacts.WEIGHTS, artifacts.REPORT])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is not there"):
        nce_fx.load(folder, net())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="nothing"):
        nce_fx.load(tmp_path / "nothing", net())


@pytest.mark.parametrize("name", [artifacts.PLAN, artifacts.HISTORY, artifacts.WEIGHTS, artifacts.REPORT])
def test_truncated_and_flipped_files_are_refused_never_loaded(folder, name):
    whole = (folder / name).read_bytes()
    chance = random.Random(name)
    for case in range(60):
        if case % 2:
            damaged = whole[: chance.randrange(len(whole))]
        else:
            at = chance.randrange(len(whole))
            damaged = whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :]
        (folder / name).write_bytes(damaged)
        with pytest.raises(NceFxError) as raised:
            nce_fx.load(folder, net())
        assert len(str(raised.value).splitlines()) == 1


def test_files_of_two_results_do_not_mix(folder, tmp_path):
    other = nce_fx.rewrite(net(), (batch()[:1],), budget=nce_fx.Budget(macs=0.8), seed=1)
    nce_fx.save(other.graph_module, tmp_path / "other")
    for name in (artifacts.PLAN, artifacts.WEIGHTS):
        mixed = Path(shutil.copytree(folder, tmp_path / f"mixed-{name}"))
        shutil.copy(tmp_path / "other" / name, mixed / name)
        with pytest.raises(ArtifactError, match="another result"):
            nce_fx.load(mixed, net())


def test_a_newer_version_is_refused_in_words(folder):
    content = json.loads((folder / artifacts.REPORT).read_text())
    (folder / artifacts.REPORT).write_text(json.dumps(content | {"version": artifacts.VERSION + 1}))
    with pytest.raises(ArtifactError, match="install a newer nce-fx"):
        nce_fx.load(folder, net())


def test_a_field_this_version_does_not_know_is_named(folder):
    content = json.loads((folder / artifacts.REPORT).read_text())
    (folder / artifacts.REPORT).write_text(json.dumps(content | {"colour": "blue"}))
    with pytest.raises(ArtifactError, match="colour"):
        nce_fx.load(folder, net())


class Attack:
    def __reduce__(self):
        return (os.mkdir, ("attacked",))


@pytest.mark.parametrize("name", [artifacts.PLAN, artifacts.HISTORY, artifacts.WEIGHTS, artifacts.REPORT])
def test_a_malicious_pickle_is_refused_and_not_run(folder, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / name).write_bytes(pickle.dumps(Attack()))
    if name != artifacts.REPORT:
        # Even with a manifest that vouches for it.
        manifest = artifacts.read_manifest(folder)
        digest = artifacts._digest((folder / name).read_bytes())
        vouching = manifest.model_copy(update={"files": manifest.files | {name: digest}})
        (folder / artifacts.REPORT).write_text(vouching.to_json())
    with pytest.raises(NceFxError):
        nce_fx.load(folder, net())
    assert not (tmp_path / "attacked").exists()


def test_nothing_in_the_package_reads_pickle():
    words = re.compile(
        r"from pickle|pickle( as|\.(?!UnpicklingError))|(import|from) (joblib|dill|cloudpickle|marshal|shelve)"
        r"|(?<!safetensors\.)torch\.(load|save)\("
    )
    # Of a user's own weights PyTorch reads tensors alone, and runs nothing.
    tensors_alone = re.compile(r"torch\.load\([^()]*weights_only=True[^()]*\)")
    for path in SOURCE.rglob("*.py"):
        assert not words.search(tensors_alone.sub("", path.read_text())), path


def test_a_result_is_not_replaced_unless_forced(result, folder):
    with pytest.raises(ArtifactError, match="already holds a result"):
        nce_fx.save(result.graph_module, folder)
    (folder / "notes.txt").write_text("mine")
    (folder / artifacts.CHECKPOINTS).mkdir()
    nce_fx.save(result.graph_module, folder, force=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / artifacts.CHECKPOINTS).exists()
    nce_fx.load(folder, net())


def test_checkpoints_are_kept_where_asked(result, folder):
    (folder / artifacts.CHECKPOINTS).mkdir()
    (folder / artifacts.CHECKPOINTS / "log.csv").write_text("epoch")
    nce_fx.save(result.graph_module, folder, force=True, keep_checkpoints=True)
    assert (folder / artifacts.CHECKPOINTS / "log.csv").exists()


@pytest.mark.parametrize("fails_at", range(5))
def test_a_full_disk_leaves_the_old_folder_whole(result, folder, monkeypatch, fails_at):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    written: list[Path] = []
    write = Path.write_bytes

    def full(path, content):
        if len(written) == fails_at:
            write(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        written.append(path)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        nce_fx.save(result.graph_module, folder, force=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_crash_in_a_new_folder_leaves_nothing(result, tmp_path, monkeypatch):
    def crash(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", crash)
    with pytest.raises(KeyboardInterrupt):
        nce_fx.save(result.graph_module, tmp_path / "result")
    assert not list(tmp_path.iterdir())


class Structured(nn.Module):
    """Takes a dict and a list, gives a dict."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, images, more):
        return {"sum": self.one(images["left"]) + self.two(images["right"]) + more[0]}


def test_networks_with_structured_inputs_are_kept(tmp_path):
    def inputs(seed):
        generator = torch.Generator().manual_seed(seed)
        left, right = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(2))
        return {"left": left, "right": right}, [torch.randn(2, 1, 1, 1, generator=generator)]

    gm = nce_fx.trace(Structured().eval(), inputs(0))
    quantized = nce_fx.quantize(gm)
    nce_fx.save(quantized, tmp_path / "structured")
    loaded = nce_fx.load(tmp_path / "structured", Structured())
    assert torch.equal(loaded(*inputs(1))["sum"], quantized(*inputs(1))["sum"])


def test_a_traced_network_is_kept_too(tmp_path):
    gm = nce_fx.trace(net(), (batch()[:1],))
    nce_fx.save(gm, tmp_path / "traced")
    assert torch.equal(nce_fx.load(tmp_path / "traced", net())(batch()), gm(batch()))


def test_a_graph_resized_twice_is_kept_and_has_the_plan_of_both(tmp_path):
    gm = nce_fx.trace(net(), (batch()[:1],))
    one, two = [group for group in nce_fx.analyze_channels(gm).groups if group.pinned is None][:2]
    once = nce_fx.resize(gm, {one.id: one.width + one.step})
    twice = nce_fx.resize(once, {one.id: one.width - one.step, two.id: two.width + two.step})
    nce_fx.save(twice, tmp_path / "result")
    torch.manual_seed(7)
    loaded = nce_fx.load(tmp_path / "result", MODELS["resnet8"](width=4).eval())
    assert torch.equal(loaded(batch()), twice(batch()))
    plan = nce_fx.WidthPlan.from_json((tmp_path / "result" / "plan.json").read_text())
    assert plan.changed == {one.id: one.width - one.step, two.id: two.width + two.step}
    check_plan(plan, gm)


def test_float_weights_come_back(result, folder):
    restored = artifacts.load_float(folder, MODELS["resnet8"]().eval())
    assert torch.equal(restored(batch()), net()(batch()))
    nce_fx.save(result.graph_module, folder, force=True)
    with pytest.raises(ArtifactError, match=r"float\.safetensors"):
        artifacts.load_float(folder, net())


def test_the_manifest_round_trips(folder):
    manifest = artifacts.read_manifest(folder)
    assert Manifest.model_validate(json.loads(manifest.to_json())) == manifest
    assert manifest.inputs == [{"tensor": [1, 3, 16, 16], "dtype": "float32"}]


def test_signatures_of_nested_inputs_round_trip():
    from nce_fx.signature import example_of, input_signature

    inputs = ({"image": torch.zeros(1, 3), "sizes": [torch.zeros(2, dtype=torch.int64)]}, (torch.ones(1), None, 2))
    signature = json.loads(json.dumps([input_signature(item) for item in inputs]))
    rebuilt = example_of(signature)
    assert [input_signature(item) for item in rebuilt] == signature
    assert rebuilt[0]["sizes"][0].dtype is torch.int64
    assert rebuilt[1][1:] == (None, 2)
    damaged: list[list[Any]] = [[{"tensor": [1], "dtype": "Tensor"}], [{"tensor": [-1], "dtype": "float32"}], [3], [{}]]
    for wrong in damaged:
        with pytest.raises(ArtifactError):
            example_of(wrong)
