"""Retraining a result folder: what it says of itself, what the user adds, and the training of `nce_fx.comparison`."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from nce_fx import artifacts
from nce_fx.artifacts import is_code
from nce_fx.cli.commands import Retrain
from nce_fx.cli.model_data import calibration
from nce_fx.cli.parsing import PUBLISHED_RECIPE, build_model, recipe_fields
from nce_fx.cli.rewriting import Retrained, at_chance, content, evaluated, rewritten_name, rivals_of, with_float_epochs
from nce_fx.cli.terminal import Terminal
from nce_fx.cli.verdict import next_steps
from nce_fx.data import load_data
from nce_fx.errors import InputError
from nce_fx.passes.by_name import known_pass, pass_named
from nce_fx.passes.transform.quantize import PUBLISHED, InsertQuantizers
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.pipeline import Given, Pass, Pipeline, history_of
from nce_fx.pipeline.history_json import passes_of
from nce_fx.plain_text import number_of
from nce_fx.processes import all_reduce_sum, start_engine
from nce_fx.report.records import Manifest, Retraining
from nce_fx.signature import call_of
from nce_fx.tasks import Task
from nce_fx.tracing import trace
from nce_fx.training import Recipe
from nce_fx.training.recipe import PUBLISHED_TRAINING, RETRAINING, usual_float_epochs


def run(job: Retrain) -> None:
    """Train the network of the folder, and put what came of it there.

    Raises:
        NceFxError: anything that was not right, in one line; the folder is then as it was, its checkpoints kept.
    """
    terminal = Terminal.of(job.as_json)
    manifest = artifacts.read_manifest(job.directory)
    if manifest.comparison is not None and not job.force:
        so_far = number_of(manifest.comparison.epochs, "epoch")
        raise InputError(f"{job.directory} is trained ({so_far}): --force trains again from its weights")
    retraining = asked_for(job, manifest)
    recipe, task = Recipe.from_dict(retraining.recipe), Task.of(retraining.loss, retraining.metric)
    with terminal.busy(f"read {job.directory}"):
        data = load_data(retraining.data, seed=recipe.seed, strict=job.strict)
        model = model_of_folder(job.directory, job.model, manifest, recipe.seed)
        own = [pass_named(name) for name in job.own_passes or ()]
        rewritten = artifacts.load(job.directory, model, passes=own)
        if "spec" not in rewritten.meta:
            raise InputError(
                f"{job.directory} holds a network in float, none of its passes is quantize: there is nothing to retrain"
            )
        float_network = trace(artifacts.load_float(job.directory, model).eval(), call_of(manifest.inputs))
        spec = rewritten.meta["spec"]
        networks = {rewritten_name(spec): rewritten}
        if retraining.uniform:
            given = Given(calibration(data, recipe.seed))
            uniform = _unresized(rewritten, own)(float_network, given).graph_module
            # A rival with another width does not go through passes of the user's own.
            plan = None if own else rewritten.meta["plan"]
            rivals = rivals_of(float_network, uniform, plan, recipe.seed)
            networks = {**rivals, **networks}
    about: dict[str, Any] = {
        "report": manifest.rewrite,
        "model": manifest.model,
        "float_model": float_network,
        "retraining": retraining,
    }
    if terminal.is_main and retraining != manifest.retraining:
        # Another recipe than the checkpoints': they belong to a training that is given up.
        shutil.rmtree(job.directory / artifacts.CHECKPOINTS, ignore_errors=True)
    if terminal.is_main:
        with terminal.busy(f"write {job.directory}"):
            artifacts.save(rewritten, job.directory, force=True, keep_checkpoints=True, **about)
    # Under torchrun nobody looks for checkpoints before they are as they should be.
    all_reduce_sum(torch.zeros(1, device=start_engine().device))
    teaches = not at_chance(evaluated(float_network, data, task, terminal), data, task)
    fresh, epochs = model if retraining.from_scratch else None, retraining.float_epochs
    reference = _model_of(job.directory, job.model, manifest)
    more = [part for name in job.own_passes or () for part in ("--pass", name)] + ["--strict"] * job.strict
    goes_on = artifacts.retrain_command(job.directory, reference, retraining, *more)
    asked = Retrained(float_network, data, recipe, task, spec, epochs, job.directory, teaches, goes_on, fresh)
    trained = asked.train(networks, bool(rewritten.meta["plan"].changed), terminal)
    if terminal.is_main:
        retrained, found = trained.networks[rewritten_name(spec)], {"comparison": trained.comparison, **about}
        with terminal.busy(f"write {job.directory}"):
            artifacts.save(retrained, job.directory, force=True, keep_checkpoints=True, **found)
    terminal.note(f"written to {job.directory}")
    if not job.own_passes:
        terminal.note(next_steps(job.directory, reference))
    terminal.finish(content(rewritten.meta["plan"], manifest.rewrite, trained.comparison, job.directory))


def _unresized(gm: GraphModule, own: list[type[Pass]]) -> Pipeline:
    """Return what was done to a network but for the change of its widths: what the uniform rival goes through.

    Bits that were planned with the widths belong to them.
    """
    planned = gm.meta["plan"].source.get("end_bits", {}) if "plan" in gm.meta else {}
    steps = passes_of(history_of(gm).steps, partial(known_pass, given=own))
    kept = (step for step in steps if not isinstance(step, ResizeChannels))
    return Pipeline(tuple(_without(step, planned) if isinstance(step, InsertQuantizers) else step for step in kept))


def _without(step: InsertQuantizers, planned: Mapping[str, int]) -> InsertQuantizers:
    spec = step.spec
    return InsertQuantizers(replace(spec, overrides={k: v for k, v in spec.overrides.items() if k not in planned}))


def asked_for(job: Retrain, manifest: Manifest) -> Retraining:
    """Return how to retrain: as the folder says, but for what the user says.

    Raises:
        InputError: neither says which data or how many epochs, or the data in the folder is code.
    """
    before = manifest.retraining
    if before is not None and job.data is None and is_code(before.data):
        raise InputError(
            f"{job.directory} was trained on {before.data}: a folder runs no code, add --data {before.data}"
        )
    for option, given, named in (("--loss", job.loss, "loss"), ("--metric", job.metric, "metric")):
        found = getattr(before, named, None)
        if given is None and found is not None and is_code(found):
            raise InputError(
                f"{job.directory} was trained with the {named} {found}: a folder runs no code, add {option} {found}"
            )
    if job.recipe == PUBLISHED_RECIPE and not PUBLISHED.items() <= (manifest.quantization or {}).items():
        raise InputError(
            f"{job.directory} has other quantizers than the published ones, and retrain keeps them: rewrite it "
            f"with --recipe {PUBLISHED_RECIPE}"
        )
    data = job.data or (before.data if before is not None else None)
    kept = before.recipe if before is not None else RETRAINING
    compiled = {"compile": True} if job.compile else {}
    options = {name: value for name, value in (("epochs", job.epochs), ("seed", job.seed)) if value is not None}
    asked = recipe_fields(job.recipe, PUBLISHED_TRAINING, **options, **compiled)
    epochs = asked.get("epochs", kept.get("epochs"))
    if data is None or epochs is None:
        raise InputError(f"{job.directory} has not been trained before: say --data and --epochs")
    scratch = job.from_scratch or (before is not None and before.from_scratch and not job.force)
    fields = {name: value for name, value in kept.items() if name != "float_epochs"} | asked
    if job.float_epochs is None and before is not None and "float_epochs" not in asked:
        # As the folder says, which says none where it is of an earlier version; a quarter of another number of epochs.
        own = kept.get("float_epochs", 0)
        fields["float_epochs"] = own if epochs == kept["epochs"] or not own else usual_float_epochs(epochs)
    changed = bool(artifacts.read_plan(job.directory, manifest).changed)
    recipe = Recipe.from_dict(with_float_epochs(fields, job, changed))
    float_epochs = before.float_epochs if before is not None else 0
    return Retraining(
        data=data,
        recipe=recipe.to_dict(),
        float_epochs=float_epochs,
        uniform=job.uniform,
        from_scratch=scratch,
        loss=job.loss or (before.loss if before is not None else None),
        metric=job.metric or (before.metric if before is not None else None),
    )


def model_of_folder(directory: Path, given: str | None, manifest: Manifest, seed: int = 0) -> nn.Module:
    """Build the model that a folder was made from.

    Raises:
        InputError: the folder names no model, or code, and the user does not; or it cannot be built.
    """
    args = manifest.model.args if manifest.model is not None else {}
    return build_model(_model_of(directory, given, manifest), args, seed=seed)


def _model_of(directory: Path, given: str | None, manifest: Manifest) -> str:
    """Return the model's reference: the folder's where it is built in, else the user's.

    Raises:
        InputError: the folder names no model, or code, and the user does not.
    """
    named = manifest.model.reference if manifest.model is not None else ""
    if not (given or named):
        raise InputError(f"{directory} does not say what model it was made from: add --model")
    if given is None and is_code(named):
        raise InputError(f"{directory} was made from {named}: a folder runs no code by itself, add --model {named}")
    return given or named
