"""The evidence: the tables, the controls, the statistics, and the command on data in the published folder formats."""

import argparse
import dataclasses
import functools
import itertools
import json
import math
from typing import Any

import pytest
import torch

import nce_fx
from benchmarks.evidence import records, rows
from benchmarks.evidence.__main__ import main, variants_of
from benchmarks.evidence.ablations import ABLATIONS
from benchmarks.evidence.bench import Bench, Choice
from benchmarks.evidence.records import Run, Widths
from benchmarks.evidence.report import claims, dearer, summaries, table
from benchmarks.evidence.rows import CHOICES, FLOAT, ROWS, multiplier, random_plan, refuse_dearer, run_row
from benchmarks.evidence.statistics import summarise
from benchmarks.evidence.study import RECIPES, load_study
from benchmarks.glyphs import STROKES, render
from nce_fx.data import load_data
from nce_fx.errors import InputError
from nce_fx.search import SurfaceRecipe
from nce_fx.training import Recipe
from nce_fx.training.recipe import RETRAINING
from tests.test_data import cifar  # noqa: F401

FIELDS = [
    "network", "data", "row", "seed", "accuracy", "macs", "params", "bit_ops", "weight_bytes", "activation_bytes",
    "search_seconds", "train_seconds", "device", "command", "version", "trained",
]  # fmt: skip


def run_of(row, seed, accuracy, **changes):
    line = Run("net", "data", row, seed, accuracy, 10, 20, 40, 5, 8, 1.0, 2.0, "cpu", "again", "0+x")
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


def test_every_variant_can_be_asked_for_by_its_name():
    for ablation, variants in ABLATIONS.items():
        for variant in variants:
            asked = argparse.Namespace(ablation=ablation, only=f"{variant.name},{variants[0].name}")
            assert [each.name for each in variants_of(asked)] == list(dict.fromkeys((variants[0].name, variant.name)))


@pytest.mark.parametrize("name", ["cifar10-resnet20", "cifar10-resnet56", "imagenet-resnet18", "imagenet-resnet50"])
def test_what_is_ready_for_large_data_is_the_default(name):
    study = load_study(name)
    assert study.quantizing() == nce_fx.QuantSpec()
    ours, usual = study.retraining(0), Recipe(**RETRAINING)
    for name in RETRAINING:
        assert getattr(ours, name) == getattr(usual, name)


def test_a_data_folder_does_not_change_a_digest_and_a_choice_does():
    study = load_study("cifar10-resnet20")
    assert study.with_changes({"data": "cifar10:elsewhere"}).digest() == study.digest()
    assert study.with_changes({"start": "scratch"}).digest() != study.digest()
    assert study.with_changes({"start": "scratch"}).float_digest() == study.float_digest()


def test_controls_spend_the_budget_and_no_more(tmp_path):
    study = load_study("digits-resnet20").with_changes({"model": "resnet8", "model_args": {"width": 8}})
    bench = Bench(study, load_data("digits"), 0, tmp_path)
    assert multiplier(bench).widths == {g.id: g.width for g in bench.channels.groups if g.pinned is None}
    before = bench.cost.total.by_quantity
    for seed in range(3):
        plan = random_plan(dataclasses.replace(bench, seed=seed)).widths
        assert bench.fits(plan)
        spent = bench.cost.at(plan).total.by_quantity
        assert 0.9 < max(spent[name] / before[name] for name in study.limits) <= 1
        assert plan == random_plan(dataclasses.replace(bench, seed=seed)).widths
    half = dataclasses.replace(bench, study=study.with_changes({"budget": 0.5}))
    assert not bench.cost.at(multiplier(half).widths).total.macs > 0.5 * bench.cost.total.macs


@pytest.fixture
def bench(tmp_path):
    """A small study that trains nothing: no epoch of either stage."""
    none = {"epochs": 0}
    changes = {"model": "resnet8", "float_recipe": none, "retrain": none, "calibration": [1, 8]}
    study = load_study("digits-resnet20").with_changes(changes)
    return Bench(study, load_data("digits"), 0, tmp_path / "study" / "0")


def test_what_costs_more_than_uniform_in_anything_is_refused(bench, monkeypatch):
    before = bench.cost.total.by_quantity
    first = bench.channels.groups[0]
    refuse_dearer(bench, "uniform", Choice(bench.channels.widths))
    with pytest.raises(InputError, match=r"mine costs more than 1x uniform's, it is no evidence: .* macs, over"):
        refuse_dearer(bench, "mine", Choice({**bench.channels.widths, first.id: first.width + 1}))
    # Fewer MACs and parameters, but more bits: only the other two quantities tell.
    widths = {**bench.channels.widths, first.id: first.width - 1}
    spec = dataclasses.replace(bench.spec, overrides={"layer*": 4})
    assert all(bench.cost.at(widths).total.by_quantity[name] <= before[name] for name in bench.study.limits)
    monkeypatch.setitem(CHOICES, "dear", dataclasses.replace(CHOICES["uniform"], choose=lambda _: Choice(widths, spec)))
    with pytest.raises(InputError, match=r"dear costs more .* bit_ops, over .*; .* weight_bytes, over"):
        run_row(bench, "dear")


