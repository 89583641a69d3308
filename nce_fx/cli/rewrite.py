"""`nce-fx rewrite`: the main job, from a model to a folder with its 2-bit rewrite, retrained where asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nce_fx.cli import options


def rewrite(
    model: options.Model,
    input_shape: options.Input = None,
    weights: options.Weights = None,
    data: options.Data = None,
    max_macs: options.MaxMacs = "1.0x",
    max_params: options.MaxParams = "1.0x",
    max_bit_ops: options.MaxBitOps = None,
    max_weight_bytes: options.MaxWeightBytes = None,
    max_activation_bytes: options.MaxActivationBytes = None,
    hardware: options.Hardware = None,
    max_custom: options.MaxCustom = None,
    min_width: options.MinWidth = 0.25,
    max_width: options.MaxWidth = 2.0,
    round_to: options.RoundTo = 1,
    freeze: options.Freeze = None,
    only: options.Only = None,
    bits: options.Bits = 2,
    weight_quantizer: options.WeightQuantizer = "sawb",
    activation_quantizer: options.ActivationQuantizer = "pact",
    first_last_bits: options.FirstLastBits = 8,
    shortcuts: options.Shortcuts = "quantized",
    override: options.Override = None,
    exact: options.Exact = False,
    sums: options.Sums = "float",
    sensitivity: options.Metric = None,
    retrain: Annotated[
        int, typer.Option("--retrain", metavar="EPOCHS", help="Epochs of retraining; the uniform rival gets as many.")
    ] = 0,
    recipe: options.Recipe = None,
    strict: options.Strict = False,
    compile: options.Compile = False,
    from_scratch: options.FromScratch = False,
    sweep: Annotated[
        str | None,
        typer.Option(
            "--sweep",
            metavar="0.6x..2.0x",
            help="Plan along a range of budgets, draw the Pareto front, rewrite nothing.",
        ),
    ] = None,
    verify_each: options.VerifyEach = False,
    print_after: options.PrintAfter = None,
    seed: options.Seed = 0,
    out: options.Out = Path("nce-fx-out"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    as_json: options.Json = False,
    model_args: options.ModelArgs = None,
    force: options.Force = False,
) -> None:
    """Rewrite MODEL: wider where few bits hurt, narrower where they do not, at no more MACs and parameters.

    A built-in model without --weights is first trained on --data, for as many epochs as --retrain says.
    """
    given = dict(locals())
    from nce_fx.cli.job import Job, run

    run(Job(**given))
