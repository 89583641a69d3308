"""How close exported files come to PyTorch, and how large they are: every network, quantizer and format.

    python -m benchmarks.onnx_formats                        # goes on where it stopped
    python -m benchmarks.onnx_formats --networks resnet18 --quantizers lsq --again
    python -m benchmarks.onnx_tables                         # writes docs/deploy.md

Each network is trained on the digits in float, rewritten, trained at 2 bits, for six epochs each, exported, and run on
1,000 digits in onnxruntime. Needs scikit-learn for the digits, torchvision for thirteen of the networks.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm

import nce_fx
from benchmarks import pages
from benchmarks.pages import load, save
from nce_fx.data import Data, load_data
from nce_fx.data.images import Images
from nce_fx.errors import ExportError, NceFxError
from nce_fx.export import export_onnx
from nce_fx.export.agreement import LEVELS, TOLERANCE, follow, runnable
from nce_fx.export.formats import FORMATS, QONNX_DOMAIN
from nce_fx.models import MODELS
from nce_fx.plan import WidthPlan
from nce_fx.rewrite import analyze, build, plan_analyzed
from nce_fx.training import Recipe, train

Scores = np.ndarray[Any, Any]
RESULTS = pages.RESULTS / "onnx_formats.json"
TORCHVISION = (
    "squeezenet1_1",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "mnasnet1_0",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "efficientnet_b0",
    "resnet34",
    "googlenet",
    "densenet121",
    "resnext50_32x4d",
    "convnext_tiny",
)
NETWORKS = (*sorted(MODELS, key=lambda name: (name in ("resnet50", "vgg16_bn"), name)), *TORCHVISION)
QUANTIZERS = {
    name + (", exact" if exact else ""): nce_fx.QuantSpec(weight, activation, shortcuts="quantized", exact=exact)
    for exact in (False, True)
    for name, weight, activation in (
        ("sawb+pact", "sawb", "pact"),
        ("lsq", "lsq", "lsq"),
        ("dorefa", "dorefa", "dorefa"),
    )
}
SIDE, IMAGES, CHUNK = 32, 1000, 250
FLOAT = Recipe(epochs=6, batch_size=16, learning_rate=0.1, warmup_epochs=0.2, clip_gradient=1.0, evaluate_every=0)
FEW_BITS = replace(FLOAT, learning_rate=0.03)
GENTLE = {"efficientnet_b0": 0.2}
"""Networks that diverge at these rates -> the share of them that they are trained with."""
EVERY_LEVEL = ("int2",)
"""Formats that are run at every optimization level; the others at the lowest and the highest."""


def main() -> None:
    """Measure what was asked for and has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--quantizers", nargs="+", choices=QUANTIZERS, default=tuple(QUANTIZERS))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=tuple(FORMATS))
    parser.add_argument("--again", action="store_true", help="also measure what has a result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = digits()
    for network in options.networks:
        wanted = [f"{network}/{pair}/{name}" for pair in options.quantizers for name in options.formats]
        known = {} if options.again else load(RESULTS)
        missing = [key for key in wanted if key not in known]
        if not missing:
            continue
        try:
            run(network, missing, data)
        except NceFxError as error:
            keep({key: {"trouble": str(error)} for key in missing if key not in load(RESULTS)})
        gc.collect()


def run(network: str, keys: list[str], data: Data) -> None:
    """Measure one network, and keep each row as it comes.

    Raises:
        NceFxError: the network cannot be rewritten or trained.
    """
    torch.manual_seed(0)
    model = settled(built(network), data)
    batches = data.batches(1, 32)
    example = (batches[0][0][:2],)
    gentle = GENTLE.get(network, 1.0)
    recipe, few_bits = (replace(each, learning_rate=gentle * each.learning_rate) for each in (FLOAT, FEW_BITS))
    original = train(nce_fx.trace(model, example), data, recipe).model.eval()
    images = thousand(data)
    plan: WidthPlan | None = None
    with tempfile.TemporaryDirectory() as folder:
        float_size = export_onnx(original, Path(folder) / "float.onnx").size
        for pair in dict.fromkeys(key.split("/")[1] for key in keys):
            spec = QUANTIZERS[pair]
            if plan is None:
                analyses = analyze(original, example, batches=batches, spec=spec)
                plan = plan_analyzed(analyses, nce_fx.Budget(macs=1.0, params=1.0))
            quantized = build(analyses.graph_module, plan, spec=spec, batches=batches)
            trained = train(quantized, data, few_bits, teacher=original)
            assert trained.accuracy is not None
            gm = trained.model.eval()
            expected = evaluated(gm, images)
            cost = nce_fx.analyze_cost(gm).total
            about: dict[str, Any] = {
                "accuracy": round(trained.accuracy, 4),
                "epochs": FEW_BITS.epochs,
                "batch": FEW_BITS.batch_size,
                "classes": len(set(expected.argmax(1).tolist())),
                "changed_groups": len(plan.changed),
                "macs": int(cost.macs),
                "params": int(cost.params),
                "float_size": float_size,
            }
            with torch.backends.mkldnn.flags(enabled=False):
                about["pytorch_itself"] = differences(evaluated(gm, images), expected)
            for name in [key.split("/")[2] for key in keys if key.split("/")[1] == pair]:
                keep({f"{network}/{pair}/{name}": about | exported(gm, name, Path(folder), images, expected)})


def exported(gm: GraphModule, name: str, folder: Path, images: Tensor, expected: Scores) -> dict[str, Any]:
    """Return the size of a file in a format, and how it compares."""
    try:
        written = export_onnx(gm, folder / "model.onnx", format=name, inputs=(images[:2],))
    except ExportError as error:
        return {"trouble": str(error)}
    return {
        "size": written.size,
        "batch": "any" if written.batch is None else written.batch,
        "levels": dict(compare(gm, onnx.load(written.path), images, expected, name)),
    }


def built(network: str, classes: int = 10) -> nn.Module:
    """Return a network with random weights."""
    if network in MODELS:
        return MODELS[network](num_classes=classes)
    from torchvision import models

    options = {"init_weights": True, "aux_logits": False} if network == "googlenet" else {}
    model: nn.Module = models.get_model(network, weights=None, num_classes=classes, **options)
    return model


def digits(side: int = SIDE) -> Data:
    """Return scikit-learn's digits as coloured images of another size."""
    data = load_data("digits")

    def enlarged(images: Any) -> Images:
        pixels = F.interpolate(images.pixels, size=(side, side), mode="bilinear").repeat(1, 3, 1, 1)
        return Images(pixels, images.labels, images.mean.reshape(-1).tolist() * 3, images.deviation.tolist()[0][0] * 3)

    return Data(f"digits at {side}", enlarged(data.train), enlarged(data.test), (3, side, side), data.classes)


def settled(model: nn.Module, data: Data) -> nn.Module:
    """Give BatchNorm the statistics of real images, and return the network in evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model.train()(data.batches(1, 128)[0][0])
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def thousand(data: Data) -> Tensor:
    """The test images, then as many of the others as make a thousand."""
    test, seen = data.test, data.train
    assert isinstance(test, Images)
    assert isinstance(seen, Images)
    pixels = torch.cat([part.normalised(part.pixels) for part in (test, seen)])
    return pixels[:IMAGES]


def evaluated(gm: Callable[[Tensor], Tensor], images: Tensor) -> Scores:
    """Return the class scores of all images."""
    with torch.no_grad():
        return torch.cat([gm(images[at : at + CHUNK]) for at in range(0, len(images), CHUNK)]).numpy()


def differences(got: Scores, expected: Scores) -> dict[str, Any]:
    """Return the largest difference relative to the range of outputs, and on how many images anything differs."""
    error = np.abs(got.astype(np.float64) - expected).max(1) / _range(expected)
    return {
        "difference": float(error.max()),
        "images": int((error > TOLERANCE).sum()),
        "arg_max": int((got.argmax(1) != expected.argmax(1)).sum()),
    }


def _range(scores: Scores) -> float:
    """Return how far scores lie apart; 1 for a collapsed network, whose scores are all the same."""
    return float(scores.max() - scores.min()) or 1.0


def compare(
    gm: GraphModule, model: onnx.ModelProto, images: Tensor, expected: Scores, name: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield, for every optimization level, how outputs differ, and what is left when PyTorch follows over borders."""
    ready = runnable(model) if QONNX_DOMAIN in {entry.domain for entry in model.opset_import} else model
    content = ready.SerializeToString()
    levels = LEVELS if name in EVERY_LEVEL else {level: LEVELS[level] for level in ("disabled", "all")}
    for level, value in levels.items():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.intra_op_num_threads, options.log_severity_level = value, 1, 4
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (source,) = (value.name for value in session.get_inputs())
        got = evaluated(lambda x, s=session, i=source: torch.from_numpy(s.run(None, {i: x.numpy()})[0]), images)
        row = differences(got, expected)
        if FORMATS[name].exact_when_optimized or level == "disabled":
            row |= _followed(gm, model, images, got, expected, level)
        yield level, row


def _followed(
    gm: GraphModule, model: onnx.ModelProto, images: Tensor, got: Any, expected: Any, level: str
) -> dict[str, Any]:
    """Compare the images that differ once more, with PyTorch following over the borders of levels."""
    error = np.abs(got.astype(np.float64) - expected).max(1) / _range(expected)
    left, on_border = float(error[error <= TOLERANCE].max(initial=0.0)), 0
    apart = images[torch.from_numpy(error > TOLERANCE)]
    for at in range(0, len(apart), CHUNK):
        try:
            difference, count = follow(gm, model, (apart[at : at + CHUNK],), level)
        except ExportError as trouble:
            return {"trouble": str(trouble)}
        left, on_border = max(left, difference), on_border + count
    return {"followed": left, "on_border": on_border}


def keep(rows: Mapping[str, Any]) -> None:
    """Add rows to the results, which another run may be adding to as well."""
    save(RESULTS, load(RESULTS) | dict(rows))
    for key, row in rows.items():
        levels = row.get("levels", {})
        print(key, row.get("trouble", ""), json.dumps(levels.get("all")), row.get("accuracy"), flush=True)


if __name__ == "__main__":
    main()
