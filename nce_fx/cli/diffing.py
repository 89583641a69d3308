"""What `nce-fx diff` does: two networks of one model, side by side in the terminal and as a page."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from nce_fx import artifacts
from nce_fx.artifacts import is_code
from nce_fx.cli.commands import Diff
from nce_fx.cli.inspecting import Rebuilt, check_named, content, is_result, publish, rebuild
from nce_fx.cli.terminal import Terminal
from nce_fx.errors import InputError
from nce_fx.frozen import Frozen
from nce_fx.passes.transform.quantize import QuantSpec, quantize
from nce_fx.plan import WidthPlan
from nce_fx.report import tables
from nce_fx.report.page import page
from nce_fx.report.records import Comparison, CostRecord, GroupRecord, RewriteReport
from nce_fx.report.view import side_by_side, view_of


@dataclass(frozen=True)
class Side(Frozen):
    """One of the two networks."""

    name: str
    """As it is said: ``result``, or ``resnet8 at its own widths``."""
    network: GraphModule
    widths: Mapping[str, int]
    spec: Mapping[str, Any]
    comparison: Comparison | None
    logs: Path | None
    """The folder of its training runs."""


def run(job: Diff) -> None:
    """Show what was asked for."""
    terminal = Terminal.of(job.as_json)
    folders = [side for side in (job.a, job.b) if is_result(side)]
    for side in (job.a, job.b):
        if side not in folders:
            check_named(side)
    if not folders:
        raise InputError("neither side is a result folder: give one that `nce-fx rewrite` wrote, at least for one side")
    model = job.model or _model_among((job.a, job.b), Path(folders[0]))
    with terminal.steps() as steps:
        steps("rebuild")
        rebuilt = {folder: rebuild(Path(folder), model) for folder in folders}
        first = rebuilt[folders[0]]
        a, b = (_side(side, rebuilt.get(side), first, model) for side in (job.a, job.b))
        _check_alike(a, b)
        report = _report(a, b, first)
        plan = WidthPlan(b.widths, a.widths, first.plan.model)
        view = view_of(
            f"{job.a} and {job.b}", plan, b.network, original=first.original, report=report, sides=(a.name, b.name),
            compared=a.network,
        )  # fmt: skip
        changed = {
            key: (a.spec.get(key), b.spec.get(key))
            for key in {**a.spec, **b.spec}
            if a.spec.get(key) != b.spec.get(key)
        }
        facts = _said(a, b, changed)
        results = {side.name: side.comparison for side in (a, b) if side.comparison is not None}
        logs = {side.name: side.logs for side in (a, b) if side.logs is not None}
        view = side_by_side(view, facts or ("quantized alike",), results, logs)
    terminal.show(tables.quantity_table(a.name, b.name, view.quantities, quantized=view.quantized))
    terminal.show(tables.difference_table(a.name, b.name, report))
    for fact in facts:
        terminal.show(fact)
    for name, comparison in results.items():
        terminal.show(f"{name}, on {tables.comparison_line(comparison)}")
    if job.html is not None or job.open_page:
        publish(page(view), job.html or Path("diff.html"), job.open_page, terminal)
    said = {"a": job.a, "b": job.b, "quantization": changed, "html": None if job.html is None else str(job.html)}
    terminal.finish(said | content(view))


def _said(a: Side, b: Side, changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """How two networks are quantized otherwise, a line for each field of the specs."""
    plain = [f"{side.name} is not quantized" for side in (a, b) if not side.spec]
    return plain or [
        f"{key.replace('_', ' ')}: {was} in {a.name}, {now} in {b.name}" for key, (was, now) in changed.items()
    ]


def _model_among(sides: tuple[str, str], folder: Path) -> str | None:
    """Return the side that is a model of the user's own, where the folder on the other was made from such."""
    made_from = artifacts.read_manifest(folder).model
    if made_from is None or not is_code(made_from.reference):
        return None
    return next((side for side in sides if not is_result(side) and is_code(side)), None)


def _side(name: str, rebuilt: Rebuilt | None, other: Rebuilt, model: str | None) -> Side:
    """A folder's network, or the model of the other side's folder, quantized as that is, at its own widths."""
    if rebuilt is not None:
        spec = rebuilt.rewritten.meta.get("spec")
        known = {} if spec is None else asdict(spec)
        logs = Path(name) / artifacts.CHECKPOINTS
        return Side(name, rebuilt.rewritten, rebuilt.plan.widths, known, rebuilt.manifest.comparison, logs)
    named = other.manifest.model.reference if other.manifest.model is not None else ""
    if name not in (named, model):
        raise InputError(f"{name} is no result folder, and the other side was made from {named or 'another model'}")
    if other.original is None:
        raise InputError(f"the other side keeps no float weights, so {name} cannot be built as it was")
    spec = other.rewritten.meta.get("spec") or QuantSpec()
    network = quantize(other.original, spec)
    return Side(f"{name} at its own widths", network, other.plan.original, asdict(spec), None, None)


def _check_alike(a: Side, b: Side) -> None:
    odd = sorted(a.widths.keys() ^ b.widths.keys())
    if odd:
        raise InputError(f"{a.name} and {b.name} are of different models: only one has a channel group {odd[0]}")


def _report(a: Side, b: Side, first: Rebuilt) -> RewriteReport:
    """The difference as a rewrite from A to B."""
    said: dict[str, Any] = {"traced": "fx", "metric": "", "bits": 32, "float_weight_bytes": 0, "layers": ()}
    groups: dict[str, GroupRecord] = {}
    if (known := first.manifest.rewrite) is not None:
        said = {name: getattr(known, name) for name in said}
        groups = {group.id: group for group in known.groups}
    records = []
    for key, width in a.widths.items():
        group = groups.get(key) or GroupRecord(
            id=key, producers=(key,), before=width, after=width, step=1, pinned=None, sensitivity=None
        )
        records.append(group.model_copy(update={"before": width, "after": b.widths[key]}))
    before, after = CostRecord.of(a.network), CostRecord.of(b.network)
    return RewriteReport(**said, budget={}, original=before, rewritten=after, groups=tuple(records))
