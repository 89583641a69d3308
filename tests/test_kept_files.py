"""Files of every version so far load, and compute what they did; those of a newer one are refused in words."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import nce_fx
from nce_fx import artifacts
from nce_fx.errors import ArtifactError, PlanError
from nce_fx.export import load_pt2
from nce_fx.passes.analysis.channels.plan_check import check_plan
from nce_fx.training.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from tests.kept_files import Net, Shuffled, images
from tests.test_export import DEPLOY

VERSIONS = sorted((Path(__file__).parent / "data").glob("version_*"))


@pytest.fixture(params=VERSIONS, ids=lambda folder: folder.name)
def kept(request):
    return request.param


@pytest.fixture
def expected(kept):
    return safetensors.torch.load_file(kept / "expected.safetensors")


def test_result_folders_load(kept, expected):
    gm = nce_fx.load(kept / "result", Net())
    # Another processor may add in another order.
    torch.testing.assert_close(gm(images()), expected.pop("outputs"), rtol=1e-5, atol=1e-6)
    weights = nce_fx.integer_weights(gm)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name].dequantize(), value) for name, value in expected.items())
    assert artifacts.load_float(kept / "result", Net()).state_dict().keys() == Net().state_dict().keys()


def test_result_folders_load_into_other_weights_though_weights_chose_an_index(kept, tmp_path):
    outputs = safetensors.torch.load_file(kept / "shuffled.safetensors")["outputs"]
    for seed in range(3):
        torch.manual_seed(seed)
        gm = nce_fx.load(kept / "shuffled", Shuffled())
        assert any(name.startswith("channel_order") for name, _ in gm.named_buffers())
        torch.testing.assert_close(gm(images()), outputs, rtol=1e-5, atol=1e-6)


def test_a_folder_of_version_1_without_its_float_weights_says_that_it_wants_them(tmp_path):
    folder = Path(shutil.copytree(VERSIONS[0] / "shuffled", tmp_path / "shuffled"))
    (folder / artifacts.FLOAT).unlink()
    manifest = artifacts.read_manifest(folder)
    files = {name: digest for name, digest in manifest.files.items() if name != artifacts.FLOAT}
    (folder / artifacts.REPORT).write_text(manifest.model_copy(update={"files": files}).to_json())
    with pytest.warns(UserWarning, match="does not say which channels"):
        nce_fx.load(folder, Shuffled())


def test_plans_are_replayed(kept):
    plan = nce_fx.WidthPlan.from_json((kept / "result" / "plan.json").read_text())
    gm = nce_fx.trace(Net().eval(), (images()[:1],))
    check_plan(plan, gm)
    assert plan.changed
    assert sorted(nce_fx.analyze_channels(nce_fx.resize(gm, plan)).widths.values()) == sorted(plan.widths.values())


def test_archives_load(kept, expected):
    torch.testing.assert_close(load_pt2(kept / "model.pt2")(images()), expected["outputs"], rtol=1e-5, atol=1e-6)


def test_packed_weights_are_read(kept, expected):
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", DEPLOY, re.DOTALL)[-1], names)
    reader = names["read_packed"]
    assert callable(reader)
    weights = reader(kept / "packed.safetensors")
    assert weights.keys() == expected.keys() - {"outputs"}
    assert all(np.array_equal(value, expected[name].numpy()) for name, value in weights.items())


def test_checkpoints_are_read(kept):
    found = read_checkpoint(kept / "checkpoint-000000007.safetensors")
    assert (found.steps, dict(found.state)) == (7, {"epoch": 1})
    assert "model/fc.weight" in found.tensors


def test_newer_plans_and_checkpoints_are_refused_in_words(kept, tmp_path, monkeypatch):
    plan = json.loads((kept / "result" / "plan.json").read_text())
    with pytest.raises(PlanError, match="has version 99, this program reads version"):
        nce_fx.WidthPlan.from_json(json.dumps(plan | {"version": 99}))
    monkeypatch.setattr("nce_fx.training.checkpoint.FORMAT", 99)
    path = save_checkpoint(tmp_path, Checkpoint(1, {}, {}))
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="no training checkpoint of this version"):
        read_checkpoint(path)
