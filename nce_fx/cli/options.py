"""The options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A built-in name (see `nce-fx models`), package.module:callable, or path/to/file.py:callable.",
        show_default=False,
    ),
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input", metavar="1x3x224x224", help="Shape of one input batch; the model's or the data's own by default."
    ),
]
ModelArgs = Annotated[
    str | None,
    typer.Option(
        "--model-args", metavar="JSON", help="Arguments for the model's callable, such as '{\"num_classes\": 10}'."
    ),
]
ModelAgain = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The model again, where it is not built in: a folder does not run code by itself.",
    ),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE.safetensors", help="Weights of the float model.")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="digits, fashion-mnist, cifar10:DIR, imagefolder:DIR, or package.module:callable.",
    ),
]
_QUANTIZERS, _BUDGET, _WIDTHS, _TRAINING = "Quantizers", "Budget", "Widths", "Training"

Bits = Annotated[
    int, typer.Option("--bits", help="Bits of weights and activations, 1 to 8.", rich_help_panel=_QUANTIZERS)
]
WeightQuantizer = Annotated[
    str,
    typer.Option(
        "--weight-quantizer",
        metavar="NAME",
        help="sawb, lsq, dorefa, minmax, seq or statsq.",
        rich_help_panel=_QUANTIZERS,
    ),
]
ActivationQuantizer = Annotated[
    str,
    typer.Option(
        "--activation-quantizer", metavar="NAME", help="pact, lsq, dorefa or minmax.", rich_help_panel=_QUANTIZERS
    ),
]
FirstLastBits = Annotated[
    int,
    typer.Option(
        "--first-last-bits", help="Bits of the first and last layers; 32 is float.", rich_help_panel=_QUANTIZERS
    ),
]
Shortcuts = Annotated[
    str,
    typer.Option(
        "--shortcuts",
        metavar="quantized|float",
        help="Whether additions read quantized tensors, and 1x1 shortcut convolutions are quantized.",
        rich_help_panel=_QUANTIZERS,
    ),
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        metavar="PATTERN=BITS",
        help="Bits of the layers whose names match, such as 'layer1.*=4' or 'fc=float'; may be repeated.",
        rich_help_panel=_QUANTIZERS,
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help="Scales of few bits, so that sums are exact: every runtime gives the numbers that PyTorch gives.",
        rich_help_panel=_QUANTIZERS,
    ),
]
Sums = Annotated[
    str,
    typer.Option(
        "--sums",
        metavar="float|int8",
        help="int8: quantize what enters an addition to 8 bits, so that a runtime adds integers.",
        rich_help_panel=_QUANTIZERS,
    ),
]


def most(name: str, what: str) -> Any:
    """Return the option of one upper limit."""
    return typer.Option(
        f"--max-{name}", metavar="1.0x|NUMBER", help=f"Most {what}: a ratio or a number.", rich_help_panel=_BUDGET
    )


MaxMacs = Annotated[str, most("macs", "multiply-accumulates")]
MaxParams = Annotated[str, most("params", "parameters")]
MaxBitOps = Annotated[str | None, most("bit-ops", "bit operations")]
MaxWeightBytes = Annotated[str | None, most("weight-bytes", "bytes of quantized weights")]
MaxActivationBytes = Annotated[str | None, most("activation-bytes", "bytes of activations alive at once")]
MaxCustom = Annotated[str | None, most("custom", "of what --hardware measures")]
Hardware = Annotated[
    Path | None,
    typer.Option(
        "--hardware",
        metavar="TABLE.csv",
        help="Your own cost of layers: op, c_in, c_out, h, w, bits, cost; CSV or JSON.",
        rich_help_panel=_BUDGET,
    ),
]
MinWidth = Annotated[
    float, typer.Option("--min-width", help="Least width of a group, of its own.", rich_help_panel=_WIDTHS)
]
MaxWidth = Annotated[
    float, typer.Option("--max-width", help="Greatest width of a group, of its own.", rich_help_panel=_WIDTHS)
]
RoundTo = Annotated[
    int, typer.Option("--round-to", help="Widths that change become multiples of this.", rich_help_panel=_WIDTHS)
]
Freeze = Annotated[
    list[str] | None,
    typer.Option(
        "--freeze",
        metavar="PATTERN",
        help="Layers that keep their width, such as 'layer1.*'; may be repeated.",
        rich_help_panel=_WIDTHS,
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="PATTERN",
        help="The only layers whose width may change; may be repeated.",
        rich_help_panel=_WIDTHS,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="JSON",
        help='Fields of the training recipe, such as \'{"learning_rate": 0.1, "bits": [8, 4, 2]}\'.',
        rich_help_panel=_TRAINING,
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Stop at an image that cannot be read, rather than leave it out.",
        rich_help_panel=_TRAINING,
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Train the compiled network; in one process.", rich_help_panel=_TRAINING)
]
FromScratch = Annotated[
    bool,
    typer.Option(
        "--from-scratch",
        help="Retrain from new random weights, as published, not from the float network's.",
        rich_help_panel=_TRAINING,
    ),
]
_PASSES = "Passes"
Passes = Annotated[
    str | None,
    typer.Option(
        "--passes",
        metavar="PIPELINE",
        help="Passes with their options, yours among them: 'resize,my.module:MyPass{k=1},quantize{weight_bits=3}'. "
        "Where these options are not given, resize takes PLAN.json and quantize the options below.",
        rich_help_panel=_PASSES,
    ),
]
VerifyEach = Annotated[
    bool,
    typer.Option(
        "--verify-each", help="Run the network after every pass, and the pass again.", rich_help_panel=_PASSES
    ),
]
PrintAfter = Annotated[
    list[str] | None,
    typer.Option(
        "--print-after",
        metavar="NAME|all",
        help="Print the code of the network after a pass, on stderr; may be repeated.",
        rich_help_panel=_PASSES,
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
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the result.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a result that the folder already holds.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, everything else on stderr.")]
Metric = Annotated[
    str | None,
    typer.Option(
        "--sensitivity",
        metavar="METRIC",
        help="How sensitivity is measured; by gradient with data, from the weights without.",
    ),
]
