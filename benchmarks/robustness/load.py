"""Time and memory of the compiler on large networks and long graphs, and of many rewrites in one process.

    python -m benchmarks.load --only resnet152,chain-10000      each in a process of its own
    python -m benchmarks.load --rewrites 200                    in one process: memory after 10, and after all

A network is traced, its channels and its cost are analyzed, and every free group is widened by one step. Seconds are of
a processor; memory is the most that the process held, beside the parameters' own. Results are added to load.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nce_fx
import tests.torchvision_operators  # noqa: F401
from benchmarks import pages
from nce_fx.models import MODELS

REPORT = pages.RESULTS / "load.json"


class Chain(nn.Module):
    """Linear layers and additions in a row: three nodes of the graph each."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(nodes // 3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).relu()
        return x


def torchvision(name: str, side: int) -> Callable[[], tuple[nn.Module, Tensor]]:
    def make() -> tuple[nn.Module, Tensor]:
        import torchvision

        return getattr(torchvision.models, name)().eval(), torch.zeros(1, 3, side, side)

    return make


def chain(nodes: int) -> Callable[[], tuple[nn.Module, Tensor]]:
    return lambda: (Chain(nodes).eval(), torch.zeros(1, 4))


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "resnet50": torchvision("resnet50", 64),
    "resnet152": torchvision("resnet152", 64),
    "efficientnet_b7": torchvision("efficientnet_b7", 64),
    "vit_l_16": torchvision("vit_l_16", 224),
    **{f"chain-{nodes}": chain(nodes) for nodes in (1_500, 3_000, 6_000, 12_000, 50_000)},
}


def measured(make: Callable[[], tuple[nn.Module, Tensor]]) -> dict[str, Any]:
    """Return the processor seconds of each step, the nodes, and the mebibytes of memory and of parameters."""
    model, x = make()
    before = _peak()
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        seconds[name] = round(time.process_time() - started, 2)
        return result

    gm = timed("trace", lambda: nce_fx.trace(model, (x,)))
    channels = timed("channels", lambda: nce_fx.analyze_channels(gm))
    timed("cost", lambda: nce_fx.analyze_cost(gm, channels))
    wider = {group.id: group.width + group.step for group in channels.groups if group.pinned is None}
    timed("resize", lambda: nce_fx.resize(gm, wider))
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 2**20
    return {
        "nodes": len(gm.graph.nodes),
        "seconds": seconds,
        "parameters": round(parameters),
        "more": round(_peak() - before),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run in a forked process, whose memory is its own, and return what came of it."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, json.dumps(work()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"failed": True}


def rewrites(count: int) -> dict[str, Any]:
    """Rewrite so many times; return the mebibytes that the process holds after 10 and after all."""
    held = {}
    x = torch.zeros(2, 1, 8, 8)
    for done in range(1, count + 1):
        nce_fx.rewrite(MODELS["resnet8"](in_channels=1, width=2).eval(), (x,))
        if done in (10, count):
            pages_held = int(Path("/proc/self/statm").read_text().split()[1])
            held[str(done)] = round(pages_held * resource.getpagesize() / 2**20, 1)
    return held


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"with commas between: {', '.join(NETWORKS)}")
    parser.add_argument("--rewrites", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = pages.load(REPORT)
    if options.rewrites:
        results["rewrites"] = in_a_process(lambda: rewrites(options.rewrites))
        print("rewrites", results["rewrites"], flush=True)
    for name in filter(None, options.only.split(",")):
        results[name] = in_a_process(lambda make=NETWORKS[name]: measured(make))  # type: ignore[misc]
        print(name, results[name], flush=True)
        pages.save(REPORT, results)
    pages.save(REPORT, results)


if __name__ == "__main__":
    main()
