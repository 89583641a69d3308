"""Everything that the page of a network shows, as one frozen value: the page adds looks, and no numbers."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn
from torch.fx import GraphModule

from nce_fx.frozen import Frozen
from nce_fx.passes.analysis.channels import ChannelGraph, analyze_channels
from nce_fx.plan import WidthPlan, model_fingerprint
from nce_fx.quantities import title_of
from nce_fx.report.graph_view import NodeView, Widths, node_views
from nce_fx.report.records import Comparison, RewriteReport, folder_of
from nce_fx.report.tables import (
    SIDES,
    QuantityView,
    budget_text,
    result_rows,
    results_beside,
    thousands,
    trial_rows,
    trial_words,
    untried_words,
)

LOG, SWEEP = "log.csv", "sweep.csv"


@dataclass(frozen=True)
class TrainingCurve(Frozen):
    """One training run: a column per number that was logged, such as ``{"epoch": (1, 2), "loss": (1.9, 1.2)}``."""

    name: str
    columns: Mapping[str, Sequence[float | None]]


def training_runs(folder: Path, names: Mapping[str, str]) -> tuple[TrainingCurve, ...]:
    """Return the runs that have a log in folders of ``folder``; ``names`` maps folders to what tables call them."""
    logs = sorted(folder.glob(f"*/{LOG}"))
    order = list(names)
    logs.sort(key=lambda path: order.index(path.parent.name) if path.parent.name in names else len(order))
    runs = (TrainingCurve(names.get(path.parent.name, path.parent.name), read_columns(path)) for path in logs)
    return tuple(run for run in runs if run.columns)


def sweep_points(folder: Path) -> Mapping[str, Sequence[float | None]]:
    """Return the plans along a range of budgets that `nce-fx rewrite --sweep` wrote, a column per number."""
    path = folder / SWEEP
    return read_columns(path) if path.exists() else {}


def read_columns(path: Path) -> dict[str, tuple[float | None, ...]]:
    """Return the columns of a CSV file that hold numbers; what is no number in them, or missing, is ``None``."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    columns = {name: tuple(_number(row.get(name)) for row in rows) for name in names}
    return {name: values for name, values in columns.items() if any(value is not None for value in values)}


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


@dataclass(frozen=True)
class GroupView:
    """One channel group, such as the 16 channels that ``conv1`` and ``layer1.0.conv2`` make together."""

    id: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    before: int
    after: int
    step: int
    pinned: str | None
    sensitivity: float | None

    @property
    def change(self) -> str:
        """``pinned``, ``wider``, ``narrower`` or ``same``."""
        if self.pinned is not None:
            return "pinned"
        return "wider" if self.after > self.before else "narrower" if self.after < self.before else "same"


