"""How long the channel analysis and a resize of every group take, beside Torch-Pruning's full prune of the same net.

    python -m benchmarks.channels_speed            # writes benchmarks/results/channels_speed.json

One thread, one process, the two tools in turn; medians of processor seconds, so that other work on the machine counts
little. Needs torchvision and torch-pruning.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import benchmarks.vision  # noqa: F401  (torchvision's missing operators, before torchvision)
import torch
from benchmarks.measure import memory, reset_peak
from torch import nn

import nce_fx
from benchmarks import pages
from nce_fx import tracing
from nce_fx.passes.analysis import channels as analysis
from nce_fx.passes.analysis.channels import structure
from nce_fx.passes.analysis.channels.tie import Tie
from nce_fx.passes.transform import resize as resizing
from nce_fx.passes.transform.resized_weights import Weights

RESULTS = pages.RESULTS / "channels_speed.json"
BOUNDS = {"resnet50": 0.5, "mobilenet_v2": 1.0, "densenet121": 0.1}
"""The most that this may take, as a share of Torch-Pruning's time."""
SIDES = (64, 224, 448)
NODES = (100, 300, 1000, 3000, 10000)
EXPONENT = 1.15
STAGES = ("trace", "analyze", "resize")
PARTS: dict[str, tuple[Any, str]] = {
    "symbolic tracing": (tracing, "symbolic_graph"),
    "shapes of every node": (tracing, "propagate_shapes"),
    "first run: ties": (Tie, "execute"),
    "classes and groups": (structure, "groups_of"),
    "second run: the proof, everything enlarged": (structure, "prove"),
    "widths of every axis": (analysis, "_describe"),
    "third run: the check at the new widths": (resizing, "_run"),
    "new weights": (Weights, "gathered"),
    "copy of the graph": (resizing, "copied"),
    "edits, and the code of the new graph": (resizing, "_edit"),
}
"""What is timed apart, by what it is: where it is found, and its name there."""


_SECTIONS = ("against_torch_pruning", "parts", "image_side", "growth", "memory")


def main() -> None:
    """Measure everything and write the results; exit with 1 where a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", choices=_SECTIONS, default=_SECTIONS, help="measure these, keep the rest")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured: dict[str, Callable[[], Any]] = {
        "against_torch_pruning": lambda: against_torch_pruning(options.rounds),
        "parts": lambda: {name: parts(name, options.rounds) for name in BOUNDS},
        "image_side": lambda: image_side(options.rounds),
        "growth": growth,
        "memory": lambda: {name: alone(peak_memory, name) for name in (*BOUNDS, "vgg16_bn", "vit_b_16")},
    }
    result = json.loads(options.results.read_text()) if options.results.exists() else {}
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    options.results.parent.mkdir(exist_ok=True)
    for section in options.only:
        result[section] = measured[section]()
        options.results.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    broken = violations(result)
    print("\n".join(broken) or "every bound holds")
    raise SystemExit(bool(broken))


def build(name: str) -> nn.Module:
    """Build a torchvision classifier with random weights."""
    from torchvision import models

    torch.manual_seed(0)
    model: nn.Module = models.get_model(name, weights=None).eval()
    return model


def ours(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[float, float, float]:
    """Trace, analyze, and widen every unpinned group by a quarter; return the processor seconds of the three."""
    times = [time.process_time()]
    gm = nce_fx.trace(model, inputs)
    times.append(time.process_time())
    channels = nce_fx.analyze_channels(gm)
    times.append(time.process_time())
    nce_fx.resize(gm, quarter_wider(channels))
    times.append(time.process_time())
    return times[1] - times[0], times[2] - times[1], times[3] - times[2]


def parts(name: str, rounds: int) -> dict[str, float]:
    """Return the median processor milliseconds of each part of the work on a net, and of the rest."""
    runs = [_parts(build(name)) for _ in range(rounds)]
    return {part: round(1000 * median(run[part] for run in runs), 1) for part in runs[0]}


def _parts(model: nn.Module) -> dict[str, float]:
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            result = function(*args, **kwargs)
            spent[part] += time.process_time() - begin
            return result

        return call

    with contextlib.ExitStack() as stack:
        for part, (owner, attribute) in PARTS.items():
            stack.enter_context(mock.patch.object(owner, attribute, timed(part, getattr(owner, attribute))))
        total = sum(ours(model, (torch.randn(1, 3, 224, 224),)))
    return {**spent, "the rest": total - sum(spent.values())}


def quarter_wider(channels: nce_fx.ChannelGraph) -> dict[str, int]:
    """Return every unpinned group a quarter wider, in its own steps, by one step at least."""
    return {
        group.id: group.width + group.step * max(1, group.width // 4 // group.step)
        for group in channels.groups
        if group.pinned is None
    }


def theirs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Build Torch-Pruning's graph and prune a quarter of every group; return the processor seconds."""
    import torch_pruning as tp

    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    begin = time.process_time()
    pruner = tp.pruner.BasePruner(
        model, inputs, importance=tp.importance.MagnitudeImportance(), pruning_ratio=0.25, ignored_layers=head
    )
    pruner.step()
    return time.process_time() - begin


