"""What hardware flows make of exported files, run where these are installed: ``python -m tests.flow FILE.onnx ...``.

`make flows` gives the packages; FILE.npz beside each file has ``x`` and PyTorch's ``y``. Prints a line of JSON a file:
the difference from ``y``, relative to its largest value, after qonnx's cleanup and inference of types, after FINN's
conversion, and after its streamlining; and what kinds of nodes are left.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from finn.transformation.qonnx.convert_qonnx_to_finn import ConvertQONNXtoFINN
from finn.transformation.streamline import Streamline
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_datatypes import InferDataTypes
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.util.cleanup import cleanup_model


def main() -> None:
    """Run all files that were named."""
    warnings.simplefilter("ignore")
    for name in sys.argv[1:]:
        given = np.load(Path(name).with_suffix(".npz"))
        model = cleanup_model(ModelWrapper(name)).transform(InferShapes()).transform(InferDataTypes())
        differences = [_difference(model, given)]
        for step in (ConvertQONNXtoFINN(), Streamline()):
            model = model.transform(step)
            differences.append(_difference(model, given))
        kinds = sorted({node.op_type for node in model.graph.node})
        print(json.dumps({"differences": differences, "kinds": kinds}), flush=True)


def _difference(model, given) -> float:
    made = execute_onnx(model, {model.graph.input[0].name: given["x"]})[model.graph.output[0].name]
    return float(np.abs(made - given["y"]).max() / np.abs(given["y"]).max())


if __name__ == "__main__":
    main()
