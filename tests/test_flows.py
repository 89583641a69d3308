"""Exported QONNX in flows that read it: finn-plus and hls4ml, in a folder of packages of their own (`make flows`)."""

import json
import os
import subprocess
import sys
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx import GraphModule

import nce_fx
from nce_fx.export import export_onnx
from nce_fx.models import MODELS
from nce_fx.models.mobilenet_v2 import MobileNetV2
from nce_fx.passes.transform.quantize import integer_weights
from tests.test_export import evaluated, random, settled

FLOWS = Path(sys.prefix) / "flows"
ROOT = Path(__file__).parent.parent
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet8": {"width": 4},
    "resnet20": {"width": 2},
    "mobilenet_v2": {"multiplier": 0.1},
}
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2))
"""Of MobileNetV2: all kinds of layers. FINN's passes take over ten minutes for the 17 blocks of the network."""
IN_THE_GATE = {("resnet8", "sawb"), ("resnet8", "lsq"), ("resnet8", "dorefa"), ("mobilenet_v2", "sawb")}
QUANTIZERS = {"sawb": "pact", "lsq": "lsq", "dorefa": "dorefa"}


pytestmark = [
    pytest.mark.skipif(
        not (FLOWS / "installed").exists(), reason="finn-plus and hls4ml are not installed: run make flows"
    ),
    pytest.mark.long,
]


@pytest.mark.parametrize(
    ("network", "weight"),
    [
        pytest.param(*pair, marks=() if pair in IN_THE_GATE else pytest.mark.slow)
        for pair in product(NETWORKS, QUANTIZERS)
    ],
)
def test_finn_makes_of_a_file_what_pytorch_computes_and_hls4ml_parses_it(tmp_path, monkeypatch, network, weight):
    monkeypatch.setattr(import_module(MobileNetV2.__module__), "STAGES", BLOCKS)
    goes_through(tmp_path, network, weight)


@pytest.mark.slow
@pytest.mark.parametrize("weight", QUANTIZERS)
def test_the_whole_of_mobilenet_goes_through_both(tmp_path, weight):
    goes_through(tmp_path, "mobilenet_v2", weight)


def goes_through(folder: Path, network: str, weight: str) -> None:
    gm, path = written(folder, network, weight)
    x = random(1, 3, 16, 16, seed=5)
    np.savez(path.with_suffix(".npz"), x=x.numpy(), y=evaluated(gm, x))
    result = flow(path)
    assert max(result["differences"]) < 1e-6
    assert {"MultiThreshold", "Conv", "MatMul"} <= set(result["kinds"])
    assert "Quant" not in result["kinds"]
    assert sorted(result["precisions"]) == precisions(gm, weight)


def written(folder: Path, network: str, weight: str) -> tuple[GraphModule, Path]:
    torch.manual_seed(0)
    gm = nce_fx.trace(settled(MODELS[network](**NETWORKS[network])), (random(1, 3, 16, 16),))
    spec = nce_fx.QuantSpec(weight=weight, activation=QUANTIZERS[weight])
    gm = nce_fx.quantize(gm, spec, [random(4, 3, 16, 16)])
    x = random(1, 3, 16, 16, seed=5)
    return gm, export_onnx(gm, folder / "model.onnx", format="qonnx", batch=1, inputs=(x,)).path


def flow(path: Path) -> Any:
    command = [sys.executable, "-m", "tests.flow", str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(FLOWS), str(ROOT)])}
    done = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def precisions(gm: GraphModule, weight: str) -> list[str]:
    # LSQ's levels have a zero; of the others, odd numbers, one bit more.
    bits = [whole.bits + (weight != "lsq") for whole in integer_weights(gm).values()]
    return sorted(f"fixed<{n},{n},RND_CONV,SAT,0>" for n in bits)
