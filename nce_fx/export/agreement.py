"""Running an exported file against PyTorch before anyone relies on it.

Two programs that add in another order differ in the last bits of a sum. Where such a sum lies on the border between two
levels, they round it to different ones, both rightly, and the outputs differ by far more than the last bits. So outputs
that are not equal are compared once more, with PyTorch following onnxruntime over each border: every quantizer's result
must be PyTorch's own, or the neighbouring level of a value that lies on the border between the two; from there on
PyTorch goes on with onnxruntime's level. What is left over is an error, however small the effect on the output.

Where no quantizer lies between, last bits grow from layer to layer, in float networks past the tolerance. So allowed is
what rounding does to PyTorch's own outputs, too: how far these lie from the same graph computed in double precision.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves, tree_map

from nce_fx.by_mode import idle_in
from nce_fx.errors import ExportError
from nce_fx.export.formats import QONNX_DOMAIN
from nce_fx.export.integer import Lowered
from nce_fx.export.program import reason
from nce_fx.paths import called
from nce_fx.progress import counted
from nce_fx.quantizers import ActivationQuantizer, WeightQuantizer

TOLERANCE = 1e-5
"""Largest difference of outputs, relative to the largest output."""

ROUNDING = 8.0
"""Largest difference of outputs as a multiple of PyTorch's own from double precision, where that allows more: both
programs have an error of that size, and either may be the lucky one."""

BORDER = 1e-5
"""How far from the border of two levels a value may lie to count as on it, relative to the largest value."""

SHARE = 5e-3
"""How many values of a tensor may be on the next level where whole numbers cannot say where its levels rise: of 8 bits,
from sums that are hardly finer themselves."""

RARE, FEW = 10_000, 3
"""Of how many values that are computed in integers one may be on a border and fall to its other side, and how many are
no cause for doubt however few there are in all. With exact scales none may."""

LEVELS: Mapping[str, Any] = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
"""Optimization levels of onnxruntime that a file is run at; what "layout" adds is in "all"."""


@dataclass(frozen=True)
class Agreement:
    """How close onnxruntime comes to PyTorch at one optimization level."""

    difference: float
    """Largest difference of outputs, relative to the largest output."""
    on_border: int
    """Activations that lie on the border of two levels and were rounded to the other one."""


def check_agreement(
    gm: GraphModule,
    model: ModelProto,
    content: bytes,
    inputs: tuple[Any, ...],
    *,
    exact_when_optimized: bool = True,
    lowered: Lowered | None = None,
) -> dict[str, Agreement]:
    """Return how close the file comes to the graph, at every level of `LEVELS`.

    Args:
        gm: the quantized graph, in evaluation mode.
        model: what the file says.
        content: the bytes of the file.
        inputs: what to run both on.
        exact_when_optimized: False where onnxruntime's optimizations go on to compute in integers; then at levels above
            "disabled" the outputs must be finite and of the right shapes, and no more.
        lowered: what of the file computes in integers; each of its tensors is compared then.

    Raises:
        ExportError: the file does not load, or its outputs differ, or the graph does not take the inputs.
    """
    try:
        with torch.no_grad():
            expected = [value.cpu().numpy() for value in tree_leaves(gm(*inputs)) if isinstance(value, Tensor)]
    except Exception as error:
        # Whatever the model's own code raises, as EmbeddingBag does of random numbers that are no offsets.
        said = f"the graph does not run on the example that its file is compared on ({reason(error)})"
        raise ExportError(f"{said}: give inputs= that it takes") from error
    agreements = {}
    for name, level in counted(LEVELS.items()):
        got = _run(content if not _foreign(model) else runnable(model).SerializeToString(), inputs, level)
        difference = _difference(got, expected, name)
        on_border = 0
        integers = lowered is not None and bool(lowered.activations)
        if (difference > TOLERANCE or integers) and (exact_when_optimized or name == "disabled"):
            difference, on_border = follow(gm, model, inputs, name, lowered)
        agreements[name] = Agreement(difference, on_border)
    return agreements


def runnable(model: ModelProto) -> ModelProto:
    """Return a copy whose Quant nodes onnxruntime can run: QONNX's definition of them, as a function in the file."""
    result = ModelProto()
    result.CopyFrom(model)
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    result.functions.append(onnx.parser.parse_function(_QUANT.replace("OPSET", str(opset))))
    return result


