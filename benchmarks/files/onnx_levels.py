"""How many values of an integer file are on another level than in PyTorch, of every quantized tensor, on 1,000 images.

    python -m benchmarks.onnx_levels                                     # goes on where it stopped
    python -m benchmarks.onnx_levels --networks resnet8 --epochs 4       # trained first: in float, then at 2 bits
    python -m benchmarks.onnx_levels --rows default --images 100         # fewer rows and images
    python -m benchmarks.onnx_tables                                     # writes docs/deploy.md

Digits of 32 pixels at 2 bits: SAWB and PACT with sums of integers, scales as they come and exact, and the default
quantizers, exact. Nothing is followed: a value that differs because one before it does counts as well. *Own* are those
that differ although their layer read the same numbers. Needs scikit-learn for the digits, torchvision for ten networks.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from benchmarks.onnx_formats import FEW_BITS, FLOAT, IMAGES, NETWORKS, built, digits, settled, thousand
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.fx import GraphModule

import nce_fx
import tests.torchvision_operators  # noqa: F401
from benchmarks import pages
from benchmarks.pages import load, save
from nce_fx.data import Data
from nce_fx.errors import NceFxError
from nce_fx.export.agreement import follow
from nce_fx.export.formats import FORMATS
from nce_fx.export.levels import mark
from nce_fx.export.onnx_graph import to_onnx
from nce_fx.models import MODELS
from nce_fx.passes.transform.quantize import PUBLISHED
from nce_fx.quantizers import ActivationQuantizer
from nce_fx.training import train

RESULTS = pages.RESULTS / "onnx_levels.json"
CHOSEN = (*sorted(MODELS), *(name for name in NETWORKS if name not in MODELS))[: len(MODELS) + 10]
ROWS: dict[str, dict[str, Any]] = {
    "plain": {**PUBLISHED, "sums": "int8"},
    "exact": {**PUBLISHED, "sums": "int8", "exact": True},
    "default": {"exact": True},
}
"""Row -> the spec."""
CHUNK, FOLLOWED = 100, 100
"""Images at once, and of how many PyTorch follows the file."""


def main() -> None:
    """Measure what has no result yet, or one of fewer images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=CHOSEN)
    parser.add_argument("--epochs", type=int, default=0, help="in float, and as many at 2 bits")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=tuple(ROWS))
    parser.add_argument("--images", type=int, default=IMAGES, help="multiples of 100")
    parser.add_argument("--again", action="store_true", help="also measure what has a result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = digits()
    for network in options.networks:
        rows = [name for name in options.rows if options.again or fewer(f"{network}/{name}", options.images)]
        if rows:
            for key, row in measured(network, options.epochs, data, rows, options.images):
                save(RESULTS, load(RESULTS) | {key: row})
                print(key, row, flush=True)


def fewer(key: str, images: int) -> bool:
    """Whether a row has no result yet, or one of fewer images; those that say no number are of all."""
    row = load(RESULTS).get(key)
    return row is None or row.get("images", IMAGES) < images


def measured(
    network: str, epochs: int, data: Data, rows: Iterable[str], images: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a network's rows of `ROWS`."""
    torch.manual_seed(0)
    example = data.batches(1, 32)
    gm = nce_fx.trace(settled(built(network), data), (example[0][0][:2],))
    if epochs:
        gm = train(gm, data, replace(FLOAT, epochs=epochs)).model
    for name in rows:
        quantized = nce_fx.quantize(gm, nce_fx.QuantSpec(**ROWS[name]), example)
        accuracy = None
        if epochs:
            result = train(quantized, data, replace(FEW_BITS, epochs=epochs), teacher=gm)
            assert result.accuracy is not None
            quantized, accuracy = result.model, round(result.accuracy, 4)
        try:
            row = compared(quantized.eval(), thousand(data)[:images])
        except NceFxError as error:
            row = {"trouble": str(error)}
        yield f"{network}/{name}", row | {"images": images, "accuracy": accuracy, "epochs": epochs}


def compared(gm: GraphModule, images: Tensor) -> dict[str, Any]:
    """Return how many values and classes of a network's integer file differ."""
    model, lowered = to_onnx(mark(gm), (images[:2],), FORMATS["integer"], dynamic="batch")
    names = sorted(set(lowered.activations) & {name for node in model.graph.node for name in node.output})
    quantizers = {name: gm.get_submodule(name) for name in names}
    session = session_with(model, names)
    own, seen = Seen(quantizers), dict.fromkeys(("values", "off", "classes"), 0)
    for at in range(0, len(images), CHUNK):
        x = images[at : at + CHUNK]
        scores, *found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            mine = gm(x).numpy()
        seen["classes"] += int((scores.argmax(1) != mine.argmax(1)).sum())
        for name, numbers in zip(names, found, strict=True):
            theirs, ours = lowered.floats(name, numbers), own.values[name]
            seen["values"] += ours.size
            seen["off"] += int((np.abs(theirs - ours) > 1e-6 * max(np.abs(ours).max(), 1e-30)).sum())
    own.remove()
    _, on_border = follow(gm, model, (images[:FOLLOWED],), "all", lowered)
    return {
        **seen,
        "tensors": len(names),
        "own": on_border,
        "own_values": seen["values"] * FOLLOWED // len(images),
        "misses": sum(lowered.misses.values()),
        "float_nodes": len(lowered.float_nodes),
    }


class Seen:
    """What quantizers gave in the last pass."""

    def __init__(self, quantizers: dict[str, nn.Module]) -> None:
        self.values: dict[str, Any] = {}
        self._hooks = [module.register_forward_hook(self._keep(name)) for name, module in quantizers.items()]
        assert all(isinstance(module, ActivationQuantizer) for module in quantizers.values())

    def _keep(self, name: str) -> Any:
        def keep(module: nn.Module, given: Any, result: Tensor) -> None:
            self.values[name] = result.numpy()

        return keep

    def remove(self) -> None:
        """Stop looking."""
        for hook in self._hooks:
            hook.remove()


def session_with(model: onnx.ModelProto, names: list[str]) -> Any:
    """Return a session whose further outputs are these tensors of integers."""
    watched = copy.deepcopy(model)
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
