"""Two processes under torchrun train, search and analyze as one process with twice the batch does."""

import csv
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import nce_fx
from nce_fx.errors import TrainingError
from nce_fx.processes import start_engine
from nce_fx.training import train
from nce_fx.training.checkpoint import latest_checkpoint
from tests import search_runs, two_processes
from tests.training_runs import Blobs

ROOT = Path(__file__).parent.parent


def test_more_processes_than_gpus_are_refused_in_words(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TrainingError, match="4 processes for 2 GPUs: start torchrun with --nproc-per-node 2"):
        start_engine()


GLOO_AT_EXIT = "terminate called without an active exception"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    directory = tmp_path_factory.mktemp("one")
    return {**two_processes.runs(directory), "sharded": two_processes.sharded(directory)}, directory


def launched(directory: Path, count: int, *arguments: str) -> list[dict[str, Any]]:
    """Return what each of so many processes found."""
    if torch.cuda.is_available() and torch.cuda.device_count() < count:
        pytest.skip("several processes on a machine with GPUs need one each")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(
        [*torchrun, "-m", "tests.two_processes", directory, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=900, env=environment,
    )  # fmt: skip
    results = [directory / f"process-{rank}.json" for rank in range(count)]
    said = f"{[path.name for path in results if path.exists()]} were written\n{done.stdout}{done.stderr}"
    if done.returncode and all(path.exists() for path in results) and GLOO_AT_EXIT in done.stderr:
        # Everything ran, and gloo's own threads ended the process as it left: pytorch/pytorch issue 190489.
        warnings.warn(said, stacklevel=1)
    else:
        assert done.returncode == 0, said
    return [json.loads(path.read_text()) for path in results]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    directory = tmp_path_factory.mktemp("two")
    return launched(directory, 2), directory


def losses(directory: Path) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((directory / "steps.csv").open())]


RUNS = ("float", "sawb", "lsq", "accumulated", "again", "shards", "module-shards", "shards-again")


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.long
def test_losses_are_those_of_one_process(one, two, run):
    expected, found = losses(one[1] / run), losses(two[1] / run)
    assert len(expected) == 12
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found != expected, "two processes add in another order: equal bits would mean that only one ran"


@pytest.mark.long
def test_fp16_in_shards_scales_the_loss_as_one_process_does(one, two):
    torch.testing.assert_close(losses(two[1] / "shards-fp16"), losses(one[1] / "shards-fp16"), rtol=0, atol=1e-3)
    kept = [latest_checkpoint(directory / "shards-fp16") for directory in (one[1], two[1])]
    scales = [each.state["position"]["scaler"] for each in kept if each is not None]
    assert scales[0] == scales[1] == {"scale": 65536.0, "_growth_tracker": 12}


@pytest.mark.long
def test_the_same_weights_are_frozen_in_shards(one, two):
    first, second = (latest_checkpoint(directory / "shards") for directory in (one[1], two[1]))
    assert first is not None
    assert second is not None
    frozen = [name for name in first.tensors if "/frozen/" in name]
    assert sum(int(first.tensors[name].sum()) for name in frozen) > 0
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in frozen)


@pytest.mark.long
def test_what_is_computed_again_gives_the_same_bits_in_shards(two):
    assert losses(two[1] / "shards-again") == losses(two[1] / "shards")


@pytest.mark.slow
def test_compiled_processes_have_the_losses_of_one(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone, (first, second) = launched(tmp_path / "one", 1, "compiled"), launched(tmp_path / "two", 2, "compiled")
    assert first == second
    assert min(first["graphs"], alone[0]["graphs"]) > 3
    for run in ("compiled", "compiled-module", "compiled-shards"):
        torch.testing.assert_close(losses(tmp_path / "two" / run), losses(tmp_path / "one" / run), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_losses_of_four_processes_are_those_of_one(one, tmp_path):
    assert [found["processes"] for found in launched(tmp_path, 4, "trained")] == [4] * 4
    for run in RUNS:
        torch.testing.assert_close(losses(tmp_path / run), losses(one[1] / run), rtol=0, atol=1e-5)


def test_both_processes_return_the_same(one, two):
    first, second = two[0]
    assert first["processes"] == 2
    assert {key: first[key] for key in one[0]} == {key: second[key] for key in one[0]}
    assert first["accuracy"] == one[0]["accuracy"]
    assert first["evaluated"] == one[0]["evaluated"]
    targets = Blobs(train=105).parts["test"].tensors[1]
    assert one[0]["in order"] == float((targets * torch.arange(1, 102)).sum())
    assert one[0]["synchronized"] == 101


def test_a_resumed_run_ends_with_the_same_bits(two):
    assert two[0][0]["resumed"] == two[0][0]["weights"]


def test_a_run_in_shards_goes_on_with_the_same_bits_and_in_one_process(two):
    processes, directory = two
    assert processes[0]["shards resumed"] == processes[0]["sharded"]["graph"]
    data = Blobs(train=105)
    data.to_double()
    teacher, student = two_processes.residual(data)
    train(student, data, two_processes.SHARDED, teacher=teacher, directory=directory / "shards-waiting")
    expected, found = losses(directory / "shards"), losses(directory / "shards-waiting")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(expected) == 12


def test_sharded_sensitivities_are_those_of_one_process(two):
    expected = two_processes.sensitivities()
    first, second = (process["sensitivities"] for process in two[0])
    for metric, scores in expected.items():
        if metric == "steps":
            continue
        assert {name: first[metric][name] for name in scores} == second[metric]
        for name, pair in scores.items():
            assert pair == pytest.approx(first[metric][name], rel=1e-6), (metric, name)
        alone = metric == "sqnr"
        assert first["steps"][metric] + second["steps"][metric] == expected["steps"][metric] * (2 if alone else 1)


def test_what_cannot_be_shared_is_said(two):
    for process in two[0]:
        weights, batch = process["refusals"]
        assert (
            weights
            == "process 1 and process 0 differ (starting weights): give every process the same, by the same seed"
        )
        assert batch.startswith("a batch of 1 is too small for 2 processes")


@pytest.mark.long
def test_two_processes_search_as_one_does(two, tmp_path):
    search_runs.run(tmp_path, nce_fx.QuantSpec())
    mine, one = (list(csv.DictReader((d / "widths.csv").open())) for d in (two[1] / "search", tmp_path))
    assert [(row["epoch"], row["group"]) for row in mine] == [(row["epoch"], row["group"]) for row in one]
    for a, b in zip(mine, one, strict=True):
        assert float(a["mean"]) == pytest.approx(float(b["mean"]), abs=0.05)
    expanded, wanted = (
        [row for row in csv.DictReader((d / "expansions.csv").open()) if row["what"] == "expanded"]
        for d in (two[1] / "search", tmp_path)
    )
    assert expanded == wanted


def test_two_processes_analyze_as_one_does(two):
    one, (first, second) = two_processes.analyzed(), (process["analyzed"] for process in two[0])
    assert second == {}
    for kind in ("by_node", "by_group"):
        expected, found = one["sensitivity"].pop(kind), first["sensitivity"].pop(kind)
        assert found.keys() == expected.keys()
        for name, score in expected.items():
            assert found[name] == pytest.approx(score, rel=1e-6), name
    assert first == one