_QUANT = f"""
<opset_import: ["": OPSET], domain: "{QONNX_DOMAIN}">
Quant <signed, narrow, rounding_mode> (x, scale, zero_point, bits) => (y) {{
    one = Constant <value_float = 1.0> ()
    two = Constant <value_float = 2.0> ()
    signed_int = Constant <value_int: int = @signed> ()
    signed_float = Cast <to = {TensorProto.FLOAT}> (signed_int)
    exponent = Sub (bits, signed_float)
    reach = Pow (two, exponent)
    high = Sub (reach, one)
    reach_below = Mul (reach, signed_float)
    low = Neg (reach_below)
    steps = Div (x, scale)
    place = Add (steps, zero_point)
    above = Max (place, low)
    inside = Min (above, high)
    whole = Round (inside)
    level = Sub (whole, zero_point)
    y = Mul (level, scale)
}}"""


def _foreign(model: ModelProto) -> bool:
    return any(entry.domain == QONNX_DOMAIN for entry in model.opset_import)


def _run(content: bytes, inputs: tuple[Any, ...], level: Any) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        tensors = [value.cpu().numpy() for value in tree_leaves(inputs) if isinstance(value, Tensor)]
        names = [value.name for value in session.get_inputs()]
        return list(session.run(None, dict(zip(names, tensors, strict=True))))
    except Exception as error:
        # onnxruntime has no common class of errors.
        raise ExportError(f"onnxruntime refuses the exported file: {' '.join(str(error).split())[:300]}") from error


def _difference(got: list[Any], expected: list[Any], level: str) -> float:
    """Return the largest relative difference of outputs.

    Raises:
        ExportError: outputs of other shapes, or not finite where PyTorch's are.
    """
    worst = 0.0
    for index, (mine, theirs) in enumerate(zip(got, expected, strict=False)):
        if len(got) < len(expected) or mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            raise ExportError(
                f"output {index} of the exported file has shape {mine.shape} in onnxruntime, {theirs.shape} in PyTorch"
            )
        if not theirs.size or theirs.dtype.kind != "f":
            worst = max(worst, float(not np.array_equal(mine, theirs)))
            continue
        error = np.abs(mine.astype(np.float64) - theirs).max()
        if not np.isfinite(error):
            raise ExportError(f"output {index} of the exported file is not finite, optimization level {level!r}")
        worst = max(worst, float(error / max(np.abs(theirs).max(), np.finfo(np.float32).tiny)))
    return worst


def follow(
    gm: GraphModule, model: ModelProto, inputs: tuple[Any, ...], level: str, lowered: Lowered | None = None
) -> tuple[float, int]:
    """Return the difference of outputs where PyTorch follows onnxruntime over borders, and how many values that were.

    Args:
        gm: the quantized graph, in evaluation mode.
        model: what the file says.
        inputs: what to run both on.
        level: an optimization level of `LEVELS`.
        lowered: what of the file computes in integers.

    Raises:
        ExportError: a quantizer's result is neither, or the outputs differ all the same.
    """
    quantizers = [
        node.target
        for node in gm.graph.find_nodes(op="call_module")
        if called(gm, node, ActivationQuantizer) is not None
    ]
    observed = runnable(model) if _foreign(model) else ModelProto.FromString(model.SerializeToString())
    outputs = len(observed.graph.output)
    there = {value for node in observed.graph.node for value in node.output} - {v.name for v in observed.graph.output}
    watched = [target for target in quantizers if target in there]
    lowered = lowered or Lowered()
    for target in watched:
        kind = TensorProto.UINT8 if target in lowered.activations else TensorProto.FLOAT
        observed.graph.output.append(helper.make_tensor_value_info(target, kind, None))
    results = _run(observed.SerializeToString(), inputs, LEVELS[level])
    found = {name: lowered.floats(name, value) for name, value in zip(watched, results[outputs:], strict=True)}
    follower = _Follower(gm, found, lowered)
    try:
        with torch.no_grad():
            ours = follower.run(*inputs, initial_env=idle_in(gm, training=False))
            expected = [value.numpy() for value in tree_leaves(ours) if isinstance(value, Tensor)]
    except ExportError as error:
        # fx adds its own lines to what is raised inside an interpreter.
        raise ExportError(str(error).splitlines()[0]) from None
    follower.check_counts(level)
    difference = _difference(results[:outputs], expected, level)
    allowed = TOLERANCE
    if difference > allowed:
        allowed = max(allowed, ROUNDING * _own_error(gm, inputs, follower.activations, expected, level))
    if difference > allowed:
        raise ExportError(
            f"the exported file's outputs differ from PyTorch's by {difference:.1e} of the largest, more than"
            f" {allowed:.0e}, at optimization level {level!r}"
        )
    return difference, follower.on_border


