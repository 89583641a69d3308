"""The tables that people read: sensitivity, plan, cost and the comparison, as rich renderables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from rich.table import Table
from rich.text import Text
from torch.fx import GraphModule, Node

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


class BeforeAfter(Protocol):
    """A cost before and after."""

    @property
    def label(self) -> str:
        """As people say it: ``bit operations``."""

    @property
    def before(self) -> float:
        """Before."""

    @property
    def after(self) -> float:
        """After."""


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
    table = Table(title=f"Sensitivity to {report.bits} bits ({report.metric})", title_justify="left")
    table.add_column("layer")
    table.add_column("weights", justify="right")
    table.add_column("activations", justify="right")
    table.add_column("together")
    layers = sorted(report.layers, key=lambda layer: (-(layer.weight + layer.activation), layer.name))
    most = max((layer.weight + layer.activation for layer in layers), default=0.0)
    for layer in layers:
        total = layer.weight + layer.activation
        table.add_row(layer.name, f"{layer.weight:.3g}", f"{layer.activation:.3g}", _bar(total, most))
    return table


def plan_table(report: RewriteReport, plan: WidthPlan) -> Table:
    """Return the groups with their widths before and after, and what the planner expects of it."""
    table = Table(title="Plan: channels before -> after", title_justify="left", caption_justify="left")
    says = []
    if plan.predicted_noise is not None:
        says.append(f"predicted noise: {plan.predicted_noise:.3f} of that at the original widths")
    if report.end_bits:
        ends = ", ".join(f"{name} {bits} bits" for name, bits in report.end_bits.items())
        says.append(f"weights of the ends: {ends}")
    if report.untried and plan.changed:
        says.append(f"not tried beside the widths as they are: {report.untried}")
    table.caption = "; ".join(says)
    table.add_column("group")
    table.add_column("layers")
    table.add_column("sensitivity", justify="right")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("ratio", justify="right")
    for group in report.groups:
        style = "green" if group.after > group.before else "yellow" if group.after < group.before else "dim"
        ratio = "pinned" if group.pinned else f"{group.after / group.before:.2f}x" if group.before else "-"
        score = "-" if group.sensitivity is None else f"{group.sensitivity:.3g}"
        after = Text(str(group.after), style=style)
        table.add_row(group.id, named(group), score, str(group.before), after, Text(ratio, style=style))
    return table


def trial_table(trial: TrialRecord) -> Table:
    """Return the candidates of a trial, the one that was chosen marked."""
    title = f"Tried: {trial.epochs} epochs each, the loss on {thousands(trial.held_out)} training samples held out"
    table = Table(title=title, title_justify="left")
    for column in ("widths", "first in float", "loss", ""):
        table.add_column(column, justify="left" if column in ("widths", "") else "right")
    for row in trial.rows:
        chosen = (row.candidate, row.retrain_float_epochs) == (trial.chosen, trial.float_epochs)
        epochs = "-" if row.float_epochs is None else str(row.float_epochs)
        table.add_row(row.candidate, epochs, f"{row.loss:.4f}", "chosen" if chosen else "")
    return table


def cost_table(report: RewriteReport) -> Table:
    """Return what the network costs before and after, with the budget."""
    table = Table(title="Cost for one example, both quantized", title_justify="left")
    for column in ("", "before", "after", "ratio", "budget"):
        table.add_column(column, justify="left" if not column else "right")
    for name, before in report.original.cost.items():
        after = report.rewritten.cost[name]
        ratio = f"{after / before:.4f}x" if before else "-"
        table.add_row(title_of(name), thousands(before), thousands(after), ratio, budget_text(report.budget.get(name)))
    return table


def budget_text(limit: object) -> str:
    """Return one constraint as people write it: ``1.0x`` for a ratio, a number, or a dash for none."""
    if limit is None:
        return "-"
    if isinstance(limit, float):
        return f"{limit:g}x"
    return thousands(limit) if isinstance(limit, int) else str(limit)


def quantity_table(before: str, after: str, quantities: Iterable[BeforeAfter]) -> Table:
    """Return costs of two networks side by side."""
    table = Table(title="Cost for one example", title_justify="left")
    for column in ("", before, after, "ratio"):
        table.add_column(column, justify="left" if not column else "right", overflow="fold")
    for each in quantities:
        ratio = f"{each.after / each.before:.4f}x" if each.before else "-"
        table.add_row(each.label, thousands(each.before), thousands(each.after), ratio)
    return table


def difference_table(before: str, after: str, report: RewriteReport) -> Table:
    """Return the groups whose widths differ between two networks, and say how many do not."""
    differ = [group for group in report.groups if group.before != group.after]
    table = Table(title="Channels", title_justify="left", caption_justify="left")
    table.caption = f"{len(report.groups) - len(differ)} groups are alike"
    for column in ("group", "layers", before, after, "ratio"):
        table.add_column(column, justify="left" if column in ("group", "layers") else "right", overflow="fold")
    for group in differ:
        style = "green" if group.after > group.before else "yellow"
        ratio = Text(f"{group.after / group.before:.2f}x" if group.before else "-", style=style)
        table.add_row(group.id, named(group), str(group.before), Text(str(group.after), style=style), ratio)
    return table


def measured(comparison: Comparison, row: ResultRow) -> str:
    """Return what the comparison's metric says of a network, as people read it."""
    value = row.accuracy if row.accuracy is not None else row.score
    return shown_value(value, is_share=comparison.is_share)


def comparison_line(comparison: Comparison) -> str:
    """Return the last table in one line: ``digits: float 98.16 %, NCE 2-bit 97.72 %``."""
    rows = ", ".join(f"{row.network} {measured(comparison, row)}" for row in comparison.rows)
    return f"{comparison.data}: {rows}"


