"""What is measured on one model of a corpus: the laws, the coverage, seconds and memory.

Law 1 is asked with three seeds, laws 2, 3, 5 and 6 with one; laws 2 and 3 of all but the large models. A seed of law 3
is one whose narrowed network is calm enough for a comparison.
"""

from __future__ import annotations

import contextlib
import random
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.layers import coverage
from benchmarks.vision import Entry, amplification, calm, leaves, randomize
from torch import nn
from torch.fx import GraphModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import nce_fx
from tests import laws
from tests.drawing import Traced, keep, narrower

SEEDS = (0, 1, 2)
DOUBLE_UP_TO = 150_000_000
"""Models with more parameters than this are compared in float32."""
TRAINED_UP_TO = 50_000_000
"""Models with more parameters than this are not narrowed and not trained."""
TOLERANCE = laws.TOLERANCE


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
        # The graph shares the model's parameters and buffers: both are calibrated at once.
        allowed = 0.1 * TOLERANCE[dtype] / torch.finfo(dtype).eps
        found["amplification"] = calm(gm, inputs, allowed)
        keep(model, dtype, Traced(gm.eval(), inputs, channels))
        stage = "law 1"
        for result in widening(model.eval(), gm, channels, inputs, dtype):
            yield found | result
            found |= result
        kept: dict[str, str] = {}
        found["laws"] = kept
        for number, law in (
            ("5", laws.nothing_is_silent),
            ("3", laws.narrowing_is_removal),
            ("2", laws.new_channels_live),
        ):
            if number == "5" or (parameters <= TRAINED_UP_TO and (number == "3" or entry.trained)):
                stage = f"law {number}"
                seed = calm_narrowing(gm, channels, inputs, allowed) if number == "3" else 0
                kept[number] = broken(law, model, inputs, seed)
                yield found | {"status": "timeout"}
        failed = [f"law {number}" for number, trouble in sorted(kept.items()) if trouble]
        if found["status"] == "ok" and failed:
            found |= {"status": f"failed: {', '.join(failed)}", "trouble": kept[failed[0].removeprefix("law ")]}
        yield found
    except Exception as error:
        tail = traceback.format_exc().strip().splitlines()
        yield {
            "status": f"failed: {stage}",
            "trouble": f"{type(error).__name__}: {str(error)[:400]}",
            "tail": tail[-8:],
        }


def calm_narrowing(
    gm: GraphModule, channels: nce_fx.ChannelGraph, inputs: tuple[Any, ...], allowed: float, tries: int = 5
) -> int:
    """Return the first seed whose narrowed network amplifies roundings no more than is allowed: others show nothing.

    Norms keep the statistics of the whole network, so a narrowed one may be chaotic where the whole one is calm.
    """
    for seed in range(tries):
        narrow = nce_fx.resize(gm, narrower(channels, seed), seed=seed)
        if amplification(narrow, inputs) <= allowed:
            return seed
    return 0


def broken(law: Callable[..., None], model: nn.Module, inputs: tuple[Any, ...], seed: int) -> str:
    """Return how a model breaks a law, or an empty string."""
    try:
        law(model, inputs, seed)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:400]}"
    return ""


def widening(
    model: nn.Module, gm: GraphModule, channels: nce_fx.ChannelGraph, inputs: tuple[Any, ...], dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """Check on random plans that widening keeps the function (law 1) and that costs are exact (law 6)."""
    with torch.no_grad():
        truth, reference = leaves(model(*inputs)), leaves(gm(*inputs))
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
            result["errors"].append(difference(reference, leaves(wide(*inputs))))
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
                result |= {"status": "failed: law 6", "trouble": result["cost"]}
            yield result | {"status": "timeout"}
        del wide
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
    found = leaves(gm(*inputs))
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


def memory(field: str) -> float:
    """Return resident memory (``VmRSS``) or its peak (``VmHWM``) in MiB, as Linux counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return float("nan")


def reset_peak() -> None:
    """Forget the peak of resident memory so far."""
    Path("/proc/self/clear_refs").write_text("5")
