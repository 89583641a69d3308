"""What the qonnx package makes of exported files: its checks, its executor, and its inference cost beside ours.

    python -m benchmarks.onnx_qonnx                          # then python -m benchmarks.onnx_tables

Needs qonnx, which pins nothing that nce-fx needs (``pip install qonnx``), and scikit-learn for the digits.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from benchmarks.onnx_formats import QUANTIZERS, built, digits, settled, thousand
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.util.inference_cost import inference_cost

import nce_fx
from benchmarks import pages
from benchmarks.pages import load, save
from nce_fx.export import export_onnx

RESULTS = pages.RESULTS / "onnx_qonnx.json"
NETWORKS = ("resnet8", "resnet20", "mobilenet_v2", "resnet18")


def main() -> None:
    """Measure every network that has no result yet."""
    torch.set_num_threads(1)
    data = digits()
    for network in sys.argv[1:] or NETWORKS:
        for pair in ("lsq", "sawb+pact", "dorefa"):
            key = f"{network}/{pair}"
            if key in load(RESULTS):
                continue
            found = measure(network, pair, data)
            save(RESULTS, load(RESULTS) | {key: found})
            print(key, found, flush=True)


def measure(network: str, pair: str, data: Any) -> dict[str, Any]:
    """Return the difference of outputs on two images, and both programs' costs of one image."""
    torch.manual_seed(0)
    batches = data.batches(1, 32)
    model = settled(built(network), data)
    gm = nce_fx.rewrite(model, (batches[0][0][:1],), batches=batches, spec=QUANTIZERS[pair]).graph_module.eval()
    image = thousand(data)[:1]
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(gm, Path(folder) / "model.onnx", format="qonnx", batch=1, inputs=(image,)).path
        onnx.checker.check_model(onnx.load(path))
        wrapped = ModelWrapper(str(path)).transform(InferShapes())
        source, result = wrapped.graph.input[0].name, wrapped.graph.output[0].name
        got = execute_onnx(wrapped, {source: image.numpy()})[result]
        # Zero weights count as well: ours is the cost of dense arithmetic.
        theirs = inference_cost(str(path), discount_sparsity=False)["total_cost"]
    with torch.no_grad():
        expected = gm(image).numpy()
    cost = nce_fx.analyze_cost(gm).total
    return {
        "difference": float(np.abs(got - expected).max() / np.abs(expected).max()),
        "macs": int(cost.macs),
        "bit_ops": int(cost.bit_ops),
        "qonnx_macs": int(theirs["total_macs"]),
        "qonnx_bit_ops": int(theirs["total_bops"]),
        "types": {name: int(value) for name, value in theirs.items() if name.startswith("op_mac")},
    }


if __name__ == "__main__":
    main()
