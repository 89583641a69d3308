"""Out of PyTorch: quantized networks as ONNX files that are checked before anyone relies on them.

levels.py       the quantizers as plain numbers, and markers in their places
formats.py      int2, qcdq, qonnx: what each writes for a quantized weight or activation
onnx_graph.py   graph -> ONNX model, with the names of the user's model
verify.py       the file against PyTorch
packed.py       weights alone, four to a byte
pt2.py          a torch.export archive, for PyTorch without the model's code
program.py      what both ways start from
"""

from nce_fx.export.export import OnnxExport, export_onnx, to_integer
from nce_fx.export.packed import save_packed
from nce_fx.export.pt2 import Pt2Export, export_pt2, load_pt2

__all__ = ["OnnxExport", "Pt2Export", "export_onnx", "export_pt2", "load_pt2", "save_packed", "to_integer"]
