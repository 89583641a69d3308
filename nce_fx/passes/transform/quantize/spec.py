"""What to quantize with, and to how many bits."""

from collections.abc import Iterable, Mapping
from dataclasses import field
from fnmatch import fnmatchcase
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, StrictBool, StrictStr

from nce_fx.errors import QuantizeError
from nce_fx.frozen import FrozenDict, freeze
from nce_fx.nearest import nearest, nearest_pattern
from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from nce_fx.validated import NotNegative, validated

SHORTCUTS = ("quantized", "int8", "float")
SUMS = ("float", "int8")
PUBLISHED: Mapping[str, Any] = FrozenDict(weight="sawb", activation="pact", shortcuts="quantized")
"""What neural channel expansion was published with; ``QuantSpec(**PUBLISHED)``, ``--recipe published``."""
_FLOAT = 32


class LayerBits(NamedTuple):
    """Bits of a layer's weight and of the activation it reads, such as ``LayerBits(2, 8)``; ``None`` is float."""

    weight: int | None
    activation: int | None


def checked_bits(bits: Any, name: str) -> int | None:
    """Return bits from 1 to 8, or ``None`` for float.

    Raises:
        QuantizeError: anything else.
    """
    if bits is None or bits == _FLOAT or bits == "float":
        return None
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise QuantizeError(f"{name} is {bits!r}: give 1 to 8 bits, or 32 for float")
    return bits


Bits = Annotated[int | None, BeforeValidator(lambda bits, info: checked_bits(bits, info.field_name or "bits"))]
"""1 to 8, or ``None`` for float."""


@validated("quantization", QuantizeError)
class QuantSpec:
    """Quantizers by name and bits by place, such as ``QuantSpec(weight_bits=2, overrides={"layer1.*": 4})``.

    Args:
        weight: a name in `nce_fx.quantizers.WEIGHT_QUANTIZERS`.
        activation: a name in `nce_fx.quantizers.ACTIVATION_QUANTIZERS`. With "lsq" tensors of 8 bits (first and last
            layers, additions) are PACT's where ``activation_bits`` are others: learned steps of 8 bits wander.
        weight_bits: 1 to 8; ``None`` or 32 leaves weights in float.
        activation_bits: likewise, of the tensors that quantized layers read.
        first_last_bits: likewise, weights and activations of the first layers (no other layer lies between them and the
            model's input) and the last ones (none between them and its output). Published 2-bit results have them at 8
            or in float; 8 by default.
        shortcuts: "int8": 1x1 convolutions on shortcuts are layers like all others, and where activations are
            quantized, what enters an addition has 8 bits (as with ``sums="int8"``), so that blocks do not round again
            what they pass on; concatenations read the float tensors.
            "quantized": a tensor that a quantized layer reads is quantized for all who read it, identity shortcuts and
            concatenations included.
            "float" (published as full-precision shortcuts): only layers read quantized tensors, additions and
            concatenations read the float ones, and the 1x1 convolutions on shortcuts stay in float. A shortcut
            convolution has kernel size 1, is the only layer on its branch, and is added to another branch that starts
            at the same tensor and has at least two layers. The output and layers left in float always read float.
        overrides: name pattern (as in the shell: ``layer1.*``) of layers -> bits of both, "float", or a mapping with
            ``weight_bits`` and/or ``activation_bits``. Goes before all above; of several matches the last counts.
        exact: scales have few significant bits (three at 2 bits, a power of two at 8), so that sums of products of
            levels are exact in float32 in whatever order they are summed: a runtime that sums in another order than
            PyTorch gives the same numbers, and no value falls on the other side of a border between two levels.
            BatchNorm modules multiply and add, each rounded for itself, in evaluation mode.
        sums: "int8": a tensor that enters an addition and has no quantizer yet gets one of 8 bits (of PACT where DoReFa
            or N2UQ is asked for), so that a runtime can add integers. "float": additions read floats
            where no layer has its input quantized.
        ewgs: how much the gradients of training depend on how far rounding moved each element, see
            `nce_fx.quantizers.ewgs`; 0 is the quantizer's own gradient. Below 2 no gradient changes its sign.

    Raises:
        QuantizeError: an unknown name, or bits out of range.
    """

    weight: StrictStr = "sawb"
    activation: StrictStr = "lsq"
    weight_bits: Bits = 2
    activation_bits: Bits = 2
    first_last_bits: Bits = 8
    shortcuts: StrictStr = "int8"
    overrides: Mapping[StrictStr, Any] = field(default_factory=FrozenDict)
    exact: StrictBool = False
    sums: StrictStr = "float"
    ewgs: NotNegative = 0.0

    def __post_init__(self) -> None:
        _known("weight", self.weight, WEIGHT_QUANTIZERS)
        _known("activation", self.activation, ACTIVATION_QUANTIZERS)
        _known("shortcuts", self.shortcuts, SHORTCUTS)
        _known("sums", self.sums, SUMS)
        freeze(self)
        for pattern, value in self.overrides.items():
            _override(pattern, value, LayerBits(None, None))

    def bits_for(self, path: str, *, end: bool = False, shortcut: bool = False) -> LayerBits:
        """Return the bits of one layer; ``end``: it is a first or last one, ``shortcut``: it is on a shortcut."""
        bits = LayerBits(self.weight_bits, self.activation_bits)
        if end:
            bits = LayerBits(self.first_last_bits, self.first_last_bits)
        elif shortcut and self.shortcuts == "float":
            bits = LayerBits(None, None)
        for pattern, value in self.overrides.items():
            if fnmatchcase(path, pattern):
                bits = _override(pattern, value, bits)
        return bits

    def check_overrides(self, paths: Iterable[str]) -> None:
        """Refuse patterns that match no layer.

        Raises:
            QuantizeError: names the pattern and some layers.
        """
        paths = list(paths)
        for pattern in self.overrides:
            if not any(fnmatchcase(path, pattern) for path in paths):
                some = ", ".join(paths[:4]) + (" ..." if len(paths) > 4 else "")
                raise QuantizeError(
                    f"override {pattern!r} matches no layer; the layers are {some or 'none'}"
                    f"{nearest_pattern(pattern, paths)}"
                )


def _known(what: str, name: Any, known: Iterable[str]) -> None:
    if name not in (names := list(known)):
        raise QuantizeError(f"{what} is {name!r}: choose one of {', '.join(names)}{nearest(name, names)}")


def _override(pattern: str, value: Any, bits: LayerBits) -> LayerBits:
    if not isinstance(value, Mapping):
        both = checked_bits(value, f"override {pattern!r}")
        return LayerBits(both, both)
    unknown = set(value) - {"weight_bits", "activation_bits"}
    if unknown:
        raise QuantizeError(f"override {pattern!r} has {sorted(unknown)}: use weight_bits and activation_bits")
    changed = {
        name.removesuffix("_bits"): checked_bits(v, f"override {pattern!r}, {name}") for name, v in value.items()
    }
    return bits._replace(**changed)
