"""Networks of chosen widths whose weights are slices of one network, the widest.

A slice is what `resize` and `quantize` make of the widest network at its widths, with the same names; only its
parameters are not its own. They are gathered from the widest's before every forward pass, so that a quantizer sees the
weight that a network of these widths has, and gradients go back into the widest. Statistics of BatchNorm are its own.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx import GraphModule

from nce_fx.devices import device_of
from nce_fx.frozen import Frozen
from nce_fx.ids.labels import Ids
from nce_fx.ids.space import ParameterAxis
from nce_fx.ops.tensors import tensors_of
from nce_fx.passes.analysis.channels import ChannelGroup, analysis_of
from nce_fx.passes.transform.quantize import QuantSpec
from nce_fx.passes.transform.quantize.quantizer_nodes import insert_quantizers
from nce_fx.passes.transform.resize import Kept, ResizeChannels, gathers_of
from nce_fx.passes.transform.widths.choice_sites import carried_order, channel_order, kept_of_parts, ranks_of
from nce_fx.pipeline.base import NOTHING
from nce_fx.quantizers import Quantizer, WeightQuantizer
from nce_fx.search.carrying import of_kind


@dataclass(frozen=True)
class Slice(Frozen):
    """A network at chosen widths, and where in the widest network its parameters lie."""

    network: GraphModule
    places: Mapping[str, tuple[tuple[int, Tensor], ...]]
    """Name of a parameter -> (axis, the positions along it); none where it is the widest's own."""
    quantizers: Mapping[str, str]
    """Path of a quantizer -> its path in the widest network: where channels are put in order, names are others."""

    def source(self, name: str) -> str:
        """Return the name of the widest network's parameter that a parameter is a slice of."""
        owner, _, last = name.rpartition(".")
        return f"{self.quantizers[owner]}.{last}" if owner in self.quantizers else name

    def parameters(self, widest: GraphModule) -> dict[str, Tensor]:
        """Return the parameters, with gradients into those of the widest network."""
        whole, found = dict(widest.named_parameters()), {}
        for name, _ in self.network.named_parameters():
            value: Tensor = whole[self.source(name)]
            for axis, places in self.places.get(name, ()):
                value = value.index_select(axis, places)
            found[name] = value
        return found

    def run(self, widest: GraphModule, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Return the output, as the widest network's weights now are."""
        return functional_call(self.network, self.parameters(widest), inputs, dict(named))

    @torch.no_grad()
    def fill(self, widest: GraphModule) -> None:
        """Give the network the parameters, and what its quantizers know, as the widest's now are."""
        for name, value in self.parameters(widest).items():
            self.network.get_parameter(name).copy_(value)
        for path, theirs in self.quantizers.items():
            self.network.get_submodule(path).load_state_dict(widest.get_submodule(theirs).state_dict())


@dataclass(frozen=True)
class Widest(Frozen):
    """The float network that all slices are cut from, and the order in which its channels go."""

    graph: GraphModule
    order: Mapping[str, tuple[Ids, ...]]
    """Group -> for each of its parts the channels, the one that stays longest first."""
    spec: QuantSpec | None

    left: Mapping[str, str]
    """Groups that have no slices, and why; they keep their widths."""

    @staticmethod
    def of(gm: GraphModule, candidates: Mapping[str, Sequence[int]], spec: QuantSpec | None, seed: int) -> "Widest":
        """Widen every group to the widest of its rising candidates, but for those whose others are no slices of it.

        A group's own channels stay longest, in the order of their importance, then come copies.
        """
        left = _computed(gm, {group: widths[0] for group, widths in candidates.items()})
        while True:
            widths = {group: each[-1] for group, each in candidates.items() if group not in left}
            graph = ResizeChannels(widths, seed)(gm).graph_module
            analysis = analysis_of(graph)
            stuck = [group for group in widths if not _takes(analysis.channels[group], candidates[group])]
            if not stuck:
                break
            left |= dict.fromkeys(stuck, "once it is widened it cannot have all of its other widths")
        indices = {axis: gather.index for axis, gather in gathers_of(gm, widths).items()}
        order, found = carried_order(graph, channel_order(gm), indices), {}
        for group, public in zip(analysis.structure.groups, analysis.channels, strict=True):
            found[public.id] = tuple(ranks_of(analysis, part, order).argsort(kind="stable") for part in group.parts)
        return Widest(graph, found, spec, left)

    def at(self, widths: Mapping[str, int], model: GraphModule) -> Slice:
        """Return the slice of these widths of the network as it is trained."""
        keep, device = self._kept(widths), device_of(model)
        narrow = ResizeChannels(widths, keep=keep).apply(self.graph, NOTHING)
        canonical = tensors_of(self.graph).canonical
        places: dict[str, list[tuple[int, Tensor]]] = {}
        for (path, axis), index in _moved(self.graph, widths, keep).items():
            places.setdefault(path, []).append((axis, torch.from_numpy(index).to(device)))
        network = copy.deepcopy(narrow) if self.spec is None else insert_quantizers(narrow, self.spec)
        found = {name: tuple(places.get(canonical.get(name, name), ())) for name, _ in network.named_parameters()}
        paths = dict(zip(quantizer_paths(network), quantizer_paths(model), strict=True))
        cut = Slice(network.to(device).train(), found, paths)
        cut.fill(model)
        return cut

    def _kept(self, widths: Mapping[str, int]) -> Kept:
        analysis = analysis_of(self.graph)
        kept: dict[str, tuple[tuple[int, ...], ...]] = {}
        for group, public in zip(analysis.structure.groups, analysis.channels, strict=True):
            if public.id in widths:
                counts = kept_of_parts(analysis, group, public, (widths[public.id],))
                order = self.order[public.id]
                kept[public.id] = tuple(
                    tuple(sorted(own[: int(count[0])].tolist())) for own, count in zip(order, counts, strict=True)
                )
        return kept


def quantizer_paths(gm: GraphModule) -> list[str]:
    """Return the paths of a graph's quantizers in the order of their nodes, those of weights first."""
    modules = of_kind(gm, Quantizer)
    paths = [str(node.target) for node in gm.graph.nodes if node.op == "call_module" and node.target in modules]
    return sorted(dict.fromkeys(paths), key=lambda path: not isinstance(modules[path], WeightQuantizer))


def _computed(gm: GraphModule, widths: Mapping[str, int]) -> dict[str, str]:
    """Return the groups that narrow a weight that the graph or weight normalization computes.

    Such a weight is kept as another parameter when it is narrowed.
    """
    computed = analysis_of(gm).structure.tie.computed.keys() | tensors_of(gm).normed.keys()
    refused: dict[str, str] = {}
    for group, width in widths.items() if computed else ():
        found = sorted(computed & {path for path, _ in _moved(gm, {group: width})})
        if found:
            refused[group] = f"{found[0]} is computed from other parameters, and has no slices"
    return refused


def _takes(group: ChannelGroup, widths: Sequence[int]) -> bool:
    """Whether a group can have all of these widths."""
    return widths[0] >= group.min_width and all((group.width - width) % group.step == 0 for width in widths)


def _moved(gm: GraphModule, widths: Mapping[str, int], keep: Kept | None = None) -> dict[ParameterAxis, Ids]:
    """Return for each parameter axis that narrowing to these widths changes the positions that stay."""
    tensors = tensors_of(gm).tensors
    return {
        (path, axis): gather.index
        for (path, axis), gather in gathers_of(gm, widths, keep).items()
        if axis >= 0 and len(gather.index) != tensors[path].shape[axis]
    }
