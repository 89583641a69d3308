"""What is measured on one model of a corpus: the laws, the coverage, seconds and memory.

Law 1 is asked with three seeds, laws 2, 3, 5 and 6 with one; laws 2 and 3 of all but the large models. A seed of law 3
is one whose narrowed network is calm enough for a comparison.
"""

from __future__ import annotations

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
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

import nce_fx
from nce_fx.tracing.preserved_state import untouched
from tests import laws
from tests.drawing import Traced, keep, narrower
from tests.observing import again, copied, counted, seeded

SEEDS = (0, 1, 2)
DOUBLE_UP_TO = 150_000_000
"""Models with more parameters than this are compared in float32."""
TRAINED_UP_TO = 50_000_000
"""Models with more parameters than this are not narrowed and not trained."""
TOLERANCE = laws.TOLERANCE
LAWS = {
    "2": laws.new_channels_live,
    "3": laws.narrowing_is_removal,
    "4": laws.the_output_is_the_users,
    "5": laws.nothing_is_silent,
    "7": laws.the_budget_holds_at_any_bits,
    "8": laws.the_same_again,
    "10": laws.what_is_saved_is_what_was,
}
"""Those that are asked as they stand; laws 1 and 6 are asked by ``widening``, law 0 by ``other_batches``."""


