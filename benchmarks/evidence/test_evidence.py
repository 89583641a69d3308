"""The evidence: the tables, the controls, the statistics, and the command on data in the published folder formats."""

import dataclasses
import json
import math

import pytest
import torch

from benchmarks.evidence import records
from benchmarks.evidence.__main__ import main
from benchmarks.evidence.ablations import ABLATIONS
from benchmarks.evidence.records import Run, Widths
from benchmarks.evidence.rows import ROWS, Bench, multiplier, random_plan
from benchmarks.evidence.statistics import summarise
from benchmarks.evidence.study import RECIPES, load_study
from benchmarks.glyphs import STROKES, render
from nce_fx.data import load_data
from nce_fx.errors import InputError
from tests.test_data import cifar  # noqa: F401

FIELDS = [
    "network", "data", "row", "seed", "accuracy", "macs", "params", "search_seconds", "train_seconds", "device",
    "command", "version",
]  # fmt: skip


def run_of(row, seed, accuracy, **changes):
    line = Run("net", "data", row, seed, accuracy, 10, 20, 1.0, 2.0, "cpu", "again", "0+x")
    return dataclasses.replace(line, **changes)


def test_a_table_has_each_run_once_and_reads_back(tmp_path):
    path = tmp_path / "evidence.csv"
    lines = [run_of("float", 0, 0.5), run_of("uniform", 0, 0.4), run_of("uniform", 1, 0.3)]
    for line in lines:
        records.add(path, line)
    assert path.read_text().splitlines()[0].split(",") == FIELDS
    assert records.read(path, Run) == lines
    records.add(path, run_of("float", 0, 0.6))
    assert [run.accuracy for run in records.read(path, Run)] == [0.4, 0.3, 0.6]
    with pytest.raises(ValueError, match="has the columns"):
        records.read(path, Widths)


def test_differences_are_paired_by_seed():
    ours = [run_of("nce-plan", seed, value) for seed, value in enumerate((0.9, 0.8, 0.7, 0.6))]
    theirs = [run_of("uniform", seed, value) for seed, value in ((2, 0.66), (0, 0.88), (1, 0.77))]
    found = summarise(ours, theirs)
    assert (found.seeds, found.pairs) == (4, 3)
    assert math.isclose(found.mean, 75.0)
    assert math.isclose(found.deviation, math.sqrt(500 / 3))
    # Differences 2, 3, 4: t = 3 / (1 / sqrt(3)), two degrees of freedom, where p = 1 - t / sqrt(t^2 + 2).
    assert math.isclose(found.difference, 3.0)
    assert math.isclose(found.p, 1 - math.sqrt(27 / 29), rel_tol=1e-6)
    assert math.isnan(summarise(theirs, theirs).p)
    assert math.isnan(summarise(ours, []).difference)


def test_recipes_and_ablations_can_be_run():
    for path in RECIPES.glob("*.json"):
        study = load_study(path.stem)
        assert study.retraining(3).seed == 3
        for variants in ABLATIONS.values():
            for variant in variants:
                assert variant.row in ROWS
                study.with_changes(variant.changes)
    with pytest.raises(InputError, match="there are cifar10-resnet20"):
        load_study("nothing")
    with pytest.raises(InputError, match="no such field: epoch"):
        study.with_changes({"retrain": {"epoch": 1}})


def test_a_data_folder_does_not_change_a_digest_and_a_choice_does():
    study = load_study("cifar10-resnet20")
    assert study.with_changes({"data": "cifar10:elsewhere"}).digest() == study.digest()
    assert study.with_changes({"start": "scratch"}).digest() != study.digest()
    assert study.with_changes({"start": "scratch"}).float_digest() == study.float_digest()


def test_controls_spend_the_budget_and_no_more(tmp_path):
    study = load_study("digits-resnet20").with_changes({"model_args": {"width": 8}})
    bench = Bench(study, load_data("digits"), 0, tmp_path)
    assert multiplier(bench) == {g.id: g.width for g in bench.channels.groups if g.pinned is None}
    for seed in range(3):
        plan = random_plan(dataclasses.replace(bench, seed=seed))
        assert bench.fits(plan)
        spent = bench.cost.at(plan).total
        assert max(spent.macs / bench.cost.total.macs, spent.params / bench.cost.total.params) > 0.9
        assert plan == random_plan(dataclasses.replace(bench, seed=seed))
    half = dataclasses.replace(bench, study=study.with_changes({"budget": 0.5}))
    assert not bench.cost.at(multiplier(half)).total.macs > 0.5 * bench.cost.total.macs


