"""Quantize every classification model of torchvision, and hold each to what `nce_fx.quantize` promises.

    python -m benchmarks.quantize_torchvision              goes on where it stopped, a line a model
    python -m benchmarks.quantize_torchvision --only 'resnet*' --again

Two images of 64 x 64 (larger where a model asks), random weights, 2 bits, first and last layers at 8, in training
mode: outputs are finite; backward reaches every parameter that it reaches in float; every convolution and linear layer
that the model calls is quantized, weight and input, to 2 or 8 bits; each quantized tensor is its integers times its
scale, and these are 2^bits different ones at most. Exits 1 where a model breaks one of these. "functional" counts the
quantized layers that a model does not call as modules: projections of attention.

Needs torchvision. Each model runs in a process of its own; the largest take 8 GB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

import nce_fx
from benchmarks import pages, vision
from nce_fx.passes.transform.quantize import describe, quantize
from nce_fx.passes.transform.quantize.functional import FUNCTIONS
from nce_fx.quantizers import ActivationQuantizer, Quantizer, WeightQuantizer

RESULTS = pages.RESULTS / "quantize_torchvision.json"
OK = "ok"


def main() -> None:
    """Run what was asked for and has no good result yet, and say how many models hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], help="names to run, with * and ?")
    parser.add_argument("--again", action="store_true", help="also run what has a result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    entries = list(classifiers())
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for entry in entries:
        wanted = any(fnmatch(entry.name, pattern) for pattern in options.only)
        if not wanted or (results.get(entry.name, {}).get("status") == OK and not options.again):
            continue
        results[entry.name] = in_a_process(entry)
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
        print(entry.name, results[entry.name], flush=True)
    good = [entry.name for entry in entries if results.get(entry.name, {}).get("status") == OK]
    print(f"{len(good)} of {len(entries)} models hold; not run: {[e.name for e in entries if e.name not in results]}")
    sys.exit(any(result["status"] != OK for result in results.values()))


def classifiers() -> Iterator[vision.Entry]:
    """Yield torchvision's classification models, without the auxiliary heads that exist in training alone."""
    from torchvision import models

    names = set(models.list_models(models))
    yield from (entry for entry in vision.corpus("torchvision") if entry.name in names)


def in_a_process(entry: vision.Entry) -> dict[str, Any]:
    """Check one model in a forked process, which gives its memory back."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(entry, sender))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        found = {"status": f"killed: exit {process.exitcode}"}
    process.join()
    return found


def _child(entry: vision.Entry, sender: Connection) -> None:
    torch.manual_seed(0)
    try:
        sender.send(checked(entry.build().eval(), entry.inputs()))
    except Exception as error:
        sender.send({"status": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
    sender.close()


def checked(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Return "ok" with what there is, or the first promise that does not hold."""
    stated = layers_called(model, inputs)
    gm = nce_fx.trace(model, inputs)
    missing = without_gradient(gm.train(), inputs)
    quantized = quantize(gm.eval(), None, [(inputs, None)]).train()
    trouble: list[str] = []
    for name, module in quantized.named_modules():
        if isinstance(module, Quantizer):
            module.register_forward_hook(lambda m, args, out, name=name: trouble.extend(few_levels(name, m, args, out)))
    beyond = without_gradient(quantized, inputs, trouble) - missing
    rows = describe(quantized)
    done = {row.layer for row in rows if row.weight_bits and row.activation_bits}
    half = [row.layer for row in rows if bool(row.weight_bits) != bool(row.activation_bits)]
    bits = {row.layer: row.weight_bits for row in rows if row.weight_bits}
    trouble += [f"no gradient reaches {name}" for name in sorted(beyond)]
    trouble += [f"{name} is not quantized" for name in sorted(stated - done)]
    trouble += [f"{name} has only its weight or its input quantized" for name in half]
    trouble += [f"{name} has {count} bits" for name, count in bits.items() if count not in (2, 8)]
    if not 1 < list(bits.values()).count(8) < len(bits):
        trouble.append("first and last layers are not at 8 bits")
    return {
        "status": trouble[0] if trouble else OK,
        "layers": len(done),
        "functional": len(done - stated),
        "float": sorted(row.layer for row in rows if row.layer not in done),
    }


def layers_called(model: nn.Module, inputs: tuple[Any, ...]) -> set[str]:
    """Return the names of the convolutions and linear layers that a model calls; read off the model, not our graph."""
    called: set[str] = set()
    kinds: tuple[type[nn.Module], ...] = tuple(getattr(nn, kind) for kind in FUNCTIONS)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda m, args, out, name=name: called.add(name))
    with torch.no_grad():
        model(*inputs)
    for module in model.modules():
        module._forward_hooks.clear()
    return called


def without_gradient(gm: GraphModule, inputs: tuple[Any, ...], trouble: list[str] | None = None) -> set[str]:
    """Run forward and backward; return the parameters that no gradient reaches."""
    torch.manual_seed(0)
    leaves = [leaf for leaf in tree_leaves(gm(*inputs)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if trouble is not None and not all(bool(leaf.isfinite().all()) for leaf in leaves):
        trouble.append("an output is not finite")
    torch.autograd.backward([leaf.sin().sum() for leaf in leaves])
    reached = {name for name, parameter in gm.named_parameters() if parameter.grad is not None}
    gm.zero_grad(set_to_none=True)
    return {name for name, _ in gm.named_parameters()} - reached


def few_levels(name: str, quantizer: Quantizer, args: tuple[Any, ...], out: Tensor) -> Iterator[str]:
    """Yield what is wrong with the levels of a quantized tensor."""
    assert isinstance(quantizer, WeightQuantizer | ActivationQuantizer)
    integers = quantizer.integers(args[0].detach())
    shifted = integers.values.to(torch.int16) - int(integers.values.min())
    count = int((torch.bincount(shifted.reshape(-1).int()) > 0).sum())
    if count > 2**quantizer.bits or not torch.equal(integers.dequantize(), out.detach()):
        yield f"{name} has {count} levels at {quantizer.bits} bits"


if __name__ == "__main__":
    main()
