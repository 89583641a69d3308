"""torch.export archives compute what the graph computes, bit for bit, and hold nothing that would be run."""

import hashlib
import io
import json
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import nce_fx
from nce_fx.cli import app
from nce_fx.cli.parsing import build_model
from nce_fx.errors import ArtifactError, ExportError
from nce_fx.export import export_pt2, load_pt2
from nce_fx.export.pt2 import read_program
from nce_fx.progress import watched
from nce_fx.report.records import ModelReference
from tests.test_artifacts import Attack
from tests.test_export import PAIRS, random, resnet8


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def small(weight="sawb", activation="pact"):
    torch.manual_seed(0)
    spec = nce_fx.QuantSpec(weight=weight, activation=activation, first_last_bits=2)
    return nce_fx.quantize(nce_fx.trace(Small().eval(), (random(1, 3, 8, 8),)), spec, [random(8, 3, 8, 8)])


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return export_pt2(small(), tmp_path_factory.mktemp("pt2") / "model.pt2").path


@pytest.mark.parametrize(("weight", "activation"), PAIRS)
def test_archives_are_equal_bit_for_bit(tmp_path, weight, activation):
    gm = small(weight, activation).train()
    written = export_pt2(gm, tmp_path / "model.pt2")
    assert written.batch is None
    assert written.size == written.path.stat().st_size
    assert gm.training
    loaded = load_pt2(written.path)
    for size in (1, 5):
        x = random(size, 3, 8, 8, seed=size)
        assert torch.equal(loaded(x), gm.eval()(x))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.long
def test_archives_run_without_nce_fx_and_the_models_code(archive, tmp_path):
    x = random(3, 3, 8, 8)
    torch.save({"x": x, "y": small()(x)}, tmp_path / "case.pt")
    code = (
        "import sys, torch; sys.modules['nce_fx'] = None; case = torch.load(sys.argv[2]);"
        "assert torch.equal(torch.export.load(sys.argv[1]).module()(case['x']), case['y'])"
    )
    subprocess.run([sys.executable, "-c", code, str(archive), str(tmp_path / "case.pt")], check=True, cwd=tmp_path)


def test_archives_say_where_they_come_from_and_hold_no_pickle(archive):
    with zipfile.ZipFile(archive) as file:
        records = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    about = json.loads(records["extra/nce_fx"])
    assert about["model_sha256"] == small().meta["plan"].model
    assert json.loads(about["weight_bits"]) == {"conv.weight": 2, "fc.weight": 2}
    assert not records["data/sample_inputs/model.pt"]
    for name, content in records.items():
        # A pickle of protocol 2 and later, and the zip files that torch.save writes.
        assert not content.startswith((b"\x80\x02", b"\x80\x04", b"PK")), name


def changed(archive, path, change):
    """Write an archive with changed records and sums that vouch for them."""
    with zipfile.ZipFile(archive) as file:
        records = {entry.filename: file.read(entry) for entry in file.infolist()}
    folder = next(iter(records)).partition("/")[0]
    records = {f"{folder}/{n}": c for n, c in change({k.partition("/")[2]: v for k, v in records.items()}).items()}
    about = json.loads(records[f"{folder}/extra/nce_fx"])
    about["sha256"] = {
        name.partition("/")[2]: hashlib.sha256(content).hexdigest()
        for name, content in records.items()
        if not name.endswith("extra/nce_fx")
    }
    records[f"{folder}/extra/nce_fx"] = json.dumps(about).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in records.items():
            file.writestr(name, content)
    return path


CONFIG, GRAPH = "data/weights/model_weights_config.json", "models/model.json"
CALL = b"\"__import__('os').mkdir('attacked')\""


def pickled_weights(records):
    return records | {
        CONFIG: records[CONFIG].replace(b'"use_pickle": false', b'"use_pickle": true'),
        "data/weights/weight_0": pickle.dumps(Attack()),
    }


