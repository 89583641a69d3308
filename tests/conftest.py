"""What every test shares: one thread, Python's own answer to Ctrl-C, and a torchvision that can be imported."""

import gc
import signal
from collections.abc import Generator, Iterator

import pytest
import torch

import tests.torchvision_operators  # noqa: F401

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def ctrl_c_raises() -> Iterator[None]:
    """Give each test the handler that a terminal's process has; a job in the background starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the tests without looking for garbage, and let nothing look through what they have imported later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


QUICK_PARAMETERS = 1
"""How many of each test's parameter sets --quick runs."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="a sample: no test marked long, one parameter set of each other"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("long") is None:
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {id(item) for of_one in tests.values() for item in of_one[:: -(-len(of_one) // QUICK_PARAMETERS)]}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]
