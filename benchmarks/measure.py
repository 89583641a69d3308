"""What is measured on one model of a corpus: the laws, the coverage, seconds and memory."""

from __future__ import annotations

import contextlib
import random
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import nce_fx
from benchmarks.vision import Entry, calibrate, randomize

SEEDS = (0, 1, 2)
DOUBLE_UP_TO = 50_000_000
"""Models with more parameters than this are compared in float32."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_CONVS = (nn.modules.conv._ConvNd,)
_FUNCTIONS = {
    "conv1d": "convs", "conv2d": "convs", "conv3d": "convs",
    "conv_transpose1d": "convs", "conv_transpose2d": "convs", "conv_transpose3d": "convs", "convolution": "convs",
    "linear": "linears",
}  # fmt: skip


def measure(entry: Entry) -> Iterator[dict[str, Any]]:
    """Yield what is found on the way, so that a model that is killed says how far it came."""
    stage = "build"
    try:
        torch.manual_seed(0)
        base = memory("VmRSS")
        model = randomize(entry.build()).eval()
        parameters = sum(p.numel() for p in model.parameters())
        dtype = torch.float64 if parameters <= DOUBLE_UP_TO else torch.float32
        model.to(dtype)
        inputs = pytree.tree_map(lambda v: v.to(dtype) if v.is_floating_point() else v, entry.inputs())
        found: dict[str, Any] = {"parameters": parameters, "dtype": str(dtype).removeprefix("torch.")}
        if entry.training:
            model.train()
        stage = "trace"
        reset_peak()
        begin = time.process_time()
        gm = nce_fx.trace(model, inputs)
        traced = time.process_time()
        found |= {"traced": str(gm.meta.get("traced", "?")), "nodes": len(gm.graph.nodes)}
        yield found
        stage = "analyze"
        channels = nce_fx.analyze_channels(gm)
        analyzed = time.process_time()
        found |= coverage(model, gm, channels)
        yield found
        found["seconds"] = [round(traced - begin, 3), round(analyzed - traced, 3)]
        found["memory"] = [round(memory("VmHWM") - base), round(parameters * dtype.itemsize / 2**20)]
        yield found
        stage = "law 1"
        for result in laws(model, gm, channels, inputs, dtype):
            yield found | result
    except Exception as error:
        tail = traceback.format_exc().strip().splitlines()
        yield {
            "status": f"failed: {stage}",
            "trouble": f"{type(error).__name__}: {str(error)[:400]}",
            "tail": tail[-8:],
        }


def laws(
    model: nn.Module, gm: GraphModule, channels: nce_fx.ChannelGraph, inputs: tuple[Any, ...], dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """Check on random plans that widening keeps the function (law 1) and that costs are exact (law 6)."""
    # The graph shares the model's parameters and buffers: both are calibrated at once.
    calibrate(gm, inputs)
    gm.eval()
    model.eval()
    with torch.no_grad():
        truth, reference = outputs(model(*inputs)), outputs(gm(*inputs))
    result: dict[str, Any] = {"trace_error": difference(truth, reference[: len(truth)]), "errors": [], "status": "ok"}
    cost = nce_fx.analyze_cost(gm, channels)
    for seed in SEEDS:
        widths = random_widths(channels, seed)
        begin = time.process_time()
        wide = nce_fx.resize(gm, widths, seed=seed)
        if seed == SEEDS[0]:
            result["resize_seconds"] = round(time.process_time() - begin, 3)
        counter = FlopCounterMode(display=False)
        with contextlib.ExitStack() as stack:
            for context in (counter, *unfused()) if seed == SEEDS[0] else (torch.no_grad(),):
                stack.enter_context(context)
            result["errors"].append(difference(reference, outputs(wide(*inputs))))
        if result["errors"][-1] > TOLERANCE[dtype]:
            yield result | {"status": "failed: law 1", "trouble": f"widths at seed {seed}: {widths}"[:600]}
            return
        if seed == SEEDS[0]:
            counted = (counter.get_total_flops() // 2, sum(p.numel() for p in wide.parameters()))
            stated = cost.at(widths).total
            if counted != (stated.macs, stated.params):
                result["cost"] = (
                    f"stated {stated.macs:,} MACs {stated.params:,} parameters, counted {counted[0]:,} {counted[1]:,}"
                )
            yield result | {"status": "timeout"}
    if result["trace_error"] > TOLERANCE[dtype]:
        result |= {"status": "failed: trace", "trouble": f"the graph differs by {result['trace_error']:.1e}"}
    yield result | {"blind": blind(gm, inputs)}


def unfused() -> tuple[contextlib.AbstractContextManager[Any], ...]:
    """Return what keeps kernels apart that PyTorch's counter does not know when they are fused."""
    return sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False), torch.enable_grad()


