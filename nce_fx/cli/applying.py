"""What `nce-fx apply` does: a plan replayed, or passes run, and the folder written."""

from dataclasses import asdict, replace
from typing import Any

from nce_fx import artifacts
from nce_fx.cli.commands import Apply
from nce_fx.cli.model_data import network_of
from nce_fx.cli.parsing import build_model, one_process
from nce_fx.cli.pass_hooks import between_passes
from nce_fx.cli.rewriting import content
from nce_fx.cli.terminal import Terminal
from nce_fx.errors import ArtifactError, InputError
from nce_fx.nearest import nearest_path
from nce_fx.passes.by_name import pipeline_from
from nce_fx.passes.transform.new_weights import NewWeights
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.plan import WidthPlan
from nce_fx.report.records import ModelReference
from nce_fx.rewrite import run_pipeline
from nce_fx.tracing import trace


def run(job: Apply) -> None:
    """Apply, and write the result."""
    one_process("apply")
    terminal = Terminal.of(job.as_json)
    spec = job.spec
    if not job.force:
        artifacts.check_free(job.out)
    if job.plan is None and job.passes is None:
        raise InputError("nothing to apply: give a PLAN.json of `nce-fx rewrite`, --passes, or both")
    defaults: dict[str, Any] = {"resize": {"seed": job.seed}, "quantize": asdict(spec)}
    try:
        wanted = None if job.plan is None else WidthPlan.from_json(job.plan.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        hint = f"give a plan.json of `nce-fx rewrite`{nearest_path(job.plan) if job.plan else ''}"
        raise ArtifactError(f"plan {job.plan} cannot be read: {error}; {hint}") from error
    if wanted is not None:
        defaults["resize"]["plan"] = wanted
    pipeline = pipeline_from("resize,quantize" if job.passes is None else job.passes, defaults)
    if wanted is not None and not any(isinstance(step, ResizeChannels) for step in pipeline.steps):
        raise InputError(
            f"--passes {job.passes} has no resize that would take {job.plan}: add one, or leave the plan out"
        )
    between = between_passes(pipeline.steps, job.verify_each, job.print_after, terminal)
    pipeline = replace(pipeline, between=between)
    network = network_of(job, job.model, terminal)
    with terminal.steps() as steps:
        steps("trace")
        gm = trace(network.model, network.inputs)
        steps(" and ".join(step.name for step in pipeline.steps))
        new = any(isinstance(step, NewWeights) for step in pipeline.steps)
        fresh = build_model(job.model, network.args, seed=job.seed) if new else None
        rewritten = run_pipeline(gm, pipeline, network.calibration, fresh=fresh)
    if wanted is not None:
        rewritten.meta["plan"] = wanted  # Also where it changes nothing.
    reference = ModelReference(reference=job.model, args=dict(network.args))
    with terminal.busy(f"write {job.out}"):
        artifacts.save(rewritten, job.out, force=job.force, model=reference, float_model=gm)
    terminal.note(f"written to {job.out}: {', '.join(sorted(path.name for path in job.out.iterdir()))}")
    terminal.finish(content(rewritten.meta.get("plan", WidthPlan({}, {}, "")), None, None, job.out))