def test_glyphs_are_the_same_again_and_each_class_as_often():
    pixels, labels = render(120, seed=3)
    again = render(120, seed=3)
    assert torch.equal(pixels, again[0])
    assert torch.equal(labels, again[1])
    assert pixels.shape == (120, 3, 32, 32)
    assert labels.bincount().tolist() == [10] * len(STROKES)
    assert not torch.equal(pixels, render(120, seed=4)[0])
    # Pictures, not blanks: every image has contrast.
    assert pixels.float().flatten(1).std(1).min() > 5


def small(name, folder, **changes):
    """A recipe file with narrow settings, everything else as published."""
    fields = json.loads((RECIPES / f"{name}.json").read_text())
    for field, value in changes.items():
        fields[field] = {**fields.get(field, {}), **value} if isinstance(value, dict) else value
    path = folder / f"{name}.json"
    path.write_text(json.dumps(fields))
    return str(path)


def command(folder, *arguments):
    main([*arguments, "--results", str(folder), "--report", str(folder / "results.md"), "--work", str(folder / "work")])


@pytest.mark.long
def test_every_row_on_cifar10s_folder_and_nothing_twice(tmp_path, cifar, capsys):  # noqa: F811
    batch = {"batch_size": 4}
    study = small(
        "cifar10-resnet20", tmp_path, model="resnet8", model_args={"width": 4}, seeds=1,
        float_recipe=batch, retrain=batch, search=batch, calibration=[1, 4],
    )  # fmt: skip
    arguments = (study, "--data", f"cifar10:{cifar}", "--epochs", "2")
    command(tmp_path, *arguments)
    runs = records.read(tmp_path / "evidence.csv", Run)
    assert [run.row for run in runs] == list(ROWS)
    uniform = runs[1]
    for run in runs[1:]:
        assert run.macs <= uniform.macs
        assert run.params <= uniform.params
        assert run.command.endswith("--epochs 2 --data cifar10:DIR")
    assert runs[3].accuracy == uniform.accuracy, "one factor for all at 1.0x is the uniform network"
    assert len(records.read(tmp_path / "widths.csv", Widths)) == len(ROWS)
    report = (tmp_path / "results.md").read_text()
    assert all(f"| {row} | 1 |" in report for row in ROWS)
    assert (tmp_path / "pictures" / "resnet-20-cifar10-accuracy.svg").exists()
    before = (tmp_path / "evidence.csv").read_bytes()
    capsys.readouterr()
    command(tmp_path, *arguments)
    assert capsys.readouterr().out == ""
    assert (tmp_path / "evidence.csv").read_bytes() == before
    with pytest.raises(SystemExit, match="by another recipe"):
        command(tmp_path, *arguments[:-1], "3")
    command(tmp_path, *arguments, "--ablation", "ends", "--only", "uniform")
    assert [run.row for run in records.read(tmp_path / "ablations.csv", Run)] == [
        f"uniform [first_last_bits={bits}]" for bits in (2, 8, "float")
    ]


@pytest.fixture
def pictures(tmp_path):
    """ImageNet's format: train/CLASS/*.jpg and val/CLASS/*.jpg."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(3):
                pixels = torch.randint(0, 256, (40, 48, 3), generator=generator, dtype=torch.uint8).numpy()
                image.fromarray(pixels).save(tmp_path / split / name / f"{index}.jpg")
    return tmp_path


@pytest.mark.long
def test_imagenets_recipe_on_its_folders(tmp_path, pictures):
    batch = {"batch_size": 3}
    study = small(
        "imagenet-resnet18", tmp_path, size=32, seeds=1, float_recipe=batch, retrain=batch, calibration=[1, 2]
    )
    command(tmp_path, study, "--data", f"imagefolder:{pictures}", "--epochs", "1", "--only", "uniform,nce-plan")
    uniform, plan = records.read(tmp_path / "evidence.csv", Run)
    assert (uniform.row, plan.row) == ("uniform", "nce-plan")
    assert plan.macs <= uniform.macs
    assert plan.params <= uniform.params
    assert "ResNet-18 on imagefolder" in (tmp_path / "results.md").read_text()
