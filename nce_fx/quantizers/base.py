"""What every quantizer is: a module that rounds a tensor to a few levels, and can say the same in integers.

The levels of a quantizer are ``(q + offset) * scale`` for whole ``q`` from ``low`` to ``high``, at most ``2**bits`` of
them. The forward pass computes exactly this expression, so integers give the same floating-point numbers, bit for bit.

    unsigned activations   q in 0 .. 2^b - 1             offset 0     levels 0, s, 2s ...
    signed, 2 bits and up  q in -2^(b-1) .. 2^(b-1) - 1  offset 0     zero is a level, which zero padding needs
    centred, or 1 bit      q in -2^(b-1) .. 2^(b-1) - 1  offset 1/2   symmetric and without a zero: -a, -a/3, a/3, a
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from nce_fx.errors import QuantizeError
from nce_fx.quantizers.ewgs import Ends, scale_gradient
from nce_fx.quantizers.transforms import reads_numbers

_READ = 256
"""So many lengths are looked at one by one: as many as 8 bits have pieces."""
FLOOR = 1e-8
"""The least scale; a weight or activation that is zero everywhere stays finite."""


_SIGNIFICANT = {1: 3, 2: 3, 3: 2}
"""Bits -> significant bits of an exact scale; one for all others: a power of two. At 2 bits a product of two levels
then has nine bits, and a sum of 38,000 of them fits into the 24 of a float32; at 8 bits it has sixteen, and 256 fit."""


def few_bits(scale: Tensor, significant: int) -> Tensor:
    """Return the nearest numbers with so few significant bits; the gradient goes straight through."""
    if torch.onnx.is_in_onnx_export():
        nearest = _by_logarithm(scale.detach(), significant)
    else:
        mantissa, exponent = torch.frexp(scale.detach())
        nearest = torch.ldexp((mantissa * 2**significant).round(), exponent - significant)
    # The difference of two numbers so near each other is exact, and so is this sum.
    return scale + (nearest - scale).detach()


def _by_logarithm(scale: Tensor, significant: int) -> Tensor:
    """The same by operators that ONNX has; a logarithm that rounding has brought to the next number is put right."""
    power = torch.pow(2.0, scale.log2().floor())
    power = torch.where(scale < power, power / 2, torch.where(scale >= 2 * power, 2 * power, power))
    unit = power * 2.0 ** (1 - significant)
    return (scale / unit).round() * unit


class Grid(NamedTuple):
    """The whole numbers a quantizer rounds to, and where zero lies between them."""

    low: int
    high: int
    offset: float = 0.0

    @property
    def reach(self) -> float:
        """The largest level in units of the scale."""
        return max(self.high + self.offset, -self.low - self.offset)


class Integers(NamedTuple):
    """A quantized tensor as whole numbers: ``(values + offset) * scale``."""

    values: Tensor
    """uint8 for unsigned grids, int8 otherwise; the shape of the tensor."""
    scale: Tensor
    """Of the working dtype; 0-dimensional, or one number a channel and shaped to broadcast."""
    offset: Tensor
    """Like ``scale``; minus the zero point."""

    def dequantize(self) -> Tensor:
        """Return the levels, in the dtype of the scale."""
        return (self.values.to(self.scale.dtype) + self.offset) * self.scale


class LayerKind(NamedTuple):
    """What a layer with a quantized weight was as a module."""

    module: str = ""
    """Name of the type in `torch.nn`; empty where the layer was a function all along."""
    padding_mode: str = "zeros"
    padding: Any = 0


class Replaced(NamedTuple):
    """A ReLU that an activation quantizer stands for, with what it takes to put it back into the graph."""

    name: str
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_place: bool

    def __reduce__(self) -> tuple[Any, ...]:
        from nce_fx.pickling import filled, function

        return filled, (Replaced, *map(function, self))


def unsigned_grid(bits: int) -> Grid:
    """0 .. 2^b - 1."""
    return Grid(0, 2**bits - 1)


def centred_grid(bits: int) -> Grid:
    """All 2^b levels, symmetric about zero, which is not one of them."""
    return Grid(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0.5)


def signed_grid(bits: int) -> Grid:
    """Two's complement; with one bit, where that would be a minus one and a zero, the two signs."""
    return centred_grid(1) if bits == 1 else Grid(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def working(x: Tensor) -> Tensor:
    """Return ``x`` in a dtype wide enough to tell 256 levels apart: half precisions become float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def at_least(length: Tensor, least: float = FLOOR) -> Tensor:
    """Return a length that is learned or kept, such as a step of 0.1, where nothing is divided by zero.

    It is of the working dtype: half precision, which a network may be made after it was quantized, has no 1e-8.
    """
    few = length.numel() <= _READ and torch.is_grad_enabled() and reads_numbers(length)
    if few and min(length.reshape(-1).tolist(), default=0.0) >= least:
        return working(length)  # itself, whose gradient takes no kernels more
    return working(length).clamp(min=least)


def whole(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Return the nearest ``q`` of the grid for every element, as floating-point numbers; ties go to the even ``q``."""
    steps = x / scale
    if grid.offset:
        steps = steps.sub_(grid.offset)
    return steps.clamp_(grid.low, grid.high).round_()


def level(q: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Turn whole numbers into levels, in place."""
    return (q.add_(grid.offset) if grid.offset else q).mul_(scale)


def as_integers(q: Tensor, scale: Tensor, grid: Grid) -> Integers:
    """Pack whole numbers that are still of a floating-point dtype."""
    kind = torch.uint8 if grid.low == 0 else torch.int8
    scale = scale.detach().to(q.dtype)
    return Integers(q.to(kind), scale, torch.full_like(scale, grid.offset))


class Quantizer(nn.Module):
    """Base of all quantizers: a fake quantization in ``forward``, and ``integers`` that says the same in integers."""

    absent: ClassVar[Mapping[str, float]] = {}
    """State that files of earlier versions do not have, and what it was then."""
    positive: ClassVar[tuple[str, ...]] = ()
    """Learned parameters that are lengths, such as ``("step",)``: at or below zero nothing is learned any more."""
    grid: Grid
    """The whole numbers of the levels; of one whose ``integers`` are its own it may be missing."""
    step: Tensor
    """The distance between two levels, of those that learn or keep it."""
    bypassed = False
    """True while the network is trained in float: everything passes, see `forward`. No state of the network's."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 8:
            raise QuantizeError(f"{type(self).__name__} takes 1 to 8 bits, not {bits!r}")
        self.bits = bits
        self.exact = False
        """Whether scales have so few significant bits that sums of products of levels are exact, in whatever order."""
        self.ewgs = 0.0
        """How much the gradient of an element depends on how far rounding moved it, see `forward`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` on its levels; where it is bypassed, what the float network has in its place.

        A tracer of torch.fx does not enter it.
        """
        if isinstance(x, Proxy):
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})
        return self.in_float(x) if self.bypassed else self.rounded(x)

    def in_float(self, x: Tensor) -> Tensor:
        """Return what the float network has in this place: ``x``."""
        return x

    def rounded(self, x: Tensor) -> Tensor:
        """Return ``x`` on its levels.

        With ``ewgs`` the gradient that comes back is scaled, see `nce_fx.quantizers.ewgs`.
        """
        y = self.quantized(x)
        if not self.ewgs:
            return y
        step: Tensor | float = self.step_size(x).detach()
        if reads_numbers(x) and isinstance(step, Tensor) and step.numel() == 1:
            step = float(step)
        return scale_gradient(y, x, step, self.ewgs, self.ends(x, step))

    def quantized(self, x: Tensor) -> Tensor:
        """Return ``x`` on its levels, with the quantizer's own gradient."""
        raise NotImplementedError

    def scale(self) -> Tensor:
        """Return the distance between two levels where it is learned; 0-dimensional."""
        return self.fine(at_least(self.step))

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distance between two levels of ``x``; 0-dimensional, or shaped to broadcast over it."""
        return self.scale()

    def ends(self, x: Tensor, step: Tensor | float) -> Ends:
        """Return between which values of ``x`` nothing is clipped: the outermost levels, which are a ``step`` apart."""
        return (self.grid.low + self.grid.offset) * step, (self.grid.high + self.grid.offset) * step

    def fine(self, scale: Tensor) -> Tensor:
        """Return a scale as it is used: of few significant bits where sums have to be exact."""
        return few_bits(scale, _SIGNIFICANT.get(self.bits, 1)) if self.exact else scale

    @torch.no_grad()
    def integers(self, x: Tensor) -> Integers:
        """Return ``x`` quantized to integers; ``integers(x).dequantize()`` equals ``self(x)`` bit for bit.

        Here where levels lie evenly: the offset is 0, or 1/2 where zero is no level.
        """
        scale = self.step_size(x)
        return as_integers(whole(working(x), scale, self.grid), scale, self.grid)

    def extra_repr(self) -> str:
        """The bits; subclasses add what they know of their range."""
        return f"bits={self.bits}" + ", exact" * self.exact + (f", ewgs={self.ewgs:g}" if self.ewgs else "")

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name, value in self.absent.items():
            state_dict.setdefault(prefix + name, torch.full_like(self.get_buffer(name), value))
        super()._load_from_state_dict(state_dict, prefix, *args)


class WeightQuantizer(Quantizer):
    """A quantizer of weights. It remembers what kind of module its layer was, so that it can become one again."""

    per_channel: ClassVar[bool] = False
    """Whether each output channel has a scale of its own."""

    def __init__(self, bits: int, channel_axis: int = 0) -> None:
        super().__init__(bits)
        self.channel_axis = channel_axis
        self.layer = LayerKind()
        """What the layer was before it became a function."""
        self.grid = self.grid_of(bits)
        self.begin()

    @staticmethod
    def grid_of(bits: int) -> Grid:
        """Return the whole numbers of the levels: those without a zero, where nothing else is said."""
        return centred_grid(bits)

    def begin(self) -> None:
        """Make what is learned or kept, as it is before any weight: parameters and buffers."""

    def beside_channels(self, weight: Tensor) -> list[int]:
        """Return the axes that all weights of one output channel lie along: ``[1, 2, 3]`` of a convolution's."""
        return [axis for axis in range(weight.dim()) if axis != self.channel_axis % weight.dim()]

    @property
    def scale_free(self) -> bool:
        """Whether the levels lie anywhere, as far as the weights do or not: a normalization undoes it."""
        return False

    def start(self, weight: Tensor, normalized: bool = True) -> None:
        """Take a first look at the weight, and at whether a normalization follows its layer, which undoes any scale.

        Nothing to do where all follows from the weight in every forward pass.
        """

    def start_again(self, weight: Tensor) -> None:
        """Take a first look at another weight in the same place."""
        self.start(weight)

    def extra_repr(self) -> str:
        """The bits, and which axis has a scale of its own for each index."""
        return super().extra_repr() + (f", channel_axis={self.channel_axis}" if self.per_channel else "")


