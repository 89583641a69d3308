"""How fast the exported formats run in onnxruntime, against the float file and onnxruntime's own int8: 224 x 224.

    python -m benchmarks.onnx_speed                          # then python -m benchmarks.onnx_tables
    python -m benchmarks.onnx_speed resnet18 1x4096x4096 --batches 1
    python -m benchmarks.onnx_speed resnet18 --batches       # sessions and memory alone

Rounds interleave the files of one network in one process, one thread, and take processor time; what is kept is the
median of the rounds' ratios. int8 is onnxruntime's static quantization of the float file, per channel, QDQ; integer is
ours, with quantizers as published and additions of integers (sums="int8"), beside those of `QuantSpec()`. Only files
that were compared with PyTorch are timed. ROWSxINPUTSxOUTPUTS is a linear layer, the same by default; it is timed once
more without the float file's weights in the cache. Needs torchvision for three of the networks.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime import quantization
from torch import Tensor, nn

import nce_fx
import tests.torchvision_operators  # noqa: F401
from benchmarks import pages
from benchmarks.pages import load, save
from nce_fx.export import export_onnx
from nce_fx.models import MODELS
from nce_fx.passes.transform.quantize import PUBLISHED

RESULTS = pages.RESULTS / "onnx_speed.json"
NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "vgg16_bn", "vit_b_16")
LAYERS = ("1x4096x4096", "196x768x3072")
ROUNDS = {1: 9, 16: 2}
"""Samples in a batch -> rounds that count; one more goes before."""
KERNELS = {"avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "avx512bw": "AVX-512", "avx2": "AVX2"}
"""What a processor says of itself -> what onnxruntime multiplies integers with, the best first."""


def main() -> None:
    """Time every network, each in one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS + LAYERS)
    parser.add_argument("--batches", nargs="*", type=int, choices=tuple(ROUNDS), default=tuple(ROUNDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for network in options.networks:
        rows = measure(network, options.batches)
        known = load(RESULTS)
        # A run of some batches leaves what others measured.
        save(RESULTS, known | {key: known.get(key, {}) | row for key, row in rows.items()})
        print(rows, flush=True)


def measure(network: str, batches: list[int]) -> dict[str, Any]:
    """Return a row for each file. The networks keep their widths: random weights would plan anything."""
    torch.manual_seed(0)
    rows_of_layer = [int(size) for size in network.split("x")] if network[0].isdigit() else None
    if rows_of_layer is None:
        x, model = torch.randn(2, 3, 224, 224), built(network)
        specs = {"integer": nce_fx.QuantSpec(**PUBLISHED, sums="int8"), "integer, default": nce_fx.QuantSpec()}
    else:
        count, inputs, outputs = rows_of_layer
        x, model = torch.randn(1, count, inputs), nn.Sequential(nn.Linear(inputs, outputs))
        specs, batches = {"integer": nce_fx.QuantSpec(**PUBLISHED, first_last_bits=2)}, [1]
    batch = None if rows_of_layer is None else 1
    gm = nce_fx.trace(model.eval(), (x[:1],))
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("float", "int8", *specs)}
        written = {
            name: export_onnx(nce_fx.quantize(gm, spec, [x]), paths[name], format="integer", inputs=(x,), batch=batch)
            for name, spec in specs.items()
        }
        export_onnx(gm, paths["float"], batch=batch)
        own_int8(paths["float"], paths["int8"], x)
        sessions: dict[str, Any] = {}
        for name, (made, seconds) in making(paths).items():
            path, sessions[name] = paths[name], made
            row = {"size": path.stat().st_size, "session_seconds": seconds, "operators": multiplies(path)}
            row |= {"processor": processor(), "peak": peak(path, x[:1])}
            rows[f"{network}/{name}"] = row
        for name, export in written.items():
            rows[f"{network}/{name}"] |= {
                "float_nodes": len(export.float_nodes),
                "on_border": max(agreement.on_border for agreement in export.agreement.values()),
                "difference": max(agreement.difference for agreement in export.agreement.values()),
            }
        for count in batches:
            given = x[:1].repeat(count, *[1] * (x.dim() - 1))
            for name, ratio in ratios(sessions, given, ROUNDS[count]):
                rows[f"{network}/{name}"][f"ratio_{count}"] = round(ratio, 3)
        if rows_of_layer is not None:
            for name, ratio in ratios(sessions, x, ROUNDS[1], again=4):
                rows[f"{network}/{name}"]["ratio_again"] = round(ratio, 3)
    plain = dict(rows[f"{network}/float"])
    for row in rows.values():
        row["float_size"] = plain["size"]
        row["session"] = round(row.pop("session_seconds") / plain["session_seconds"], 2)
        row["memory"] = round(row.pop("peak") / plain["peak"], 2)
    return rows


def built(network: str) -> nn.Module:
    """Return a network with random weights and, in its normalizations, statistics of a random image."""
    if network in MODELS:
        model = MODELS[network]()
    else:
        from torchvision import models

        model = models.get_model(network, weights=None)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 224, 224))
    return model.eval()


def own_int8(source: Path, target: Path, x: Tensor) -> None:
    """Write onnxruntime's own static quantization of a float file."""

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            name = onnx.load(source).graph.input[0].name
            self.batches = iter([{name: sample[None].numpy()} for sample in x])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    quantization.quantize_static(
        source,
        target,
        Reader(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def making(paths: Mapping[str, Path]) -> dict[str, tuple[Any, float]]:
    """Return a session of one thread for each file, and the least processor time to make it; files take turns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    made: dict[str, tuple[Any, float]] = {name: (None, float("inf")) for name in paths}
    for _ in range(12):
        for name, path in paths.items():
            begin = time.process_time()
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            made[name] = session, min(made[name][1], time.process_time() - begin)
    return made


def multiplies(path: Path) -> str:
    """Return what operators multiply in a session of a file: ``"1 MatMulInteger, 20 QLinearConv"``."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(path.with_suffix(".optimized"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    products = [kind for kind in sorted(counts) if any(word in kind for word in ("Conv", "MatMul", "Gemm"))]
    return ", ".join(f"{counts[kind]} {kind}" for kind in products)


_RUN = """
import re, sys, numpy, onnxruntime
# Not getrusage: what it calls the most goes on from the parent's.
most = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
before = most()
made = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
made.run(None, {made.get_inputs()[0].name: numpy.load(sys.argv[2])})
print(most() - before)
"""


def peak(path: Path, x: Tensor) -> int:
    """Return the most memory that a process of its own takes to make a session and run one image, in KiB."""
    np.save(path.with_suffix(".npy"), x.numpy())
    command = [sys.executable, "-c", _RUN, str(path), str(path.with_suffix(".npy"))]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def ratios(sessions: Mapping[str, Any], x: Tensor, rounds: int, again: int = 1) -> Iterator[tuple[str, float]]:
    """Yield the name of each session and its time as a ratio to the float one's, the median of interleaved rounds.

    Of so many runs in a row the last counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds + 1):
        for name, made in sessions.items():
            for _ in range(again):
                begin = time.process_time()
                made.run(None, {made.get_inputs()[0].name: x.numpy()})
                spent = time.process_time() - begin
            seconds[name].append(spent)
    for name, times in seconds.items():
        yield name, statistics.median(np.divide(times, seconds["float"])[1:].tolist())


def processor() -> str:
    """Return what this machine calls its processor, and what it multiplies integers with."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = about.get("flags", "").split()
    kernel = next((word for flag, word in KERNELS.items() if flag in flags), "no AVX2")
    return f"{about.get('model name', 'unknown')}, {kernel}"


if __name__ == "__main__":
    main()
