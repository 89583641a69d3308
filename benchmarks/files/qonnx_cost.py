"""The cost report against qonnx's inference cost: python -m benchmarks.qonnx_cost --python QONNX_PYTHON

Networks are quantized to 2 bits, exported in the qonnx format, and priced by `qonnx.util.inference_cost` (run by an
interpreter that has the qonnx package: its own environment, since it pins other versions). Multiply-accumulates and
the weights of convolutions and linear layers are held against `nce_fx.analyze_cost` of the same graph, and so are bit
operations; both numbers are in the row.

Results go to benchmarks/results/qonnx_cost.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch

import nce_fx
from benchmarks import pages
from nce_fx.models import MODELS
from nce_fx.ops.layers import find_layers
from nce_fx.passes.transform.quantize import PUBLISHED

NETWORKS = {"resnet8": (1, 8), "resnet20": (3, 32), "mobilenet_v2": (3, 32)}
"""Name -> channels and side of its images."""
RESULTS = pages.RESULTS / "qonnx_cost.json"
PRICED_BY_QONNX = """
import json, sys
from importlib.metadata import version
from qonnx.util.inference_cost import inference_cost
print(json.dumps({"version": version("qonnx"), **inference_cost(sys.argv[1], discount_sparsity=False)["total_cost"]}))
"""


def main() -> None:
    """Export, price twice, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="an interpreter that has qonnx")
    options = parser.parse_args()
    rows = []
    for name, (channels, side) in NETWORKS.items():
        torch.manual_seed(0)
        inputs = torch.randn(1, channels, side, side)
        gm = nce_fx.trace(MODELS[name](num_classes=10, in_channels=channels).eval(), (inputs,))
        quantized = nce_fx.quantize(gm, nce_fx.QuantSpec(**PUBLISHED), [inputs])
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            nce_fx.export_onnx(quantized, file, format="qonnx", batch=1)
            command = [options.python, "-c", PRICED_BY_QONNX, str(file)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        theirs = json.loads(output.splitlines()[-1])
        total = nce_fx.analyze_cost(quantized).total
        layers = {path for layer in find_layers(quantized) for path in layer.weights}
        weights = sum(quantized.get_parameter(path).numel() for path in layers)
        row = {
            "network": name,
            "qonnx": theirs["version"],
            "macs": [int(total.macs), int(theirs["total_macs"])],
            "bit_ops": [int(total.bit_ops), int(theirs["total_bops"])],
            "weights": [weights, int(theirs["total_mem_w_elems"])],
            "not_priced_by_qonnx": theirs.get("unsupported"),
            "types": sorted(k for k in theirs if k.startswith("op_mac_")),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
