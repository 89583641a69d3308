"""What hardware flows make of an exported file, run where these are installed: ``python -m tests.flow FILE.onnx``.

`make flows` gives the packages; FILE.npz beside it has ``x`` and PyTorch's ``y``. Prints a line of JSON: the precision
of each layer's weight, as hls4ml parses it; the difference from ``y``, relative to its largest value, after qonnx's
cleanup and inference of types, after FINN's conversion, and after its streamlining; and what kinds of nodes are left.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from finn.transformation.qonnx.convert_qonnx_to_finn import ConvertQONNXtoFINN
from finn.transformation.streamline import Streamline
from hls4ml.converters import convert_from_onnx_model
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.transformation.infer_datatypes import InferDataTypes
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.util.cleanup import cleanup_model

LAYERS = ("Conv2D", "PointwiseConv2D", "DepthwiseConv2D", "Dense")


def main() -> None:
    """Run the file that was named."""
    warnings.simplefilter("ignore")
    path = Path(sys.argv[1])
    given, precisions = np.load(path.with_suffix(".npz")), _parse(cleanup_model(ModelWrapper(str(path))))
    model = cleanup_model(ModelWrapper(str(path))).transform(InferShapes()).transform(InferDataTypes())
    differences = [_difference(model, given)]
    for step in (ConvertQONNXtoFINN(), Streamline()):
        model = model.transform(step)
        differences.append(_difference(model, given))
    kinds = sorted({node.op_type for node in model.graph.node})
    print(json.dumps({"precisions": precisions, "differences": differences, "kinds": kinds}), flush=True)


def _parse(model) -> list[str]:
    """Return the precision of every layer's weight in hls4ml's model, ``"fixed<2,2,RND_CONV,SAT,0>"``."""
    # Cleaned up again: hls4ml wants the transposed weight of a linear layer as one constant.
    model = cleanup_model(model.transform(ConvertToChannelsLastAndClean()).transform(GemmToMatMul()))
    settings = {"Model": {"Precision": "fixed<32,16>", "ReuseFactor": 1}}
    with tempfile.TemporaryDirectory() as folder:
        parsed = convert_from_onnx_model(
            model, output_dir=folder, backend="Vitis", io_type="io_stream", hls_config=settings
        )
    layers = [layer for layer in parsed.get_layers() if layer.class_name in LAYERS]
    return [str(layer.weights["weight"].type.precision) for layer in layers]


def _difference(model, given) -> float:
    made = execute_onnx(model, {model.graph.input[0].name: given["x"]})[model.graph.output[0].name]
    return float(np.abs(made - given["y"]).max() / np.abs(given["y"]).max())


if __name__ == "__main__":
    main()
