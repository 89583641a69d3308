"""Where independent jobs run, such as the trainings of a study: here, in processes of this machine, or on a cluster.

    with executor(workers=4) as pool:                            # or scheduler="tcp://head:8786"
        for key, row in results(pool, train_one, {("resnet18", 0): ("resnet18", 0), ...}):
            write(row)

An executor has the interface of `concurrent.futures`. A cluster is one of dask.distributed, the extra ``cluster``: it
runs the job of a worker that died on another one, and whoever asked sees each result once.
"""

import importlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

from nce_fx.errors import InputError, TrainingError

K = TypeVar("K")
R = TypeVar("R")


@contextmanager
def executor(workers: int = 1, scheduler: str | None = None) -> Iterator[Executor | None]:
    """Yield an executor; ``None`` stands for this process, where jobs run one after another.

    Args:
        workers: processes of this machine; one is this process.
        scheduler: address of a dask scheduler, such as ``tcp://10.0.0.1:8786``, instead of them. Its workers have this
            package and the jobs' functions to import.

    Raises:
        InputError: no workers, dask.distributed is not installed, or nothing answers at the address.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}: give 1 or more")
    if scheduler is not None:
        with _cluster(scheduler) as pool:
            yield pool
    elif workers == 1:
        yield None
    else:
        # A forked process would share torch's threads with its parent, and hang.
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            yield pool


def results(
    pool: Executor | None, function: Callable[..., R], jobs: Mapping[K, tuple[Any, ...]]
) -> Iterator[tuple[K, R]]:
    """Yield key and result of every job, as they end, each once. What has not begun when one fails never does.

    Args:
        pool: what `executor` yields.
        function: of a module that workers can import.
        jobs: key -> arguments.

    Raises:
        TrainingError: a process of this machine died. What a job raises is raised as it is.
    """
    if pool is None:
        for key, arguments in jobs.items():
            yield key, function(*arguments)
        return
    function = _importable(function)
    futures = {pool.submit(function, *arguments): key for key, arguments in jobs.items()}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenExecutor as error:
        raise TrainingError("a process died, perhaps for want of memory: start fewer, what is done is kept") from error
    finally:
        for future in futures:
            future.cancel()


def _importable(function: Callable[..., R]) -> Callable[..., R]:
    """Return a function of the program that runs as one of the module that it is."""
    if function.__module__ != "__main__":
        return function
    name = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    found: Callable[..., R] = getattr(importlib.import_module(name), function.__name__)
    return found


@contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("a scheduler needs dask.distributed: pip install 'nce-fx[cluster]'") from error
    try:
        client: Any = Client(address, timeout=10, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"no dask scheduler answers at {address} ({error}): start `dask scheduler` there") from error
    with client, client.get_executor(pure=False) as pool:
        yield pool
