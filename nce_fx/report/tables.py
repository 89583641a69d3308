"""The tables that people read: sensitivity, plan, cost and the comparison, as rich renderables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text
from torch.fx import GraphModule, Node

from nce_fx.ops.work import shape_of
from nce_fx.paths import called, operation
from nce_fx.plain_table import table_of
from nce_fx.plain_text import number_of
from nce_fx.plan import WidthPlan
from nce_fx.quantities import known_quantities, title_of
from nce_fx.quantizers import Quantizer
from nce_fx.report.records import Comparison, GroupRecord, ResultRow, RewriteReport, TrialRecord
from nce_fx.tasks.metrics import shown_value

if TYPE_CHECKING:
    from nce_fx.passes.analysis.channels import ChannelGraph
    from nce_fx.passes.analysis.cost import CostReport, NodeCost
    from nce_fx.passes.analysis.sensitivity import SensitivityReport
    from nce_fx.sweep import SweepPoint

SIDES = ("own widths", "rewritten")
"""What the quantized network before a rewrite and the one after it are called, wherever they are side by side."""


@dataclass(frozen=True)
class QuantityView:
    """One cost before and after, beside what it may be, such as 49,568 -> 49,436 MACs of at most 1x."""

    name: str
    label: str
    before: float
    after: float
    budget: str
    """As people write it: ``1x``, or a dash for none."""
    limit: float | None


def thousands(number: float) -> str:
    """Return a count with separators: 1,234,567."""
    return f"{round(number):,}"


def size(count: float) -> str:
    """Return a number of bytes as people say it: 512 B, 24.3 kB, 1.2 MB."""
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{round(count)} B"


def named(group: GroupRecord, most: int = 2) -> str:
    """Return a group's layers by name, the first few and how many more."""
    shown = ", ".join(group.producers[:most]) or group.id
    more = len(group.producers) - most
    return f"{shown} +{more}" if more > 0 else shown


def sensitivity_table(report: RewriteReport) -> Table:
    """Return the layers, most sensitive first, with a bar each."""
    layers = sorted(report.layers, key=lambda layer: (-(layer.weight + layer.activation), layer.name))
    most = max((layer.weight + layer.activation for layer in layers), default=0.0)
    return table_of(
        f"Sensitivity to {report.bits} bits ({report.metric})",
        ("layer", ">weights", ">activations", "together"),
        [(x.name, f"{x.weight:.3g}", f"{x.activation:.3g}", _bar(x.weight + x.activation, most)) for x in layers],
    )


def plan_table(report: RewriteReport, plan: WidthPlan) -> Table:
    """Return the groups with both of their widths, and what the planner expects of it."""
    says = []
    if plan.predicted_noise is not None:
        says.append(f"predicted noise: {plan.predicted_noise:.3f} of that at its own widths")
    if report.end_bits:
        ends = ", ".join(f"{name} {bits} bits" for name, bits in report.end_bits.items())
        says.append(f"weights of the ends: {ends}")
    if report.untried and plan.changed:
        says.append(untried_words(report))
    rows = []
    for group in report.groups:
        after, ratio = _changed(group)
        score = "-" if group.sensitivity is None else f"{group.sensitivity:.3g}"
        rows.append((group.id, named(group), score, group.before, after, ratio))
    columns = ("group", "layers", ">sensitivity", *(f">{side}" for side in SIDES), ">ratio")
    return table_of("Plan: channels", columns, rows, caption="; ".join(says))


def _changed(group: GroupRecord) -> tuple[Text, Text]:
    """The width after and its ratio, green where a group is wider."""
    style = "green" if group.after > group.before else "yellow" if group.after < group.before else "dim"
    return Text(str(group.after), style=style), Text("pinned" if group.pinned else _ratio(group), style=style)


def _ratio(each: QuantityView | GroupRecord, digits: int = 2) -> str:
    """What is after over what was before: ``1.25x``; a dash where there was nothing."""
    return f"{each.after / each.before:.{digits}f}x" if each.before else "-"


def trial_table(trial: TrialRecord) -> Table:
    """Return the candidates of a trial, the one that was chosen marked."""
    (first, *others), *rows = trial_rows(trial)
    return table_of(f"Tried: {trial_words(trial)}", (first, *(f">{name}" for name in others[:2]), others[2]), rows)


def trial_rows(trial: TrialRecord) -> tuple[tuple[str, ...], ...]:
    """Return what a trial tried as text, header first: every candidate with its loss, the chosen one marked."""
    rows = []
    for row in trial.rows:
        chosen = (row.candidate, row.retrain_float_epochs) == (trial.chosen, trial.float_epochs)
        epochs = "-" if row.float_epochs is None else str(row.float_epochs)
        rows.append((row.candidate, epochs, f"{row.loss:.4f}", "chosen" if chosen else ""))
    return ("widths", "first in float", "loss", "decision"), *rows


