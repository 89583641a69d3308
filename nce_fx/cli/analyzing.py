"""What `nce-fx analyze` does: trace, analyze, and show what was asked for."""

import os
from dataclasses import asdict
from typing import Any

from torch.fx import GraphModule

from nce_fx.analyses import Analyses
from nce_fx.cli.commands import Analyze
from nce_fx.cli.model_data import Network, network_of
from nce_fx.cli.parsing import quant_spec
from nce_fx.cli.terminal import Terminal
from nce_fx.passes.analysis.channels import ChannelGraph, analyze_channels
from nce_fx.passes.transform.quantize import QuantSpec
from nce_fx.plain_text import number_of
from nce_fx.processes import start_engine
from nce_fx.report import tables
from nce_fx.report.explanation import Explanation, explain
from nce_fx.report.records import GroupRecord
from nce_fx.rewrite import analyze
from nce_fx.tracing import trace


def run(job: Analyze) -> None:
    """Show what was asked for."""
    terminal = Terminal.of(job.as_json)
    # Under torchrun the processes share the batches of the sensitivity pass.
    if "LOCAL_RANK" in os.environ:
        start_engine()
    spec = quant_spec(job.bits)
    network = network_of(job, job.model, terminal)

    if job.groups or job.why is not None:
        with terminal.busy("analyze channels"):
            gm = trace(network.model, network.inputs)
            channels = analyze_channels(gm)
        content: dict[str, Any] = {"traced": _traced(gm)}
        if job.groups:
            content["groups"] = _show_groups(gm, channels, terminal)
        if job.why is not None:
            content["why"] = _show_why(explain(gm, channels, job.why), terminal)
        terminal.finish(content)
        return

    with terminal.steps():
        found = analyzed(network, spec, job.sensitivity, terminal)
    terminal.show(f"{job.model}: traced by {_traced(found.graph_module)}")
    terminal.show(tables.layer_table(found.cost, found.channels, found.sensitivity, found.uniform))
    layers, quantizers = tables.split_quantizers(found.cost.nodes, found.uniform)
    terminal.finish(
        {
            "traced": _traced(found.graph_module),
            "metric": found.sensitivity.metric,
            "total": dict(found.cost.total.by_quantity),
            "layers": {name: asdict(node) for name, node in layers.items()},
            "quantizers": {name: asdict(node) for name, node in quantizers.items()},
            "sensitivity": {
                "by_node": {
                    name: {"weight": float(node.weight), "activation": float(node.activation)}
                    for name, node in found.sensitivity.by_node.items()
                },
                "by_group": {name: float(score) for name, score in found.sensitivity.by_group.items()},
            },
        }
    )


def analyzed(network: Network, spec: QuantSpec, metric: str | None, terminal: Terminal) -> Analyses:
    """Return the analyses of a network, and say where its sensitivity comes from."""
    if network.data is None:
        terminal.note("no --data: sensitivity comes from the weights alone")
    return analyze(
        network.model,
        network.inputs,
        batches=network.calibration,
        spec=spec,
        metric=metric,
    )


def _show_groups(gm: GraphModule, channels: ChannelGraph, terminal: Terminal) -> list[dict[str, Any]]:
    """Show every group; what is pinned says why with the user's source line."""
    records = [GroupRecord.of(group, group.width) for group in channels]
    consumers = {group.id: group.consumers for group in channels}
    pinned = sum(record.pinned is not None for record in records)
    terminal.show(f"traced by {_traced(gm)}: {number_of(len(records), 'group')}, {pinned} of them pinned")
    terminal.show(tables.group_table(records, consumers))
    return [
        {"id": r.id, "width": r.before, "step": r.step, "producers": list(r.producers)}
        | {"consumers": list(consumers[r.id]), "pinned": r.pinned}
        for r in records
    ]


def _show_why(found: Explanation, terminal: Terminal) -> dict[str, Any]:
    """Show what is known of one layer."""
    say = terminal.results.lines
    say(found.name, style="bold")
    group = found.produces
    if group is None:
        say("produces no channels of its own", indent=2, hang=4)
    else:
        state = f"pinned: {group.pinned}" if group.pinned else f"free, in multiples of {group.step}"
        say(f"produces into group {group.id}, {group.width} wide, {state}", indent=2, hang=4)
        if group.consumers:
            say(f"consumed by {', '.join(group.consumers)}", indent=2, hang=4)
    for each in found.consumes:
        say(f"consumes group {each.id}, {each.width} wide", indent=2, hang=4)
    for tie in found.ties:
        say(f"tied to {tie.producer}", indent=2, hang=4)
        for node, line in tie.chain:
            say(f"{node}" + (f"   {line}" if line else ""), indent=4, hang=2)
    return {
        "name": found.name,
        "group": None if group is None else group.id,
        "width": None if group is None else group.width,
        "step": None if group is None else group.step,
        "pinned": None if group is None else group.pinned,
        "consumes": [each.id for each in found.consumes],
        "ties": [{"producer": tie.producer, "chain": [list(step) for step in tie.chain]} for tie in found.ties],
    }


def _traced(gm: GraphModule) -> str:
    return str(gm.meta.get("traced", "fx"))
