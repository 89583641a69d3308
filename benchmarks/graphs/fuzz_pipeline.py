"""Random networks through the whole compiler: each step keeps its law, or refuses in one clear line.

    python -m benchmarks.fuzz_pipeline --cases 2000       goes on where it stopped, a line of the log a case
    python -m benchmarks.fuzz_pipeline --only 17          one case, with its traceback

A case is a program of the tests' generator with a random budget over all quantities, quantizers and bits; where no plan
meets the budget, which is refused, it goes on with another. It is traced,
planned, resized, quantized, trained for two steps, saved, loaded into other weights, and exported to a file in a form
that is drawn, int2, integer or qonnx (the first 112 cases: to all three), of which onnxruntime runs the first two. Nine
tenths of a case are PyTorch's exporter. Exits 1 where a law is broken or an error is not ours.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

import nce_fx
import tests.onnx_operators  # noqa: F401
from benchmarks import pages
from nce_fx.errors import BudgetError, NceFxError, one_line
from nce_fx.passes.analysis.sensitivity import METRICS
from nce_fx.passes.transform.quantize.spec import PUBLISHED, SHORTCUTS, SUMS
from nce_fx.quantities import known_quantities
from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from tests.generator import network
from tests.generator.program import CHANNELS, SIDE, Program
from tests.generator.search import drawn
from tests.threads import mean_square
from tests.zoo.model import randomize

REPORT = pages.RESULTS / "fuzz_pipeline.json"
BITS = (1, 2, 2, 3, 4, 8, None)
FORMS = ("int2", "integer", "qonnx")
COMPUTES_OTHERWISE = ("differs", "otherwise", "something else", "onnxruntime refuses")
"""Words of refusals that are faults here: an export that was made and is wrong."""


def inputs_of(program: Program, seed: int) -> tuple[Any, ...]:
    """Return one batch as the program's network takes it: as many images as it writes down in its views."""
    x = torch.randn(2, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return ({"image": x},) if program.takes == "dict" else (x,)


def spec_of(rng: random.Random) -> nce_fx.QuantSpec:
    """Draw what is quantized how: one case of five as by default, one of five as published."""
    kind = rng.random()
    if kind < 0.2:
        return nce_fx.QuantSpec()
    if kind < 0.4:
        return nce_fx.QuantSpec(**PUBLISHED)
    return nce_fx.QuantSpec(
        weight=rng.choice(sorted(WEIGHT_QUANTIZERS)),
        activation=rng.choice(sorted(ACTIVATION_QUANTIZERS)),
        weight_bits=rng.choice(BITS),
        activation_bits=rng.choice(BITS),
        first_last_bits=rng.choice((8, 8, 2, None)),
        shortcuts=rng.choice(SHORTCUTS),
        exact=rng.random() < 0.5,
        sums=rng.choice(SUMS),
        ewgs=rng.choice((0.0, 0.0, 0.2)),
    )


def budget_of(rng: random.Random) -> nce_fx.Budget | None:
    """Draw limits of some quantities, between 0.6 and 1.1 of the original; or the default ones."""
    if rng.random() < 0.2:
        return None
    named = [name for name in known_quantities() if name != "custom" and rng.random() < 0.5]
    return nce_fx.Budget(**{name: f"{rng.uniform(0.8, 1.1):.2f}x" for name in named or ["macs"]})


def case(seed: int) -> str:
    """Run one case; return how it ended: "kept", or what was refused.

    Raises:
        Exception: anything else, a law that is broken or an error that is not ours.
    """
    rng = random.Random(seed)
    ends: list[str] = []
    program = drawn(seed)
    model = network(program).float()
    example = inputs_of(program, seed)
    spec, budget, metric = spec_of(rng), budget_of(rng), rng.choice(sorted(METRICS))
    targets = torch.zeros(2, dtype=torch.long)
    batches = [(*inputs_of(program, seed + k), targets) for k in range(rng.randint(1, 2))]
    loss = None if _gives_classes(model, *example) and rng.random() < 0.7 else mean_square
    if loss is not None and metric == "gauss_newton":  # it knows the losses of PyTorch alone
        metric = "fisher"
    end_bits = rng.choice(("given", "given", "given", "plan"))
    given: dict[str, Any] = {"batches": batches, "spec": spec, "metric": metric, "loss": loss, "end_bits": end_bits}
    try:
        try:
            result = nce_fx.rewrite(model, example, budget=budget, **given)
        except BudgetError as error:
            ends.append(refused("rewrite", error))
            budget = nce_fx.Budget(macs="2x")
            result = nce_fx.rewrite(model, example, budget=budget, **given)
    except NceFxError as error:
        return "; ".join([*ends, refused("rewrite", error)])
    holds(result, budget)
    gm = two_steps(result.graph_module, *example)
    with tempfile.TemporaryDirectory() as folder:
        nce_fx.save(gm, Path(folder) / "result")
        other = randomize(copy.deepcopy(model), seed + 1)
        loaded = nce_fx.load(Path(folder) / "result", other)
        equal(gm, loaded, *example)
        form = rng.choice(FORMS)
        ends.append(exported(gm, Path(folder) / f"{form}.onnx", form))
    return "; ".join(end for end in ends if end) or "kept"


def _gives_classes(model: nn.Module, *inputs: Any) -> bool:
    with torch.no_grad():
        return all(isinstance(y, Tensor) and y.dim() == 2 and len(y) == 2 for y in [model.eval()(*inputs)])


def holds(result: nce_fx.RewriteResult, budget: nce_fx.Budget | None) -> None:
    """Check the limits in the report's own count."""
    original, rewritten = result.report.original.cost, result.report.rewritten.cost
    limits = (budget or nce_fx.Budget.default()).given
    for name, limit in limits.items():
        most = limit * original[name] if isinstance(limit, float) else limit
        assert rewritten[name] <= most * (1 + 1e-12), f"{name} is {rewritten[name]}, its limit {most}"


def two_steps(gm: GraphModule, *inputs: Any) -> GraphModule:
    """Return the network after two steps of plain gradient descent; everything stays finite."""
    gm = copy.deepcopy(gm).train()
    learned = [parameter for parameter in gm.parameters() if parameter.requires_grad]
    for _ in range(2):
        loss = sum(((y - 1) ** 2).mean() for y in tree_leaves(gm(*inputs)) if y.is_floating_point())
        if not (isinstance(loss, Tensor) and loss.requires_grad):
            break
        found = torch.autograd.grad(loss / loss.detach().clamp(min=1), learned, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(learned, found, strict=True):
                if gradient is not None:
                    assert gradient.isfinite().all(), "a gradient is not finite"
                    parameter -= 1e-3 * gradient / gradient.norm().clamp(min=1)
    return gm.eval()


def equal(a: nn.Module, b: nn.Module, *inputs: Any) -> None:
    """Check that two networks compute the same, bit for bit."""
    with torch.no_grad():
        torch.manual_seed(0)
        one = tree_leaves(a.eval()(*inputs))
        torch.manual_seed(0)
        two = tree_leaves(b.eval()(*inputs))
    for p, q in zip(one, two, strict=True):
        assert torch.equal(p.nan_to_num(), q.nan_to_num()), "what was loaded is not what was saved"


def exported(gm: GraphModule, path: Path, form: str) -> str:
    """Export, which compares the file with the network; return what was refused."""
    try:
        nce_fx.export_onnx(gm, path, format=form)
    except NceFxError as error:
        if any(words in str(error) for words in COMPUTES_OTHERWISE):
            raise
        assert not path.exists(), "a refused export left a file"
        return refused(form, error)
    return ""


def refused(step: str, error: NceFxError) -> str:
    """Return a refusal in one line, without what differs from case to case."""
    text = str(error)
    assert "\n" not in text.strip(), f"not one line: {text!r}"
    return f"{step}: {text[:200]}"


def report(log: Path) -> Mapping[str, Any]:
    """Return how all cases of a log ended, in numbers."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    ends = Counter(row["end"] for row in rows)
    return {"cases": len(rows), "ends": dict(sorted(ends.items())), "broken": [r for r in rows if r["end"] == "broken"]}


def main() -> None:
    """Run the cases that the log does not have."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=2000)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--only", type=int, help="one case, with its traceback")
    options.add_argument("--log", type=Path, default=Path("fuzz_pipeline.jsonl"))
    given = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.only is not None:
        print(case(given.only))
        return
    given.log.touch()
    done = {json.loads(line)["case"] for line in given.log.read_text().splitlines()}
    with given.log.open("a") as log:
        for seed in sorted(set(range(given.first, given.first + given.cases)) - done):
            try:
                said = case(seed)
                end = "kept" if said == "kept" else "refused"
            except Exception as error:
                at = traceback.extract_tb(error.__traceback__)[-1]
                said, end = f"{one_line(error)[:200]} at {Path(at.filename).name}:{at.lineno}", "broken"
                print(f"{seed}: {said}", file=sys.stderr)
            print(json.dumps({"case": seed, "end": end, "said": said}), file=log, flush=True)
    found = report(given.log)
    REPORT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["broken"]))


if __name__ == "__main__":
    main()
