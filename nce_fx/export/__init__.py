"""Out of PyTorch: quantized networks as ONNX files that are checked before anyone relies on them."""

from nce_fx.export.export import OnnxExport, export_onnx, to_integer
from nce_fx.export.packed import save_packed
from nce_fx.export.pt2 import Pt2Export, export_pt2, load_pt2

__all__ = ["OnnxExport", "Pt2Export", "export_onnx", "export_pt2", "load_pt2", "save_packed", "to_integer"]
