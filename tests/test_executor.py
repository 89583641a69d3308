"""Many jobs, wherever they run: every result comes, once, also where a worker dies."""

import os
import signal
import sys
from pathlib import Path

import pytest

from nce_fx.errors import InputError, TrainingError
from nce_fx.executor import executor, results


def square(number: int, folder: str, deadly: bool = False) -> int:
    """Leave a mark for every attempt; the first one of a deadly job takes its process with it."""
    marks = Path(folder)
    attempt = len(list(marks.glob(f"{number}-*")))
    (marks / f"{number}-{attempt}").touch()
    if deadly and attempt == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if number < 0:
        raise ValueError("negative")
    return number**2


def jobs(folder, deadly=None):
    return {("row", number): (number, str(folder), number == deadly) for number in range(6)}


SQUARES = {("row", number): number**2 for number in range(6)}


def test_jobs_run_here_one_after_another_and_as_they_are_asked_for(tmp_path):
    with executor() as pool:
        found = results(pool, square, jobs(tmp_path))
        assert next(found) == (("row", 0), 0)
        assert len(list(tmp_path.iterdir())) == 1
        assert dict(found) == {key: value for key, value in SQUARES.items() if value}
        with pytest.raises(ValueError, match="negative"):
            dict(results(pool, square, {"a": (-1, str(tmp_path))}))


@pytest.mark.long
def test_local_processes_give_every_result_once_and_a_dead_one_is_said(tmp_path):
    with executor(workers=2) as pool:
        found = list(results(pool, square, jobs(tmp_path)))
        assert len(found) == 6
        assert dict(found) == SQUARES
        (tmp_path / "more").mkdir()
        with pytest.raises(TrainingError, match="a process died"):
            list(results(pool, square, jobs(tmp_path / "more", deadly=3)))


@pytest.mark.slow
def test_a_cluster_gives_every_result_once_although_a_worker_is_killed(tmp_path):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with (
        distributed.LocalCluster(**options) as cluster,
        executor(scheduler=cluster.scheduler_address) as pool,
    ):
        found = list(results(pool, square, jobs(tmp_path, deadly=2)))
    assert len(found) == 6
    assert dict(found) == SQUARES
    assert sorted(mark.name for mark in tmp_path.glob("2-*")) == ["2-0", "2-1"], "the killed job ran again"


def test_what_cannot_be_is_said(monkeypatch):
    with pytest.raises(InputError, match="workers is 0"), executor(workers=0):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'nce-fx\[cluster\]'"), executor(scheduler="tcp://nowhere:1"):
        pass
