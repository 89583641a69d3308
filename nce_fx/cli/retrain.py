"""`nce-fx retrain`: train the network of a result folder, or go on where its training was stopped."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nce_fx.cli import options
from nce_fx.cli.command import command


@dataclass(frozen=True, kw_only=True)
class Retrain(options.TrainingOptions):
    """Retrain the network in DIR, distilled from its float network; a run that was stopped goes on.

    Examples:

        nce-fx retrain result

        nce-fx retrain replayed --data cifar10:DIR --epochs 100

        nce-fx retrain result --model nets.py:build
    """

    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that `nce-fx rewrite` wrote.", show_default=False)
    ]
    data: options.Data = None
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Epochs; those of the training that was stopped by default."),
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed; that of the training that was stopped by default.")] = None
    model: options.ModelAgain = None
    own_passes: options.OwnPasses = None
    uniform: Annotated[bool, typer.Option("--uniform/--no-uniform", help="Train the uniform rival as well.")] = True
    force: Annotated[
        bool, typer.Option("--force", help="Train again from the weights in DIR, though it is trained.")
    ] = False
    as_json: options.Json = False


retrain = command(Retrain, "nce_fx.cli.retraining:run")