def _own_error(
    gm: GraphModule, inputs: tuple[Any, ...], activations: Mapping[str, Any], expected: list[Any], level: str
) -> float:
    """How far PyTorch's outputs lie from double precision; 0 where the graph does not run in it."""
    try:
        with torch.no_grad():
            run = _Wide(gm, activations)
            idle = idle_in(run.module, training=False)  # type: ignore[arg-type]
            wide = tree_leaves(run.run(*tree_map(_doubled, inputs), initial_env=idle))
    except Exception:
        # Whatever the model's own code raises where it asks for float32; then nothing more is allowed.
        return 0.0
    exact = [value.numpy() for value in wide if isinstance(value, Tensor)]
    same = [value.astype(other.dtype) for value, other in zip(exact, expected, strict=True)]
    return _difference(same, expected, level)


class _Wide(Interpreter):
    """Runs a graph in double precision, on its own quantized weights and given quantized activations."""

    def __init__(self, gm: GraphModule, activations: Mapping[str, Any]) -> None:
        super().__init__(copy.deepcopy(gm).double())
        self.narrow, self.activations = gm, activations

    def run_node(self, n: Node) -> Any:
        if n.op == "call_module" and str(n.target) in self.activations:
            return torch.from_numpy(np.array(self.activations[str(n.target)])).double()
        if n.op == "call_module" and isinstance(self.fetch_attr(str(n.target)), WeightQuantizer):
            # In double precision a weight could fall on another level.
            narrow = self.narrow.get_submodule(str(n.target))
            return narrow(self.fetch_args_kwargs_from_env(n)[0][0].float()).double()
        return super().run_node(n)


def _doubled(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


class _Follower(Interpreter):
    """Runs a graph with the quantized activations of another program, having checked each."""

    def __init__(self, gm: GraphModule, activations: Mapping[str, Any], lowered: Lowered) -> None:
        super().__init__(gm)
        self.activations, self.lowered = activations, lowered
        self.on_border = self.computed = self.computed_on_border = 0
        self.exact = all(gm.get_submodule(name).exact for name in activations)

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op != "call_module" or str(n.target) not in self.activations:
            return result
        theirs = torch.from_numpy(np.array(self.activations[str(n.target)])).to(result.device)
        other = (theirs - result).abs() > 1e-6 * result.abs().amax()
        count = int(other.sum())
        if str(n.target) in self.lowered.computed:
            self.computed, self.computed_on_border = self.computed + theirs.numel(), self.computed_on_border + count
        if count:
            self._check(n, self.fetch_args_kwargs_from_env(n)[0][0], result, theirs, other)
            self.on_border += count
        return theirs

    def check_counts(self, level: str) -> None:
        """Refuse integers that fall on other levels more often than floats of another order of sums would."""
        if self.computed_on_border > (0 if self.exact else max(self.computed // RARE, FEW)):
            most = "with exact scales none may" if self.exact else f"one in {RARE:,} may"
            raise ExportError(
                f"the exported file puts {self.computed_on_border} of {self.computed} values that it computes in"
                f" integers on another level than PyTorch, at optimization level {level!r}: {most}"
            )

    def _check(self, node: Node, x: Tensor, mine: Tensor, theirs: Tensor, other: Tensor) -> None:
        quantizer = self.fetch_attr(str(node.target))
        scale = float(quantizer.integers(x[:1]).scale)
        border = quantizer.border(mine[other], theirs[other])
        near = (x[other] - border).abs() <= BORDER * max(float(x.abs().amax()), scale)
        neighbours = (mine - theirs)[other].abs() <= 1.01 * scale
        if str(node.target) in self.lowered.misses and int(other.sum()) <= max(SHARE * mine.numel(), 1):
            near = neighbours
        if not bool((near & neighbours).all()):
            wrong = int((~(near & neighbours)).sum())
            raise ExportError(
                f"the exported file computes {wrong} of {mine.numel()} values of {node.name} otherwise than PyTorch"
            )
