"""What quantization adds to a training step, as a ratio to the float step of the same process.

    python -m benchmarks.training_step                    eager mode and memory; a minute or two
    python -m benchmarks.training_step --compile          torch.compile, too; minutes of compilation

Time: ResNet-20, batch 32x3x32x32, 2-bit weights and activations, first and last layer at 8 bits, one thread. A step
is zero_grad, forward, loss, backward, SGD with momentum. In eager mode each candidate takes turns with float, no
other in memory; compiled ones all take turns, in another order every round. Each figure is the median over the rounds
of (candidate / float), in CPU time of the process, so that other programs on the machine disturb it less. torch.ao's
fake quantization and the plainest straight-through one stand at the same places of the same graph; brevitas takes
part where it is installed, with its own layers, after its statistics phase.

Compiled are those that can be the default, and those that have a bound to keep. "Computed again" is
`Recipe(checkpoint_activations=True)`.

Memory: ResNet-18, batch 16x3x64x64. The peak over a step of all tensors (parameters, momenta, gradients, activations,
workspaces) as torch's profiler sees them allocated and freed.
The allocator keeps what is freed, as it does in training.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import nce_fx
from benchmarks import pages
from nce_fx.models import MODELS
from nce_fx.passes.transform.quantize import PUBLISHED, QuantSpec, quantize
from nce_fx.processes import Engine
from nce_fx.quantizers import ActivationQuantizer, WeightQuantizer
from nce_fx.quantizers.base import Grid, signed_grid
from nce_fx.quantizers.saved_tensors import compact_saving
from nce_fx.training.forward import called, compiled, forward_pass
from nce_fx.training.recipe import Recipe

Step = Callable[[], object]
Saving = Callable[[], AbstractContextManager[None]]
MIB = 2**20
ALONE = Engine(torch.device("cpu"))

SPECS = {
    "pact + sawb": QuantSpec(**PUBLISHED),
    "pact + sawb, float shortcuts": QuantSpec("sawb", "pact", shortcuts="float"),
    "lsq": QuantSpec("lsq", "lsq", shortcuts="quantized"),
    "sawb + lsq, shortcuts of 8 bits": QuantSpec(),
    "dorefa": QuantSpec("dorefa", "dorefa", shortcuts="quantized"),
    "minmax": QuantSpec("minmax", "minmax", shortcuts="quantized"),
    **{
        f"pact + {weight}": QuantSpec(**{**PUBLISHED, "weight": weight}) for weight in ("seq", "statsq", "sawb-channel")
    },
    **{f"{activation} + sawb": QuantSpec(**{**PUBLISHED, "activation": activation}) for activation in ("lsq+", "n2uq")},
    "pact + sawb, ewgs": QuantSpec(**PUBLISHED, ewgs=0.2),
}
DEFAULT = "sawb + lsq, shortcuts of 8 bits"
COMPILED = (
    "pact + sawb",
    DEFAULT,
    "lsq",
    "pact + seq",
    "pact + statsq",
    "lsq+ + sawb",
    "n2uq + sawb",
    "pact + sawb, ewgs",
)
SAVINGS: Mapping[str, Saving] = {
    "": nullcontext,
    ", compact": compact_saving,
    ", all compact": lambda: compact_saving(activations=True),
}


def network(name: str, x: Tensor, classes: int, spec: QuantSpec | None) -> nn.Module:
    """Return a built-in network in training mode, quantized if asked."""
    torch.manual_seed(0)
    gm = nce_fx.trace(MODELS[name](num_classes=classes).train(), (x,))
    return quantize(gm, spec, [x]) if spec else gm


def with_brevitas(name: str, x: Tensor, classes: int) -> nn.Module | None:
    """Return the network with brevitas' quantized layers in the place of convolutions, linear layers and ReLUs."""
    try:
        from brevitas import nn as qnn
    except ImportError:
        return None
    torch.manual_seed(0)
    model = MODELS[name](num_classes=classes).train()
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for path, module in list(model.named_modules()):
        bits = 8 if path in (layers[0], layers[-1]) else 2
        new: nn.Module
        if isinstance(module, nn.Conv2d):
            sizes = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
            new = qnn.QuantConv2d(*sizes, bias=module.bias is not None, weight_bit_width=bits)
        elif isinstance(module, nn.Linear):
            new = qnn.QuantLinear(module.in_features, module.out_features, bias=True, weight_bit_width=bits)
        elif isinstance(module, nn.ReLU):
            new = qnn.QuantReLU(bit_width=2, collect_stats_steps=2)
        else:
            continue
        owner, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(owner), leaf, new)
    return model