def torch_saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        pickled_weights,
        lambda records: records | {"data/sample_inputs/model.pt": torch_saved(Attack())},
        lambda records: records | {"data/weights/model.pt": torch_saved(Attack())},
        lambda records: records | {"data/constants/opaque_obj_0": pickle.dumps(Attack())},
        lambda records: (
            records | {GRAPH: records[GRAPH].replace(b"\"Symbol('s77', positive=True, integer=True)\"", CALL)}
        ),
        lambda records: (
            records | {GRAPH: records[GRAPH].replace(b'"torch.ops.aten.conv2d.default"', b'"torch.hub.load"')}
        ),
    ],
)
def test_what_would_be_run_is_refused(archive, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(archive) as file:
        before = {entry.filename.partition("/")[2]: file.read(entry) for entry in file.infolist()}
    assert change(before) != before
    with pytest.raises(ArtifactError, match="is not loaded"):
        load_pt2(changed(archive, tmp_path / "bad.pt2", change))
    if change(before).get("data/sample_inputs/model.pt"):
        # Of a program of somebody's they are left out unread.
        assert torch.equal(read_program(tmp_path / "bad.pt2")(x := random(2, 3, 8, 8)), small()(x))
    else:
        with pytest.raises(ArtifactError, match="is not loaded"):
            read_program(tmp_path / "bad.pt2")
    assert not (tmp_path / "attacked").exists()
    assert torch.equal(
        load_pt2(changed(archive, tmp_path / "good.pt2", lambda records: records))(random(2, 3, 8, 8)),
        small()(random(2, 3, 8, 8)),
    )


def test_programs_that_torch_export_saved_are_models(tmp_path):
    model, x = Small().eval(), random(2, 3, 8, 8)
    shapes = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=shapes), tmp_path / "model.pt2")
    given = build_model(str(tmp_path / "model.pt2"), {}, seed=0)
    assert torch.equal(given(x), model(x))
    wide = nce_fx.quantize(nce_fx.resize(nce_fx.trace(given, (x,)), {"conv": 9}), nce_fx.QuantSpec(), [x])
    assert wide(random(5, 3, 8, 8)).shape == (5, 4)
    nce_fx.save(wide, tmp_path / "result")
    again = build_model(str(tmp_path / "model.pt2"), {}, seed=1)
    assert torch.equal(nce_fx.load(tmp_path / "result", again)(x), wide(x))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda records: records | {GRAPH: records[GRAPH] + b" "}, GRAPH),
        (lambda records: {name: content for name, content in records.items() if name != CONFIG}, CONFIG),
        (lambda records: records | {"data/more": b"1"}, "data/more"),
    ],
)
def test_a_record_that_is_changed_missing_or_new_is_named(archive, tmp_path, change, name):
    with zipfile.ZipFile(archive) as file:
        folder = file.namelist()[0].partition("/")[0]
        records = change({entry.filename.partition("/")[2]: file.read(entry) for entry in file.infolist()})
    with zipfile.ZipFile(tmp_path / "bad.pt2", "w") as file:
        for record, content in records.items():
            file.writestr(f"{folder}/{record}", content)
    with pytest.raises(ArtifactError, match=f"is damaged: {name} is not what was written"):
        load_pt2(tmp_path / "bad.pt2")


def test_a_newer_version_is_refused_in_words(archive, tmp_path):
    def newer(records):
        return records | {"extra/nce_fx": json.dumps(json.loads(records["extra/nce_fx"]) | {"version": 2}).encode()}

    with pytest.raises(ArtifactError, match="install a newer nce-fx"):
        load_pt2(changed(archive, tmp_path / "newer.pt2", newer))


def test_archives_of_others_and_other_files_are_refused(tmp_path):
    program = torch.export.export(Small().eval(), (random(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "other.pt2")
    (tmp_path / "text.pt2").write_text("no archive")
    for name, says in {
        "other": "not an archive that nce-fx wrote",
        "text": "damaged",
        "none": "cannot be read",
    }.items():
        with pytest.raises(ArtifactError, match=says):
            load_pt2(tmp_path / f"{name}.pt2")


def test_an_archive_that_does_not_verify_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("nce_fx.export.pt2.load_pt2", lambda path: small("lsq", "lsq"))
    (tmp_path / "model.pt2").write_text("as it was")
    with pytest.raises(ExportError, match="computes something else"):
        export_pt2(small(), tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_text() == "as it was"


@pytest.mark.long
def test_the_command_writes_an_archive(tmp_path):
    gm = resnet8()
    nce_fx.save(gm, tmp_path / "result", model=ModelReference(reference="resnet8", args={"width": 4}))
    target = tmp_path / "model.pt2"
    result = CliRunner().invoke(app, ["export", str(tmp_path / "result"), "--pt2", str(target), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["pt2"] == {"path": str(target), "size": target.stat().st_size, "batch": None}
    assert torch.equal(load_pt2(target)(random(3, 3, 16, 16)), gm.eval()(random(3, 3, 16, 16)))


class Asks(nn.Module):
    """A module that no tracer enters, since it asks for a value."""

    def forward(self, x):
        return 2 * x if x.sum() > 0 else x


def test_a_graph_that_cannot_be_exported_is_refused_in_one_line(tmp_path):
    gm = nce_fx.trace(nn.Sequential(nn.Linear(6, 8), Asks(), nn.Linear(8, 4)).eval(), (random(2, 6),))
    with pytest.raises(ExportError, match=r"^the graph cannot be exported: [^\n]*data-dependent[^\n]*$"):
        export_pt2(gm, tmp_path / "graph.pt2")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "batch", "says"),
    [("a.pt2", 0, "batch is 0: give a number of"), ("no/a.pt2", None, "its folder is not there")],
)
def test_what_cannot_be_written_is_refused_before_anything_is_computed(tmp_path, path, batch, says):
    seen: list[str] = []
    with watched(seen.append, None), pytest.raises(ExportError, match=says):
        export_pt2(small(), tmp_path / path, batch=batch)
    assert not seen


def test_an_archive_says_what_it_takes_its_time_for(tmp_path):
    gm, seen = small(), list[str]()
    with watched(seen.append, None):
        export_pt2(gm, tmp_path / "model.pt2")
    assert seen == ["trace with torch.export", "compare with PyTorch"]
