"""How fast the exported formats run in onnxruntime, against the float file: batch of one, one thread, 224 x 224.

    python -m benchmarks.onnx_speed                          # then python -m benchmarks.onnx_tables

Rounds interleave the files of one network, and take processor time; what is kept is the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

import nce_fx
from benchmarks import pages
from benchmarks.pages import load, save
from nce_fx.export import export_onnx
from nce_fx.export.verify import runnable
from nce_fx.models import MODELS

RESULTS = pages.RESULTS / "onnx_speed.json"
NETWORKS = ("resnet18", "mobilenet_v2")
ROUNDS = 15


def main() -> None:
    """Time every network, each in one run."""
    torch.set_num_threads(1)
    for network in sys.argv[1:] or NETWORKS:
        rows = measure(network)
        save(RESULTS, load(RESULTS) | rows)
        print(rows, flush=True)


def measure(network: str) -> dict[str, Any]:
    """Return a row for each format. The networks keep their widths: random weights would plan anything."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    gm = nce_fx.trace(MODELS[network]().eval(), (x,))
    quantized = nce_fx.quantize(gm, nce_fx.QuantSpec(), [x])
    files = {"float": (gm, "int2", False), "int2": (quantized, "int2", False)}
    files |= {"qcdq --fold-bn": (quantized, "qcdq", True), "qonnx": (quantized, "qonnx", False)}
    sessions, sizes, operators = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (graph, form, fold) in files.items():
            written = export_onnx(graph, Path(folder) / "model.onnx", format=form, fold_bn=fold, batch=1)
            model = onnx.load(written.path)
            sizes[name] = written.size
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 4
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            content = (runnable(model) if form == "qonnx" else model).SerializeToString()
            sessions[name] = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            counts = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
            operators[name] = ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts) if "Conv" in kind)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS + 1):
        for name, session in sessions.items():
            begin = time.process_time()
            session.run(None, {session.get_inputs()[0].name: x.numpy()})
            seconds[name].append(time.process_time() - begin)
    medians = {
        name: statistics.median(np.divide(times, seconds["float"])[1:].tolist()) for name, times in seconds.items()
    }
    return {
        f"{network}/{name}": {
            "ratio": round(medians[name], 3),
            "size": sizes[name],
            "float_size": sizes["float"],
            "operators": operators[name],
        }
        for name in sessions
    }


if __name__ == "__main__":
    main()