class StraightThrough(nn.Module):
    """The plainest fake quantization: x + (rounded - x).detach(), by autograd's own operators, a learned scale."""

    def __init__(self, grid: Grid, scale: float) -> None:
        super().__init__()
        self.grid, self.scale = grid, nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize."""
        steps = (x / self.scale - self.grid.offset).clamp(self.grid.low, self.grid.high)
        whole = steps + (steps.round() - steps).detach()
        return (whole + self.grid.offset) * self.scale


def plain(weights: bool, grid: Grid) -> nn.Module:
    """Return `StraightThrough` with a scale that fits values of about one (weights: a tenth)."""
    return StraightThrough(grid, (0.1 if weights else 1.0) / grid.reach)


def torch_ao(weights: bool, grid: Grid) -> nn.Module:
    """Return torch.ao's fused fake quantization with its observer, as its quantization-aware training has it."""
    from torch.ao.quantization import FusedMovingAvgObsFakeQuantize, MovingAverageMinMaxObserver

    signed = weights or grid.low < 0
    kind, scheme = (torch.qint8, torch.per_tensor_symmetric) if signed else (torch.quint8, torch.per_tensor_affine)
    made: nn.Module = FusedMovingAvgObsFakeQuantize(
        MovingAverageMinMaxObserver, quant_min=grid.low, quant_max=grid.high, dtype=kind, qscheme=scheme
    )
    return made


OTHERS: Mapping[str, Callable[[bool, Grid], nn.Module]] = {"plain straight-through": plain, "torch.ao": torch_ao}
"""What others put at the same places of the same graph."""


def with_others(name: str, x: Tensor, classes: int, make: Callable[[bool, Grid], nn.Module]) -> nn.Module:
    """Return the network with other fake quantizations in the places of ours."""
    model = network(name, x, classes, SPECS["lsq"])
    for path, module in list(model.named_modules()):
        if isinstance(module, WeightQuantizer):
            model.set_submodule(path, make(True, signed_grid(module.bits)))
        elif isinstance(module, ActivationQuantizer):
            model.set_submodule(path, make(False, module.grid))
    return model


def step_of(model: Callable[[Tensor], Tensor], owner: nn.Module, x: Tensor, y: Tensor, saving: Saving) -> Step:
    """Return one training step."""
    optimizer = torch.optim.SGD(owner.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with saving():
            loss = F.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one, as it does in training once a larger block has been freed.

    It returns freed memory above some size to the system, which hands it out again page by page: up to a tenth of a
    step, of whoever frees most. Freeing a block moves that size up to the block's, at most 32 MiB.
    """
    torch.empty(31 * MIB, dtype=torch.uint8)


def in_turns(steps: Mapping[str, Step], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """CPU seconds of every step of every candidate."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(-warm_up, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.process_time()
            steps[name]()
            if turn >= 0:
                seconds[name].append(time.process_time() - begin)
    return seconds


def ratios(seconds: Mapping[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median and quartiles of (candidate / base), round by round."""
    result = {}
    for name, own in seconds.items():
        each = sorted(a / b for a, b in zip(own, seconds[base], strict=True))
        low, middle, high = statistics.quantiles(each, n=4)
        result[name] = {
            "ratio": round(middle, 3),
            "lower_quartile": round(low, 3),
            "upper_quartile": round(high, 3),
            "milliseconds": round(1e3 * statistics.median(own), 1),
        }
    return result


def measure_eager(rounds: int, batch: int) -> dict[str, dict[str, float]]:
    """Time each candidate in turns with float, in eager mode; no other is in memory, as none is in training."""
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def ours(spec: QuantSpec | None) -> nn.Module:
        return network("resnet20", x, 10, spec)

    published = SPECS["pact + sawb"]
    candidates: dict[str, tuple[Callable[[], nn.Module | None], Saving]] = {
        **{name: (partial(ours, spec), nullcontext) for name, spec in SPECS.items()},
        **{f"pact + sawb{how}": (partial(ours, published), SAVINGS[how]) for how in (", compact", ", all compact")},
        **{name: (partial(with_others, "resnet20", x, 10, make), nullcontext) for name, make in OTHERS.items()},
        "brevitas": (partial(with_brevitas, "resnet20", x, 10), nullcontext),
    }
    plain = ours(None)
    steps = {"float": step_of(plain, plain, x, y, nullcontext)}
    found: dict[str, dict[str, float]] = {}
    for name, (make, saving) in candidates.items():
        model = make()
        if model is not None:
            both = steps | {name: step_of(model, model, x, y, saving)}
            found |= {**ratios(in_turns(both, rounds), "float"), **found}
    return found


def measure_compiled(rounds: int, batch: int) -> dict[str, dict[str, float]]:
    """Time the networks of `COMPILED` as training compiles them; a recompilation after the first step is an error."""
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    steps = {}
    torch._dynamo.config.recompile_limit = 4 * len(COMPILED)  # of one forward, by whatever network
    for name in ("float", *COMPILED):
        model = network("resnet20", x, 10, SPECS.get(name))
        steps[name] = step_of(compiled(model, ALONE), model, x, y, lambda: forward_pass(ALONE, Recipe(), compiled=True))
        begin = time.perf_counter()
        steps[name]()
        print(f"compiled {name} in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    with torch._dynamo.config.patch(error_on_recompile=True):
        return ratios(in_turns(steps, rounds), "float")


def measure_memory() -> dict[str, dict[str, float]]:
    """The peak of a step in MiB, and as a ratio to float's."""
    x, y = torch.randn(16, 3, 64, 64), torch.randint(0, 1000, (16,))
    peaks = {"float": peak(network("resnet18", x, 1000, None), x, y, nullcontext)}
    for name in ("pact + sawb", "pact + sawb, float shortcuts", "lsq", DEFAULT):
        for ending, saving in SAVINGS.items():
            peaks[name + ending] = peak(network("resnet18", x, 1000, SPECS[name]), x, y, saving)
    return {name: {"ratio": round(p / peaks["float"], 3), "mib": round(p / MIB, 1)} for name, p in peaks.items()}


def measure_again(rounds: int) -> dict[str, dict[str, float]]:
    """Time and peak of a step whose activations are computed again, beside those of the same step that keeps them."""
    again, found = Recipe(checkpoint_activations=True), {}
    for name, shape in {
        "resnet20": (32, 3, 32, 32),
        "resnet18": (16, 3, 64, 64),
        "mobilenet_v2": (16, 3, 64, 64),
    }.items():
        x, y = torch.randn(shape), torch.randint(0, 10, shape[:1])
        for what, spec in {"float": None, DEFAULT: SPECS[DEFAULT]}.items():
            kept = network(name, x, 10, spec)
            model = called(network(name, x, 10, spec), ALONE, again)
            peaks = [peak(each, x, y, nullcontext) / MIB for each in (kept, model)]
            steps = {key: step_of(each, each, x, y, nullcontext) for key, each in (("kept", kept), ("again", model))}
            found[f"{name}, {what}"] = {
                **ratios(in_turns(steps, rounds), "kept")["again"],
                "mib, kept": round(peaks[0], 1),
                "mib, again": round(peaks[1], 1),
            }
    return found


def rise(step: Step) -> int:
    """Return the most bytes that a step has beside what was there when it began."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    assert profiled.profiler is not None
    results: Any = profiled.profiler.kineto_results
    changes = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    living = most = 0
    for change in changes:
        living += change.nbytes()
        most = max(most, living)
    return most


def peak(model: nn.Module, x: Tensor, y: Tensor, saving: Saving) -> int:
    """Bytes of what lives between steps, and the most that a step adds."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with saving():
            loss = F.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        optimizer.step()

    step()
    optimizer.zero_grad(set_to_none=True)
    momenta = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    lasting = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), *momenta))
    return lasting + rise(step)


