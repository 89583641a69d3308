"""The laws of the compiler, each one function that holds for any model: see the README's "What is guaranteed".

Every law takes a model in eval mode and its example inputs, and raises AssertionError with the numbers where it fails.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import pickle
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_flatten

import nce_fx
from nce_fx.copying import copy_model
from nce_fx.errors import BudgetError
from nce_fx.passes.analysis.channels import ChannelGraph, owner_path
from nce_fx.passes.analysis.cost import CostReport
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.planning.budget import count, plan_and_build
from nce_fx.passes.transform.quantize.quantizable_layers import find_quantizable_layers
from nce_fx.passes.transform.resize import gathers_of
from nce_fx.quantities import known_quantities
from tests.drawing import Traced, keep, narrower, traced, wider
from tests.observing import (
    again,
    copied,
    counted,
    difference,
    in_training,
    in_turn,
    layers,
    loss_of,
    materialize,
    producing_nodes,
    reading_axes,
    run,
    state_of,
    to_dtype,
    watched,
    weight_node,
    without_dropout,
)
from tests.signs import wrong_signs
from tests.threads import mean_square, plans_at_all_threads
from tests.zoo.model import randomize

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def kept_channels(gm: Any, widths: Mapping[str, int]) -> dict[tuple[str, int], list[int]]:
    """Return for each parameter axis that narrowing to these widths shortens the positions that are kept."""
    return {axis: sorted(set(gather.index.tolist())) for axis, gather in gathers_of(gm, widths).items()}


def the_graph_is_the_model(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> None:
    """Law 0: in both modes, whichever was traced, at other values and batch sizes; the model is what it was.

    What is said to be never negative is not, in the mode that was traced.
    """
    said: dict[bool, list[Any]] = {}
    for training in (False, True):
        own = copy.deepcopy(model).double().train(training)
        examples = to_dtype(inputs, torch.float64)
        before, held = state_of(own), {path: dict(vars(m)) for path, m in own.named_modules()}
        gm = nce_fx.trace(own, examples)
        assert gm.state_dict().keys() == own.state_dict().keys(), "the names in the state are others"
        assert state_of(own) == before, "tracing changed the model's tensors"
        if not training:
            # The other laws take it as it is here.
            keep(model, torch.float64, Traced(gm, examples, nce_fx.analyze_channels(gm)))
        for path, module in own.named_modules():
            now = vars(module)
            assert now.keys() == held[path].keys(), f"tracing left {now.keys() ^ held[path].keys()} at {path!r}"
            assert all(now[k] is v for k, v in held[path].items()), f"tracing changed what {path!r} holds"
        for mode in (training, not training):
            others = examples, again(examples, seed), again(examples, seed, batch=3)
            # The model is the same at both times.
            if mode not in said:
                said[mode] = in_turn(own, mode, others)
            runs = {number: wanted for number, wanted in enumerate(said[mode]) if wanted is not None}
            if mode == training and 0 in runs:
                negative = wrong_signs(gm, examples)
                assert not negative, f"training={training}: {negative} are said to be never negative"
            graph_said = in_turn(gm, mode, [others[number] for number in runs])
            for wanted, got in zip(runs.values(), graph_said, strict=True):
                assert got is not None, f"in training={mode} the graph fails where the model runs"
                (outputs, moved), (graph_outputs, graph_moved) = wanted, got
                off = difference(outputs, graph_outputs)
                where = f"traced in training={training}, run in training={mode}"
                assert off <= TOLERANCE[torch.float64], f"{where}: off by {off:.2e}"
                for name in moved.keys() & graph_moved.keys():
                    torch.testing.assert_close(graph_moved[name], moved[name], msg=f"buffer {name} in training={mode}")


def widening_keeps_the_function(
    model: nn.Module, inputs: tuple[Any, ...], seed: int = 0, dtypes: Iterable[torch.dtype] = tuple(TOLERANCE)
) -> None:
    """Law 1: in float64 and float32, and 1x is the identity bit for bit."""
    for dtype in dtypes:
        tolerance = TOLERANCE[dtype]
        t = traced(model, inputs, dtype)
        before = run(t.gm, t.inputs)
        faithful = difference(run(copy.deepcopy(model).to(dtype).eval(), t.inputs), before)
        assert faithful <= tolerance, f"the traced graph differs from the model by {faithful:.2e}"
        widths = wider(t.channels, seed)
        off = difference(before, run(t.resized(widths, seed), t.inputs))
        assert off <= tolerance, f"{dtype}: off by {off:.2e} at {widths}"
    same = nce_fx.resize(t.gm, t.channels.widths)
    for x, y in zip(before, run(same, t.inputs), strict=True):
        assert torch.equal(x, y), "1x is not the identity"
    for (name, x), y in zip(t.gm.state_dict().items(), same.state_dict().values(), strict=True):
        assert torch.equal(x, y), f"1x changed {name}"


def new_channels_live(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> None:
    """Law 2: after one training step every new channel has received gradient, and copies have left each other.

    Copies are recognized by what they put out, and have left each other where the same inputs, as they were before the
    step, now give different outputs: by their own weights, not by what comes before them. One whose parent is dead in
    the original cannot live: nothing but zeros, no gradient that moves the loss by more than it is rounded, or none
    that moves the parent's own weights by more (behind it a ReLU that is shut, a BatchNorm that takes its scale away,
    a softmax that takes a shift). Nor can copies part which no weight tells apart, because none reads them or all that
    do are shut, so that only a mean, a maximum or a norm over channels feels them, each alike: if one could, changed
    weights that read would give them gradients that differ by more than they are rounded.
    """
    t = traced(model, inputs)
    widths = wider(t.channels, seed)
    producers = [p for g in t.channels.groups if widths.get(g.id, g.width) > g.width for p in g.producers]
    wide = t.resized(widths, seed)
    axes = producing_nodes(t.gm, producers)
    old, new = watched(t.gm, t.inputs, axes), watched(wide, t.inputs, axes)
    original = without_dropout(t.gm, t.inputs)
    reference = watched(original, t.inputs, axes)
    loss = loss_of(reference.outputs)
    if not _has_gradients(loss):
        return
    _step(original)
    trained = without_dropout(wide, t.inputs)
    seen = watched(trained, t.inputs, axes)
    torch.autograd.backward(loss_of(seen.outputs))
    _step(trained)
    for name in sorted(axes.keys() & reference.seen.keys()):
        before, after = (old, new) if name in old.seen else (reference, seen)
        parents = _parents(before.channels(name), after.channels(name))
        # More than rounding: some models compute in float32, whatever they are given.
        least = 1e-3 * TOLERANCE[before.channels(name).dtype]
        expected, got = reference.gradients(name).abs().amax(1), seen.gradients(name).abs().amax(1)
        spoken = torch.minimum(before.channels(name).abs().amax(1), reference.channels(name).abs().amax(1))
        alive = (expected > 1e3 * least * expected.max()) & (expected * spoken > least * float(loss.detach()))
        moved = (reference.again(name) - reference.channels(name)).abs().amax(1)
        # Of a scale that a BatchNorm takes away, its epsilon leaves about 1e-10.
        alive &= moved > max(least, 1e-9) * reference.channels(name).abs().amax(1)
        outputs = seen.again(name)
        for channel, parent in enumerate(parents):
            if not alive[parent]:
                continue
            assert got[channel] > 0, f"{name}: channel {channel}, copy of {parent}, has no gradient at {widths}"
            twins = [k for k in range(channel) if parents[k] == parent and torch.equal(outputs[k], outputs[channel])]
            twins = [k for k in twins if _told_apart(wide, t.inputs, name, axes[name], k, channel)]
            assert not twins, f"{name}: copies {twins[0]} and {channel} of {parent} stay equal at {widths}"


def _told_apart(wide: GraphModule, inputs: tuple[Any, ...], name: str, axis: int, a: int, b: int) -> bool:
    """Whether two channels that put out the same get different gradients once every weight that reads is changed."""
    changed = without_dropout(wide, inputs)
    materialize(changed)
    parameters = dict(changed.named_parameters(remove_duplicate=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, along in sorted(reading_axes(changed)):
            if path in parameters:
                shape = [-1 if k == along else 1 for k in range(parameters[path].dim())]
                factors = 1 + 1e-3 * torch.rand(parameters[path].shape[along], generator=generator)
                parameters[path].mul_(factors.reshape(shape))
    seen = watched(changed, inputs, {name: axis}, (a, b))
    torch.autograd.backward(loss_of(seen.outputs))
    one, other = (seen.gradients(name)[channel] for channel in (a, b))
    return float((one - other).abs().max()) > max(1e-12, 100 * torch.finfo(one.dtype).eps) * float(one.abs().max())


def _has_gradients(loss: torch.Tensor) -> bool:
    """Go back from the loss of an original; False where it writes over what its own gradients need."""
    try:
        torch.autograd.backward(loss)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return False
    return True


def _step(model: nn.Module) -> None:
    """Do one step of training with the gradients that are there."""
    moved = [p for p in model.parameters() if p.grad is not None]
    nn.utils.clip_grad_norm_(moved, 1.0)
    torch.optim.SGD(moved, lr=0.1).step()


def _parents(old: torch.Tensor, new: torch.Tensor) -> list[int]:
    distance = torch.cdist(new, old, p=float("inf"), compute_mode="donot_use_mm_for_euclid_dist")
    least, parent = distance.min(1)
    worst = float(least.max())
    allowed = TOLERANCE[old.dtype] * max(1.0, float(old.abs().max()))
    assert worst <= allowed, f"a new channel is no copy of any: {worst:.2e} off"
    return [int(p) for p in parent]


def narrowing_is_removal(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> None:
    """Law 3: the narrowed model equals the original with zeros where weights read and make the dropped channels.

    Where one product of data sums over channels (queries and keys of one head), no weight reads them.
    """
    t = traced(model, inputs)
    widths = narrower(t.channels, seed)
    if not widths:
        return
    narrow = nce_fx.resize(t.gm, widths, seed=seed)
    masked = copy.deepcopy(t.gm)
    materialize(masked)
    tensors = dict([*masked.named_parameters(remove_duplicate=False), *masked.named_buffers(remove_duplicate=False)])
    reading, parameters = reading_axes(masked), dict(masked.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for (name, axis), kept in kept_channels(t.gm, widths).items():
            path = re.sub(r"\.parametrizations\.weight\.\w+$", ".weight", name)
            # In an exported graph the direction's place has the weight.
            path = path if path in tensors else name
            if path != name and path in tensors and tensors[path].shape[axis] != t.gm.get_parameter(name).shape[axis]:
                continue  # lengths along other axes, of one entry here
            making = path in parameters and not path.endswith(("weight_g", "weight_v"))
            if ((path, axis) in reading or making) and len(kept) < tensors[path].shape[axis]:
                dropped = sorted(set(range(tensors[path].shape[axis])) - set(kept))
                tensors[path].index_fill_(axis, torch.tensor(dropped, device=tensors[path].device), 0.0)
    off = difference(run(masked, t.inputs), run(narrow, t.inputs))
    assert off <= TOLERANCE[torch.float64], f"off by {off:.2e} at {widths}"
    smaller = sum(p.numel() for p in narrow.parameters())
    assert smaller < sum(p.numel() for p in t.gm.parameters()), f"nothing became smaller at {widths}"


def the_output_is_the_users(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> None:
    """Law 4: shapes, types, structure, names, sizes, state, both modes, gradients; the input model is untouched."""
    t = traced(model, inputs, torch.float32)
    state = {name: tensor.clone() for name, tensor in t.gm.state_dict().items()}
    code, before = t.gm.code, t.gm(*copied(t.inputs))
    plans = wider(t.channels, seed), narrower(t.channels, seed + 1)
    resized = [t.resized(changed, seed) for changed in plans]
    for changed, wide in zip(plans, resized, strict=True):
        after = wide(*copied(t.inputs))
        (old, old_spec), (new, new_spec) = tree_flatten(before), tree_flatten(after)
        assert old_spec == new_spec, f"the structure {old_spec} became {new_spec}"
        assert [(x.shape, x.dtype) for x in old] == [(x.shape, x.dtype) for x in new], "shapes or types changed"
        assert [n for n, _ in wide.named_parameters()] == [n for n, _ in t.gm.named_parameters()], "names changed"
        assert list(wide.state_dict()) == list(state), "the names in the state changed"
        _sizes_are_said(wide)
        other = nce_fx.resize(t.gm, changed, seed=seed + 1)
        other.load_state_dict(wide.state_dict(), strict=True)
        for x, y in zip(new, tree_flatten(other(*copied(t.inputs)))[0], strict=True):
            assert torch.equal(x, y), "the state does not carry over to a model of the same widths"
        in_training(wide)(*copied(t.inputs))
    assert t.gm.code == code, "resize changed the code of its input"
    for name, tensor in t.gm.state_dict().items():
        assert torch.equal(state[name], tensor), f"resize changed {name} of its input"
    _gradients_reach_all(t.gm, resized[0], t.inputs)


def _sizes_are_said(gm: GraphModule) -> None:
    """Check that modules print the sizes that their weights have."""
    for name, module in gm.named_modules():
        if not isinstance(weight := getattr(module, "weight", None), torch.Tensor):
            continue
        match module:
            case nn.modules.conv._ConvNd():
                channels = weight.shape[0], weight.shape[1] * module.groups
                says = channels == ((module.out_channels, module.in_channels)[:: -1 if module.transposed else 1])
            case nn.Linear():
                says = weight.shape == (module.out_features, module.in_features)
            case nn.Embedding():
                says = weight.shape == (module.num_embeddings, module.embedding_dim)
            case nn.modules.batchnorm._NormBase():
                says = weight.shape == (module.num_features,)
            case nn.GroupNorm():
                says = weight.shape == (module.num_channels,)
            case nn.LayerNorm() | nn.RMSNorm():
                says = weight.shape == tuple(module.normalized_shape)
            case _:
                continue
        assert says, f"{name} says that it is {module}, and its weight is of {tuple(weight.shape)}"


def _gradients_reach_all(gm: GraphModule, wide: GraphModule, inputs: tuple[Any, ...]) -> None:
    """Check the gradients in training: what only evaluation runs may overwrite what they need."""
    old, new = without_dropout(gm, inputs), without_dropout(wide, inputs)
    if not _has_gradients(loss_of(old(*copied(inputs)))):
        return
    torch.autograd.backward(loss_of(new(*copied(inputs))))
    now = dict(new.named_parameters())
    for name, parameter in old.named_parameters():
        if parameter.numel() and parameter.grad is not None and float(parameter.grad.abs().max()) > 1e-5:
            gradient = now[name].grad
            assert gradient is not None, f"no gradient reaches {name} any more"
            assert float(gradient.abs().max()) > 0, f"no gradient reaches {name} any more"


def _readers(gm: GraphModule, weight: int) -> int:
    """Return how many nodes read a parameter, by its id."""
    parameters = dict(gm.named_parameters(remove_duplicate=False))
    modules = dict(gm.named_modules(remove_duplicate=False))
    count = 0
    for node in gm.graph.nodes:
        if node.op == "get_attr" and id(parameters.get(str(node.target))) == weight:
            count += len(node.users)
        elif node.op == "call_module":
            count += any(id(p) == weight for p in modules[str(node.target)].parameters())
    return count


def _is_merged(gm: GraphModule, name: str) -> bool:
    """Whether the weight of a layer, by its node, is computed by a product of several parameters."""
    weight, _ = weight_node(next(node for node in gm.graph.nodes if node.name == name))
    pending = [weight] if weight is not None else []
    while pending:
        node = pending.pop()
        if weight_node(node)[1]:
            return True
        pending.extend(node.all_input_nodes)
    return False


def nothing_is_silent(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> None:
    """Law 5: every convolution and linear is in exactly one group; pinned ones say where and why.

    A weight that makes channels along both its axes (tied weights) is in two, one for each axis; one that is merged of
    several layers' is in those of each. The output itself has no line in the user's source that fx knows of.
    """
    t = traced(model, inputs)
    parameters = dict(t.gm.named_parameters(remove_duplicate=False))
    for node, paths in layers(t.gm).items():
        named = [name for path in paths for name in (path, f"{path}.weight") if name in parameters]
        weights = {id(parameters[name]) for name in named}
        tied = {name.removesuffix(".weight") for name, p in parameters.items() if id(p) in weights}
        computed = {
            name for name in parameters for path in paths if name.startswith(f"{path}.parametrizations.weight.")
        }
        names = {owner_path(path) for path in paths | tied | computed}
        groups = [g for g in t.channels.groups if names & set(g.producers)]
        twice = len(groups) == 2 and any(_readers(t.gm, weight) > 1 for weight in weights)
        merged = _is_merged(t.gm, node) and all(sum(path in g.producers for g in groups) <= 1 for path in paths)
        once = len(groups) == 1 or twice or (groups and (merged or all(g.pinned for g in groups)))
        assert once, f"{node} ({', '.join(sorted(names))}) is in {len(groups)} groups: {[g.id for g in groups]}"
    ids = [g.id for g in t.channels.groups]
    assert len(set(ids)) == len(ids), f"two groups have one id: {sorted(i for i in ids if ids.count(i) > 1)}"
    lines = [node.name for node in t.gm.graph.nodes]
    for group in t.channels.groups:
        if group.pinned is not None:
            assert any(name in group.pinned for name in lines), f"{group.id}: no node is named in {group.pinned!r}"
            if t.gm.meta.get("traced") == "fx" and "(output)" not in group.pinned:
                assert ".py:" in group.pinned, f"{group.id}: no source line in {group.pinned!r}"


def cost_is_exact(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> None:
    """Law 6: the cost at any widths is what PyTorch counts on the model resized to them."""
    t = traced(model, inputs, torch.float32)
    cost = t.cost
    assert (cost.macs, cost.params) == t.counted, "the original is not counted right"
    for widths in (
        wider(t.channels, seed),
        narrower(t.channels, seed),
        {**wider(t.channels, seed + 1), **narrower(t.channels, seed + 2)},
    ):
        at, resized = cost.at(widths), t.resized(widths)
        assert (at.macs, at.params) == counted(resized, t.inputs), f"at {widths}"


@dataclass(frozen=True)
class MadeUpSensitivity:
    """Made up, but fixed: a number for each name."""

    by_group: dict[str, float]
    metric: str = "made up"

    @staticmethod
    def of(channels: ChannelGraph, seed: int) -> MadeUpSensitivity:
        return MadeUpSensitivity({g.id: 0.1 + zlib.crc32(f"{g.id}{seed}".encode()) / 2**32 for g in channels.groups})


def the_budget_holds(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> None:
    """Law 7: a plan costs no more than its budget, as counted on the resized model; or it is refused in words."""
    t = traced(model, inputs, torch.float32)
    (macs, parameters), made_up = t.counted, MadeUpSensitivity.of(t.channels, seed)
    for ratio in ({"macs": 1.0, "params": 1.0}, {"params": 1.3, "macs": 0.8}, {"macs": 0.01}):
        refusal = ""
        try:
            plan = nce_fx.plan_widths(t.channels, t.cost, made_up, nce_fx.Budget(**ratio))
        except BudgetError as error:
            refusal = str(error)
        if refusal:
            assert min(ratio.values()) < 1, f"the original itself is within {ratio}, yet: {refusal}"
            assert len(refusal.split()) > 4, f"refused without words: {refusal}"
            continue
        counts = counted(nce_fx.resize(t.gm, plan), t.inputs)
        assert counts[0] <= macs * ratio.get("macs", 1e9), f"{counts[0]} MACs of {macs} at {ratio}: {plan.changed}"
        assert counts[1] <= parameters * ratio.get("params", 1e9), f"{counts[1]} of {parameters} at {ratio}"


QUANTIZED = (
    nce_fx.QuantSpec(),
    nce_fx.QuantSpec(weight_bits=2, activation_bits=8, sums="int8"),
    nce_fx.QuantSpec("lsq", "lsq", 3, None, None, "float"),
    nce_fx.QuantSpec("minmax", "dorefa", None, 4, 2),
    nce_fx.QuantSpec("dorefa", "minmax", 2, 4, 2, overrides={"*a*": {"weight_bits": 5}, "*": {"activation_bits": 3}}),
)
"""Unequal bits, ends of 8, of 2 and in float, overrides, every quantizer."""
BUDGETS: tuple[dict[str, float], ...] = (
    dict.fromkeys(known_quantities(), 1.0),
    {"bit_ops": 0.8},
    {"weight_bytes": 0.8},
    {"activation_bytes": 0.9, "custom": 1.1},
    {"macs": 0.9, "params": 1.2, "bit_ops": 1.0},
)


def the_budget_holds_at_any_bits(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> None:
    """Law 7, for every quantity at unequal bits: what a plan says it costs is what the network built from it costs, by
    the count that the report makes, and that is within the budget.

    Each model is asked at one of the specs, which its code and the seed choose: a corpus asks all of them many times.
    """
    t = traced(model, inputs, torch.float32)
    layers = [each.path for each in find_quantizable_layers(t.gm, nce_fx.QuantSpec())]
    chosen = (zlib.crc32(t.gm.code.encode()) + seed) % len(QUANTIZED)
    spec, ratios = QUANTIZED[chosen], BUDGETS[chosen]
    matched = {pattern: bits for pattern, bits in spec.overrides.items() if fnmatch.filter(layers, pattern)}
    _holds_in_the_report(t, dataclasses.replace(spec, overrides=matched), ratios, seed)


def _holds_in_the_report(t: Traced, spec: nce_fx.QuantSpec, ratios: Mapping[str, float], seed: int) -> None:
    uniform = nce_fx.quantize(t.gm, spec)
    hardware = _products(nce_fx.analyze_cost(t.gm, t.channels, quantized=uniform))
    cost = nce_fx.analyze_cost(t.gm, t.channels, quantized=uniform, hardware=hardware)
    before = count(uniform, cost)
    assert cost.total == before, f"{spec}: the original is not counted right"
    sensitivity, budget = MadeUpSensitivity.of(t.channels, seed), nce_fx.Budget(**ratios)
    refusal = ""
    try:
        plan, network = plan_and_build(
            lambda reserve: nce_fx.plan_widths(t.channels, cost, sensitivity, budget, reserve=reserve),
            lambda plan: nce_fx.quantize(nce_fx.resize(t.gm, plan), spec),
            budget,
            cost,
        )
    except BudgetError as error:
        refusal = str(error)
    if refusal:
        assert min(ratios.values()) < 1, f"{spec}: the original itself is within {ratios}, yet: {refusal}"
        return
    after, claimed = count(network, cost).by_quantity, dict(cost.at(plan.widths).total.by_quantity)
    for name, ratio in ratios.items():
        spent, limit = after[name], ratio * getattr(before, name)
        assert spent <= limit * (1 + 1e-12), f"{spec}: {spent} {name} of {limit} at {plan.changed}"
        assert plan.source["cost"][name] == pytest.approx(spent, rel=1e-9), f"{spec}: {name} of {plan.changed}"
    if any(name.startswith(("channel_share", "channel_order")) for name, _ in network.named_buffers()):
        # Shares of copies are multiplied in, or channels gathered: what is in memory then is seen when it is built, and
        # whether what is gathered has a range of its own to be added. The plan itself says it, as was asked above.
        claimed |= {name: after[name] for name in ("activation_bytes", "params", "weight_bytes")}
    assert claimed.pop("custom") == pytest.approx(after["custom"], rel=1e-9), f"{spec}: custom at {plan.changed}"
    assert claimed == {name: after[name] for name in claimed}, f"{spec} at {plan.changed}"


def _products(cost: CostReport) -> HardwareTable:
    """A table in which every layer costs the product of its sizes, times its bits."""
    corners = [(c_in, c_out, h) for c_in in (1.0, 512.0) for c_out in (1.0, 512.0) for h in (1.0, 64.0)]
    found: dict[tuple[str, int], tuple[tuple[float, float, float, float, float], ...]] = {}
    for site in cost.model.sites:
        rows = tuple((c_in, c_out, h, h, c_in * c_out * h * h * site.weight_bits) for c_in, c_out, h in corners)
        found |= {(op, site.weight_bits): rows for op in (site.op, site.op.removeprefix("depthwise_"))}
    return HardwareTable(found)


def the_same_again(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> None:
    """Law 8: the same plan byte for byte, and the same weights, from two runs that share nothing."""
    plans, states = [], []
    t = traced(model, inputs, torch.float32)
    dtype = next((p.dtype for p in t.gm.parameters() if p.is_floating_point()), torch.float32)
    for gm in (t.gm, nce_fx.trace(copy_model(model).to(dtype).eval(), t.inputs)):
        channels = nce_fx.analyze_channels(gm)
        sensitivity = nce_fx.analyze_sensitivity(gm, None, channels=channels)
        cost = nce_fx.analyze_cost(gm, channels)
        plan = nce_fx.plan_widths(channels, cost, sensitivity, nce_fx.Budget(macs=1.2, params=1.2))
        plans.append(plan.to_json())
        states.append(nce_fx.resize(gm, plan, seed=seed).state_dict())
    assert plans[0] == plans[1], "two runs gave two plans"
    assert list(states[0]) == list(states[1]), "two runs gave other names"
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), f"two runs gave two {name}"


def the_same_at_any_number_of_threads(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> None:
    """Law 8: the same plan byte for byte, by a sensitivity measured on data."""
    t = traced(model, inputs, torch.float32)
    assert len(plans_at_all_threads(t.gm, [(t.inputs, torch.zeros(1))], mean_square)) == 1, "threads decide on the plan"


def what_is_saved_is_what_was(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> None:
    """Law 10: loaded into a model of other weights, a network computes what it did, bit for bit; so does its pickle.

    Some groups are narrowed, which makes the weights choose channels, and others widened. Its code and the seed choose
    whether a model is asked in float or quantized, where there is something to quantize: a corpus asks both many times.
    """
    t = traced(model, inputs, torch.float32)
    first = next(iter(t.gm.parameters()), torch.empty(0))
    other = randomize(copy_model(model).to(first.dtype), seed + 1)
    gm = nce_fx.resize(t.gm, {**wider(t.channels, seed), **_about_half(t.channels)})
    if (zlib.crc32(t.gm.code.encode()) + seed) % 2 and find_quantizable_layers(gm, nce_fx.QuantSpec()):
        gm = nce_fx.quantize(gm, batches=[(t.inputs, None)])
    comes_back(gm, other, t.inputs)


def comes_back(gm: GraphModule, other: nn.Module, inputs: tuple[Any, ...]) -> GraphModule:
    """Save a network, load it into another model, check that nothing is different, and return what was loaded."""
    before, expected = copy.deepcopy(other.state_dict()), _seeded(gm, inputs)
    with tempfile.TemporaryDirectory() as folder:
        nce_fx.save(gm, Path(folder) / "result")
        loaded = nce_fx.load(Path(folder) / "result", other)
    assert all(_same(value, before[name]) for name, value in other.state_dict().items()), "the model given was changed"
    found = dict([*loaded.named_parameters(), *loaded.named_buffers()])
    for name, value in [*gm.named_parameters(), *gm.named_buffers()]:
        assert _same(value, found[name]), f"{name} is not what was saved"
    # PyTorch pickles no module that computes its parameters.
    whole = [] if any(map(is_parametrized, gm.modules())) else [pickle.loads(pickle.dumps(gm))]
    for network in (loaded, *whole):
        for x, y in zip(expected, _seeded(network, inputs), strict=True):
            assert _same(x, y), "the outputs are not those of what was saved"
    return loaded


def _about_half(channels: ChannelGraph) -> dict[str, int]:
    """Return for two of three groups a width near half of its own."""
    free = [group for group in channels if group.pinned is None and group.min_width < group.width]
    narrowed = [group for index, group in enumerate(free) if index % 3 < 2]
    return {g.id: g.min_width + (g.width - g.min_width) // g.step // 2 * g.step for g in narrowed}


def _seeded(gm: nn.Module, inputs: tuple[Any, ...]) -> list[Any]:
    torch.manual_seed(0)
    return run(gm, inputs)


def _same(x: Any, y: Any) -> bool:
    if not isinstance(x, torch.Tensor):
        return bool(x == y)
    return x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())


LAWS: Mapping[str, Callable[..., None]] = {
    "0_the_graph_is_the_model": the_graph_is_the_model,
    "1_widening_keeps_the_function": widening_keeps_the_function,
    "2_new_channels_live": new_channels_live,
    "3_narrowing_is_removal": narrowing_is_removal,
    "4_the_output_is_the_users": the_output_is_the_users,
    "5_nothing_is_silent": nothing_is_silent,
    "6_cost_is_exact": cost_is_exact,
    "7_the_budget_holds": the_budget_holds,
    "7_the_budget_holds_at_any_bits": the_budget_holds_at_any_bits,
    "8_the_same_again": the_same_again,
    "8_at_any_number_of_threads": the_same_at_any_number_of_threads,
    "10_what_is_saved_is_what_was": what_is_saved_is_what_was,
}
"""Number and name of the law -> the function that states it."""
