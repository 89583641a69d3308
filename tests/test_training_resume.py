"""Retraining that is stopped: by an error, Ctrl-C, SIGKILL, a full disk; and what can be wrong with a checkpoint."""

import errno
import json
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import nce_fx
from nce_fx.errors import ArtifactError, TrainingError
from nce_fx.training import Recipe, StepReport, TrainResult, train
from nce_fx.training.checkpoint import Checkpoint, latest_checkpoint, read_checkpoint, save_checkpoint
from tests.training_runs import Blobs, net, same_state

RECIPE = Recipe(epochs=3, batch_size=16)
STEPS = 30


def run(directory: Path, progress: Callable[[StepReport], None] | None = None) -> TrainResult[nn.Sequential]:
    return train(net(), Blobs(), RECIPE, teacher=net(1), directory=directory, progress=progress, checkpoint_seconds=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult[nn.Sequential], Path]:
    """The run that was never stopped."""
    directory = tmp_path_factory.mktemp("whole")
    return run(directory), directory


def assert_same_run(
    result: TrainResult[nn.Sequential], directory: Path, whole: tuple[TrainResult[nn.Sequential], Path]
) -> None:
    assert same_state(result.model.state_dict(), whole[0].model.state_dict())
    assert result.history == whole[0].history
    assert (directory / "steps.csv").read_bytes() == (whole[1] / "steps.csv").read_bytes()
    ends = [latest_checkpoint(folder) for folder in (directory, whole[1])]
    assert ends[0] is not None
    assert ends[1] is not None
    assert same_state(ends[0].tensors, ends[1].tensors)


def stop_at(step: int, stop: Callable[[], None]) -> Callable[[StepReport], None]:
    return lambda report: stop() if report.step == step else None


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def crash() -> None:
    raise RuntimeError("power cut")


def checkpoints(directory: Path) -> list[Path]:
    return sorted(directory.glob("checkpoint-*.safetensors"))


