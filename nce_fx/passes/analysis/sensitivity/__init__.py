"""How much low-precision noise in each layer and each channel group hurts."""

from nce_fx.passes.analysis.sensitivity.analyze import METRICS, Metric, analyze_sensitivity
from nce_fx.passes.analysis.sensitivity.noise import Noise, noise_in, noise_of, real_noise
from nce_fx.passes.analysis.sensitivity.report import NodeSensitivity, SensitivityReport

__all__ = [
    "METRICS",
    "Metric",
    "NodeSensitivity",
    "Noise",
    "SensitivityReport",
    "analyze_sensitivity",
    "noise_in",
    "noise_of",
    "real_noise",
]
