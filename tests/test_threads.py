"""Law 8 at any number of threads where they share the sums; the laws ask it of the zoo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch

import nce_fx
from nce_fx.devices import same_sums
from nce_fx.models import MODELS
from nce_fx.passes.analysis.sensitivity import METRICS
from tests.threads import plans_at_all_threads

PLAN = """
import torch, nce_fx
from nce_fx.models import MODELS
torch.manual_seed(0)
model = MODELS["resnet8"](width=16).eval()
batches = [(torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,)))]
result = nce_fx.rewrite(model, (torch.randn(1, 3, 32, 32),), batches=batches)
print(result.plan.to_json())
"""


@pytest.fixture(autouse=True)
def _threads_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("metric", METRICS)
def test_a_plan_is_the_same_where_threads_share_the_sums(metric):
    torch.manual_seed(0)
    model = MODELS["resnet18"](width=16).eval()
    x = torch.randn(32, 3, 32, 32)
    gm = nce_fx.trace(model, (x[:1],))
    assert len(plans_at_all_threads(gm, [(x, torch.randint(0, 10, (32,)))], metric=metric)) == 1


@pytest.mark.long
def test_a_plan_is_the_same_in_processes_of_other_numbers_of_threads():
    found = {
        subprocess.run(
            [sys.executable, "-c", PLAN], env=os.environ | {"OMP_NUM_THREADS": threads}, capture_output=True, check=True
        ).stdout
        for threads in ("1", "4")
    }
    assert len(found) == 1
    # With the names of its groups and the model's fingerprint, which no process may make otherwise.
    assert {"widths", "model"} <= json.loads(found.pop()).keys()


@pytest.mark.parametrize(("width", "threads"), [(16, 1), (20000, 4)])
def test_the_number_of_threads_follows_from_the_work_and_is_put_back(width, threads):
    model, batch = torch.nn.Linear(width, width, device="meta"), torch.empty(30000, width, device="meta")
    torch.set_num_threads(3)
    with suppress(KeyError), same_sums(model, [(batch, None)]):
        assert torch.get_num_threads() == threads
        raise KeyError
    assert torch.get_num_threads() == 3
