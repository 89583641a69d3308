"""What the compiler knows of one operation: a row of the table in `nce_fx.ops.table`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from nce_fx.errors import InputError
from nce_fx.frozen import freeze
from nce_fx.ops.output_shapes import Shape
from nce_fx.ops.rules.affine import AffineRule, FoldRule
from nce_fx.ops.rules.repair import Repair
from nce_fx.ops.work import Rule

Kind = Literal[
    "weighted", "product", "lookup", "recurrent", "norm", "pointwise", "reduction", "spatial", "movement", "custom"
]
Memory = Literal["new", "view"]
Sign = Literal["any", "never_negative", "kept"]
OWN_ROW = "__nce_fx_op__"
"""The attribute of a class, function or operator of the user's own that holds its row."""
NOTHING: Mapping[Any, str] = MappingProxyType({})


@dataclass(frozen=True)
class Absent:
    """Why something does not apply to an operation: ``Absent("holds no matrix")``."""

    reason: str


@dataclass(frozen=True)
class WeightLayout:
    """The axes of a weight: ``WeightLayout(out_axis=0)`` of a convolution's."""

    out_axis: int
    """Along which it makes channels: 0 of a convolution's, 1 of a transposed one's."""


NO_WORK = Absent("it multiplies no values with each other")
NO_WEIGHT = Absent("it has no weight that it multiplies with")
AS_RUN = Absent("it is run on tensors without values")
NO_AFFINE = Absent("it is no factor and shift of each channel")
NO_SIZE = Absent("it writes no size down that follows a width")
NO_FOLD = Absent("no factor of each channel goes into a weight of it")


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation, in every way that it can be written.

    For example ``Op(name="relu", kind="pointwise", modules=(nn.ReLU,), signature="input", sign="never_negative",
    example=lambda: (randn(2, 8),))``. All that PyTorch calls ``relu`` or ``relu_`` is found by the name.
    """

    name: str
    """PyTorch's name for it: ``"conv2d"``."""
    kind: Kind
    signature: str
    """Names, order and defaults of its arguments: ``"input, weight, bias=None, groups=1"``; ``*`` for any others."""
    example: Callable[[], tuple[Any, ...]] | Absent
    """Makes the arguments of one call, on values of 8 channels."""
    channels: Callable[..., Any] | Absent
    """What it does to channels (`nce_fx.ops.rules`)."""
    catch: Literal["call", "module", "aten", "inside", "rule"] = "aten"
    """What the rule sees: the call's arguments; the module, then its arguments; ATen ops ``(func, args, kwargs)`` that
    the operation comes apart into; of modules that tracing goes into, what is inside; or, as `nce_fx.channel_rule` has
    it, the call's own arguments, after the module where it is one."""
    macs: Rule | Absent = NO_WORK
    """Its multiply-accumulates, and which values and weights take part (`nce_fx.ops.work`)."""
    quantize: WeightLayout | Absent = NO_WEIGHT
    """How its weight is laid out, where it can be quantized."""
    attributes: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    """Argument -> the attribute that its modules hold it as, where the names differ."""
    not_held: tuple[str, ...] = ()
    """Arguments that have defaults, and that its modules do not hold as attributes."""
    modules: tuple[type[nn.Module], ...] = ()
    """The modules that do the same and hold its other arguments as attributes."""
    follows: tuple[str, ...] | Absent = NO_SIZE
    """What of its modules' attributes and of its arguments the widths set, such as ``("in_channels", "groups")``."""
    spellings: Mapping[Any, str] = field(default_factory=lambda: NOTHING)
    """Other names and callables that it goes by -> the order of their arguments where that is another one, else ""."""
    repair: Repair | Absent = NO_SIZE
    """What a call of it may become where it holds a size that a width changes (`nce_fx.ops.rules.repair`)."""
    evenly: str = ""
    """The operation with its value that shares the gradient among equal entries, where it gives all to the first."""
    fold: FoldRule | Absent = NO_FOLD
    """How its weight takes in the factor of a norm behind it (`nce_fx.ops.rules.affine`); its bias takes the shift."""
    root: bool = False
    """Whether its result is a root of a sum of squares or is divided by one, so that a factor makes up for copies."""
    affine: AffineRule | Absent = NO_AFFINE
    """What a norm is in evaluation mode, as a factor and a shift that the layer before takes in."""
    shape: Shape | Absent = AS_RUN
    """What it makes of tensors without values, where running it on them takes long (`nce_fx.ops.output_shapes`)."""
    by_mode: bool = False
    """Whether train() and eval() decide what it does: then a call becomes its module, which follows them."""
    memory: Memory = "new"
    """Whether its result lives in the memory of its first argument."""
    sign: Sign = "any"
    """Whether its result can be negative: never, or only where an argument can."""

    def __post_init__(self) -> None:
        freeze(self)
        if self.macs is NO_WORK and self.kind in ("weighted", "product", "lookup", "recurrent"):
            raise InputError(f"the row {self.name!r} is {self.kind}: say its macs, or why it has none (Absent)")
        if isinstance(self.macs, Absent) and isinstance(self.quantize, WeightLayout):
            raise InputError(f"the row {self.name!r} says how its weight is quantized: say its macs, too")

    @property
    def weight(self) -> str:
        """The attribute that its modules hold the weight as, such as ``"weight"``."""
        return self.attributes.get("weight", "weight")


def family(**shared: Any) -> Callable[..., Op]:
    """Return what makes rows that have fields in common, in short.

    ``view = family(kind="movement", memory="view")`` makes ``view("t", channels, signature, example, *modules)``: of
    these three fields those that are not shared come first, in this order; others by their names.
    """
    order = [name for name in ("channels", "signature", "example") if name not in shared]

    def row(name: str, *given: Any, **own: Any) -> Op:
        fields: dict[str, Any] = dict(zip(order, given, strict=False)) | {"modules": given[len(order) :]}
        return Op(name=name, **{**shared, **fields, **own})

    return row


def same_order(*others: Any) -> dict[Any, str]:
    """Return spellings whose arguments have the order of the signature."""
    return dict.fromkeys(others, "")
