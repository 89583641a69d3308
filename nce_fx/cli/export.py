"""`nce-fx export`: the network of a result folder as an ONNX file, as a torch.export archive, or its weights alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nce_fx.cli import options
from nce_fx.cli.command import command


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the network in DIR for use without its code; the file is compared with PyTorch before it is kept.

    Examples:

        nce-fx export result --onnx model.onnx

        nce-fx export result --model nets.py:build --pt2 model.pt2
    """

    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that `nce-fx rewrite` wrote.", show_default=False)
    ]
    onnx: Annotated[
        Path | None, typer.Option(metavar="FILE.onnx", help="Write the network as ONNX.", show_default=False)
    ] = None
    format: Annotated[
        str | None,
        typer.Option(
            metavar="integer|int2|qcdq|qonnx",
            help="integer: packed weights, computed in integers; int2: packed weights, computed in float; "
            "qcdq: int8 containers; qonnx: for FPGA flows. By default integer, int2 for a network that it is not for.",
            show_default=False,
        ),
    ] = None
    fold_bn: Annotated[bool, typer.Option("--fold-bn", help="Fold BatchNorm into the scales of the weights.")] = False
    batch: Annotated[int | None, typer.Option(metavar="N", help="Samples in a batch; any number by default.")] = None
    opset: Annotated[
        int | None,
        typer.Option(metavar="N", help="Opset of the ONNX file, for an older runtime; the format's own."),
    ] = None
    pt2: Annotated[
        Path | None,
        typer.Option(metavar="FILE.pt2", help="Write a torch.export archive.", show_default=False),
    ] = None
    packed: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="Write the weights alone, four to a byte.", show_default=False),
    ] = None
    explorer: Annotated[
        Path | None,
        typer.Option(
            "--model-explorer",
            metavar="FILE.json",
            help="Write the graph for Google's Model Explorer, and FILE.data.json: the sensitivity of its nodes.",
            show_default=False,
        ),
    ] = None
    model: options.ModelAgain = None
    own_passes: options.OwnPasses = None
    verify_each: options.VerifyEach = False
    print_after: options.PrintAfter = None
    as_json: options.Json = False


export = command(Export, "nce_fx.cli.exporting:run")
