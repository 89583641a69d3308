"""`nce-fx apply`: replay a plan on a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nce_fx.cli import options


def apply(
    model: options.Model,
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN.json", help="A plan that `nce-fx rewrite` wrote.", show_default=False)
    ],
    input_shape: options.Input = None,
    weights: options.Weights = None,
    data: options.Data = None,
    bits: options.Bits = 2,
    weight_quantizer: options.WeightQuantizer = "sawb",
    activation_quantizer: options.ActivationQuantizer = "pact",
    first_last_bits: options.FirstLastBits = 8,
    shortcuts: options.Shortcuts = "quantized",
    override: options.Override = None,
    exact: options.Exact = False,
    sums: options.Sums = "float",
    seed: options.Seed = 0,
    out: options.Out = Path("nce-fx-out"),
    as_json: options.Json = False,
    model_args: options.ModelArgs = None,
    force: options.Force = False,
) -> None:
    """Resize MODEL to a plan and quantize it; the same model, weights, data and seed give the same weights."""
    from nce_fx import artifacts
    from nce_fx.cli.job import calibration, content
    from nce_fx.cli.reference import build_model, example_input, one_process, parse_args, quant_spec
    from nce_fx.cli.terminal import Terminal
    from nce_fx.data import load_data
    from nce_fx.errors import ArtifactError
    from nce_fx.models.loading import arguments_for
    from nce_fx.plan import WidthPlan
    from nce_fx.report.records import ModelReference
    from nce_fx.rewrite import build
    from nce_fx.tracing import trace

    one_process("apply")
    terminal = Terminal.of(as_json)
    spec = quant_spec(bits, weight_quantizer, activation_quantizer, first_last_bits, shortcuts, override, exact, sums)
    args = parse_args(model_args)
    if not force:
        artifacts.check_free(out)
    try:
        wanted = WidthPlan.from_json(plan.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"plan {plan} cannot be read: {error}; give a plan.json of `nce-fx rewrite`") from error
    found = None if data is None else load_data(data, seed=seed)
    if found is not None:
        args = arguments_for(model, args, found.input_shape, found.classes)
    built = build_model(model, args, seed=seed, weights=weights)
    with terminal.steps() as steps:
        steps("trace")
        gm = trace(built, (example_input(model, input_shape, found, args),))
        rewritten = build(gm, wanted, spec=spec, batches=calibration(found, seed), seed=seed, observe=steps)
    reference = ModelReference(reference=model, args=args)
    artifacts.save(rewritten, out, force=force, model=reference, float_model=gm)
    terminal.note(f"written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    terminal.finish(content(wanted, None, None, out))
