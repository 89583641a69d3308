"""Distillation with features: where the student looks shall be where the teacher does (Zagoruyko and Komodakis 2017,
"Paying more attention to attention", arXiv 1612.03928).

    map(A) = v / |v|,   v = sum over channels of A^2, a vector over places
    loss = mean over layers of |map_student - map_teacher|^2

A map has no channels, so student and teacher may have other widths. Compared are what the student's quantizers give and
what the teacher has at the same places: of each size of image, or number of tokens, the last one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from nce_fx.by_mode import ModeCode
from nce_fx.errors import InputError
from nce_fx.ops.work import shape_of
from nce_fx.passes.transform.quantize.calibrate import quantized_value
from nce_fx.paths import called
from nce_fx.quantizers import ActivationQuantizer


def tapped(student: nn.Module, teacher: nn.Module) -> tuple[GraphModule, GraphModule]:
    """Return both models with a second output, their tensors at the same places; weights are shared with the models.

    Raises:
        InputError: a model that is no graph, or graphs that have no places in common.
    """
    if not isinstance(student, GraphModule) or not isinstance(teacher, GraphModule):
        raise InputError("recipe: distill_features needs the student and the teacher as graphs: trace them first")
    theirs = {node.name: node for node in teacher.graph.nodes}
    pairs: dict[tuple[int, ...], tuple[Node, Node]] = {}
    for node in student.graph.find_nodes(op="call_module"):
        quantizer = called(student, node, ActivationQuantizer)
        if quantizer is None:
            continue
        place = theirs.get(quantized_value(quantizer, node))
        if place is None or place.op == "placeholder":
            continue
        shape = shape_of(place)
        if len(shape) > 2:
            pairs[shape[2:] if len(shape) > 3 else shape[1:2]] = node, place
    if not pairs:
        raise InputError(
            "recipe: distill_features compares quantized images or tokens with the teacher's at the same places, and"
            " student and teacher have none in common: leave it out, or quantize a graph of the teacher's names"
        )
    own, other = zip(*pairs.values(), strict=True)
    return _with_outputs(student, own), _with_outputs(teacher, other)


def feature_loss(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """Return the mean over places of the squared distance of maps, a mean over samples as well: in [0, 2]."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([(_map(a) - _map(b)).square().sum(1).mean() for a, b in pairs]).mean()


def _map(values: Tensor) -> Tensor:
    """(N, channels, places ...) or (N, tokens, channels) -> (N, places), each row of length one."""
    return F.normalize(values.float().square().sum(1 if values.dim() > 3 else 2).flatten(1), dim=1)


def _with_outputs(gm: GraphModule, nodes: tuple[Node, ...]) -> GraphModule:
    graph, copies = Graph(), dict[Node, Node]()
    result = graph.graph_copy(gm.graph, copies)
    graph.output((result, tuple(copies[node] for node in nodes)))
    if isinstance(gm.graph._codegen, ModeCode):
        graph.set_codegen(ModeCode())  # a teacher runs what evaluation needs alone
    return GraphModule(gm, graph)