@dataclass(frozen=True)
class View:
    """The content of one page."""

    title: str
    facts: tuple[str, ...]
    """Sentences for the head of the page."""
    before: str
    after: str
    """What the two sides are: ``own widths``, ``rewritten``."""
    against: str = "float"
    """What the costs of single operations are held against."""
    quantized: bool = True
    """Whether both sides are."""
    quantities: tuple[QuantityView, ...] = ()
    groups: tuple[GroupView, ...] = ()
    nodes: tuple[NodeView, ...] = ()
    sensitivity: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Layer -> how much rounding its weights and its output hurts."""
    metric: str = ""
    results: tuple[tuple[str, ...], ...] = ()
    """The last table, header first."""
    results_note: str = ""
    trial: tuple[tuple[str, ...], ...] = ()
    """What was tried before anything was retrained, header first."""
    trial_note: str = ""
    """How it was tried."""
    runs: tuple[TrainingCurve, ...] = ()
    sweep: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    here: Mapping[str, float] = field(default_factory=dict)
    """Where the network of the page is in the picture of the sweep."""

    @property
    def changes(self) -> dict[str, int]:
        """How many groups are wider, narrower, as they were, and pinned."""
        kinds = [group.change for group in self.groups]
        return {kind: kinds.count(kind) for kind in ("wider", "narrower", "same", "pinned")}


def view_of(
    title: str,
    plan: WidthPlan,
    rewritten: GraphModule,
    *,
    original: nn.Module | None = None,
    report: RewriteReport | None = None,
    comparison: Comparison | None = None,
    logs: Path | None = None,
    sweep: Path | None = None,
    sides: tuple[str, str] = SIDES,
    compared: GraphModule | None = None,
) -> View:
    """Return what there is to see of a rewritten network.

    Args:
        title: what the network is called.
        plan: its widths before and after.
        rewritten: the network itself.
        original: the traced float network, whose graph is drawn and whose channel groups are known; without it the
            rewritten network's own graph is drawn.
        report: what the compiler found and decided.
        comparison: what came of training.
        logs: the folder where each training run has one of its own.
        sweep: the folder where `nce-fx rewrite --sweep` left its points.
        sides: what "before" and "after" are called.
        compared: the network that is called "before"; where not given, that is the network quantized at its own
            widths, which nobody keeps, and operations are held against the float one that is drawn.
    """
    # A plan belongs to one graph; of another one it says nothing.
    fits = isinstance(original, GraphModule) and (not plan.widths or model_fingerprint(original) == plan.model)
    drawn = original if isinstance(original, GraphModule) and fits else rewritten
    channels = analyze_channels(drawn) if fits else None
    widths = Widths(plan.original, plan.widths)
    tried = None if report is None else report.trial
    against = sides[0] if compared is not None else sides[1] if drawn is rewritten else "float, own widths"
    return View(
        title=title,
        facts=_facts(plan, report),
        before=sides[0],
        after=sides[1],
        against=against,
        quantized=all(gm.meta.get("spec") is not None for gm in (compared or rewritten, rewritten)),
        quantities=() if report is None else _quantities(report),
        groups=_groups(channels, plan, report),
        nodes=node_views(drawn, channels, widths, compared or drawn, rewritten),
        sensitivity={} if report is None else {each.name: (each.weight, each.activation) for each in report.layers},
        metric="" if report is None else report.metric,
        results=() if comparison is None else result_rows(comparison),
        results_note="" if comparison is None else _note(comparison, report, plan),
        trial=() if tried is None else trial_rows(tried),
        trial_note="" if tried is None else f"Before anything was retrained: {trial_words(tried)}.",
        runs=() if logs is None else training_runs(logs, _names(comparison)),
        sweep={} if sweep is None else sweep_points(sweep),
        here=_here(plan, report),
    )


def side_by_side(view: View, facts: Sequence[str], results: Mapping[str, Comparison], logs: Mapping[str, Path]) -> View:
    """Return the view of two results, with what is known of each.

    Args:
        view: of the one against the other.
        facts: how they differ beside their widths.
        results: what came of training, by the results' names.
        logs: the folders where each one's training runs have one of their own, by the results' names.
    """
    runs = (
        replace(run, name=f"{side}: {run.name}")
        for side, folder in logs.items()
        for run in training_runs(folder, _names(results.get(side)))
    )
    notes = (f"{side}: {each.data}, {each.trained}, seed {each.seed}" for side, each in results.items())
    return replace(
        view, facts=tuple(facts), results=results_beside(results), results_note="; ".join(notes), runs=tuple(runs)
    )


def _facts(plan: WidthPlan, report: RewriteReport | None) -> tuple[str, ...]:
    if report is None:
        return ()
    facts = [f"{report.bits} bits", f"sensitivity by {report.metric}", f"traced by {report.traced}"]
    if plan.predicted_noise is not None:
        facts.append(f"predicted noise {plan.predicted_noise:.3f} of that at its own widths")
    return tuple(facts)


def _quantities(report: RewriteReport) -> tuple[QuantityView, ...]:
    views = []
    for name, after in report.rewritten.cost.items():
        before, asked = report.original.cost.get(name), report.budget.get(name)
        if before is None:
            continue
        limit = asked * before if isinstance(asked, float) else asked if isinstance(asked, int) else None
        views.append(QuantityView(name, title_of(name), before, after, budget_text(asked), limit))
    return tuple(views)


def _groups(channels: ChannelGraph | None, plan: WidthPlan, report: RewriteReport | None) -> tuple[GroupView, ...]:
    scores = {} if report is None else {group.id: group.sensitivity for group in report.groups}
    if channels is not None:
        return tuple(
            GroupView(
                id=group.id,
                producers=group.producers,
                consumers=group.consumers,
                before=plan.original.get(group.id, group.width),
                after=plan.widths.get(group.id, group.width),
                step=group.step,
                pinned=group.pinned,
                sensitivity=scores.get(group.id),
            )
            for group in channels
        )
    if report is not None:
        return tuple(
            GroupView(each.id, each.producers, (), each.before, each.after, each.step, each.pinned, each.sensitivity)
            for each in report.groups
        )
    return tuple(
        GroupView(each, (each,), (), plan.original[each], plan.widths[each], 1, None, None) for each in plan.widths
    )


def _note(comparison: Comparison, report: RewriteReport | None, plan: WidthPlan) -> str:
    untried = report is not None and report.untried and plan.changed
    return (
        f"{comparison.data}, {comparison.trained}, with one recipe, seed {comparison.seed}. One run: how sure"
        " a difference is takes several seeds."
    ) + (f" The plan was {untried_words(report)}." if report is not None and untried else "")


def _names(comparison: Comparison | None) -> dict[str, str]:
    rows = () if comparison is None else comparison.rows
    return {folder_of(row.network): row.network for row in rows}


def _here(plan: WidthPlan, report: RewriteReport | None) -> dict[str, float]:
    if report is None or plan.predicted_noise is None:
        return {}
    return {**report.rewritten.cost, "noise": plan.predicted_noise}


def number(value: float) -> str:
    """Return a count with separators, or a fraction as it is."""
    return thousands(value) if value == round(value) else f"{value:.4g}"
