"""The compiler, in reading order.

    trace -> analyze (channels, cost, sensitivity) -> plan (budget) -> resize -> quantize

`rewrite` is these steps; where asked, the bits of the ends are planned first, and plans are tried at the end, on data
that is held out. `analyze` and `build` are its halves, for those who plan many times or replay a plan.
Retraining what comes out is `nce_fx.training`; training it beside its rivals is `nce_fx.comparison`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

from torch import nn
from torch.fx import GraphModule

from nce_fx.analyses import Analyses
from nce_fx.arguments import checked
from nce_fx.batches import gathered
from nce_fx.candidates import Candidates
from nce_fx.end_bits import WAYS, plan_ends
from nce_fx.errors import InputError
from nce_fx.models.loading import check_finite
from nce_fx.nearest import nearest
from nce_fx.passes.analysis.channels import analyze_channels
from nce_fx.passes.analysis.channels.plan_check import check_plan
from nce_fx.passes.analysis.cost import analyze_cost
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.analysis.sensitivity import analyze_sensitivity
from nce_fx.passes.planning import Budget, plan_widths
from nce_fx.passes.planning.budget import Reserve
from nce_fx.passes.planning.choices import Rules
from nce_fx.passes.transform.quantize import InsertQuantizers, Observers, QuantSpec, quantize
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.pipeline import Given, Pipeline
from nce_fx.pipeline.base import Between
from nce_fx.plan import WidthPlan
from nce_fx.progress import Observer, Progress, begin, watched
from nce_fx.quantities import Quantity
from nce_fx.report.records import CostRecord, GroupRecord, LayerRecord, RewriteReport
from nce_fx.tasks import LossLike
from nce_fx.tracing import trace
from nce_fx.trial import Trial, why_untried

Batches = Iterable[Any]
"""Several batches in any form that `nce_fx.batches` reads."""


@dataclass(frozen=True)
class RewriteResult:
    """What `rewrite` returns: ``result.graph_module``, quantized, ``result.plan``, and what was found and decided."""

    graph_module: GraphModule
    plan: WidthPlan
    report: RewriteReport
    original: GraphModule
    """The network as traced: float, at its own widths."""
    uniform: GraphModule
    """The network quantized at its own widths."""


@checked
def rewrite(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    batches: Batches | None = None,
    budget: Budget | None = None,
    spec: QuantSpec | None = None,
    metric: str | None = None,
    loss: LossLike = None,
    hardware: HardwareTable | None = None,
    quantities: Iterable[Quantity] = (),
    min_width: float = 0.25,
    max_width: float = 2.0,
    round_to: int = 1,
    capacity: float = 0.0,
    streams: float = 1.0,
    end_bits: str = "given",
    trial: Trial | None = None,
    freeze: Iterable[str] = (),
    only: Iterable[str] = (),
    seed: int = 0,
    source: Mapping[str, Any] | None = None,
    observe: Observer | None = None,
    progress: Progress | None = None,
    between: Between | None = None,
) -> RewriteResult:
    """Rewrite a model: wider where low precision hurts, narrower where it does not, quantized, within the budget.

    Args:
        model: any `nn.Module`; it is not changed.
        example_inputs: a tuple of inputs, as `model` takes them.
        batches: several batches of real data, in a list, a DataLoader or a generator: inputs alone, (inputs, target)
            or dicts, see `nce_fx.batches`. They tell where quantization hurts and how far activations reach. Without
            them the weights alone must tell.
        budget: what the rewritten network may cost. By default nothing that is paid rises: MACs, parameters, bit
            operations and weight bytes are at most those of ``model`` quantized as it is. A budget that is given limits
            what it names, and leaves the rest free.
        spec: bits and quantizers; 2-bit weights and activations by default.
        metric: how sensitivity is measured, ``--sensitivity`` of the command line, where ``--metric`` is what training
            is measured by; by default by gradient with batches, from the weights without.
        loss: what the model is trained for, as `nce_fx.training.train` takes it; cross entropy by default.
        hardware: the user's own cost of layers, which ``Budget(custom=...)`` limits.
        quantities: more rows of what a network costs, see `nce_fx.quantities`.
        min_width: the least width of a group, as a ratio of its own.
        max_width: the greatest width of a group, as a ratio of its own.
        round_to: widths come in multiples of this.
        capacity: the share of a group's importance that is what its width costs, not its noise, 0 to 1; see
            `nce_fx.passes.planning.importance`.
        streams: within a budget below the network's own cost, the least width of a residual stream as a share of what
            one factor for all groups would leave it; see `nce_fx.passes.planning.even`.
        end_bits: "plan": the weights of the first and last layers have 2, 4 or 8 bits, chosen with the widths in the
            same budget, see `nce_fx.end_bits`. "given": what ``spec`` says.
        trial: what the plan is tried with beside plans that move widths less far and the widths as they are (where
            these cost more than the budget: all narrowed by one factor), on held out training data, see
            `nce_fx.trial`; the best is returned. Without it the plan is, and the report says so.
        freeze: name patterns of groups that keep their width.
        only: name patterns of the only groups that may change.
        seed: of everything random.
        source: what else the plan shall say of where it comes from, such as the name of the data.
        observe: called with the name of each step as it starts.
        progress: called with (done, in all) within the steps that know how much there is to do, see `nce_fx.progress`.
        between: called after each pass, such as `nce_fx.pipeline.verify.verify`.

    Raises:
        NceFxError: any step that cannot be done, in one line.
    """
    with watched(observe, progress):
        spec, budget = spec or QuantSpec(), budget or Budget.default()
        limits: dict[str, Any] = {"min_width": min_width, "max_width": max_width, "round_to": round_to}
        limits |= {"capacity": capacity, "streams": streams, "freeze": tuple(freeze), "only": tuple(only)}
        Rules(**limits)  # Options that make no sense are refused before anything takes its time.
        if end_bits not in WAYS:
            raise InputError(f"end_bits={end_bits!r}: give one of {', '.join(WAYS)}{nearest(end_bits, WAYS)}")
        batches = None if batches is None else gathered(batches)
        analyses = analyze(
            model,
            example_inputs,
            batches=batches,
            spec=spec,
            metric=metric,
            loss=loss,
            hardware=hardware,
            quantities=quantities,
        )
        planned, about = analyses, {"seed": seed, **(source or {})}
        if end_bits == "plan":
            begin("plan the bits of the ends")
            planned, about["end_bits"] = plan_ends(analyses, budget, batches, metric, limits, loss)

        building = partial(build, analyses.graph_module, batches=batches, seed=seed, between=between)
        choice = Candidates(analyses, planned, budget, limits, about, plan_analyzed, building)
        best = choice.within(min_width, max_width)
        tried, untried = None, why_untried(trial, best.plan, safe=not choice.dear or bool(choice.rival))
        if trial is not None and not untried:
            found = choice.beside(best, trial.regions)
            begin("try plans")
            tried = trial.decide(analyses.graph_module, {name: each.graph_module for name, each in found.items()})
            best = found[tried.chosen]
        seen = replace(analyses, sensitivity=best.analyses.sensitivity)
        report = report_of(seen, best.plan, best.graph_module).model_copy(update={"trial": tried, "untried": untried})
        return RewriteResult(best.graph_module, best.plan, report, analyses.graph_module, analyses.uniform)


def analyze(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    batches: Batches | None = None,
    spec: QuantSpec | None = None,
    metric: str | None = None,
    loss: LossLike = None,
    hardware: HardwareTable | None = None,
    quantities: Iterable[Quantity] = (),
) -> Analyses:
    """Trace a model and analyze its channels, its cost and its sensitivity.

    It is quantized at its own widths once: that says which layers have how many bits. The sensitivity pass sets the
    ranges.

    Raises:
        InputError: the weights or the sensitivities are not finite.
        NceFxError: any step that cannot be done, in one line.
    """
    spec = spec or QuantSpec()
    batches = None if batches is None else gathered(batches)
    check_finite(model, type(model).__name__)
    begin("trace")
    gm = trace(model, example_inputs)
    begin("analyze channels")
    channels = analyze_channels(gm)
    begin("analyze cost")
    uniform = quantize(gm, spec)
    cost = analyze_cost(gm, channels, quantized=uniform, hardware=hardware, quantities=quantities)
    begin("analyze sensitivity")
    observers = Observers(uniform)
    # In training mode BatchNorm's values are those of the batch, which the sensitivity pass does not see.
    watch = None if gm.training else observers.see
    sensitivity = analyze_sensitivity(gm, batches, metric, channels=channels, quantized=uniform, loss=loss, watch=watch)
    if batches:
        observers.settle(batches)
    return Analyses(gm, channels, cost, sensitivity, uniform)


def plan_analyzed(
    analyses: Analyses,
    budget: Budget,
    reserve: Reserve | None = None,
    *,
    source: Mapping[str, Any] | None = None,
    **limits: Any,
) -> WidthPlan:
    """Plan the widths of an analyzed network; ``limits`` are those of `plan_widths`, ``source`` is added to the plan's.

    What the network of the plan costs in the report can be more than the plan says where a resize has to put something
    into the graph; `rewrite` looks, and plans again with that left free (``reserve``).

    Raises:
        BudgetError: no plan meets the budget; the message says what the least is.
    """
    begin("plan")
    plan = plan_widths(analyses.channels, analyses.cost, analyses.sensitivity, budget, reserve=reserve, **limits)
    return replace(plan, source={**plan.source, **(source or {})})


def build(
    gm: GraphModule,
    plan: WidthPlan,
    *,
    spec: QuantSpec | None = None,
    batches: Batches | None = None,
    uniform: GraphModule | None = None,
    seed: int = 0,
    between: Between | None = None,
) -> GraphModule:
    """Resize a traced network to a plan and insert its quantizers, with the ranges of the network at its own widths.

    ``uniform`` is that network quantized, as `analyze` returns it; made here from ``batches`` where not given.

    Raises:
        PlanError: the plan is for another network; the message names the first difference.
    """
    begin("resize and quantize")
    passes = ResizeChannels(plan, seed=seed), InsertQuantizers(spec or QuantSpec())
    result = run_pipeline(gm, Pipeline(passes, between), batches, uniform)
    # Also where the plan changes nothing, and no pass had a reason to say it.
    result.meta["plan"] = plan
    return result


def run_pipeline(
    gm: GraphModule,
    pipeline: Pipeline,
    batches: Batches | None = None,
    uniform: GraphModule | None = None,
    fresh: nn.Module | None = None,
) -> GraphModule:
    """Run a pipeline on a traced network.

    Where it resizes and quantizes, ranges are those of the network at its own widths: a plan keeps them. Behind any
    other pass they are those of the batches.

    Raises:
        PlanError: the plan is for another network; the message names the first difference.
    """
    before = list(takewhile(lambda step: isinstance(step, ResizeChannels), pipeline.steps))
    after = pipeline.steps[len(before) :]
    if before and isinstance(before[0], ResizeChannels) and isinstance(before[0].plan, WidthPlan):
        check_plan(before[0].plan, gm)  # Before anything takes long.
    ranges = None
    if before and after and isinstance(after[0], InsertQuantizers):
        ranges = quantize(gm, after[0].spec, batches) if uniform is None and batches is not None else uniform
    return pipeline(gm, Given(batches, like=ranges, fresh=fresh)).graph_module


def report_of(analyses: Analyses, plan: WidthPlan, rewritten: GraphModule) -> RewriteReport:
    """Return what the compiler found and decided, as a record."""
    sensitivity = analyses.sensitivity
    float_cost = analyze_cost(analyses.graph_module, analyses.channels, weight_bits=32, activation_bits=32)
    return RewriteReport(
        traced=str(analyses.graph_module.meta.get("traced", "fx")),
        metric=sensitivity.metric,
        bits=analyses.spec.weight_bits or 32,
        budget=dict(plan.source.get("budget", {})),
        end_bits=dict(plan.source.get("end_bits", {})),
        original=CostRecord.of(analyses.uniform, analyses.cost),
        rewritten=CostRecord.of(rewritten, analyses.cost),
        float_weight_bytes=int(float_cost.total.weight_bytes),
        groups=tuple(
            GroupRecord.of(group, plan.widths.get(group.id, group.width), sensitivity.by_group.get(group.id))
            for group in analyses.channels
        ),
        layers=tuple(
            LayerRecord(name=name, weight=float(node.weight), activation=float(node.activation))
            for name, node in sensitivity.by_node.items()
        ),
    )
