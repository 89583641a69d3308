"""nce-fx: a compiler that makes neural networks survive 2 bits.

The public names, nothing else. They load on first use, so that ``import nce_fx`` does not import torch.
"""

from __future__ import annotations

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

_HOME = {
    "trace": "nce_fx.tracing",
    "analyze_channels": "nce_fx.passes.analysis.channels",
    "ChannelGraph": "nce_fx.passes.analysis.channels",
    "ChannelGroup": "nce_fx.passes.analysis.channels",
    "channel_rule": "nce_fx.custom",
    "analyze_cost": "nce_fx.passes.analysis.cost",
    "CostReport": "nce_fx.passes.analysis.cost",
    "analyze_sensitivity": "nce_fx.passes.analysis.sensitivity",
    "SensitivityReport": "nce_fx.passes.analysis.sensitivity",
    "plan_widths": "nce_fx.passes.planning",
    "Budget": "nce_fx.passes.planning",
    "WidthPlan": "nce_fx.plan",
    "resize": "nce_fx.passes.transform.resize",
    "quantize": "nce_fx.passes.transform.quantize",
    "QuantSpec": "nce_fx.passes.transform.quantize",
    "integer_weights": "nce_fx.passes.transform.quantize",
    "rewrite": "nce_fx.rewrite",
    "RewriteResult": "nce_fx.rewrite",
    "export_onnx": "nce_fx.export",
    "save": "nce_fx.artifacts",
    "load": "nce_fx.artifacts",
    "to_networkx": "nce_fx.export.network",
}


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
