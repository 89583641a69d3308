"""`nce-fx apply`: replay a plan on a model, or run passes on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nce_fx.cli import options


def apply(
    model: options.Model,
    plan: Annotated[
        Path | None,
        typer.Argument(metavar="[PLAN.json]", help="A plan that `nce-fx rewrite` wrote.", show_default=False),
    ] = None,
    passes: options.Passes = None,
    verify_each: options.VerifyEach = False,
    print_after: options.PrintAfter = None,
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
    """Resize MODEL to a plan and quantize it, or run other passes on it.

    The same model, weights, data and seed give the same weights.
    """
    from dataclasses import asdict, replace

    from nce_fx import artifacts
    from nce_fx.cli.job import calibration, content
    from nce_fx.cli.reference import build_model, example_input, one_process, parse_args, quant_spec
    from nce_fx.cli.terminal import Terminal
    from nce_fx.cli.watching import between_passes
    from nce_fx.data import load_data
    from nce_fx.errors import ArtifactError, InputError
    from nce_fx.models.loading import arguments_for
    from nce_fx.passes.known import pipeline_from
    from nce_fx.passes.transform.resize import ResizeChannels
    from nce_fx.plan import WidthPlan
    from nce_fx.report.records import ModelReference
    from nce_fx.rewrite import compiled
    from nce_fx.tracing import trace

    one_process("apply")
    terminal = Terminal.of(as_json)
    spec = quant_spec(bits, weight_quantizer, activation_quantizer, first_last_bits, shortcuts, override, exact, sums)
    args = parse_args(model_args)
    if not force:
        artifacts.check_free(out)
    if plan is None and passes is None:
        raise InputError("nothing to apply: give a PLAN.json of `nce-fx rewrite`, --passes, or both")
    defaults: dict[str, Any] = {"resize": {"seed": seed}, "quantize": asdict(spec)}
    try:
        wanted = None if plan is None else WidthPlan.from_json(plan.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"plan {plan} cannot be read: {error}; give a plan.json of `nce-fx rewrite`") from error
    if wanted is not None:
        defaults["resize"]["plan"] = wanted
    pipeline = pipeline_from("resize,quantize" if passes is None else passes, defaults)
    if wanted is not None and not any(isinstance(step, ResizeChannels) for step in pipeline.steps):
        raise InputError(f"--passes {passes} has no resize that would take {plan}: add one, or leave the plan out")
    pipeline = replace(pipeline, between=between_passes(pipeline.steps, verify_each, print_after, terminal))
    found = None if data is None else load_data(data, seed=seed)
    if found is not None:
        args = arguments_for(model, args, found.input_shape, found.classes)
    built = build_model(model, args, seed=seed, weights=weights)
    with terminal.steps() as steps:
        steps("trace")
        gm = trace(built, (example_input(model, input_shape, found, args),))
        steps(" and ".join(step.name for step in pipeline.steps))
        rewritten = compiled(gm, pipeline, calibration(found, seed))
    if wanted is not None:
        rewritten.meta["plan"] = wanted  # Also where it changes nothing.
    reference = ModelReference(reference=model, args=args)
    artifacts.save(rewritten, out, force=force, model=reference, float_model=gm)
    terminal.note(f"written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    terminal.finish(content(rewritten.meta.get("plan", WidthPlan({}, {}, "")), None, None, out))
