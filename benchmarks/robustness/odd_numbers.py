"""Networks and data with odd numbers, one at a time, through every door of the package: right, or refused in one line.

    python -m benchmarks.odd_numbers                              every odd network and data, every door: goes on
    python -m benchmarks.odd_numbers --only half --doors train    with the traceback of what is broken

A door is a function of Python's, with each of its quantizers, metrics, methods or formats. "broken": a value or a
gradient that is not finite without a word, or an error that is not ours. Exits 1 where anything is.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import nce_fx
from benchmarks import pages
from nce_fx.data.loaders import Data
from nce_fx.errors import NceFxError, one_line
from nce_fx.export import export_pt2, load_pt2, save_packed, to_integer
from nce_fx.passes.analysis.sensitivity import METRICS
from nce_fx.passes.transform.quantize import calibrate
from nce_fx.plan import WidthPlan, model_fingerprint
from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from nce_fx.report.page import page
from nce_fx.report.view import view_of
from nce_fx.search import AdaptRecipe, SearchRecipe, SlimmableRecipe, SurfaceRecipe, search
from nce_fx.training import Recipe, evaluate, train
from tests.search_runs import Images
from tests.test_odd_numbers import degenerate, filled, net

REPORT = pages.RESULTS / "odd_numbers.json"
NAN, INFINITE = float("nan"), float("inf")


@dataclass(frozen=True, eq=False)
class Odd:
    """A network, and data to calibrate and train it on."""

    model: nn.Module
    x: Tensor
    y: Tensor

    @property
    def data(self) -> Data:
        """The same samples as a data set, for training and for testing."""
        return Data("odd", Samples(self.x, self.y), Samples(self.x, self.y), tuple(self.x.shape[1:]), 3)

    @property
    def batches(self) -> list[Any]:
        """The same samples in batches of 8."""
        return list(zip(self.x.split(8), self.y.split(8), strict=True))


class Samples(Images):
    """Samples that are given."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y


def odd(model: nn.Module | None = None, count: int = 16, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Odd:
    """Return a network and noise."""
    x = torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1)) * scale
    return Odd((model or net()).to(dtype), x.to(dtype), torch.arange(count) % 3)


def norm_with(**values: float) -> nn.Sequential:
    """Return a network whose first BatchNorm has some of its first three channels' values set."""
    model = net()
    for name, value in values.items():
        getattr(model[1], name).data[:3] = value
    return model


def with_pixel(value: float) -> Odd:
    """Return noise with one other value."""
    found = odd()
    found.x[3, 0, 2, 2] = value
    return found


def constant(value: float) -> Odd:
    """Return images that are the same everywhere."""
    found = odd()
    found.x.fill_(value)
    return found


def with_labels(value: int, classes: int = 3) -> Odd:
    """Return a network of so many classes and samples that are all of one."""
    found = odd(net(classes=classes))
    found.y.fill_(value)
    return found


class Shut(nn.Module):
    """A network whose inner activation is always zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        nn.init.constant_(self.first.bias, -1e4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu())
        return y


def shut() -> Odd:
    """Return a network of which nothing but the last bias reaches the output."""
    return Odd(Shut().eval(), torch.randn(16, 4, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3)


def alone() -> Odd:
    """Return a network whose BatchNorm has one value a channel in a batch of one, and nine samples."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    return Odd(model, torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3)


