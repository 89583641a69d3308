"""The quantizers, one a file, and the two tables of them; installed packages bring more, see `nce_fx.registry`.

``WEIGHT_QUANTIZERS[name](bits, channel_axis)`` and ``ACTIVATION_QUANTIZERS[name](bits, signed, origin, replaces)`` are
modules whose forward pass is a fake quantization; see `nce_fx.quantizers.base` for what they share.
"""

from collections.abc import Callable

from nce_fx.quantizers.base import ActivationQuantizer, Integers, Quantizer, WeightQuantizer
from nce_fx.quantizers.dorefa import DorefaActivation, DorefaWeight
from nce_fx.quantizers.lsq import LsqActivation, LsqWeight
from nce_fx.quantizers.lsq_plus import LsqPlus
from nce_fx.quantizers.minmax import MinMaxActivation, MinMaxWeight
from nce_fx.quantizers.n2uq import N2uq
from nce_fx.quantizers.pact import Pact
from nce_fx.quantizers.sawb import Sawb, SawbChannel
from nce_fx.quantizers.seq import Seq
from nce_fx.quantizers.statsq import StatsQ
from nce_fx.registry import Registry

WEIGHT_QUANTIZERS: Registry[Callable[..., WeightQuantizer]] = Registry(
    "weight_quantizers",
    {
        "sawb": Sawb,
        "sawb-channel": SawbChannel,
        "lsq": LsqWeight,
        "dorefa": DorefaWeight,
        "minmax": MinMaxWeight,
        "seq": Seq,
        "statsq": StatsQ,
    },
    lambda value: isinstance(value, type) and issubclass(value, WeightQuantizer),
)

ACTIVATION_QUANTIZERS: Registry[Callable[..., ActivationQuantizer]] = Registry(
    "activation_quantizers",
    {
        "pact": Pact,
        "lsq": LsqActivation,
        "lsq+": LsqPlus,
        "dorefa": DorefaActivation,
        "minmax": MinMaxActivation,
        "n2uq": N2uq,
    },
    lambda value: isinstance(value, type) and issubclass(value, ActivationQuantizer),
)

__all__ = [
    "ACTIVATION_QUANTIZERS",
    "WEIGHT_QUANTIZERS",
    "ActivationQuantizer",
    "Integers",
    "Quantizer",
    "WeightQuantizer",
]
