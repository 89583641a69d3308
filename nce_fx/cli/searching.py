"""What `nce-fx search` does: the network, the search, its tables."""

import json
import shlex
from typing import Any

from nce_fx import artifacts
from nce_fx.cli.commands import Search
from nce_fx.cli.model_data import network_of
from nce_fx.cli.parsing import recipe_fields
from nce_fx.cli.terminal import Terminal
from nce_fx.errors import InputError, TrainingError
from nce_fx.models import MODELS
from nce_fx.models.loading import check_finite
from nce_fx.search import SearchRecipe, search
from nce_fx.search.search import AnyRecipe, Method, method_named
from nce_fx.tracing import trace


def run(job: Search) -> None:
    """Search, and write what was found."""
    terminal = Terminal.of(job.as_json)
    spec, hardware, budget = job.spec, job.table, job.budget
    method = method_named(job.method)
    asked = recipe_of(job, method)
    if job.data is None:
        raise InputError("a search needs data to learn from: give --data")
    if job.force:
        for name in (*method.log.files, *(path.name for path in job.out.glob("checkpoint-*.safetensors"))):
            (job.out / name).unlink(missing_ok=True)
    else:
        artifacts.check_free(job.out, (artifacts.PLAN,))
    network = network_of(job, job.model, terminal)
    assert network.data is not None
    check_finite(network.model, job.model)
    if job.weights is None and job.model in MODELS:
        terminal.note(f"{job.model} starts from random weights; give --weights to start from trained ones")
    with terminal.busy("trace"):
        gm = trace(network.model, network.inputs)
    try:
        with terminal.training(f"search {job.model}") as progress:
            result = search(
                gm,
                network.data,
                asked,
                budget=budget,
                spec=spec,
                hardware=hardware,
                loss=job.loss,
                directory=job.out,
                progress=progress,
                workers=job.workers,
                scheduler=job.scheduler,
            )
    except TrainingError as error:
        raise TrainingError(f"{error} (the same command, with --out {job.out})") from error
    terminal.show(result.log.table(result.plan))
    terminal.note(f"{result.seconds:.0f} s; written to {job.out}: {', '.join(sorted(method.log.files))}")
    plan = job.out / artifacts.PLAN
    given = {"--weights": job.weights, "--model-args": job.model_args, "--input": job.input_shape, "--data": job.data}
    options = [part for option, value in given.items() if value is not None for part in (option, str(value))]
    code = ["--model", job.model] if artifacts.is_code(job.model) else []
    replay = shlex.join(["nce-fx", "apply", job.model, str(plan), *options, "--out", "DIR"])
    retrain = shlex.join(["nce-fx", "retrain", "DIR", *code, "--data", job.data, "--epochs", "N"])
    terminal.note(f"next: {replay}, then {retrain}")
    terminal.finish(
        {
            "out": str(job.out),
            "plan": json.loads(result.plan.to_json()),
            "log": result.log.to_dict(),
            "seconds": result.seconds,
        }
    )


def recipe_of(job: Search, method: Method) -> AnyRecipe:
    """Return the recipe that the options ask for.

    Raises:
        InputError: the method has no such field, or not of this value.
    """
    given: dict[str, Any] = {"method": job.method, "seed": job.seed}
    if job.epochs is not None:
        given["epochs"] = job.epochs
    if method.recipe is SearchRecipe:
        given |= {"expand": job.expand, "quantized": not job.in_float}
    elif job.in_float or not job.expand:
        raise InputError(f"--float and --no-expand are of --method gradient, not of {job.method}")
    fields = recipe_fields(job.recipe, **given)
    usual = getattr(method.recipe, "warmup_epochs", 0)
    if usual and job.epochs is not None:
        # A short search, to try it, warms up for its first quarter.
        fields = {"warmup_epochs": min(usual, job.epochs // 4)} | fields
    return method.recipe.from_dict(fields)
