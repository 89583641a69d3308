"""`nce-fx search`: learn the widths by gradient, from a model to a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nce_fx.cli import options


def search(
    model: options.Model,
    data: options.Data = None,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", help="Epochs of the search.")] = 60,
    input_shape: options.Input = None,
    weights: options.Weights = None,
    bits: options.Bits = 2,
    weight_quantizer: options.WeightQuantizer = "sawb",
    activation_quantizer: options.ActivationQuantizer = "pact",
    first_last_bits: options.FirstLastBits = 8,
    shortcuts: options.Shortcuts = "quantized",
    override: options.Override = None,
    exact: options.Exact = False,
    sums: options.Sums = "float",
    max_macs: options.MaxMacs = "1.0x",
    max_params: options.MaxParams = "1.0x",
    max_bit_ops: options.MaxBitOps = None,
    max_weight_bytes: options.MaxWeightBytes = None,
    max_activation_bytes: options.MaxActivationBytes = None,
    expand: Annotated[
        bool, typer.Option("--expand/--no-expand", help="Add wider candidates while it searches; without: TAS.")
    ] = True,
    in_float: Annotated[
        bool, typer.Option("--float/--quantized", help="Search on the float network; the plan is quantized later.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="JSON", help="Fields of the search recipe, such as '{\"threshold\": 0.4}'."),
    ] = None,
    seed: options.Seed = 0,
    out: options.Out = Path("nce-fx-search"),
    as_json: options.Json = False,
    model_args: options.ModelArgs = None,
    force: options.Force = False,
) -> None:
    """Search the widths of MODEL by gradient on its quantized network; write plan.json for `nce-fx apply`.

    The same command again goes on where the search was stopped.
    """
    import json

    from nce_fx import artifacts
    from nce_fx.cli.reference import build_model, example_input, parse_args, quant_spec, recipe_fields
    from nce_fx.cli.terminal import Terminal
    from nce_fx.data import load_data
    from nce_fx.errors import InputError, TrainingError
    from nce_fx.models import MODELS
    from nce_fx.models.loading import arguments_for, check_finite
    from nce_fx.passes.planning import Budget
    from nce_fx.search import SearchRecipe, search
    from nce_fx.search.history import FILES, search_table
    from nce_fx.tracing import trace

    terminal = Terminal.of(as_json)
    spec = quant_spec(bits, weight_quantizer, activation_quantizer, first_last_bits, shortcuts, override, exact, sums)
    budget = Budget(max_macs, max_params, max_bit_ops, max_weight_bytes, max_activation_bytes)
    given = {"epochs": epochs, "expand": expand, "quantized": not in_float, "seed": seed}
    # A short search, to try it, warms up for its first quarter.
    warmup = {"warmup_epochs": min(SearchRecipe.warmup_epochs, epochs // 4)}
    asked = SearchRecipe.from_dict(warmup | recipe_fields(recipe, **given))
    if data is None:
        raise InputError("a search needs data to learn from: give --data")
    if force:
        for name in (*FILES, *(path.name for path in out.glob("checkpoint-*.safetensors"))):
            (out / name).unlink(missing_ok=True)
    else:
        artifacts.check_free(out, (artifacts.PLAN,))
    found = load_data(data, seed=seed)
    args = arguments_for(model, parse_args(model_args), found.input_shape, found.classes)
    built = build_model(model, args, seed=seed, weights=weights)
    check_finite(built.state_dict(), model)
    if weights is None and model in MODELS:
        terminal.note(f"{model} starts from random weights; give --weights to start from trained ones")
    gm = trace(built, (example_input(model, input_shape, found, args),))
    try:
        with terminal.training(f"search {model}") as progress:
            result = search(gm, found, asked, budget=budget, spec=spec, directory=out, progress=progress)
    except TrainingError as error:
        raise TrainingError(f"{error} (the same command, with --out {out})") from error
    terminal.show(search_table(result.log, result.plan))
    terminal.note(f"{result.seconds:.0f} s; written to {out}: {', '.join(sorted(FILES))}")
    terminal.note(f"next: nce-fx apply {model} {out / artifacts.PLAN} --data {data} --out DIR, then nce-fx retrain DIR")
    terminal.finish(
        {
            "out": str(out),
            "plan": json.loads(result.plan.to_json()),
            "log": result.log.to_dict(),
            "seconds": result.seconds,
        }
    )
