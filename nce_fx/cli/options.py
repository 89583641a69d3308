"""The options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE.safetensors", help="Weights of the float model.")
]
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="DATA", help="digits, cifar10:DIR, imagefolder:DIR, or package.module:callable."),
]
Bits = Annotated[int, typer.Option("--bits", help="Bits of weights and activations, 1 to 8.")]
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