def measure(entry: Entry, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield what is found on the way, so that a model that is killed says how far it came.

    Quick: laws 1 and 6 on one plan, and law 5.
    """
    stage = "build"
    try:
        torch.manual_seed(0)
        base = memory("VmRSS")
        model = randomize(entry.build()).eval()
        parameters = sum(p.numel() for p in model.parameters())
        dtype = torch.float64 if parameters <= DOUBLE_UP_TO else torch.float32
        # Constants that a model makes have the default type.
        torch.set_default_dtype(dtype)
        _to(model, dtype)
        inputs = _as_type(entry.inputs(), dtype)
        if dtype == torch.float64 and not _runs(model, inputs):
            dtype = torch.float32
            torch.set_default_dtype(dtype)
            _to(model, dtype)
            inputs = _as_type(inputs, dtype)
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
        if dtype == torch.float64 and any(_is_single(node) for node in gm.graph.nodes):
            # It goes through float32 inside, whatever it is given: so exact is what it can be.
            found["dtype"] = "float64, float32 inside"
            laws.TOLERANCE[dtype] = TOLERANCE[torch.float32]
        stage = "analyze"
        channels = nce_fx.analyze_channels(gm)
        analyzed = time.process_time()
        found |= coverage(model, gm, channels)
        yield found
        found["seconds"] = [round(traced - begin, 3), round(analyzed - traced, 3)]
        found["memory"] = [round(memory("VmHWM") - base), round(parameters * dtype.itemsize / 2**20)]
        yield found
        # The graph shares the model's parameters and buffers: both are calibrated at once.
        allowed = 0.1 * laws.TOLERANCE[dtype] / torch.finfo(dtype).eps
        found["amplification"] = calm(gm, inputs, allowed)
        # What cannot be calmed is held to what its own roundings become.
        laws.TOLERANCE[dtype] *= max(1.0, found["amplification"] / allowed)
        if dtype == torch.float32:
            laws.TOLERANCE[torch.float64] = TOLERANCE[dtype]
        for known in (torch.float64, torch.float32):
            keep(model, known, Traced(gm.eval(), inputs, channels))
        stage = "law 1"
        for result in widening(model.eval(), gm, channels, inputs, dtype, SEEDS[:1] if quick else SEEDS):
            yield found | result
            found |= result
        kept: dict[str, str] = {}
        found["laws"] = kept
        for number in entry.laws if not quick else ("5",):
            most = TRAINED_UP_TO if number == "3" else entry.up_to
            if number == "5" or (parameters <= most and (number != "2" or entry.trained)):
                stage = f"law {number}"
                seed = calm_narrowing(gm, channels, inputs, allowed) if number == "3" else 0
                law = LAWS.get(number) or (lambda *given: other_batches(given[0], gm, given[1]))
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


def other_batches(model: nn.Module, gm: GraphModule, inputs: tuple[Any, ...]) -> None:
    """Check that the graph is the model at other values and at another batch size too, wherever the model runs there.

    In both modes and at the example inputs, tracing itself has compared them.
    """
    for others in (again(inputs, 0), again(inputs, 1, batch=3)):
        wanted = seeded(model, others)
        if wanted is not None:
            got = seeded(gm, others)
            assert got is not None, "the graph fails at inputs of the same form where the model runs"
            off = difference([*leaves(wanted[0])], [*leaves(got[0])])
            assert off <= 1e-6, f"off by {off:.2e} at inputs of the same form"


def _to(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model a type; the tensors, too, that lie on its modules and are no buffers, such as TabNet's groups."""
    model.to(dtype)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.grad_fn is None:
                vars(module)[name] = value.to(dtype)


def _is_single(node: Node) -> bool:
    meta = node.meta.get("tensor_meta")
    return getattr(meta, "dtype", None) in (torch.float32, torch.float16, torch.bfloat16)


def _runs(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    try:
        with torch.no_grad():
            model(*copied(inputs))
    except RuntimeError:
        return False
    return True


def _as_type(inputs: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map(lambda v: v.to(dtype) if v.is_floating_point() else v, inputs)


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
    """Return how a model breaks a law, or an empty string; the next law is given the model as it was."""
    try:
        with untouched(model):
            law(model, inputs, seed)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:400]}"
    return ""


def widening(
    model: nn.Module,
    gm: GraphModule,
    channels: nce_fx.ChannelGraph,
    inputs: tuple[Any, ...],
    dtype: torch.dtype,
    seeds: tuple[int, ...] = SEEDS,
) -> Iterator[dict[str, Any]]:
    """Check on random plans that widening keeps the function (law 1) and that costs are exact (law 6)."""
    with torch.no_grad():
        truth, reference = leaves(model(*copied(inputs))), leaves(gm(*copied(inputs)))
    result: dict[str, Any] = {"trace_error": difference(truth, reference[: len(truth)]), "errors": [], "status": "ok"}
    cost = nce_fx.analyze_cost(gm, channels)
    for seed in seeds:
        widths = random_widths(channels, seed)
        begin = time.process_time()
        wide = nce_fx.resize(gm, widths, seed=seed)
        if seed == SEEDS[0]:
            result["resize_seconds"] = round(time.process_time() - begin, 3)
        result["errors"].append(difference(reference, leaves(wide(*copied(inputs)))))
        if result["errors"][-1] > laws.TOLERANCE[dtype]:
            yield result | {"status": "failed: law 1", "trouble": f"widths at seed {seed}: {widths}"[:600]}
            return
        if seed == SEEDS[0]:
            macs, params = counted(wide, inputs)
            stated = cost.at(widths).total
            if (macs, params) != (stated.macs, stated.params):
                result["cost"] = (
                    f"stated {stated.macs:,} MACs {stated.params:,} parameters, counted {macs:,} {params:,}"
                )
                result |= {"status": "failed: law 6", "trouble": result["cost"]}
            yield result | {"status": "timeout"}
        del wide
    if result["trace_error"] > laws.TOLERANCE[dtype]:
        result |= {"status": "failed: trace", "trouble": f"the graph differs by {result['trace_error']:.1e}"}
    yield result | ({"blind": blind(gm, inputs)} if len(seeds) > 1 else {})


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
    weights = {n: p for n, p in gm.named_parameters() if p.dim() > 1 and p.is_floating_point() and p.requires_grad}
    found = leaves(gm(*copied(inputs)))
    total: Any = sum(
        (v * noise_like(v)).sum() / (float(v.detach().abs().max()) or 1.0) for v in found if v.requires_grad
    )
    if not torch.is_tensor(total):
        return list(weights)
    try:
        gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    except RuntimeError:
        # It overwrites what its own gradients need: nothing can be told.
        return []
    return [
        name
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        if gradient is not None and float(gradient.norm() * weight.detach().norm()) < 1e-7
    ]


def noise_like(value: torch.Tensor) -> torch.Tensor:
    """Return fixed random weights for a sum."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value.dtype)


def memory(field: str) -> float:
    """Return resident memory (``VmRSS``) or its peak (``VmHWM``) in MiB, as Linux counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return float("nan")


def reset_peak() -> None:
    """Forget the peak of resident memory so far."""
    Path("/proc/self/clear_refs").write_text("5")