class TestStopped:
    @pytest.mark.parametrize("step", [1, 7, 10, 11, 29, STEPS])
    def test_by_an_error_between_any_two_steps(self, tmp_path, whole, step):
        with pytest.raises(RuntimeError, match="power cut"):
            run(tmp_path, stop_at(step, crash))
        assert_same_run(run(tmp_path), tmp_path, whole)

    def test_by_ctrl_c_ends_the_step_and_saves(self, tmp_path, whole):
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(TrainingError, match=f"stopped after step 17: saved in {tmp_path}; run the same again"):
            train(
                net(),
                Blobs(),
                RECIPE,
                teacher=net(1),
                directory=tmp_path,
                progress=stop_at(16, interrupt),
            )
        assert signal.getsignal(signal.SIGINT) is before
        assert checkpoints(tmp_path)[-1].name == "checkpoint-000000017.safetensors"
        assert_same_run(run(tmp_path), tmp_path, whole)

    def test_by_ctrl_c_while_other_processes_load(self, tmp_path, whole):
        """A terminal sends Ctrl-C to them as well."""

        def interrupt_all() -> None:
            for loader in multiprocessing.active_children():
                assert loader.pid is not None
                os.kill(loader.pid, signal.SIGINT)
            interrupt()

        data = Blobs(workers=1)
        with pytest.raises(TrainingError, match="stopped after step 5"):
            train(net(), data, RECIPE, teacher=net(1), directory=tmp_path, progress=stop_at(4, interrupt_all))
        assert not multiprocessing.active_children()
        assert_same_run(train(net(), data, RECIPE, teacher=net(1), directory=tmp_path), tmp_path, whole)

    def test_a_second_ctrl_c_stops_at_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr("nce_fx.training.interruption.PATIENCE", -1.0)

        def twice() -> None:
            interrupt()
            interrupt()

        with pytest.raises(KeyboardInterrupt):
            train(net(), Blobs(), RECIPE, directory=tmp_path, progress=stop_at(3, twice))

    def test_ctrl_c_without_a_directory_is_the_users_own(self):
        with pytest.raises(KeyboardInterrupt):
            train(net(), Blobs(), RECIPE, progress=stop_at(3, interrupt))

    @pytest.mark.long
    def test_by_sigkill_at_random_moments(self):
        script = Path(__file__).parent.parent / "benchmarks" / "steps" / "interrupted_training.py"
        done = subprocess.run(
            [sys.executable, script, "--kills", "3", "--epochs", "2"], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "logs equal" in done.stdout

    def test_a_second_run_in_the_folder_of_one_that_is_under_way_is_refused(self, tmp_path, whole, monkeypatch):
        monkeypatch.setattr("nce_fx.training.folder.PATIENCE", 0.0)

        def second() -> None:
            with pytest.raises(TrainingError, match=f"another run is under way in {tmp_path}"):
                run(tmp_path)

        assert_same_run(run(tmp_path, stop_at(7, second)), tmp_path, whole)

    def test_a_finished_run_is_not_done_again(self, tmp_path, whole):
        run(tmp_path)
        reports: list[StepReport] = []
        assert_same_run(run(tmp_path, reports.append), tmp_path, whole)
        assert reports == []

    def test_two_checkpoints_are_kept_and_nothing_half_written(self, whole):
        assert [path.name for path in checkpoints(whole[1])] == [
            "checkpoint-000000029.safetensors",
            "checkpoint-000000030.safetensors",
        ]
        assert {path.name for path in whole[1].iterdir()} <= {
            "checkpoint-000000029.safetensors",
            "checkpoint-000000030.safetensors",
            "log.csv",
            "steps.csv",
            "tensorboard",
        }

    def test_a_checkpoint_says_what_it_is_in_json(self, tmp_path):
        train(net(), Blobs(), Recipe(epochs=1), directory=tmp_path, plan='{"widths": {}}')
        with safe_open(checkpoints(tmp_path)[-1], framework="pt") as file:
            header = json.loads(file.metadata()["nce_fx"])
        assert header["plan"] == '{"widths": {}}'
        assert header["run"]["recipe.epochs"] == 1
        assert header["run"]["data"] == "blobs"
        assert header["position"]["epoch"] == 1


class TestNotFinite:
    def test_loss_stops_before_it_reaches_the_weights(self, tmp_path):
        data = Blobs()
        data.parts["train"].tensors[0][40] = torch.nan
        with pytest.raises(TrainingError) as caught:
            train(net(), data, RECIPE, directory=tmp_path, checkpoint_seconds=0)
        kept = checkpoints(tmp_path)[-1]
        assert "the loss is nan at step" in str(caught.value)
        assert "of epoch 1 (batch seed " in str(caught.value)
        assert f"the last good checkpoint is {kept};" in str(caught.value)
        assert all(tensor.isfinite().all() for tensor in read_checkpoint(kept).tensors.values())

    def test_gradient_never_reaches_a_checkpoint(self, tmp_path):
        class Overflow(nn.Module):
            """Its loss is finite; one step's gradient is not."""

            def __init__(self) -> None:
                super().__init__()
                self.net, self.calls = net(), 0
                self.weight = self.net.get_parameter("0.weight")

            def forward(self, x):
                self.calls += self.training
                scores = self.net(x)
                if self.calls == 5:
                    scores = scores + (self.weight.sum() * 0.0).sqrt()
                return scores

        with pytest.raises(TrainingError, match=r"a gradient is not finite at step .* checkpoint is .*000004"):
            train(Overflow(), Blobs(), RECIPE, directory=tmp_path, checkpoint_seconds=0)

    def test_weights_that_are_not_finite_are_never_trained(self, tmp_path):
        model = net()
        with torch.no_grad():
            next(model.parameters()).fill_(torch.inf)
        with pytest.raises(TrainingError, match="there is no checkpoint"):
            train(model, Blobs(), RECIPE, directory=tmp_path)
        with pytest.raises(TrainingError, match="the loss is nan at step 1 of epoch 1"):
            train(model, Blobs(), RECIPE)


class TestBadCheckpoints:
    def half_done(self, directory: Path) -> list[Path]:
        with pytest.raises(RuntimeError):
            run(directory, stop_at(15, crash))
        return checkpoints(directory)

    def test_truncated_gives_way_to_the_one_before(self, tmp_path, whole, caplog):
        older, newest = self.half_done(tmp_path)
        os.truncate(newest, newest.stat().st_size - 100)
        with caplog.at_level(logging.WARNING):
            result = run(tmp_path)
        assert len(caplog.records) == 1
        assert f"checkpoint {newest} is truncated or damaged" in caplog.text
        assert f"going on from {older}" in caplog.text
        assert_same_run(result, tmp_path, whole)

    @pytest.mark.parametrize("size", [0, 5, 1000])
    def test_all_truncated_is_one_line(self, tmp_path, size):
        for path in self.half_done(tmp_path):
            os.truncate(path, size)
        with pytest.raises(
            ArtifactError, match=r"is truncated or damaged .*; there is no other .*: remove it"
        ) as caught:
            run(tmp_path)
        assert "\n" not in str(caught.value)

    def test_altered_tensors_are_noticed(self, tmp_path):
        _, newest = self.half_done(tmp_path)
        content = bytearray(newest.read_bytes())
        content[-3] ^= 1
        newest.write_bytes(content)
        with pytest.raises(ArtifactError, match="its tensors are not the ones that were saved"):
            read_checkpoint(newest)

    def test_foreign_file(self, tmp_path):
        save_file({"weight": torch.ones(3)}, tmp_path / "checkpoint-000000003.safetensors")
        with pytest.raises(ArtifactError, match="is no training checkpoint of this version of nce-fx"):
            run(tmp_path)
        assert load_file(tmp_path / "checkpoint-000000003.safetensors")["weight"].tolist() == [1, 1, 1]

    def test_of_another_run_names_the_difference(self, tmp_path):
        before = [path.read_bytes() for path in self.half_done(tmp_path)]
        other = Recipe(epochs=3, batch_size=16, learning_rate=0.25)
        with pytest.raises(ArtifactError, match=r"another run \(recipe.learning_rate: 0.05 there, 0.25 here\)"):
            train(net(), Blobs(), other, teacher=net(1), directory=tmp_path)
        with pytest.raises(ArtifactError, match=r"another run \(starting weights: "):
            train(net(2), Blobs(), RECIPE, teacher=net(1), directory=tmp_path)
        with pytest.raises(ArtifactError, match=r"another run \(teacher's weights: "):
            train(net(), Blobs(), RECIPE, directory=tmp_path)
        assert [path.read_bytes() for path in checkpoints(tmp_path)] == before

    def test_full_disk_keeps_the_last_good_one(self, tmp_path, whole):
        older = self.half_done(tmp_path)
        with (
            files_at_most(2000),
            pytest.raises(TrainingError, match=r"cannot write .*: File too large: the last") as caught,
        ):
            run(tmp_path)
        assert "\n" not in str(caught.value)
        assert str(older[-1]) in str(caught.value)
        assert checkpoints(tmp_path) == older
        assert not list(tmp_path.glob(".*"))
        assert_same_run(run(tmp_path), tmp_path, whole)


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond a size for a while: writing fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


class Rooted(nn.Module):
    """A small network with an operation behind it that has no value, or no gradient, at zero."""

    def __init__(self, act):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(36, 6), nn.Linear(6, 4), act

    def forward(self, x):
        return self.act(self.b(self.a(x.flatten(1)).relu()))


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (
            lambda y: y + (0.0 * y.sum(1, keepdim=True)).sqrt(),
            r"the gradient through sqrt \(sqrt\) at .*\.py:\d+ is",
        ),
        (lambda y: y / (y - y), r"truediv \(truediv\) at .*\.py:\d+ gives values that are"),
    ],
)
def test_a_broken_step_names_the_operation_that_broke_it(act, says):
    gm = nce_fx.trace(Rooted(act).eval(), (torch.ones(2, 1, 6, 6),))
    quantized = nce_fx.quantize(gm)
    with pytest.raises(TrainingError, match=rf"at step 1 of epoch 1 \(batch seed \d+\): {says} not finite: "):
        train(quantized, Blobs(), RECIPE)


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "make room"), (errno.ENOENT, "put that right"), (errno.EACCES, "put that right")],
)
def test_room_is_asked_for_where_a_disk_is_full_alone(tmp_path, monkeypatch, number, advice):
    def refuses(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("nce_fx.training.checkpoint.write_whole", refuses)
    with pytest.raises(TrainingError, match=f"{os.strerror(number)}: there is no checkpoint; {advice}, then run again"):
        save_checkpoint(tmp_path, Checkpoint(1, {}, {}))