def one_by_one() -> Odd:
    """Return one channel into one channel, one image of one pixel, one class."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1), nn.Flatten()).eval()
    return Odd(model, torch.ones(16, 1, 1, 1), torch.zeros(16, dtype=torch.long))


CASES: Mapping[str, Callable[[], Odd]] = {
    "usual": odd,
    "float64": lambda: odd(dtype=torch.float64),
    "bfloat16": lambda: odd(dtype=torch.bfloat16),
    "half": lambda: odd(dtype=torch.half),
    "NaN in a weight": lambda: odd(filled("0.weight", NAN, slice(1))),
    "infinity in a weight": lambda: odd(filled("3.weight", INFINITE, slice(1))),
    "NaN in running statistics": lambda: odd(norm_with(running_var=NAN)),
    "negative variance": lambda: odd(norm_with(running_var=-1.0)),
    "no variance": lambda: odd(norm_with(running_var=0.0)),
    "no factor": lambda: odd(norm_with(weight=0.0)),
    "channels that say nothing": lambda: odd(degenerate()),
    "zero weights": lambda: odd(filled("3.weight", 0.0)),
    "zero last weights": lambda: odd(filled("8.weight", 0.0)),
    "equal weights": lambda: odd(filled("3.weight", 0.25)),
    "subnormal weights": lambda: odd(filled("3.weight", 1e-42)),
    "huge weights": lambda: odd(filled("3.weight", 1e30)),
    "activations that are always zero": shut,
    "constant images": lambda: constant(0.5),
    "black images": lambda: constant(0.0),
    "tiny images": lambda: odd(scale=1e-40),
    "huge images": lambda: odd(scale=1e30),
    "NaN in an image": lambda: with_pixel(NAN),
    "infinity in an image": lambda: with_pixel(INFINITE),
    "one huge pixel": lambda: with_pixel(1e20),
    "one image": lambda: odd(count=1),
    "nine images, a last batch of one": lambda: odd(count=9),
    "a last batch of one under BatchNorm": alone,
    "no image": lambda: odd(count=0),
    "all of one class": lambda: with_labels(1),
    "a network of one class": lambda: with_labels(0, classes=1),
    "labels that are no class": lambda: with_labels(7),
    "negative labels": lambda: with_labels(-3),
    "one channel": lambda: odd(net(width=1)),
    "one of everything": one_by_one,
}

STEPS = Recipe(epochs=2, batch_size=8, evaluate_every=0, float_epochs=1, learning_rate=0.01)
SEARCHES = (
    SearchRecipe(epochs=2, warmup_epochs=1, batch_size=8),
    AdaptRecipe(epochs=3, warmup_epochs=1, batch_size=8),
    SlimmableRecipe(epochs=1, batch_size=8, evaluations=4, population=2, parents=1, drawn=2, random=1),
    SurfaceRecipe(
        epochs=1, float_epochs=1, networks=4, rounds=1, repeats=2, finals=2, candidates=1, batch_size=8, statistics=1
    ),
)


def finite(value: object, what: str) -> None:
    """Refuse what is not finite."""
    numbers = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    assert bool(numbers.isfinite().all()), f"{what} is not finite"


def sound(gm: nn.Module, given: Odd) -> None:
    """Check values, state, and gradients of every parameter."""
    for path, value in gm.state_dict().items():
        if value.is_floating_point():
            finite(value, path)
    x = given.x[:8]
    if not bool(x.isfinite().all()):
        return
    with torch.no_grad():
        y = gm.eval()(x)
    finite(y, "the output")
    assert y.dtype == given.x.dtype, f"the output is of {y.dtype}"
    if len(x) > 1:
        trained = copy.deepcopy(gm).train()
        F.mse_loss(trained(x).float(), torch.ones_like(y).float()).backward()
        for path, parameter in trained.named_parameters():
            if parameter.grad is not None:
                finite(parameter.grad, f"the gradient of {path}")


def traced(given: Odd) -> GraphModule:
    """Return the graph, traced once: no door changes what it is given."""
    if given not in _TRACED:
        _TRACED.clear()
        _TRACED[given] = nce_fx.trace(given.model, (given.x[:2],))
    return _TRACED[given]


_TRACED: dict[Odd, GraphModule] = {}


def ready(given: Odd, **spec: Any) -> GraphModule:
    """Return the quantized network with ranges from the data."""
    return calibrate(nce_fx.quantize(traced(given), nce_fx.QuantSpec(**spec)), given.batches)


def analyses(given: Odd) -> Iterator[tuple[str, Callable[[], object]]]:
    def costs() -> None:
        gm = traced(given)
        report = nce_fx.analyze_cost(gm)
        finite([report.total.macs, report.total.params, report.total.bit_ops], "the cost")
        wide = {group.id: 2**31 + 1 for group in nce_fx.analyze_channels(gm).groups if group.pinned is None}
        assert not wide or report.at(wide).total.params > 2**31

    def sensitivity(metric: str, batches: list[Any] | None) -> None:
        report = nce_fx.analyze_sensitivity(traced(given), batches, metric=metric)
        finite([each.weight + each.activation for each in report.by_node.values()], "a sensitivity")

    yield "trace", lambda: traced(given)
    yield "cost", costs
    yield "networkx", lambda: nce_fx.to_networkx(traced(given))
    for metric in sorted(METRICS):
        yield f"sensitivity by {metric}", lambda metric=metric: sensitivity(metric, given.batches)


def rewriting(given: Odd) -> Iterator[tuple[str, Callable[[], object]]]:
    def resized(change: float) -> None:
        gm = traced(given)
        free = {group.id: group for group in nce_fx.analyze_channels(gm).groups if group.pinned is None}
        widths = {name: max(each.step, int(each.width * change)) for name, each in free.items()}
        changed = nce_fx.resize(gm, widths)
        # What is no number before is none afterwards, and no more is.
        if bool(given.model(given.x).isfinite().all()):
            sound(changed, given)

    def rewritten(batches: list[Any] | None, **options: Any) -> None:
        sound(nce_fx.rewrite(given.model, (given.x[:2],), batches=batches, **options).graph_module, given)

    yield "resize wider", lambda: resized(2)
    yield "resize narrower", lambda: resized(0.5)
    yield "rewrite", lambda: rewritten(given.batches)
    yield "rewrite without data", lambda: rewritten(None)
    yield "rewrite, ends planned", lambda: rewritten(given.batches, end_bits="plan")
    yield (
        "rewrite as published",
        lambda: rewritten(
            given.batches, spec=nce_fx.QuantSpec(weight="sawb", activation="pact", shortcuts="quantized")
        ),
    )


def quantizing(given: Odd) -> Iterator[tuple[str, Callable[[], object]]]:
    def quantized(weight: str, activation: str, bits: int, calibrated: bool, **options: Any) -> None:
        spec = nce_fx.QuantSpec(weight=weight, activation=activation, weight_bits=bits, activation_bits=bits, **options)
        gm = nce_fx.quantize(traced(given), spec)
        sound(calibrate(gm, given.batches) if calibrated else gm, given)

    for bits, exact in ((2, False), (1, True), (8, True)):
        for weight in WEIGHT_QUANTIZERS:
            yield (
                f"quantize by {weight}, {bits} bits",
                lambda w=weight, b=bits, e=exact: quantized(w, "lsq", b, True, exact=e),
            )
        for activation in ACTIVATION_QUANTIZERS:
            yield (
                f"quantize by {activation}, {bits} bits",
                lambda a=activation, b=bits, e=exact: quantized("sawb", a, b, True, exact=e),
            )
    for activation in ACTIVATION_QUANTIZERS:
        yield f"quantize by {activation}, not calibrated", lambda a=activation: quantized("sawb", a, 2, False)


def training(given: Odd) -> Iterator[tuple[str, Callable[[], object]]]:
    def trained(gm: Callable[[], nn.Module], **options: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            recipe = Recipe(**(STEPS.to_dict() | options))
            result = train(gm(), given.data, recipe, teacher=traced(given), directory=folder)
            finite([result.score, *(each.loss for each in result.history)], "what training says")
            for path, value in result.model.state_dict().items():
                if value.is_floating_point():
                    finite(value, path)

    def evaluated() -> None:
        finite(evaluate(given.model, given.data), "the accuracy")
        finite(evaluate(given.model, given.data, loss="cross_entropy", metric="loss"), "the loss")

    yield "evaluate", evaluated
    yield "train in float", lambda: trained(lambda: traced(given), float_epochs=0)
    yield "train", lambda: trained(lambda: ready(given))
    yield "train, not calibrated", lambda: trained(lambda: nce_fx.quantize(traced(given), nce_fx.QuantSpec()))
    yield (
        "train with everything",
        lambda: trained(
            lambda: ready(given, ewgs=0.2),
            dampen=0.1,
            freeze=0.01,
            average=0.9,
            distill_features=1.0,
            reestimate=2,
            clip_gradient=1.0,
            epochs=3,
        ),
    )
    yield "train with bf16 and AdamW", lambda: trained(lambda: ready(given), precision="bf16", optimizer="adamw")


def searching(given: Odd) -> Iterator[tuple[str, Callable[[], object]]]:
    def searched(recipe: Any) -> None:
        plan = search(traced(given), given.data, recipe, spec=nce_fx.QuantSpec()).plan
        sound(nce_fx.resize(traced(given), plan), given)

    for recipe in SEARCHES:
        yield f"search by {recipe.method}", lambda recipe=recipe: searched(recipe)


def exporting(given: Odd) -> Iterator[tuple[str, Callable[[], object]]]:
    def in_a_folder(work: Callable[[Path], object]) -> Callable[[], object]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                work(Path(folder))

        return run

    def saved(folder: Path) -> None:
        gm = ready(given)
        nce_fx.save(gm, folder / "result")
        with torch.no_grad():
            assert torch.equal(nce_fx.load(folder / "result", given.model)(given.x[:2]), gm.eval()(given.x[:2]))

    def shown(folder: Path) -> None:
        gm, widths = traced(given), nce_fx.analyze_channels(traced(given)).widths
        text = page(view_of("odd", WidthPlan(widths, widths, model_fingerprint(gm)), ready(given), original=gm))
        assert ">nan<" not in text.lower()

    def archived(folder: Path) -> None:
        export_pt2(ready(given), folder / "odd.pt2")
        load_pt2(folder / "odd.pt2")

    yield "save and load", in_a_folder(saved)
    yield "page", in_a_folder(shown)
    yield "pt2", in_a_folder(archived)
    yield "packed", in_a_folder(lambda folder: save_packed(ready(given), folder / "odd.safetensors"))
    yield "integer network", lambda: to_integer(ready(given))
    for form in ("int2", "integer", "qcdq", "qonnx"):
        for exact in (False, True):
            yield (
                f"export {form}, exact {exact}",
                in_a_folder(
                    lambda folder, form=form, exact=exact: nce_fx.export_onnx(
                        ready(given, exact=exact), folder / "odd.onnx", format=form
                    )
                ),
            )


DOORS: Mapping[str, Callable[[Odd], Iterator[tuple[str, Callable[[], object]]]]] = {
    "analyze": analyses,
    "rewrite": rewriting,
    "quantize": quantizing,
    "train": training,
    "search": searching,
    "export": exporting,
}


def ends(case: str, doors: list[str], *, show: bool) -> Iterator[tuple[str, str, str]]:
    """Yield each door, how it ended, and what was said."""
    given = CASES[case]()
    for group in doors:
        for door, work in DOORS[group](given):
            try:
                work()
                yield door, "right", ""
            except NceFxError as error:
                one = len(str(error).splitlines()) == 1 and len(str(error)) <= 1000
                yield door, "refused" if one else "broken", str(error)
            except Exception as error:
                if show:
                    traceback.print_exc()
                yield door, "broken", one_line(error)


def main() -> None:
    """Go through every door that is asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", help=f"with semicolons between: {'; '.join(CASES)}")
    options.add_argument("--doors", help=f"with commas between: {', '.join(DOORS)}")
    options.add_argument("--verbose", action="store_true", help="also what was refused")
    asked = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = pages.load(REPORT)
    for case in [name for name in CASES if not asked.only or name in asked.only.split(";")]:
        for group in asked.doors.split(",") if asked.doors else DOORS:
            if group in results.get(case, {}) and not asked.only:
                continue
            found, broken = Counter[str](), []
            for door, end, said in ends(case, [group], show=bool(asked.only)):
                found[end] += 1
                if end == "broken":
                    broken.append(f"{door}: {said[:200]}")
                if end == "broken" or asked.verbose:
                    print(f"{case} | {door} | {end} | {said[:300]}", flush=True)
            results.setdefault(case, {})[group] = dict(sorted(found.items())) | ({"broken": broken} if broken else {})
            pages.save(REPORT, results)
    every = Counter[str]()
    for row in (row for case in results.values() for row in case.values()):
        every.update({end: len(n) if isinstance(n, list) else n for end, n in row.items()})
    print(dict(every))
    sys.exit(bool(every["broken"]))


if __name__ == "__main__":
    main()