def comparison_table(comparison: Comparison) -> Table:
    """Return the last table: every trained network with its accuracy and cost."""
    title = f"{comparison.data}: {comparison.trained}, seed {comparison.seed}"
    table = Table(title=title, title_justify="left")
    header, *rows = result_rows(comparison)
    for column in header:
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def result_rows(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """Return the last table as text, header first: every network with its accuracy and all that it costs."""
    names = list(dict.fromkeys(name for row in comparison.rows for name in row.cost))
    header = ("network", comparison.metric.rpartition(":")[2].replace("_", " "), *(title_of(name) for name in names))
    return header, *((row.network, measured(comparison, row), *_costs(row.cost, names)) for row in comparison.rows)


def _costs(cost: Mapping[str, float], names: Iterable[str]) -> tuple[str, ...]:
    known = known_quantities()
    shown = {name: size if name in known and known[name].unit == "bytes" else thousands for name in names}
    return tuple(shown[name](cost[name]) if name in cost else "-" for name in names)


def group_table(groups: Iterable[GroupRecord], consumers: Mapping[str, tuple[str, ...]]) -> Table:
    """Return every group of a network with its layers, and the reason of those that are pinned."""
    table = Table(title="Channel groups", title_justify="left", show_lines=True)
    for column in ("group", "width", "step", "producers", "consumers", "pinned, and why"):
        table.add_column(column, justify="right" if column in ("width", "step") else "left", overflow="fold")
    for group in groups:
        names = ", ".join(group.producers), ", ".join(consumers[group.id])
        table.add_row(group.id, str(group.before), str(group.step), *names, group.pinned or "")
    return table


def split_quantizers(nodes: Mapping[str, NodeCost]) -> tuple[dict[str, NodeCost], dict[str, NodeCost]]:
    """Return costs of the model's own layers, and of the quantizers that were put beside them."""
    quantizers = {n: cost for n, cost in nodes.items() if n.endswith(("_weight_quant", "_activation_quant"))}
    return {name: cost for name, cost in nodes.items() if name not in quantizers}, quantizers


def layer_table(cost: CostReport, channels: ChannelGraph, sensitivity: SensitivityReport) -> Table:
    """Return every layer in the order they run, with its channel group, cost and sensitivity."""
    table = Table(title=f"Layers; sensitivity by {sensitivity.metric}", title_justify="left", caption_justify="left")
    for column in ("layer", "op", "group", "MACs", "parameters", "weights hurt", "activations hurt"):
        table.add_column(column, justify="left" if column in ("layer", "op", "group") else "right", overflow="fold")
    layers, quantizers = split_quantizers(cost.nodes)
    for name, node in layers.items():
        group, hurt = channels.group_of(name), sensitivity.by_node.get(name)
        table.add_row(
            name,
            node.op,
            "" if group is None else group.id + (" (pinned)" if group.pinned else ""),
            thousands(node.macs),
            thousands(node.params),
            "" if hurt is None else f"{hurt.weight:.3g}",
            "" if hurt is None else f"{hurt.activation:.3g}",
        )
    if quantizers:
        own = sum(node.params for node in quantizers.values())
        table.add_row(f"({len(quantizers)} quantizers)", "parameters", "", "0", thousands(own), "", "")
    table.add_section()
    table.add_row("total", "", "", thousands(cost.macs), thousands(cost.params), "", "")
    total = cost.total.by_quantity
    shown = zip(total, _costs(total, total), strict=True)
    table.caption = "; ".join(f"{title_of(name)} {value}" for name, value in shown)
    return table


def sweep_table(points: Sequence[SweepPoint]) -> Table:
    """Return the plans along a range of budgets."""
    table = Table(title="Plans along the budget; noise 1 is that of the original widths", title_justify="left")
    names = list(dict.fromkeys(name for point in points for name in point.cost))
    for column in ("budget", *(title_of(name) for name in names), "noise", "no plan below"):
        table.add_column(column, justify="right")
    for point in points:
        costs = _costs(point.cost, names)
        table.add_row(f"{point.budget:g}x", *costs, f"{point.noise:.4f}", f"{point.bound:.4f}")
    return table


def graph_table(gm: GraphModule) -> Table:
    """Return the nodes of a graph in the order they run, quantizers marked."""
    table = Table(title="The rewritten graph", title_justify="left")
    for column in ("node", "what", "from", "shape"):
        table.add_column(column, overflow="fold")
    for node in gm.graph.nodes:
        style = "cyan" if node.name.endswith("_quant") else ""
        inputs = ", ".join(source.name for source in node.all_input_nodes)
        table.add_row(Text(node.name, style=style), _what(gm, node), inputs, _shape(node))
    return table


def graph_line(gm: GraphModule) -> str:
    """Return the graph in a line, and where to look at it: ``The rewritten graph: 52 nodes, 21 of them quantizers``."""
    called = [gm.get_submodule(str(node.target)) for node in gm.graph.nodes if node.op == "call_module"]
    quantizers = sum(isinstance(module, Quantizer) for module in called)
    return (
        f"The rewritten graph: {len(gm.graph.nodes)} nodes, {quantizers} of them quantizers; --verbose prints it,"
        " graph.txt and report.html of the result show it"
    )


def _what(gm: GraphModule, node: Node) -> str:
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        bits = f", {module.bits} bit" if isinstance(module, Quantizer) else ""
        return type(module).__name__ + bits
    if node.op == "get_attr":
        return "parameter"
    return node.op if node.op in ("placeholder", "output") else getattr(node.target, "__name__", str(node.target))


def _shape(node: Node) -> str:
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)
    return "" if shape is None else "x".join(str(size) for size in shape)


def _bar(value: float, most: float) -> str:
    return "█" * max(1 if value > 0 else 0, round(24 * value / most)) if most > 0 else ""
