"""The quantizers, one a file, and the two tables of them.

``WEIGHT_QUANTIZERS[name](bits, channel_axis)`` and ``ACTIVATION_QUANTIZERS[name](bits, signed, origin, replaces)`` are
modules whose forward pass is a fake quantization; see `nce_fx.quantizers.base` for what they share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nce_fx.quantizers.base import ActivationQuantizer, Integers, Quantizer, WeightQuantizer
from nce_fx.quantizers.dorefa import DorefaActivation, DorefaWeight
from nce_fx.quantizers.lsq import LsqActivation, LsqWeight
from nce_fx.quantizers.minmax import MinMaxActivation, MinMaxWeight
from nce_fx.quantizers.pact import Pact
from nce_fx.quantizers.sawb import Sawb
from nce_fx.quantizers.seq import Seq
from nce_fx.quantizers.statsq import StatsQ

WEIGHT_QUANTIZERS: Mapping[str, Callable[..., WeightQuantizer]] = {
    "sawb": Sawb,
    "lsq": LsqWeight,
    "dorefa": DorefaWeight,
    "minmax": MinMaxWeight,
    "seq": Seq,
    "statsq": StatsQ,
}

ACTIVATION_QUANTIZERS: Mapping[str, Callable[..., ActivationQuantizer]] = {
    "pact": Pact,
    "lsq": LsqActivation,
    "dorefa": DorefaActivation,
    "minmax": MinMaxActivation,
}

__all__ = [
    "ACTIVATION_QUANTIZERS",
    "WEIGHT_QUANTIZERS",
    "ActivationQuantizer",
    "Integers",
    "Quantizer",
    "WeightQuantizer",
]
