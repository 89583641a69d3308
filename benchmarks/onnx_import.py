"""Whether onnx2torch turns today's ONNX files into torch.fx graphs: ten torchvision networks, three opsets.

    python -m benchmarks.onnx_import                         # writes docs/deploy.md

Needs torchvision and onnx2torch (``pip install --no-deps onnx2torch``).
"""

from __future__ import annotations

import io
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch

from benchmarks.onnx_formats import TORCHVISION, built
from benchmarks.onnx_tables import put

RESULTS = Path(__file__).parent / "results" / "onnx_import.json"
OPSETS = (13, 18, 25)
"""One of PyTorch's older exporter, the default of its newer one, and the first with INT2."""


def main() -> None:
    """Try every network at every opset, and write down what came of it."""
    torch.set_num_threads(1)
    rows = {f"{name}/{opset}": attempt(name, opset) for name in TORCHVISION for opset in OPSETS}
    found = {"onnx2torch": version("onnx2torch"), "torch": version("torch"), "onnx": version("onnx"), "rows": rows}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    lines = ["| opset | converted | what stops the others |", "|--:|--:|---|"]
    for opset in OPSETS:
        said = [rows[f"{name}/{opset}"] for name in TORCHVISION]
        reasons = {"`" + text.replace("OperationDescription", "") + "`" for text in said if text != "converted"}
        lines.append(f"| {opset} | {said.count('converted')} of {len(said)} | {', '.join(sorted(reasons)[:3])} |")
    put("onnx import", lines)


def attempt(name: str, opset: int) -> str:
    """Return "converted", or the reason why not in one line."""
    torch.manual_seed(0)
    # Imports torchvision, which needs what benchmarks.vision defines.
    from onnx2torch import convert

    model = built(name).eval()
    x = torch.randn(1, 3, 64, 64)
    try:
        graph = convert(exported(model, x, opset))
        with torch.no_grad():
            torch.testing.assert_close(graph(x), model(x), rtol=1e-3, atol=1e-4)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"
    return "converted"


def exported(model: torch.nn.Module, x: torch.Tensor, opset: int) -> Any:
    """Return the ONNX model that PyTorch writes."""
    if opset < 18:
        buffer = io.BytesIO()
        torch.onnx.export(model, (x,), buffer, opset_version=opset, dynamo=False, do_constant_folding=True)
        return onnx.load_from_string(buffer.getvalue())
    program: Any = torch.onnx.export(model, (x,), opset_version=opset, dynamo=True, verbose=False)
    return program.model_proto


if __name__ == "__main__":
    main()