def trial_words(trial: TrialRecord) -> str:
    """Return how long each candidate was trained, and what its loss is of."""
    held_out = number_of(trial.held_out, "training sample")
    return f"{number_of(trial.epochs, 'epoch')} each, the loss on {held_out} held out"


def untried_words(report: RewriteReport) -> str:
    """Return why the plan was not tried before it was retrained."""
    return f"not tried beside its own widths: {report.untried}"


def cost_table(report: RewriteReport) -> Table:
    """Return what the network costs at its own widths and rewritten, with the budget."""
    rows = []
    for name, before in report.original.cost.items():
        after = report.rewritten.cost[name]
        ratio = f"{after / before:.4f}x" if before else "-"
        rows.append((title_of(name), thousands(before), thousands(after), ratio, budget_text(report.budget.get(name))))
    return table_of(
        "Cost for one example, both quantized", ("", *(f">{side}" for side in SIDES), ">ratio", ">budget"), rows
    )


def budget_text(limit: object) -> str:
    """Return one constraint as people write it: ``1.0x`` for a ratio, a number, or a dash for none."""
    if limit is None:
        return "-"
    if isinstance(limit, float):
        return f"{limit:g}x"
    return thousands(limit) if isinstance(limit, int) else str(limit)


def quantity_table(before: str, after: str, quantities: Iterable[QuantityView], *, quantized: bool) -> Table:
    """Return costs of two networks side by side, and say where both are quantized."""
    rows = [(each.label, thousands(each.before), thousands(each.after), _ratio(each, 4)) for each in quantities]
    title = "Cost for one example" + (", both quantized" if quantized else "")
    return table_of(title, ("", f">{before}", f">{after}", ">ratio"), rows)


def difference_table(before: str, after: str, report: RewriteReport) -> Table | str:
    """Return the groups whose widths differ between two networks, and how many do not; a line where none differs."""
    differ = [group for group in report.groups if group.before != group.after]
    alike = len(report.groups) - len(differ)
    caption = f"{alike} {'group is' if alike == 1 else 'groups are'} alike"
    if not differ:
        return f"Channels: no width differs; {caption}"
    columns = ("group", "layers", f">{before}", f">{after}", ">ratio")
    rows = [(group.id, named(group), group.before, *_changed(group)) for group in differ]
    return table_of("Channels", columns, rows, caption=caption)


def measured(comparison: Comparison, row: ResultRow) -> str:
    """Return what the comparison's metric says of a network, as people read it."""
    value = row.accuracy if row.accuracy is not None else row.score
    return shown_value(value, is_share=comparison.is_share)


def comparison_line(comparison: Comparison) -> str:
    """Return the last table in one line: ``digits: float 98.16 %, NCE 2-bit 97.72 %``."""
    rows = ", ".join(f"{row.network} {measured(comparison, row)}" for row in comparison.rows)
    return f"{comparison.data}: {rows}"


def results_beside(results: Mapping[str, Comparison]) -> tuple[tuple[str, ...], ...]:
    """Return what came of training two results as text, header first: each network with what was measured of it."""
    metrics = dict.fromkeys(metric_name(comparison) for comparison in results.values())
    rows = (
        (f"{result}: {row.network}", comparison.data, measured(comparison, row))
        for result, comparison in results.items()
        for row in comparison.rows
    )
    return (("network", "data", " or ".join(metrics)), *rows) if results else ()


def metric_name(comparison: Comparison) -> str:
    """Return what networks are measured by, as tables say it: ``top5 accuracy``."""
    return comparison.metric.rpartition(":")[2].replace("_", " ")


def comparison_table(comparison: Comparison) -> Table:
    """Return the last table: every trained network with its accuracy and cost."""
    (first, *others), *rows = result_rows(comparison)
    title = f"{comparison.data}: {comparison.trained}, seed {comparison.seed}"
    return table_of(title, (first, *(f">{name}" for name in others)), rows)


