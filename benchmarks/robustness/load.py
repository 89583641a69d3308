"""Time and memory of the compiler on large networks and long graphs, and of many rewrites in one process.

    python -m benchmarks.load --only resnet152,chain-10000      each in a process of its own
    python -m benchmarks.load --rewrites 200                    in one process: memory after 10, 50 and all
    python -m benchmarks.load --images 100000,200000            folders of so many files, made under /tmp and removed

A network is traced, its channels and its cost are analyzed, and every free group is widened by one step. Seconds are of
a processor; memory is the most that the process held, beside what it held before. Of two sizes in a row the exponent of
growth is said: 1 is twice the time for twice the size. Results are added to load.json.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import json
import math
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nce_fx
import tests.torchvision_operators  # noqa: F401
from benchmarks import pages
from nce_fx.data import load_data
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


class Block(nn.Module):
    """A transformer's block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.inner_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, 2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y: Tensor = self.down(F.gelu(self.up(self.inner_norm(x))))
        return x + y


class LanguageModel(nn.Module):
    """Tokens to the next tokens' scores."""

    def __init__(self, width: int, blocks: int, tokens: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.blocks(self.embedding(tokens))))
        return y


def language_model(blocks: int) -> Callable[[], tuple[nn.Module, Tensor]]:
    """Return a model of 50 million parameters a block, without memory for their values."""

    def make() -> tuple[nn.Module, Tensor]:
        with torch.device("meta"):
            return LanguageModel(2048, blocks, 32_000, 16).eval(), torch.zeros(1, 64, dtype=torch.long)

    return make


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
    **{f"language-model-{blocks}-meta": language_model(blocks) for blocks in (9, 18)},
    **{f"chain-{nodes}": chain(nodes) for nodes in (1_500, 3_000, 6_000, 12_000, 25_000, 50_000)},
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
        "values": sum(parameter.numel() for parameter in model.parameters()),
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
    """Rewrite so many times; return the mebibytes that are held after 10, 50 and all, freed pages given back."""
    held = {}
    x = torch.zeros(2, 1, 8, 8)
    for done in range(1, count + 1):
        nce_fx.rewrite(MODELS["resnet8"](in_channels=1, width=2).eval(), (x,))
        if done in (10, 50, count):
            gc.collect()
            if sys.platform == "linux":
                ctypes.CDLL(None).malloc_trim(0)
            pages_held = int(Path("/proc/self/statm").read_text().split()[1])
            held[str(done)] = round(pages_held * resource.getpagesize() / 2**20, 1)
    return held


def images(count: int) -> dict[str, Any]:
    """Make a folder of so many small images; return seconds and mebibytes until the first batches are read."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        encoded = io.BytesIO()
        Image.new("RGB", (8, 8), (90, 120, 200)).save(encoded, "png")
        for split, share in (("train", 0.9), ("val", 0.1)):
            for number in range(round(count * share)):
                place = Path(folder) / split / f"class{number % 100:03d}"
                if number < 100:
                    place.mkdir(parents=True)
                (place / f"{number:07d}.png").write_bytes(encoded.getvalue())
        before, started = _peak(), time.process_time()
        data = load_data(f"imagefolder:{folder}@8", batch_size=64)
        listed = time.process_time() - started
        read = sum(len(target) for _, target in islice(replace(data, workers=0).loader("train"), 4))
        assert read == 256
        return {
            "files": count,
            "seconds": {"list": round(listed, 2), "batches": round(time.process_time() - started - listed, 2)},
            "more": round(_peak() - before),
        }


def exponents(results: Mapping[str, Any]) -> dict[str, float]:
    """Return how the seconds of all steps grow with the size, from each size to the next of one kind."""
    kinds: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for name, row in results.items():
        kind = name.split("-")[0]
        if kind in ("chain", "language", "images") and "seconds" in row:
            kinds[kind].append((row.get("nodes") or row["files"], sum(row["seconds"].values())))
    found = {}
    for kind, points in kinds.items():
        for (small, before), (large, after) in pairwise(sorted(points)):
            found[f"{kind} {small} to {large}"] = round(math.log(after / before) / math.log(large / small), 2)
    return found


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"with commas between: {', '.join(NETWORKS)}")
    parser.add_argument("--rewrites", type=int, default=0)
    parser.add_argument("--images", default="", help="numbers of files, with commas between")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = pages.load(REPORT)
    if options.rewrites:
        results["rewrites"] = in_a_process(lambda: rewrites(options.rewrites))
        print("rewrites", results["rewrites"], flush=True)
    for count in map(int, filter(None, options.images.split(","))):
        results[f"images-{count}"] = in_a_process(lambda count=count: images(count))
        print("images", results[f"images-{count}"], flush=True)
        pages.save(REPORT, results)
    for name in filter(None, options.only.split(",")):
        results[name] = in_a_process(lambda make=NETWORKS[name]: measured(make))
        print(name, results[name], flush=True)
        pages.save(REPORT, results)
    results["exponents"] = exponents(results)
    print(results["exponents"])
    pages.save(REPORT, results)


if __name__ == "__main__":
    main()