def against_torch_pruning(rounds: int) -> dict[str, Any]:
    """Run both tools in turn on fresh copies of each net; the first round of each warms up and does not count."""
    result: dict[str, Any] = {}
    for name, bound in BOUNDS.items():
        inputs = (torch.randn(1, 3, 224, 224),)
        own, other = [], []
        for number in range(rounds + 1):
            stages, pruning = ours(build(name), inputs), theirs(build(name), inputs)
            gc.collect()
            if number:
                own.append(stages)
                other.append(pruning)
        seconds, pruning = median(sum(stages) for stages in own), median(other)
        result[name] = {
            "seconds": round(seconds, 3),
            **{stage: round(median(stages[k] for stages in own), 3) for k, stage in enumerate(STAGES)},
            "torch_pruning": round(pruning, 3),
            "ratio": round(seconds / pruning, 3),
            "bound": bound,
        }
        print(name, result[name], flush=True)
    return result


def image_side(rounds: int) -> dict[str, float]:
    """Return the median seconds of ResNet-50 at several image sizes, measured in turn."""
    times: dict[int, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            times[side].append(sum(ours(build("resnet50"), (torch.randn(1, 3, side, side),))))
    return {str(side): round(median(times[side]), 3) for side in SIDES}


class Chain(nn.Module):
    """Residual blocks in a row, seven graph nodes each, with a plain convolution and its norm between them."""

    def __init__(self, nodes: int, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(max(1, nodes // 10)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


class Block(nn.Module):
    """A residual block and a plain layer: ten graph nodes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.b, self.norm_b = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.c, self.norm_c = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x + self.norm_b(self.b(torch.relu(self.norm_a(self.a(x))))))
        return torch.relu(self.norm_c(self.c(x)))


def growth() -> dict[str, Any]:
    """Fit seconds = constant x nodes^exponent over chains from 300 nodes on; below that, fixed costs count."""
    points = []
    for nodes in NODES:
        model, inputs = Chain(nodes).eval(), (torch.randn(1, 3, 16, 16),)
        count = len(torch.fx.symbolic_trace(model).graph.nodes)
        repeats = 3 if nodes <= 1000 else 1
        runs = [ours(model, inputs) for _ in range(repeats)]
        points.append((count, *(median(run[k] for run in runs) for k in range(3))))
        print(points[-1], flush=True)

    def exponent(seconds: Callable[[tuple[float, ...]], float]) -> float:
        pairs = [(math.log(p[0]), math.log(seconds(p))) for p in points if p[0] >= 300]
        mean_x, mean_y = (sum(pair[k] for pair in pairs) / len(pairs) for k in range(2))
        slope = sum((x - mean_x) * (y - mean_y) for x, y in pairs) / sum((x - mean_x) ** 2 for x, _ in pairs)
        return round(slope, 3)

    return {
        "nodes": [p[0] for p in points],
        **{stage: [round(p[k + 1], 3) for p in points] for k, stage in enumerate(STAGES)},
        "exponent": exponent(lambda p: sum(p[1:])),
        "exponents": {stage: exponent(lambda p, k=k: p[k + 1]) for k, stage in enumerate(STAGES)},
        "bound": EXPONENT,
    }


def peak_memory(name: str) -> dict[str, int]:
    """Return in MiB what building, tracing, analyzing and resizing a net add to the process, and what they may add.

    A resize by one step leaves two nets of about the same size: twice the parameters, and 300 MiB.
    """
    base = memory("VmRSS")
    model = build(name)
    reset_peak()
    gm = nce_fx.trace(model, (torch.randn(1, 3, 224, 224),))
    channels = nce_fx.analyze_channels(gm)
    wide = nce_fx.resize(gm, {g.id: g.width + g.step for g in channels.groups if g.pinned is None})
    both = sum(p.numel() * p.element_size() for net in (gm, wide) for p in net.parameters())
    return {
        "added": round(memory("VmHWM") - base),
        "parameters": round(sum(p.numel() * p.element_size() for p in gm.parameters()) / 2**20),
        "both_nets": round(both / 2**20),
        "bound": round(both / 2**20 + 300),
    }


def alone(work: Callable[[str], Any], name: str) -> Any:
    """Run in a process of its own, where nothing else has been allocated."""
    # A forked one would start with the memory that this one has let go of, and count less than it takes.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(work, (name,))


def violations(result: dict[str, Any]) -> list[str]:
    """Return in words every bound that does not hold."""
    broken = [
        f"{name}: {row['ratio']} of Torch-Pruning's time, at most {row['bound']}"
        for name, row in result.get("against_torch_pruning", {}).items()
        if row["ratio"] > row["bound"]
    ]
    if "growth" in result and result["growth"]["exponent"] > EXPONENT:
        broken.append(f"time grows as nodes^{result['growth']['exponent']}, at most {EXPONENT}")
    if "image_side" in result and max(result["image_side"].values()) > 1.5 * min(result["image_side"].values()):
        broken.append(f"time depends on the image's size: {result['image_side']}")
    return broken + [
        f"{name}: {row['added']} MiB, at most {row['bound']}"
        for name, row in result.get("memory", {}).items()
        if row["added"] > row["bound"]
    ]


if __name__ == "__main__":
    main()