def random_widths(channels: nce_fx.ChannelGraph, seed: int) -> dict[str, int]:
    """Draw a plan: each unpinned group is wider with probability 1/2, by up to twice, in legal steps."""
    rng = random.Random(seed)
    free = [group for group in channels.groups if group.pinned is None]
    return {
        group.id: group.width + group.step * rng.randint(1, max(1, group.width // group.step))
        for group in free
        if rng.random() < 0.5
    }


def outputs(value: Any) -> list[torch.Tensor]:
    """Return every floating point tensor of a model's output, in order."""
    if hasattr(value, "to_tuple"):
        value = value.to_tuple()
    return [leaf for leaf in pytree.tree_leaves(value) if torch.is_tensor(leaf) and leaf.is_floating_point()]


def difference(expected: list[torch.Tensor], got: list[torch.Tensor]) -> float:
    """Return the largest difference relative to the largest value, over all outputs; infinite where shapes differ."""
    if not expected or [v.shape for v in expected] != [v.shape for v in got]:
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        if a.numel() == 0:
            continue
        scale = float(a.detach().abs().max())
        error = float((a - b).detach().abs().max()) / (scale or 1.0)
        if error != error or scale == float("inf"):
            return float("inf")
        worst = max(worst, error)
    return worst


def blind(gm: GraphModule, inputs: tuple[Any, ...]) -> list[str]:
    """Return the weights that the outputs do not feel: for these, law 1 says nothing."""
    weights = {name: p for name, p in gm.named_parameters() if p.dim() > 1 and p.is_floating_point()}
    found = outputs(gm(*inputs))
    total: Any = sum(
        (v * noise_like(v)).sum() / (float(v.detach().abs().max()) or 1.0) for v in found if v.requires_grad
    )
    if not torch.is_tensor(total):
        return list(weights)
    gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    return [
        name
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        if gradient is not None and float(gradient.norm() * weight.detach().norm()) < 1e-7
    ]


def noise_like(value: torch.Tensor) -> torch.Tensor:
    """Return fixed random weights for a sum."""
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).to(value.dtype)


def coverage(model: nn.Module, gm: GraphModule, channels: nce_fx.ChannelGraph) -> dict[str, Any]:
    """Count convs and linears, and those in unpinned groups; layers that make an output are listed apart."""
    layers = weighted_layers(model, gm)
    makers = output_makers(gm)
    groups = {producer: group for group in channels.groups for producer in group.producers}
    used = used_parameters(gm)
    result: dict[str, Any] = {"convs": [0, 0], "linears": [0, 0], "outputs": [], "unused": [], "pinned": []}
    for kind, names, weight in layers:
        group = next((groups[name] for name in names if name in groups), None)
        reason = group.pinned if group else "in no group: law 5 is broken"
        if id(weight) not in used:
            result["unused"].append(names[0])
        elif (
            reason is not None and any(name in makers for name in names) and (group and "output of the model" in reason)
        ):
            result["outputs"].append(names[0])
        else:
            result[kind][0] += reason is None
            result[kind][1] += 1
            if reason is not None:
                result["pinned"].append([names[0], kind, reason])
    return result


def weighted_layers(model: nn.Module, gm: GraphModule) -> list[tuple[str, list[str], torch.Tensor]]:
    """Return (kind, names, weight) of every conv and linear: modules, and raw parameters that functions read."""
    found: dict[int, tuple[str, list[str], torch.Tensor]] = {}

    def add(kind: str, name: str, weight: torch.Tensor) -> None:
        known = found.setdefault(id(weight), (kind, [], weight))
        if name not in known[1]:
            known[1].append(name)

    for name, module in model.named_modules(remove_duplicate=False):
        kind = "convs" if isinstance(module, _CONVS) else "linears" if isinstance(module, nn.Linear) else None
        own = next(module.parameters(), None)
        if kind and own is not None:
            weight = module._parameters.get("weight")
            add(kind, name, own if weight is None else weight)
        if isinstance(module, nn.MultiheadAttention):
            for key in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                if getattr(module, key, None) is not None:
                    add("linears", f"{name}.{key}", getattr(module, key))
    parameters = dict(gm.named_parameters(remove_duplicate=False))
    for node in gm.graph.nodes:
        target = getattr(node.target, "__name__", str(node.target)).split(".")[0]
        if node.op == "call_function" and target in _FUNCTIONS and len(node.args) > 1:
            weight = node.args[1]
            if isinstance(weight, Node) and weight.op == "get_attr" and str(weight.target) in parameters:
                path = str(weight.target)
                add(_FUNCTIONS[target], path.removesuffix(".weight"), parameters[path])
    return list(found.values())


def used_parameters(gm: GraphModule) -> set[int]:
    """Return the identities of the parameters that the graph reads."""
    modules = dict(gm.named_modules(remove_duplicate=False))
    parameters: Mapping[str, torch.Tensor] = dict(gm.named_parameters(remove_duplicate=False))
    used: set[int] = set()
    for node in gm.graph.nodes:
        if node.op == "call_module":
            used |= {id(p) for p in modules[str(node.target)].parameters()}
        elif node.op == "get_attr" and str(node.target) in parameters:
            used.add(id(parameters[str(node.target)]))
    return used


def output_makers(gm: GraphModule) -> set[str]:
    """Return the layers from which the output is reached without passing another conv or linear."""
    modules = dict(gm.named_modules(remove_duplicate=False))
    found: set[str] = set()
    seen: set[Node] = set()
    ahead = [node for node in gm.graph.nodes if node.op == "output"]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        target = getattr(node.target, "__name__", str(node.target)).split(".")[0]
        if node.op == "call_module" and isinstance(modules[str(node.target)], (*_CONVS, nn.Linear)):
            found.add(str(node.target))
        elif node.op == "call_module" and isinstance(modules[str(node.target)], nn.MultiheadAttention):
            found |= {f"{node.target}.out_proj", str(node.target)}
        elif node.op == "call_function" and target in _FUNCTIONS and len(node.args) > 1:
            weight = node.args[1]
            found |= {str(weight.target).removesuffix(".weight")} if isinstance(weight, Node) else set()
        else:
            ahead.extend(node.all_input_nodes)
    return found


def memory(field: str) -> float:
    """Return resident memory (``VmRSS``) or its peak (``VmHWM``) in MiB, as Linux counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return float("nan")


def reset_peak() -> None:
    """Forget the peak of resident memory so far."""
    Path("/proc/self/clear_refs").write_text("5")
