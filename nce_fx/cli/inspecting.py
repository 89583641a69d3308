"""What `nce-fx inspect` does: rebuild or analyze, gather what there is to see, write the page, say where it is."""

import re
import webbrowser
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.fx import GraphModule

from nce_fx import artifacts
from nce_fx.artifacts import is_code
from nce_fx.cli.analyzing import analyzed
from nce_fx.cli.commands import Inspect
from nce_fx.cli.model_data import network_of
from nce_fx.cli.parsing import quant_spec
from nce_fx.cli.retraining import model_of_folder
from nce_fx.cli.terminal import Terminal
from nce_fx.errors import ArtifactError, InputError
from nce_fx.files import write_whole
from nce_fx.models import MODELS
from nce_fx.nearest import nearest_path
from nce_fx.plain_text import number_of
from nce_fx.plan import WidthPlan, model_fingerprint
from nce_fx.report import tables
from nce_fx.report.page import page
from nce_fx.report.records import CostRecord, Manifest
from nce_fx.report.view import View, view_of
from nce_fx.rewrite import report_of
from nce_fx.signature import example_of
from nce_fx.tracing import trace

_WORDS = {"same": "unchanged"}


def run(job: Inspect) -> None:
    """Write the page of a folder or of a model."""
    (inspect_folder if is_result(job.target) else inspect_model)(job)


@dataclass(frozen=True)
class Rebuilt:
    """The network of a result folder, and the float network before it where the folder has its weights."""

    manifest: Manifest
    plan: WidthPlan
    rewritten: GraphModule
    original: GraphModule | None


def is_result(target: str) -> bool:
    """Return whether a target of the command line is a folder, not a model."""
    return Path(target).is_dir()


def check_named(target: str) -> None:
    """Refuse what names no model where a folder is near that was meant.

    Raises:
        InputError: says which folder.
    """
    hint = "" if target in MODELS or is_code(target) else nearest_path(Path(target))
    if hint:
        raise InputError(f"no folder and no model {target!r}{hint}")


def inspect_folder(job: Inspect) -> None:
    """Show a result folder; where its model is the user's code and not given, as the page that was saved."""
    terminal, folder = Terminal.of(job.as_json), Path(job.target)
    for name in ("input_shape", "weights", "data", "model_args"):
        if getattr(job, name) is not None:
            option = "--input" if name == "input_shape" else "--" + name.replace("_", "-")
            raise InputError(f"{option} is about a model; {folder} is a result, which has its own: leave it out")
    manifest = artifacts.read_manifest(folder)
    out = job.html or folder / artifacts.PAGE
    named = manifest.model.reference if manifest.model is not None else ""
    if job.model is None and (not named or is_code(named)):
        saved = folder / artifacts.PAGE
        try:
            text = saved.read_text(encoding="utf-8")
        except OSError as error:
            raise ArtifactError(f"{folder} has no {artifacts.PAGE}: add --model, so that it can be drawn") from error
        terminal.note(f"{saved} is the page as it was saved; --model {named or 'MODEL'} draws it anew")
        if out.resolve() == saved.resolve():
            offer(out, job.open_page, terminal)
        else:
            publish(text, out, job.open_page, terminal)
        terminal.finish({"html": str(out)})
        return
    with terminal.steps() as steps:
        steps("rebuild")
        rebuilt = rebuild(folder, job.model)
        steps("draw")
        view = view_of(
            named or str(job.model),
            rebuilt.plan,
            rebuilt.rewritten,
            original=rebuilt.original,
            report=manifest.rewrite,
            comparison=manifest.comparison,
            logs=folder / artifacts.CHECKPOINTS,
            sweep=folder,
        )
        text = page(view)
    present(view, terminal)
    publish(text, out, job.open_page, terminal)
    terminal.finish({"html": str(out), **content(view)})


def inspect_model(job: Inspect) -> None:
    """Show a model as the compiler sees it: the float network beside the same quantized, at its own widths."""
    terminal = Terminal.of(job.as_json)
    check_named(job.target)
    spec, network = quant_spec(job.bits), network_of(job, job.target, terminal)
    with terminal.steps() as steps:
        found = analyzed(network, spec, job.sensitivity, terminal)
        steps("draw")
        gm = found.graph_module
        widths = found.channels.widths
        plan = WidthPlan(widths, widths, model_fingerprint(gm))
        report = report_of(found, plan, found.uniform).model_copy(update={"original": CostRecord.of(gm)})
        sides = ("float", f"{spec.weight_bits} bits")
        view = view_of(job.target, plan, found.uniform, original=gm, report=report, sides=sides, compared=gm)
        text = page(view)
    present(view, terminal)
    out = job.html or Path(re.sub(r"[^\w.-]+", "-", job.target.rpartition("/")[2]).strip("-.") + ".html")
    publish(text, out, job.open_page, terminal)
    terminal.finish({"html": str(out), **content(view)})


def rebuild(folder: Path, model: str | None) -> Rebuilt:
    """Return the networks of a result folder; ``model`` names its model where the folder does not or must not.

    Raises:
        NceFxError: the folder is damaged, or its model is not given and is the user's code.
    """
    manifest = artifacts.read_manifest(folder)
    built = model_of_folder(folder, model, manifest)
    rewritten = artifacts.load(folder, built)
    original = None
    if artifacts.FLOAT in manifest.files:
        original = trace(artifacts.load_float(folder, built).eval(), example_of(manifest.inputs))
    return Rebuilt(manifest, artifacts.read_plan(folder, manifest), rewritten, original)


def present(view: View, terminal: Terminal) -> None:
    """Show the head of a page: what it is about, what it costs, what became of its channels."""
    terminal.show("; ".join((view.title, *view.facts)))
    if view.quantities:
        terminal.show(tables.quantity_table(view.before, view.after, view.quantities, quantized=view.quantized))
    counts = ", ".join(f"{count} {_WORDS.get(kind, kind)}" for kind, count in view.changes.items() if count)
    terminal.show(f"{number_of(len(view.nodes), 'operation')}; channel groups: {counts or 'none'}")


def publish(text: str, out: Path, open_page: bool, terminal: Terminal) -> None:
    """Write the page, whole or not at all, and open it where that was asked for.

    Raises:
        ArtifactError: the file cannot be written, or it is there and is no page of ours.
    """
    if out.is_dir():
        raise ArtifactError(f"{out} is a folder: give a file, such as --html {out / 'page.html'}")
    try:
        if out.exists() and "<title>nce-fx" not in out.read_text(encoding="utf-8", errors="replace")[:1000]:
            raise ArtifactError(f"{out} is there and is no page of nce-fx: choose another file with --html")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, text.encode())
    except OSError as error:
        raise ArtifactError(
            f"cannot write {out}: {error.strerror or error}; choose another file with --html"
        ) from error
    terminal.note(f"written to {out}: {tables.size(len(text.encode()))}")
    offer(out, open_page, terminal)


def offer(out: Path, open_page: bool, terminal: Terminal) -> None:
    """Open a page in the browser where that was asked for, and say how where it was not."""
    if not open_page:
        terminal.note("open it in a browser, or add --open")
    elif not webbrowser.open(out.resolve().as_uri()):
        terminal.note(f"no browser could be started: open {out.resolve()} yourself")


def content(view: View) -> dict[str, object]:
    """Return what `--json` says of a page."""
    return {
        "title": view.title,
        "facts": view.facts,
        "quantities": [asdict(each) for each in view.quantities],
        "groups": [asdict(each) | {"change": each.change} for each in view.groups],
        "operations": len(view.nodes),
    }