PAGE = pages.DOCS / "training.md"
RESULTS = pages.RESULTS / "training_step.json"


def write_page(results: Path = RESULTS) -> None:
    """Put the ratios into the page."""
    found = pages.load(results)
    kinds = ("eager", "compiled", "memory")
    names = dict.fromkeys(name for kind in kinds for name in found.get(kind, {}))
    lines = ["| quantizers | time, eager | time, compiled | peak memory |", "|---|--:|--:|--:|"]
    for name in names:
        cells = [found.get(kind, {}).get(name) for kind in kinds]
        lines.append(
            f"| {name} | {' | '.join('' if cell is None else format(cell['ratio'], '.3f') for cell in cells)} |"
        )
    pages.put(PAGE, "training step table", lines)
    lines = ["| network, quantizers | peak memory, kept | computed again | time |", "|---|--:|--:|--:|"]
    for name, row in found.get("again", {}).items():
        lines.append(f"| {name} | {row['mib, kept']:.0f} MiB | {row['mib, again']:.0f} MiB | {row['ratio']:.2f} |")
    pages.put(PAGE, "checkpointing table", lines)


def show(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print one table."""
    print(f"\n{title}")
    for name, row in rows.items():
        rest = "  ".join(f"{key} {value:g}" for key, value in row.items() if key != "ratio")
        print(f"  {name:42s} {row['ratio']:6.3f}   {rest}")


def main() -> None:
    """Measure, print, and write the JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=25)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--compile", action="store_true")
    options.add_argument("--only", choices=("eager", "compiled", "memory", "again"))
    options.add_argument("--out", type=Path, default=RESULTS)
    given = options.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    wanted = [given.only] if given.only else ["eager", "memory", "again"] + ["compiled"] * given.compile
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    found["machine"] = {"processor": platform.machine(), "torch": torch.__version__, "threads": 1}
    if "eager" in wanted:
        found["eager"] = measure_eager(given.rounds, given.batch)
        show("time of a step, eager, ratio to float", found["eager"])
    if "memory" in wanted:
        found["memory"] = measure_memory()
        show("peak memory of a step, ratio to float", found["memory"])
    if "again" in wanted:
        found["again"] = measure_again(given.rounds)
        show("time of a step whose activations are computed again, ratio to one that keeps them", found["again"])
    if "compiled" in wanted:
        found["compiled"] = measure_compiled(given.rounds, given.batch)
        show("time of a step, torch.compile, ratio to compiled float", found["compiled"])
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    write_page(given.out)
    print(f"\nwrote {given.out} and {PAGE}")


if __name__ == "__main__":
    main()
