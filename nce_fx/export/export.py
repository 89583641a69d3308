"""A quantized graph as an ONNX file, written whole and checked, or not at all."""

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from onnx import ModelProto
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from nce_fx.arguments import checked
from nce_fx.errors import ExportError
from nce_fx.export.agreement import Agreement, check_agreement
from nce_fx.export.export_file import check_asked, export_file
from nce_fx.export.formats import FORMATS, Format
from nce_fx.export.integer import Lowered, to_module
from nce_fx.export.levels import Marked, mark
from nce_fx.export.onnx_graph import to_onnx
from nce_fx.export.opset import check_opset
from nce_fx.export.program import Dynamic, example, other_sizes, share_a_batch, takes_any_batch, takes_other_sizes
from nce_fx.frozen import Frozen
from nce_fx.nearest import nearest
from nce_fx.passes.transform.fold import FoldBatchNorm
from nce_fx.pipeline import Pipeline
from nce_fx.plan import WidthPlan
from nce_fx.progress import begin
from nce_fx.version import __version__


@dataclass(frozen=True)
class OnnxExport(Frozen):
    """What was written, and how it compares."""

    path: Path
    format: str
    size: int
    """Bytes."""
    batch: int | None
    """Samples in a batch; ``None``: any number."""
    agreement: Mapping[str, Agreement]
    """By optimization level of onnxruntime."""
    float_nodes: Mapping[str, str] = field(default_factory=dict)
    """Format "integer": the nodes that compute in float -> why, in words."""
    sizes: bool = False
    """Whether height and width may be others than the traced ones."""


@checked
def export_onnx(
    gm: GraphModule,
    path: str | Path,
    *,
    format: str = "int2",
    fold_bn: bool = False,
    batch: int | None = None,
    inputs: tuple[Any, ...] | None = None,
    opset: int | None = None,
) -> OnnxExport:
    """Write a quantized graph as an ONNX file that computes what the graph computes in evaluation mode.

    The file is run in onnxruntime and compared with PyTorch before it takes its name; see `nce_fx.export.agreement`.

    Args:
        gm: a graph that `quantize` made, in float32. It is not changed.
        path: the file; one of that name is replaced once the new one has been checked.
        format: "int2": weights packed to their bits, exact at every optimization level of onnxruntime. "integer":
            packed, too, and computed in integers by onnxruntime, see `nce_fx.export.integer`. "qcdq": int8 containers,
            some of which onnxruntime computes with in integers. "qonnx": Quant nodes, for FPGA flows; onnxruntime does
            not run these.
        fold_bn: fold BatchNorm into the scales of the weights first, see `FoldBatchNorm`.
        batch: samples in a batch. By default any number, or the traced one where the graph fixes it.
        inputs: what to compare on; random numbers of the traced shapes by default.
        opset: of the file, 13 to 25, for an older runtime; the format's own by default: 25 of int2 and integer (packed
            integers of 2 bits are of 25), 21 of qcdq, 18 of qonnx.

    Raises:
        ExportError: an unknown format, a graph that ONNX cannot say, or a file that computes something else. Nothing
            is written then.
    """
    path = Path(path)
    if opset is not None:
        check_opset(opset)
    if format not in FORMATS:
        raise ExportError(f"format is {format!r}: choose one of {', '.join(FORMATS)}{nearest(format, FORMATS)}")
    check_asked(path, batch)
    form = FORMATS[format]
    gm = copy.deepcopy(gm).cpu().eval()
    if fold_bn:
        gm = Pipeline((FoldBatchNorm(),))(gm).graph_module
    marked = mark(gm)

    def written(sizes: bool) -> OnnxExport:
        begin("write the graph as ONNX")
        model, lowered, samples, sizes = _model(gm, marked, form, batch, opset, sizes=sizes)
        model.producer_name, model.producer_version = "nce-fx", __version__
        for key, value in (provenance(gm, marked, samples) | {"format": format}).items():
            model.metadata_props.add(key=f"nce_fx.{key}", value=value)
        given = inputs if inputs is not None else example(gm, samples or (2 if takes_any_batch(gm) else None))
        begin("compare with PyTorch")
        compare = partial(check_agreement, exact_when_optimized=form.exact_when_optimized, lowered=lowered)
        with export_file(path) as fresh:
            content = model.SerializeToString()
            fresh.write_bytes(content)
            content_of = fresh.read_bytes()
            agreement = compare(gm, model, content_of, given)
            if sizes and inputs is None:
                try:
                    compare(gm, model, content_of, other_sizes(given))
                except ExportError as error:
                    raise _SizesError(str(error)) from error
        return OnnxExport(path, format, len(content), samples, agreement, lowered.float_nodes, sizes)

    try:
        return written(sizes=True)
    except _SizesError:
        return written(sizes=False)


class _SizesError(ExportError):
    """A file is not the graph at other heights and widths: it is written for the traced ones alone."""


@checked
def to_integer(gm: GraphModule) -> GraphModule:
    """Return a quantized graph as a plain PyTorch module that computes in integers, as its integer file does.

    Each node is one of the file's, with onnxruntime's arithmetic on PyTorch's tensors: numbers of levels are equal to
    the last one, floats behind the last layer but for rounding. To look at and to test with: no faster than floats.

    Raises:
        ExportError: a graph that ONNX cannot say, or an operator with no form here.
    """
    gm = copy.deepcopy(gm).cpu().eval()
    return to_module(_model(gm, mark(gm), FORMATS["integer"], None)[0])


def _model(
    gm: GraphModule,
    marked: Marked,
    form: Format,
    batch: int | None,
    opset: int | None = None,
    *,
    sizes: bool = True,
) -> tuple[ModelProto, Lowered, int | None, bool]:
    """Return the ONNX model, what of it computes in integers, its batch, of any size where the graph permits, and
    whether height and width are of any size, too."""
    if batch is not None:
        return *to_onnx(marked, example(gm, batch), form, dynamic="no", opset=opset), batch, False
    traced = example(gm)
    if not share_a_batch(traced):
        return *to_onnx(marked, traced, form, dynamic="no", opset=opset), None, False
    two = example(gm, 2)
    ways: list[Dynamic] = ["sizes", "batch"] if sizes and takes_other_sizes(gm, two) else ["batch"]
    for way in ways:
        try:
            return *to_onnx(marked, two, form, dynamic=way, opset=opset), None, way == "sizes"
        except ExportError:
            # A graph that torch.export traced has the batch as a number in its reshapes.
            continue
    return *to_onnx(marked, traced, form, dynamic="no", opset=opset), tree_leaves(traced)[0].shape[0], False


def provenance(gm: GraphModule, marked: Marked, batch: int | None) -> dict[str, str]:
    """Return what an exported file says of where it comes from; values are JSON where they are not words."""
    spec, plan = gm.meta.get("spec"), gm.meta.get("plan")
    entries = {
        "version": __version__,
        "batch": str(batch or ("any" if takes_any_batch(gm) else "as traced")),
        "weight_bits": json.dumps({path: weight.bits for path, weight in marked.weights.items()}),
        "activation_bits": json.dumps({path: levels.bits for path, levels in marked.activations.items()}),
    }
    if spec is not None:
        entries |= {"weight_quantizer": spec.weight, "activation_quantizer": spec.activation}
    if isinstance(plan, WidthPlan):
        entries |= {"plan_sha256": hashlib.sha256(plan.to_json().encode()).hexdigest(), "model_sha256": plan.model}
    return entries
