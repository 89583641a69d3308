"""What the compiler says of every zoo model, built-in network and operation, each in a line.

``python -m tests.goldens`` writes them. A change of structure may change none of it. Where a change means to, the files
are written anew and the difference read.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nce_fx
from nce_fx.errors import NceFxError
from nce_fx.models import MODELS
from nce_fx.ops.layers import find_layers
from nce_fx.ops.sign import never_negative
from nce_fx.tracing.exported import export_graph
from nce_fx.tracing.exporting import export
from nce_fx.tracing.inputs import bind_inputs
from nce_fx.tracing.shape_propagation import propagate_shapes
from tests.drawing import one_of, pattern
from tests.laws import MadeUpSensitivity
from tests.zoo import ZOO, randomize
from tests.zoo.model import image

FILE = Path(__file__).parent / "data" / "goldens.json"
MEANT = "where this is meant: python -m tests.goldens, and read the difference"
"""What a test says where a line is another."""
KEPT = {
    name: said
    for path in sorted(FILE.parent.glob("goldens*.json"))
    for name, said in json.loads(path.read_text(encoding="utf-8")).items()
}
"""What the files say, by names of models, operations, and programs of tests/generator."""


NAMES = (*ZOO, *MODELS)


def _subject(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    if name in ZOO:
        return ZOO[name].make(), ZOO[name].inputs
    torch.manual_seed(0)
    return randomize(MODELS[name](num_classes=10)).eval(), (image(3, 64, batch=2),)


def golden(name: str) -> dict[str, str]:
    """Return what is said of a model as it is traced and, of every second one, of what torch.export makes of it."""
    model, inputs = _subject(name)
    found = {"traced": line(pattern(name) if name in ZOO else nce_fx.trace(model, inputs))}
    if name in one_of(2, ZOO):
        try:
            bound = bind_inputs(model, inputs)
            exported = export_graph(model, bound, export(model, bound))
            propagate_shapes(exported, inputs)
        except Exception:
            return found
        exported.meta["traced"] = "export"
        found["exported"] = line(exported)
    return found


def line(gm: torch.fx.GraphModule) -> str:
    """Return counts to read, and for the rest a check sum: groups, axes, layers and MACs, signs, the plan."""
    try:
        channels = nce_fx.analyze_channels(gm)
    except NceFxError as error:
        return f"refused {_sum(str(error).partition(' at ')[0])}"
    groups = [
        (g.id, g.width, g.step, g.min_width, g.producers, g.consumers, g.pinned is None, tuple(g.parts))
        for g in channels.groups
    ]
    axes = sorted(channels.parameter_axes.items()), sorted(channels.value_axes.items())
    layers = [(layer.path, layer.op, layer.weights, [n.name for n in layer.inputs]) for layer in find_layers(gm)]
    cost = nce_fx.analyze_cost(gm, channels)
    nodes = [(path, c.op, c.macs, c.params, c.activation_bytes) for path, c in cost.nodes.items()]
    signs = [node.name for node in gm.graph.nodes if node.op.startswith("call_") and never_negative(gm, node)]
    plan = nce_fx.plan_widths(channels, cost, MadeUpSensitivity.of(channels, 0), nce_fx.Budget(macs=1.0, params=1.0))
    total, free = cost.total, sum(g.pinned is None for g in channels.groups)
    return (
        f"{free} of {len(groups)} free, {total.macs} MACs, {total.activation_bytes} bytes at most, "
        f"groups {_sum(groups)}, axes {_sum(axes)}, layers {_sum((layers, nodes))}, signs {_sum(signs)}, "
        f"plan {_sum(sorted(plan.widths.items()))}"
    )


def _sum(value: Any) -> str:
    return f"{zlib.crc32(repr(value).encode()):08x}"


if __name__ == "__main__":
    from nce_fx.ops import OPS
    from tests.generator import KINDS
    from tests.generator.regressions import REGRESSIONS
    from tests.test_generated import golden_of_kind, golden_of_program
    from tests.test_ops import NOT_CALLED, golden_of_op

    parts = {
        "": {name: golden(name) for name in NAMES},
        "_of_operations": {
            **{f"op {name}": golden_of_op(name) for name in OPS.rows if name not in NOT_CALLED},
            **{f"kind {kind}": golden_of_kind(kind) for kind in sorted(KINDS)},
            **{f"program {name}": golden_of_program(name) for name in REGRESSIONS},
        },
    }
    for part, lines in parts.items():
        file = FILE.with_stem(FILE.stem + part)
        file.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