def test_rows_are_trained_alike_and_at_their_own_widths(bench):
    """One epoch of each stage; a plan's float network has the plan's widths, and no row has another's epochs."""
    once = {"epochs": 1, "batch_size": 400}
    bench = dataclasses.replace(bench, study=bench.study.with_changes({"float_recipe": once, "retrain": once}))
    found = {row: run_row(bench, row) for row in (FLOAT, "uniform", "multiplier", "uniform-longer", "random")}
    assert found["multiplier"].accuracy == found["uniform"].accuracy, "one factor at 1.0x is the uniform network"
    assert found["multiplier"].widths == found["uniform"].widths == found["uniform-longer"].widths
    epochs = [len(log.read_text().splitlines()) - 1 for log in bench.floats.glob("*/log.csv")]
    # Of the original, of the original for twice as long, and of the random plan.
    assert sorted(epochs) == [1, 1, 2]
    wide, _, _ = bench.float_network(found["random"].widths)
    for group in bench.channels.groups:
        if group.producers and group.pinned is None:
            assert len(wide.get_submodule(group.producers[0]).weight) == found["random"].widths[group.id]
    assert all(outcome.cost.bit_ops <= found["uniform"].cost.bit_ops for row, outcome in found.items() if row != FLOAT)


def test_new_weights_of_the_original_widths_are_the_seeds_own(bench):
    assert bench.network(bench.channels.widths) is bench.untrained
    other = dataclasses.replace(bench, seed=1)
    assert not torch.equal(bench.untrained.conv1.weight, other.untrained.conv1.weight)
    widths = {**bench.channels.widths, "conv1": 8}
    again = [bench.network(widths).conv1.weight for _ in range(2)]
    assert torch.equal(*again)
    # Drawn, not copied: a wider layer starts with channels that are not each other's.
    assert len({tuple(channel.flatten().tolist()) for channel in again[0]}) == 8


@pytest.mark.long
def test_mixed_precision_keeps_every_budget_and_is_the_least_noise_within_them(bench):
    from benchmarks.evidence.mixed import BITS, at, inner_layers, mixed

    layers = inner_layers(bench)[:3]
    spec = mixed(bench).spec
    assert spec is not None
    assert set(spec.overrides) == set(inner_layers(bench))
    assert set(spec.overrides.values()) <= set(BITS)
    assert not bench.excess(nce_fx.quantize(bench.untrained, spec))
    noise = {name: each.weight + each.activation for name, each in bench.analyses.sensitivity.by_node.items()}

    def total(bits):
        return sum(noise[layer] * (3 / (2 ** bits[layer] - 1)) ** 2 for layer in bits)

    # No exchange among three layers is within the budget and quieter.
    for picks in itertools.product(BITS, repeat=len(layers)):
        other = {**spec.overrides, **dict(zip(layers, picks, strict=True))}
        if total(other) < total(spec.overrides) * (1 - 1e-9):
            assert bench.excess(nce_fx.quantize(bench.untrained, at(bench, other)))


def test_claims_are_of_todays_runs_that_cost_no_more():
    runs = [run_of("float", s, 0.9 + s / 1000) for s in range(3)]
    runs += [run_of("uniform", s, 0.8) for s in range(3)] + [
        run_of("uniform-longer", s, 0.82 - s / 1000) for s in range(3)
    ]
    runs += [run_of("nce-plan", s, 0.86 + s / 1000, bit_ops=40 + 4 * (s == 2)) for s in range(3)]
    assert dearer(runs) == {"nce-plan"}
    rows = summaries(runs)
    line = claims({("net", "data"): rows}, {("net", "data"): 3}).splitlines()[-1]
    assert "| -10.10 | nce-plan | +6.10 |" in line
    assert "| 0.60 | yes | yes | +1.90 |" in line
    assert "open: 3 of 5 seeds" in claims({("net", "data"): rows}, {("net", "data"): 5})
    shown = table(rows, dearer(runs))
    assert "| nce-plan * | 3 |" in shown
    assert "| 1.03x |" in shown


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
def test_every_row_on_cifar10s_folder_and_nothing_twice(tmp_path, cifar, capsys, monkeypatch):  # noqa: F811
    few: dict[str, Any] = {"networks": 2, "rounds": 1, "repeats": 2, "candidates": 1, "finals": 2}
    monkeypatch.setattr(rows, "SurfaceRecipe", functools.partial(SurfaceRecipe, **few))
    batch = {"batch_size": 4}
    study = small(
        "cifar10-resnet20", tmp_path, model="resnet8", model_args={"width": 4}, seeds=1,
        float_recipe=batch, retrain=batch, search=batch, calibration=[1, 4],
    )  # fmt: skip
    arguments = (study, "--data", f"cifar10:{cifar}", "--epochs", "1")
    command(tmp_path, *arguments)
    runs = records.read(tmp_path / "evidence.csv", Run)
    assert [run.row for run in runs] == list(ROWS)
    uniform = runs[1]
    for run in runs[1:]:
        assert run.macs <= uniform.macs
        assert run.params <= uniform.params
        assert run.bit_ops <= uniform.bit_ops
        assert run.weight_bytes <= uniform.weight_bytes
        assert run.command.endswith("--epochs 1 --data cifar10:DIR")
    by_row = {run.row: run for run in runs}
    assert by_row["multiplier"].accuracy == uniform.accuracy, "one factor for all at 1.0x is the uniform network"
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
        command(tmp_path, *arguments[:-1], "2")
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
        "imagenet-resnet18",
        tmp_path,
        model_args={"width": 8},
        size=32,
        seeds=1,
        float_recipe=batch,
        retrain=batch,
        calibration=[1, 2],
    )
    command(tmp_path, study, "--data", f"imagefolder:{pictures}", "--epochs", "1", "--only", "uniform,nce-plan")
    uniform, plan = records.read(tmp_path / "evidence.csv", Run)
    assert (uniform.row, plan.row) == ("uniform", "nce-plan")
    assert plan.macs <= uniform.macs
    assert plan.params <= uniform.params
    assert plan.bit_ops <= uniform.bit_ops
    assert "ResNet-18 on imagefolder" in (tmp_path / "results.md").read_text()