class ActivationQuantizer(Quantizer):
    """A quantizer of activations: one scale a tensor, over an unsigned or a signed range.

    Whether the range is signed is state: ``is_signed`` is a buffer (so that it is saved and loaded), and ``origin``
    says in the printed module how it was found: from the graph ("graph": what comes out of a ReLU), from the
    calibration data ("data": whether a negative value was seen), or not at all ("assumed": the safe choice, signed).

    A quantizer whose range is unsigned clips at zero, as a ReLU does. Put in the place of a ReLU, it says so in
    ``replaces``.
    """

    is_signed: Tensor

    def __init__(
        self, bits: int, signed: bool = True, origin: str = "assumed", replaces: Replaced | None = None
    ) -> None:
        super().__init__(bits)
        self.register_buffer("is_signed", torch.tensor(signed))
        self.grid = self.grid_for(signed)
        self.origin = origin
        self.replaces = replaces
        self._least, self._greatest = float("inf"), float("-inf")
        self.begin(signed)

    def begin(self, signed: bool) -> None:
        """Make what is learned or kept of a range, as it is before any data: parameters and buffers."""

    def grid_for(self, signed: bool) -> Grid:
        """Return the whole numbers of a signed or unsigned range."""
        return signed_grid(self.bits) if signed else unsigned_grid(self.bits)

    @property
    def signed(self) -> bool:
        """Whether negative values are kept."""
        return self.grid.low < 0

    def grid_now(self) -> Grid:
        """Return the whole numbers of the levels, where an offset is learned as it is now."""
        return self.grid

    def thresholds(self) -> Tensor | None:
        """Return where the level rises, ascending: (2^b - 1,). ``None``: half-way between levels, ties to even."""
        return None

    def border(self, one: Tensor, other: Tensor) -> Tensor:
        """Return where one level ends and the other, a neighbour, begins, for each of two tensors of levels."""
        thresholds = self.thresholds()
        if thresholds is None:
            return (one + other) / 2
        scale = self.integers(one[:1]).scale
        below = torch.minimum(one, other) / scale - self.grid.low - self.grid.offset
        return thresholds[below.round().long().clamp(0, len(thresholds) - 1)].to(one.dtype)

    def set_signed(self, signed: bool, origin: str) -> None:
        """Choose the range, and note how it was found."""
        self.is_signed.fill_(signed)
        self.grid = self.grid_for(signed)
        self.origin = origin

    def fix(self) -> None:
        """Stop learning: what was a parameter becomes a buffer of the same name. For the model's own input, whose range
        is a fact about the data, and whose gradient nothing else needs."""
        for name, parameter in list(self.named_parameters(recurse=False)):
            delattr(self, name)
            self.register_buffer(name, parameter.detach())

    def estimate(self) -> float:
        """Return the range that suits all that was observed, in the quantizer's own unit (a clip, a step)."""
        raise NotImplementedError

    @torch.no_grad()
    def adopt(self, estimate: float) -> None:
        """Start from an estimate, which is one of the step where nothing else is said."""
        self.step.fill_(estimate)

    def in_float(self, x: Tensor) -> Tensor:
        """Return ``x``, or what the ReLU makes of it that this quantizer stands for."""
        return x if self.replaces is None else x.relu()

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Look at one calibration batch. What is kept of it adds up to the same for all batches, sizes and orders."""
        least, greatest = x.aminmax()
        self._least, self._greatest = min(self._least, float(least)), max(self._greatest, float(greatest))

    @torch.no_grad()
    def settle(self) -> None:
        """End the calibration: set the range from all that was observed. Without batches nothing changes."""
        if self._greatest < self._least:
            return
        if self.origin != "graph":
            self.set_signed(self._least < 0, "data")
        self.adopt(max(self.estimate(), FLOOR))
        self._least, self._greatest = float("inf"), float("-inf")

    def extra_repr(self) -> str:
        """Bits, range, how it was found, and what the quantizer stands for."""
        text = f"{Quantizer.extra_repr(self)}, {'signed' if self.signed else 'unsigned'} ({self.origin})"
        return f"{text}, replaces {self.replaces.name}" if self.replaces else text

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        signed = bool(self.is_signed)
        if signed != self.signed:
            self.set_signed(signed, "loaded")