def result_rows(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """Return the last table as text, header first: every network with its accuracy and all that it costs."""
    names = list(dict.fromkeys(name for row in comparison.rows for name in row.cost))
    header = ("network", metric_name(comparison), *(title_of(name) for name in names))
    return header, *((row.network, measured(comparison, row), *_costs(row.cost, names)) for row in comparison.rows)


def _costs(cost: Mapping[str, float], names: Iterable[str]) -> tuple[str, ...]:
    known = known_quantities()
    shown = {name: size if name in known and known[name].unit == "bytes" else thousands for name in names}
    return tuple(shown[name](cost[name]) if name in cost else "-" for name in names)


def group_table(groups: Iterable[GroupRecord], consumers: Mapping[str, tuple[str, ...]]) -> Table:
    """Return every group of a network with its layers, and the reason of those that are pinned."""
    columns = ("group", ">width", ">step", "producers", "consumers", "pinned, and why")
    rows = [
        (each.id, each.before, each.step, ", ".join(each.producers), ", ".join(consumers[each.id]), each.pinned or "")
        for each in groups
    ]
    return table_of("Channel groups", columns, rows, show_lines=True)


def split_quantizers(
    nodes: "Mapping[str, NodeCost]", quantized: GraphModule
) -> "tuple[dict[str, NodeCost], dict[str, NodeCost]]":
    """Return costs of the model's own layers, and of the quantizers that were put beside them."""
    inserted = {name for name, module in quantized.named_modules() if isinstance(module, Quantizer)}
    quantizers = {name: cost for name, cost in nodes.items() if name in inserted}
    return {name: cost for name, cost in nodes.items() if name not in quantizers}, quantizers


def layer_table(
    cost: "CostReport", channels: "ChannelGraph", sensitivity: "SensitivityReport", quantized: GraphModule
) -> Table:
    """Return every layer in the order they run, with its channel group, its cost as quantized and its sensitivity."""
    layers, quantizers = split_quantizers(cost.nodes, quantized)
    rows = []
    for name, node in layers.items():
        group, hurt = channels.group_of(name), sensitivity.by_node.get(name)
        of = "" if group is None else group.id + (" (pinned)" if group.pinned else "")
        noise = ("", "") if hurt is None else (f"{hurt.weight:.3g}", f"{hurt.activation:.3g}")
        rows.append((name, node.op, of, thousands(node.macs), thousands(node.params), *noise))
    if quantizers:
        own = sum(node.params for node in quantizers.values())
        rows.append((f"({len(quantizers)} quantizers)", "parameters", "", "0", thousands(own), "", ""))
    total = cost.total.by_quantity
    shown = zip(total, _costs(total, total), strict=True)
    table = table_of(
        f"Layers, counted as quantized; sensitivity by {sensitivity.metric}",
        ("layer", "op", "group", ">MACs", ">parameters", ">weights hurt", ">activations hurt"),
        rows,
        caption="; ".join(f"{title_of(name)} {value}" for name, value in shown),
    )
    table.add_section()
    table.add_row("total", "", "", thousands(cost.macs), thousands(cost.params), "", "")
    return table


def sweep_table(points: "Sequence[SweepPoint]") -> Table:
    """Return the plans along a range of budgets."""
    names = list(dict.fromkeys(name for point in points for name in point.cost))
    columns = (">budget", *(f">{title_of(name)}" for name in names), ">noise", ">no plan below")
    rows = [
        (f"{each.budget:g}x", *_costs(each.cost, names), f"{each.noise:.4f}", f"{each.bound:.4f}") for each in points
    ]
    return table_of("Plans along the budget; noise 1 is that at its own widths", columns, rows)


def graph_table(gm: GraphModule) -> Table:
    """Return the nodes of a graph in the order they run, quantizers marked."""
    rows = []
    for node in gm.graph.nodes:
        name = Text(node.name, style="cyan" if node.name.endswith("_quant") else "")
        inputs = ", ".join(source.name for source in node.all_input_nodes)
        rows.append((name, _what(gm, node), inputs, "x".join(map(str, shape_of(node)))))
    return table_of("The rewritten graph", ("node", "what", "from", "shape"), rows)


def graph_line(gm: GraphModule) -> str:
    """Return the graph in a line, and where to look at it: ``The rewritten graph: 52 nodes, 21 of them quantizers``."""
    quantizers = sum(called(gm, node, Quantizer) is not None for node in gm.graph.nodes)
    return (
        f"The rewritten graph: {number_of(len(gm.graph.nodes), 'node')}, {quantizers} of them quantizers; --verbose"
        " prints it, graph.txt and report.html of the result show it"
    )


def _what(gm: GraphModule, node: Node) -> str:
    if node.op in ("get_attr", "placeholder", "output"):
        return "parameter" if node.op == "get_attr" else node.op
    quantizer = called(gm, node, Quantizer)
    return operation(gm, node) + ("" if quantizer is None else f", {quantizer.bits} bit")


def _bar(value: float, most: float) -> str:
    return "█" * max(1 if value > 0 else 0, round(24 * value / most)) if most > 0 else ""
