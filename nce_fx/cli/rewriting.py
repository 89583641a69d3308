"""The main job of the command line, in reading order: float network, rewrite, folder, retraining, comparison."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule

from nce_fx import artifacts
from nce_fx.cli.commands import Rewrite
from nce_fx.cli.model_data import Network, calibration, network_of
from nce_fx.cli.options import TrainingOptions
from nce_fx.cli.parsing import build_model, one_process, recipe_fields
from nce_fx.cli.pass_hooks import between_passes
from nce_fx.cli.terminal import Terminal
from nce_fx.cli.verdict import NARROWED, next_steps, verdict
from nce_fx.comparison import Trained, compare, other_split
from nce_fx.data import Data
from nce_fx.end_bits import WAYS
from nce_fx.errors import InputError, TrainingError
from nce_fx.files import replaced
from nce_fx.models import MODELS
from nce_fx.nearest import nearest
from nce_fx.passes.transform.new_weights import from_scratch
from nce_fx.passes.transform.quantize import InsertQuantizers, QuantSpec
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.plain_text import number_of
from nce_fx.plan import WidthPlan
from nce_fx.quantities import title_of
from nce_fx.report import tables
from nce_fx.report.pareto_chart import front_svg
from nce_fx.report.records import Comparison, ModelReference, Retraining, RewriteReport
from nce_fx.rewrite import analyze, build, rewrite
from nce_fx.sweep import ratios_of, sweep
from nce_fx.tasks import Task
from nce_fx.training import Recipe, evaluate, train
from nce_fx.training.log import epochs_table
from nce_fx.training.loop import GO_ON
from nce_fx.training.recipe import PUBLISHED_TRAINING, RETRAINING, usual_float_epochs
from nce_fx.training.result import EpochRecord
from nce_fx.trial import Trial

SWEEP = ("sweep.csv", "sweep.svg")


def run(job: Rewrite) -> None:
    """Do the job."""
    one_process("rewrite")
    terminal = Terminal.of(job.as_json)
    # Everything that can be wrong with the options is found before anything takes long.
    if job.retrain < 0 or (job.retrain and job.data is None):
        raise InputError(f"--retrain {job.retrain}: epochs are 0 or more, and need --data to train on")
    if job.end_bits not in WAYS or (job.sweep is not None and job.end_bits == "plan"):
        raise InputError(
            f"--end-bits {job.end_bits}: one of {', '.join(WAYS)}, and given with --sweep{nearest(job.end_bits, WAYS)}"
        )
    if job.from_scratch and not job.retrain:
        raise InputError("--from-scratch is about retraining: give --retrain EPOCHS as well")
    spec, hardware, budget = job.spec, job.table, job.budget
    between = between_passes((ResizeChannels, InsertQuantizers), job.verify_each, job.print_after, terminal)
    compiled = {"compile": True} if job.compile else {}
    if job.float_epochs is not None and not job.retrain:
        raise InputError("--float-epochs is about retraining: give --retrain EPOCHS as well")
    given = recipe_fields(job.recipe, PUBLISHED_TRAINING, epochs=job.retrain, seed=job.seed, **compiled)
    fields = {**RETRAINING, **given}
    recipe = Recipe.from_dict(with_float_epochs(fields, job))
    task = Task.of(job.loss, job.metric)
    if not job.dry_run and not job.force:
        artifacts.check_free(job.out, artifacts.OURS if job.sweep is None else SWEEP)
    network = network_of(job, job.model, terminal, strict=job.strict)
    data, args = network.data, dict(network.args)

    ratios = None if job.sweep is None else ratios_of(job.sweep)
    model, float_history, teaches = float_network(job, network.model, data, recipe, task, terminal)
    float_epochs = len(float_history)
    if ratios is not None:
        run_sweep(job, replace(network, model=model), ratios, terminal)
        return
    trial = None
    if data is not None and job.retrain and job.trial and not job.dry_run:
        free = job.float_epochs is None and not job.from_scratch and "float_epochs" not in fields
        trial = Trial(data, recipe, job.trial_share, task.loss, teaches, choose_float=free)
    with terminal.steps():
        result = rewrite(
            model,
            network.inputs,
            batches=network.calibration,
            budget=budget,
            spec=spec,
            metric=job.sensitivity,
            loss=task.loss,
            hardware=hardware,
            **job.limits,
            end_bits=job.end_bits,
            trial=trial,
            seed=job.seed,
            source={} if data is None else {"data": data.name},
            between=between,
        )
    if trial is None and data is not None:
        result = replace(result, report=result.report.model_copy(update={"untried": _untried(job)}))
    present(result.report, result.plan, result.graph_module, terminal)
    if job.dry_run:
        terminal.finish(content(result.plan, result.report, None, None))
        return

    tried = result.report.trial
    if tried is not None and tried.float_epochs is not None:
        recipe = replace(recipe, float_epochs=tried.float_epochs)
    elif not result.plan.changed:
        recipe = Recipe.from_dict(with_float_epochs(fields, job, changed=False))
    about: dict[str, Any] = {
        "report": result.report,
        "model": ModelReference(reference=job.model, args=args),
        "float_model": result.original,
    }
    comparison = None
    if data is not None and job.retrain:
        about["retraining"] = Retraining(
            data=str(job.data),
            recipe=recipe.to_dict(),
            float_epochs=float_epochs,
            from_scratch=job.from_scratch,
            loss=job.loss,
            metric=job.metric,
        )
    float_log = epochs_table(float_history) if float_history else None
    with terminal.busy(f"write {job.out}"):
        artifacts.save(result.graph_module, job.out, force=job.force, float_log=float_log, **about)
    if data is not None and job.retrain:
        fresh = build_model(job.model, args, seed=job.seed) if job.from_scratch else None
        rivals = rivals_of(result.original, result.uniform, result.plan, job.seed)
        networks = {**rivals, rewritten_name(spec): result.graph_module}
        strict = ["--strict"] * job.strict
        goes_on = artifacts.retrain_command(job.out, job.model, about["retraining"], *strict)
        by_rule = tried is None and recipe.float_epochs and job.float_epochs is None and "float_epochs" not in fields
        asked = Retrained(
            result.original, data, recipe, task, spec, float_epochs, job.out, teaches, goes_on, fresh, bool(by_rule)
        )
        trained = asked.train(networks, bool(result.plan.changed), terminal)
        comparison = trained.comparison
        retrained = trained.networks[rewritten_name(spec)]
        with terminal.busy(f"write {job.out}"):
            artifacts.save(retrained, job.out, force=True, keep_checkpoints=True, comparison=comparison, **about)
    terminal.note(f"written to {job.out}: {', '.join(sorted(path.name for path in job.out.iterdir()))}")
    if comparison is not None:
        terminal.note(next_steps(job.out, job.model))
    terminal.finish(content(result.plan, result.report, comparison, job.out))


def _untried(job: Rewrite) -> str:
    """Return why nothing is tried that could be, with the data that is given."""
    if job.dry_run:
        return "a dry run trains nothing"
    return "--no-trial" if job.retrain else "nothing is trained without --retrain"


def with_float_epochs(fields: dict[str, Any], job: TrainingOptions, changed: bool = True) -> dict[str, Any]:
    """Return the fields of a recipe with the epochs in float: as the user says, else a quarter where widths change.

    Raises:
        InputError: ``--recipe`` and the option say different numbers.
    """
    if job.float_epochs is not None:
        return recipe_fields(json.dumps(fields), float_epochs=job.float_epochs)
    usual = usual_float_epochs(fields["epochs"]) if changed and not job.from_scratch else 0
    return {"float_epochs": usual, **fields}


def float_network(
    job: Rewrite, model: nn.Module, data: Data | None, recipe: Recipe, task: Task, terminal: Terminal
) -> tuple[nn.Module, tuple[EpochRecord, ...], bool]:
    """Return the float network, how it was trained here, and whether it can teach.

    Only a built-in one without weights is trained. On data it is looked at once.
    """
    if data is None:
        terminal.note("no --data: sensitivity comes from the weights alone")
    untrained = job.weights is None and job.model in MODELS
    if untrained and data is not None and job.retrain:
        with terminal.training(f"float {job.model}") as progress:
            # What is for quantizers is left out; the rest of the recipe trains the float network too.
            plain = replace(recipe, bits=(), float_epochs=0, freeze=0.0)
            result = train(model, data, plain, loss=task.loss, metric=task.metric, progress=progress)
        said = task.said(result.score)
        terminal.show(f"float {job.model} on {data.name}: {said} after {number_of(job.retrain, 'epoch')}")
        return result.model.eval(), result.history, not at_chance(result.score, data, task)
    if untrained:
        terminal.note(
            f"{job.model} has random weights: give --weights, or --data and --retrain, for a plan with meaning"
        )
    elif data is not None:
        value = evaluated(model, data, task, terminal)
        terminal.show(f"float {job.model} on {data.name}: {task.said(value)}")
        if at_chance(value, data, task):
            terminal.note(f"the float network is at chance on {data.name}: give --weights that were trained on it")
            return model, (), False
    return model, (), True


def run_sweep(job: Rewrite, network: Network, ratios: tuple[float, ...], terminal: Terminal) -> None:
    """Plan along a range of budgets, show the points, and write them as CSV and as a picture."""
    with terminal.steps() as steps:
        analyses = analyze(
            network.model,
            network.inputs,
            batches=network.calibration,
            spec=job.spec,
            metric=job.sensitivity,
            loss=job.loss,
            hardware=job.table,
        )
        steps(f"plan {len(ratios)} budgets")
        found = sweep(analyses, ratios, **job.limits)
    for ratio, reason in found.refused:
        terminal.note(f"{ratio:g}x has no plan: {reason}")
    terminal.show(tables.sweep_table(found.points))
    if not job.dry_run:
        title = f"{job.model}: predicted {job.bits}-bit noise, its own widths = 1"
        with replaced(job.out, SWEEP) as fresh:
            (fresh / SWEEP[0]).write_text(found.to_csv())
            (fresh / SWEEP[1]).write_text(front_svg(found.points, title))
        terminal.note(f"written to {job.out}: {', '.join(SWEEP)}")
    points = [point.to_row() for point in found.points]
    terminal.finish({"out": None if job.dry_run else str(job.out), "sweep": points})


@dataclass(frozen=True)
class Retrained:
    """A retraining that the command line asks for, but for its networks."""

    float_network: GraphModule
    """What they are distilled from, where it ``teaches``."""
    data: Data
    recipe: Recipe
    task: Task
    spec: QuantSpec
    float_epochs: int
    """Of the float network, before it was rewritten."""
    out: Path
    teaches: bool
    goes_on: str
    """The command that goes on where it is stopped."""
    fresh: nn.Module | None = None
    """The model with new random weights, where training starts from such."""
    by_rule: bool = False
    """Whether its first epochs are in float because that is usual, not because anybody tried or asked."""

    def train(self, networks: Mapping[str, GraphModule], changed: bool, terminal: Terminal) -> Trained:
        """Train networks alike with checkpoints in the result folder, and show the last table.

        The uniform one is trained once more by the other split of its epochs, where widths ``changed``.
        """
        data, recipe, uniform = self.data, self.recipe, uniform_name(self.spec)
        recipes: dict[str, Recipe] = {}
        other = other_split(recipe, self.spec.weight_bits) if changed and self.fresh is None else None
        if other is not None and uniform in networks:
            again = f"{uniform}, {other[0]}"
            networks, recipes = {uniform: networks[uniform], again: networks[uniform], **networks}, {again: other[1]}
        if self.fresh is not None:
            fresh, batches = self.fresh, calibration(data, recipe.seed)
            networks = {
                name: from_scratch(gm, fresh, gm.meta["spec"], batches, recipe.seed) for name, gm in networks.items()
            }
        if not self.teaches:
            terminal.note(
                f"the float network is at chance on {data.name}: it cannot teach, nothing is distilled from it"
            )
        try:
            trained = compare(
                self.float_network,
                dict(networks),
                data,
                recipe,
                distill=self.teaches,
                loss=self.task.loss,
                metric=self.task.metric,
                float_epochs=self.float_epochs,
                recipes=recipes,
                directory=self.out / artifacts.CHECKPOINTS,
                watch=terminal.training,
            )
        except TrainingError as error:
            # The folder is begun now: the same command again would find a result there.
            said = str(error).removesuffix(f"; {GO_ON}")
            raise TrainingError(f"{said}; the command that goes on: {self.goes_on}") from error
        terminal.show(tables.comparison_table(trained.comparison))
        said = verdict(trained.comparison, rewritten_name(self.spec)) if changed else ""
        if said and self.by_rule:
            first = recipe.float_epochs
            said += f"; nothing was tried, so {first} of its {number_of(recipe.epochs, 'epoch')} came first in float:"
            said += " --float-epochs 0 has none"
        if said:
            terminal.show(said)
        return trained


def evaluated(network: nn.Module, data: Data, task: Task, terminal: Terminal) -> float:
    """Return what the metric says of the float network on the test split, having shown how far that is."""
    with terminal.steps() as steps:
        steps("evaluate the float network")
        return evaluate(network, data, loss=task.loss, metric=task.metric)


def at_chance(value: float, data: Data, task: Task) -> bool:
    """Whether an accuracy is that of a network which knows nothing; of anything but classes nobody can say."""
    return task.counts_right and data.classes is not None and value < 2 / data.classes


def rewritten_name(spec: QuantSpec) -> str:
    """Return how tables name the rewritten network: ``NCE 2-bit``."""
    return f"NCE {spec.weight_bits}-bit"


def uniform_name(spec: QuantSpec) -> str:
    """Return how tables name the network at its own widths: ``uniform 2-bit``."""
    return f"uniform {spec.weight_bits}-bit"


def rivals_of(original: GraphModule, uniform: GraphModule, plan: WidthPlan | None, seed: int) -> dict[str, GraphModule]:
    """Return what a rewritten network is held against, by the names of the tables.

    That is the network quantized at its own widths and, where these cost more than the ``plan``'s budget, the
    ``evenly narrowed 2-bit`` one.

    Raises:
        InputError: as `even_plan`.
    """
    spec = uniform.meta["spec"]
    rivals = {uniform_name(spec): uniform}
    even = None if plan is None else even_plan(plan)
    if even is not None:
        narrowed = build(original, even, spec=spec, uniform=uniform, seed=seed)
        rivals[f"{NARROWED} {spec.weight_bits}-bit"] = narrowed
    return rivals


def even_plan(plan: WidthPlan) -> WidthPlan | None:
    """Return the plan of the rival within a budget that the widths as they are do not keep; ``None`` where they do.

    Raises:
        InputError: the plan's ``source`` was changed, and holds no widths of its groups there.
    """
    even = plan.source.get("even", {})
    if not isinstance(even, Mapping) or not all(type(width) is int and width > 0 for width in even.values()):
        raise InputError("plan: source.even must say a width for each group, such as {'conv1': 8}")
    return None if not even or dict(even) == dict(plan.widths) else replace(plan, widths=dict(even))


def present(report: RewriteReport, plan: WidthPlan, gm: GraphModule, terminal: Terminal) -> None:
    """Show what the compiler found and decided, and the graph it made."""
    terminal.show(tables.sensitivity_table(report))
    terminal.show(tables.plan_table(report, plan))
    terminal.show(tables.cost_table(report))
    before, after = report.original.cost, report.rewritten.cost
    for name in (name for name in before if after[name] > before[name] and report.budget.get(name) is None):
        option = f"--max-{name.replace('_', '-')}"
        terminal.note(f"{title_of(name)} rise, for nothing limits them: {option} 1.0x does")
    if report.trial is not None:
        terminal.show(tables.trial_table(report.trial))
    if terminal.verbose:
        terminal.show(tables.graph_table(gm))
    else:
        terminal.show(tables.graph_line(gm))


def content(
    plan: WidthPlan, report: RewriteReport | None, comparison: Comparison | None, out: Path | None
) -> dict[str, Any]:
    """Return the one JSON object of `--json`."""
    return {
        "out": None if out is None else str(out),
        "plan": json.loads(plan.to_json()),
        "rewrite": None if report is None else report.model_dump(mode="json"),
        "comparison": None if comparison is None else comparison.model_dump(mode="json"),
    }
