"""nce-fx: a compiler that makes neural networks survive 2 bits.

The public names, nothing else. They load on first use, so that ``import nce_fx`` does not import torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nce_fx.version import __version__

if TYPE_CHECKING:
    from nce_fx.artifacts import load, save
    from nce_fx.custom import channel_rule
    from nce_fx.export import export_onnx
    from nce_fx.export.network import to_networkx
    from nce_fx.passes.analysis.channels import ChannelGraph, ChannelGroup, analyze_channels
    from nce_fx.passes.analysis.cost import CostReport, analyze_cost
    from nce_fx.passes.analysis.sensitivity import SensitivityReport, analyze_sensitivity
    from nce_fx.passes.planning import Budget, plan_widths
    from nce_fx.passes.transform.quantize import QuantSpec, integer_weights, quantize
    from nce_fx.passes.transform.resize import resize
    from nce_fx.plan import WidthPlan
    from nce_fx.rewrite import RewriteResult, rewrite
    from nce_fx.tracing import trace

_NAMES = {
    "nce_fx.artifacts": ("load", "save"),
    "nce_fx.custom": ("channel_rule",),
    "nce_fx.export": ("export_onnx",),
    "nce_fx.export.network": ("to_networkx",),
    "nce_fx.passes.analysis.channels": ("ChannelGraph", "ChannelGroup", "analyze_channels"),
    "nce_fx.passes.analysis.cost": ("CostReport", "analyze_cost"),
    "nce_fx.passes.analysis.sensitivity": ("SensitivityReport", "analyze_sensitivity"),
    "nce_fx.passes.planning": ("Budget", "plan_widths"),
    "nce_fx.passes.transform.quantize": ("QuantSpec", "integer_weights", "quantize"),
    "nce_fx.passes.transform.resize": ("resize",),
    "nce_fx.plan": ("WidthPlan",),
    "nce_fx.rewrite": ("RewriteResult", "rewrite"),
    "nce_fx.tracing": ("trace",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nce_fx' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """This package; its name ``rewrite`` stays the function when Python puts the module of that name on it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "rewrite" and isinstance(value, ModuleType):
            value = value.rewrite
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


__all__ = [
    "Budget",
    "ChannelGraph",
    "ChannelGroup",
    "CostReport",
    "QuantSpec",
    "RewriteResult",
    "SensitivityReport",
    "WidthPlan",
    "__version__",
    "analyze_channels",
    "analyze_cost",
    "analyze_sensitivity",
    "channel_rule",
    "export_onnx",
    "integer_weights",
    "load",
    "plan_widths",
    "quantize",
    "resize",
    "rewrite",
    "save",
    "to_networkx",
    "trace",
]
