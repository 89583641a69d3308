"""The options that several commands share: each declared once, in groups that the commands' own options inherit."""

from dataclasses import MISSING, dataclass, make_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nce_fx.cli.command import argument, option
from nce_fx.cli.completing import names_of, one_of
from nce_fx.quantities import OWN, QUANTITIES

if TYPE_CHECKING:
    from nce_fx.passes.analysis.hardware import HardwareTable
    from nce_fx.passes.planning import Budget
    from nce_fx.passes.transform.quantize import QuantSpec

_quantizer, _paid, _width, _training = (
    partial(option, rich_help_panel=panel) for panel in ("Quantizers", "Budget", "Widths", "Training")
)
# Of options that several commands have in other groups, which are types.
_passes = partial(typer.Option, rich_help_panel="Passes")

ModelAgain = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The model again, where it is not built in: a folder does not run code by itself.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="digits, fashion-mnist, cifar10:DIR, imagefolder:DIR (DIR@64: 64x64), package.module:callable, or "
        "path/to/file.py:callable.",
        autocompletion=names_of("data"),
    ),
]

Bits = Annotated[
    int, typer.Option("--bits", help="Bits of weights and activations, 1 to 8.", rich_help_panel="Quantizers")
]
Passes = Annotated[
    str | None,
    _passes(
        "--passes",
        metavar="PIPELINE",
        help="Passes with their options, yours among them: 'resize,my.module:MyPass{k=1},quantize{weight_bits=3}'. "
        "Where these options are not given, resize takes PLAN.json and quantize the options below.",
    ),
]
VerifyEach = Annotated[bool, _passes("--verify-each", help="Run the network after every pass, and the pass again.")]
PrintAfter = Annotated[
    list[str] | None,
    _passes(
        "--print-after",
        metavar="NAME|all",
        help="Print the code of the network after a pass, on stderr; may be repeated.",
        autocompletion=names_of("passes"),
    ),
]
OwnPasses = Annotated[
    list[str] | None,
    typer.Option(
        "--pass",
        metavar="my.module:MyPass",
        help="A pass of your own that the network was made with: a folder runs no code by itself; may be repeated.",
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the result.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a result that the folder already holds.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, everything else on stderr.")]
Loss = Annotated[
    str | None,
    typer.Option(
        "--loss",
        metavar="NAME",
        rich_help_panel="Training",
        help="What the network is trained for: cross_entropy, mean_squared_error, l1, binary_cross_entropy, own, or"
        " package.module:callable (`nce-fx list losses`).",
        autocompletion=names_of("losses"),
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        "--sensitivity",
        metavar="METRIC",
        help="How sensitivity is measured (`nce-fx list metrics`); by gradient with data, from the weights without.",
        autocompletion=names_of("metrics"),
    ),
]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """How a network is built, and the data it is looked at with."""

    input_shape: str | None = option(
        None, "Shape of one input batch; the model's or the data's own by default.", "1x3x224x224", name="--input"
    )
    weights: Path | None = option(
        None, "Weights of the float model: .safetensors, or a state_dict as .pt, .pth, .ckpt or .bin.", "FILE"
    )
    data: Data = None
    model_args: str | None = option(
        None, "Arguments for the model's callable, such as '{\"num_classes\": 10}'.", "JSON"
    )
    seed: int = option(0, "Seed of everything random.")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(NetworkOptions):
    """Which network, with which weights."""

    model: str = argument(
        MISSING,
        "A built-in name (see `nce-fx models`), package.module:callable, or path/to/file.py:callable.",
        "MODEL",
        autocompletion=names_of("models"),
    )


@dataclass(frozen=True, kw_only=True)
class QuantizerOptions:
    """What to quantize with."""

    bits: Bits = 2
    weight_quantizer: str | None = _quantizer(
        None,
        "sawb (the default), lsq, dorefa ...: `nce-fx list weight_quantizers` says what each is.",
        "NAME",
        autocompletion=names_of("weight_quantizers"),
    )
    activation_quantizer: str | None = _quantizer(
        None,
        "lsq (the default), pact, dorefa ...: see `nce-fx list activation_quantizers`.",
        "NAME",
        autocompletion=names_of("activation_quantizers"),
    )
    first_last_bits: int = _quantizer(8, "Bits of the first and last layers; 32 is float.")
    shortcuts: str | None = _quantizer(
        None,
        "Whether additions read 8 bits (the default), what layers read, or floats; in float 1x1 shortcut "
        "convolutions are, too.",
        "int8|quantized|float",
        autocompletion=one_of("int8", "quantized", "float"),
    )
    override: list[str] | None = _quantizer(
        None,
        "Bits of the layers whose names match, such as 'layer1.*=4' or 'fc=float'; may be repeated.",
        "PATTERN=BITS",
    )
    exact: bool = _quantizer(
        False,
        "Scales of few bits, so that sums are exact: every runtime gives the numbers that PyTorch gives.",
        name="--exact",
    )
    sums: str = _quantizer(
        "float",
        "int8: quantize what enters an addition to 8 bits, so that a runtime adds integers.",
        "float|int8",
        autocompletion=one_of("float", "int8"),
    )
    ewgs: float = _quantizer(
        0.0, "How much gradients depend on how far rounding moved each element, such as 0.2; 0 is not at all.", "DELTA"
    )

    @property
    def spec(self) -> "QuantSpec":
        """The quantizers that the options name.

        Raises:
            InputError: bits outside 1 to 8, or an override that is not PATTERN=BITS.
            QuantizeError: an unknown name, or bits out of range elsewhere.
        """
        from nce_fx.cli.parsing import PUBLISHED_RECIPE, quant_spec
        from nce_fx.passes.transform.quantize import PUBLISHED

        asked = {"weight": self.weight_quantizer, "activation": self.activation_quantizer, "shortcuts": self.shortcuts}
        usual = PUBLISHED if getattr(self, "recipe", None) == PUBLISHED_RECIPE else {}
        kinds = {**usual, **{name: value for name, value in asked.items() if value is not None}}
        others = {name: getattr(self, name) for name in ("first_last_bits", "exact", "sums", "ewgs")}
        return quant_spec(self.bits, self.override, **kinds, **others)


def _limit(name: str, help: str, default: str | None) -> tuple[str, Any, Any]:
    """A ``--max-macs``: a limit of a quantity."""
    text = f"Most {help}: a ratio, a number, or none."
    return f"max_{name}", str | None, _paid(default, text, "1.0x|NUMBER|none", name=f"--max-{name.replace('_', '-')}")


if TYPE_CHECKING:

    class _Limits:
        """An option for every quantity."""

else:
    _Limits = make_dataclass(
        "_Limits",
        [
            *(_limit(row.name, row.help or row.title, row.default) for row in OWN),
            *(_limit(name, name.replace("_", " "), None) for name in QUANTITIES.names()[len(OWN) :]),
        ],
        frozen=True,
        kw_only=True,
    )


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(_Limits):
    """What the result may cost."""

    hardware: Path | None = _paid(
        None, "Your own cost of layers: op, c_in, c_out, h, w, bits, cost; CSV or JSON.", "TABLE.csv"
    )

    @property
    def budget(self) -> "Budget":
        """The upper limits.

        Raises:
            BudgetError: one that is no limit.
            InputError: a hardware table without a limit, or a limit without one.
        """
        from nce_fx.errors import InputError
        from nce_fx.passes.planning import Budget
        from nce_fx.quantities import known_quantities

        rows = known_quantities()
        asked = {name: getattr(self, f"max_{name}", None) for name in rows}
        budget = Budget(**{name: row.default if asked[name] is None else asked[name] for name, row in rows.items()})
        if (self.hardware is None) != (budget.custom is None):
            raise InputError("--hardware is the table and --max-custom its limit: give both or neither")
        return budget

    @property
    def table(self) -> "HardwareTable | None":
        """The user's own cost of layers.

        Raises:
            InputError: the file is no table.
        """
        from nce_fx.passes.analysis.hardware import HardwareTable

        return None if self.hardware is None else HardwareTable.read(self.hardware)


@dataclass(frozen=True, kw_only=True)
class WidthOptions:
    """What the planner may do with widths."""

    min_width: float = _width(0.25, "Least width of a group, of its own.")
    max_width: float = _width(2.0, "Greatest width of a group, of its own.")
    round_to: int = _width(1, "Widths that change become multiples of this.")
    capacity: float = _width(
        0.0, "Share of a group's importance that is what its width costs, not its noise; 1 keeps all widths.", "0..1"
    )
    streams: float = _width(
        1.0,
        "Within a budget below the network's own cost, the least width of a residual stream, of what one factor for "
        "all groups would leave it.",
        "0..1",
    )
    freeze: list[str] | None = _width(
        None, "Layers that keep their width, such as 'layer1.*'; may be repeated.", "PATTERN"
    )
    only: list[str] | None = _width(None, "The only layers whose width may change; may be repeated.", "PATTERN")

    @property
    def limits(self) -> dict[str, Any]:
        """As `plan_widths` takes them."""
        names = ("min_width", "max_width", "round_to", "capacity", "streams")
        return {name: getattr(self, name) for name in names} | {"freeze": self.freeze or (), "only": self.only or ()}


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How networks are trained."""

    loss: Loss = None
    metric: str | None = _training(
        None,
        "What it is measured by: accuracy, mean_iou, loss ..., or package.module:callable; by default what "
        "goes with the loss (`nce-fx list task_metrics`). How sensitivity is measured is --sensitivity.",
        "NAME",
        autocompletion=names_of("task_metrics"),
    )
    recipe: str | None = _training(
        None,
        'Fields of the training recipe, such as \'{"learning_rate": 0.1, "bits": [8, 4, 2]}\'; or '
        '"published": as the method was published, SAWB and PACT, shortcuts quantized, 0.9 of the loss distilled.',
        "JSON|published",
    )
    strict: bool = _training(False, "Stop at an image that cannot be read, rather than leave it out.", name="--strict")
    compile: bool = _training(False, "Train the compiled network.", name="--compile")
    float_epochs: int | None = _training(
        None,
        "The first so many of the epochs train in float at the new widths, before anything is rounded. By "
        "default none or a quarter, as a trial finds better; a quarter where nothing is tried and widths change; "
        "none with --from-scratch.",
        "N",
    )
    from_scratch: bool = _training(
        False, "Retrain from new random weights, as published, not from the float network's.", name="--from-scratch"
    )
