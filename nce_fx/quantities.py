"""What a network can cost, one row a quantity.

Budgets, options of the command line, the search's loss, records, tables and pages derive from these rows. A quantity of
one's own is a row more, given where cost is analyzed, or brought by an installed package:

    ENERGY = Quantity(name="energy", title="energy (pJ)", unit="count",
                      cost=lambda model: Sums(model.work_macs, tuple(3 * term.bits for term in model.work)))
    nce_fx.rewrite(model, inputs, quantities=(ENERGY,), budget=nce_fx.Budget(energy=0.8))

    [project.entry-points."nce_fx.quantities"]
    energy = "my_package.quantities:ENERGY"
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nce_fx.registry import Registry, input_error

if TYPE_CHECKING:
    from nce_fx.passes.analysis.cost_terms import CostTerms
    from nce_fx.passes.analysis.polynomial import Terms


@dataclass(frozen=True)
class Sums:
    """A cost as a sum of weighted products of widths; of several sums the greatest is the cost."""

    terms: "Terms"
    """Products of axis lengths, such as the MACs of every layer: `CostTerms` has those of work, parameters, values."""
    weights: tuple[int, ...]
    """What one of each term counts, such as weight bits times activation bits."""
    divisor: int = 1
    """Each weighted term is divided by this and rounded up: 8 for bits that are kept in whole bytes."""
    sets: tuple[tuple[int, ...], ...] | None = None
    """Which terms each sum takes, such as the values that are in memory at one step; all of them, once, by default."""


@dataclass(frozen=True)
class Prices:
    """The sum over layers of the user's own hardware table, which is no polynomial of widths."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One thing that a network costs."""

    name: str
    """As budgets and records name it: ``bit_ops``. The option is ``--max-bit-ops``."""
    title: str
    """As tables name it: ``bit operations``."""
    unit: Literal["count", "bytes", "price"]
    cost: "Callable[[CostTerms], Sums | Prices | None]"
    """What it sums in the cost model of a graph; ``None`` where the graph has no such cost."""
    help: str = ""
    """What an option says it limits the most of; the title by default."""
    search: Literal["computation", "size"] | None = None
    """Which weight the search's loss has for it; without one, only the plan that a search ends with keeps its limit."""
    default: str | None = None
    """Its limit where a rewrite or a search is given no budget; free by default."""
    missing: str = "is in no row that this cost report was made with: give analyze_cost(..., quantities=...)"
    """What to say where a budget limits it and the cost report does not have it."""


OWN = (
    Quantity(
        name="macs",
        title="MACs",
        unit="count",
        cost=lambda model: Sums(model.work_macs, (1,) * len(model.work)),
        help="multiply-accumulates",
        search="computation",
        default="1.0x",
    ),
    Quantity(
        name="params",
        title="parameters",
        unit="count",
        cost=lambda model: Sums(model.numels, (1,) * len(model.parameters)),
        search="size",
        default="1.0x",
    ),
    Quantity(
        name="bit_ops",
        title="bit operations",
        unit="count",
        cost=lambda model: Sums(model.work_macs, tuple(term.bits for term in model.work)),
        search="computation",
        default="1.0x",
    ),
    Quantity(
        name="weight_bytes",
        title="weight bytes",
        unit="bytes",
        cost=lambda model: Sums(model.numels, tuple(parameter.bits for parameter in model.parameters), 8),
        help="bytes of quantized weights",
        search="size",
        default="1.0x",
    ),
    Quantity(
        name="activation_bytes",
        title="peak activation bytes",
        unit="bytes",
        cost=lambda model: Sums(model.values, tuple(tensor.bits for tensor in model.tensors), 8, model.live),
        help="bytes of activations alive at once",
    ),
    Quantity(
        name="custom",
        title="custom cost",
        unit="price",
        cost=lambda model: None if model.hardware is None else Prices(),
        help="of what --hardware measures",
        missing="needs a hardware table: analyze_cost(..., hardware=HardwareTable.read(FILE))",
    ),
)


QUANTITIES: Registry[Quantity] = Registry(
    "quantities",
    {row.name: row for row in OWN},
    lambda value: isinstance(value, Quantity),
    lambda row: row.title if row.help in ("", row.title) else f"{row.title}: {row.help}",
)
"""Quantities by name: nce-fx's own, and those of installed packages."""


def known_quantities(given: Iterable[Quantity] = ()) -> Mapping[str, Quantity]:
    """Return quantities by name, the given ones among them.

    Raises:
        InputError: two have one name, or a value is no quantity.
    """
    found = dict(QUANTITIES)
    for quantity in given:
        if not isinstance(quantity, Quantity) or not quantity.name.isidentifier():
            raise input_error(f"{quantity!r} is no quantity: give nce_fx.quantities.Quantity(name='bit_ops', ...)")
        if found.setdefault(quantity.name, quantity) is not quantity:
            raise input_error(f"two quantities are called {quantity.name}: give one another name")
    return found


def title_of(name: str) -> str:
    """Return how tables name a quantity; one that is not known here, in a folder from elsewhere, by its own name."""
    return QUANTITIES[name].title if name in QUANTITIES else name.replace("_", " ")
