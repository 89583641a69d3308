"""`nce-fx rewrite`: the main job, from a model to a folder with its 2-bit rewrite, retrained where asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nce_fx.cli import options
from nce_fx.cli.command import command
from nce_fx.cli.completing import one_of


@dataclass(frozen=True, kw_only=True)
class Rewrite(
    options.TrainingOptions,
    options.QuantizerOptions,
    options.WidthOptions,
    options.BudgetOptions,
    options.ModelOptions,
):
    """Rewrite MODEL: wider where few bits hurt, narrower where they do not, at no more than it costs.

    A built-in model without --weights is first trained on --data, for as many epochs as --retrain says.

    Examples:

        nce-fx rewrite resnet50 --dry-run

        nce-fx rewrite nets.py:build --weights net.pt --data imagefolder:images@64 --retrain 30 --out result

        nce-fx rewrite resnet20 --max-macs 0.8x --freeze 'layer1.*' --out narrow
    """

    sensitivity: options.Metric = None
    end_bits: Annotated[
        str,
        typer.Option(
            metavar="given|plan",
            help="plan: weights of the first and last layers have 2, 4 or 8 bits, chosen with the widths.",
            autocompletion=one_of("given", "plan"),
        ),
    ] = "given"
    retrain: Annotated[
        int, typer.Option(metavar="EPOCHS", help="Epochs of retraining; the uniform rival gets as many.")
    ] = 0
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="0.6x..2.0x",
            help="Plan along a range of budgets, draw the Pareto front, rewrite nothing.",
        ),
    ] = None
    trial: Annotated[
        bool,
        typer.Option(
            "--trial/--no-trial",
            help="Before --retrain: try the plan, nearer ones and the widths as they are on held out training data.",
        ),
    ] = True
    trial_share: Annotated[float, typer.Option(help="What all trials may cost, of the retraining of one network.")] = (
        0.25
    )
    verify_each: options.VerifyEach = False
    print_after: options.PrintAfter = None
    out: options.Out = Path("nce-fx-out")
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False
    as_json: options.Json = False
    force: options.Force = False


rewrite = command(Rewrite, "nce_fx.cli.rewriting:run")
