"""The result as one web page: self-contained, no script, readable in light and dark, from disk or from a mail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from nce_fx.plan import WidthPlan
from nce_fx.report.charts import stacked_bars, width_bars
from nce_fx.report.records import Comparison, Manifest, RewriteReport
from nce_fx.report.tables import RESULT_COLUMNS, budget_text, named, result_cells, thousands

_STYLE = """
:root { --ink: #1d2430; --soft: #667085; --line: #e3e7ee; --paper: #ffffff; --before: #c3cad6;
        --wider: #2f8f5b; --narrower: #d08a1d; --same: #8391a7; --weights: #3b6fd4; --activations: #9ab8ee; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #2c3442; --paper: #151a22; --before: #4a5568;
          --wider: #4fbf85; --narrower: #e2a94a; --same: #76839a; --weights: #6f9bf0; --activations: #3d5a8f; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 920px; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p { margin: .25rem 0 .75rem; } .soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem .4rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: var(--soft); font-size: .85rem; }
svg { width: 100%; height: auto; min-width: 640px; }
svg text { font-size: 13px; fill: var(--ink); } svg text.note { fill: var(--soft); }
rect.before { fill: var(--before); } rect.wider { fill: var(--wider); } rect.narrower { fill: var(--narrower); }
rect.same, rect.pinned { fill: var(--same); } rect.weights { fill: var(--weights); }
rect.activations { fill: var(--activations); }
.key span { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .35em 0 1em; }
.key span:first-child { margin-left: 0; }
"""


def page(manifest: Manifest, plan: WidthPlan) -> str:
    """Return the page of a result folder."""
    name = manifest.model.reference if manifest.model else "a network"
    parts = [f"<h1>nce-fx: {escape(name)}</h1>", *_summary(manifest, plan)]
    if manifest.comparison is not None:
        parts += _comparison(manifest.comparison)
    if manifest.rewrite is not None:
        parts += [*_cost(manifest.rewrite), *_widths(manifest.rewrite), *_sensitivity(manifest.rewrite)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>nce-fx: {escape(name)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + f'\n<p class="soft">Made by nce-fx {escape(manifest.nce_fx)}.</p>\n</body></html>\n'
    )


def _summary(manifest: Manifest, plan: WidthPlan) -> Iterable[str]:
    report = manifest.rewrite
    if report is None:
        return
    share = plan.predicted_noise
    noise = "" if share is None else f"; predicted noise {share:.3f} of that at the original widths"
    kept = len(report.groups) - report.widened - report.narrowed
    yield (
        f'<p class="soft">channel groups: {report.widened} wider, {report.narrowed} narrower, {kept} unchanged; '
        f"{report.bits}-bit; sensitivity by {escape(report.metric)}; traced by {escape(report.traced)}{noise}.</p>"
    )


def _comparison(comparison: Comparison) -> Iterable[str]:
    yield "<h2>What came of it</h2>"
    yield (
        f'<p class="soft">{escape(comparison.data)}, {comparison.epochs} epochs each with one recipe, '
        f"seed {comparison.seed}. One run: how sure a difference is takes several seeds.</p>"
    )
    rows = [result_cells(row) for row in comparison.rows]
    yield _table(RESULT_COLUMNS, rows)


def _cost(report: RewriteReport) -> Iterable[str]:
    yield "<h2>Cost for one example</h2>"
    yield '<p class="soft">Before: the original widths, quantized the same way.</p>'
    names = {"macs": "MACs", "params": "parameters", "bit_ops": "bit operations", "weight_bytes": "weight bytes"}
    rows = []
    for field, name in names.items():
        before, after = getattr(report.original, field), getattr(report.rewritten, field)
        ratio = f"{after / before:.4f}x" if before else "-"
        rows.append((name, thousands(before), thousands(after), ratio, budget_text(report.budget.get(field))))
    yield _table(("", "before", "after", "ratio", "budget"), rows)


def _widths(report: RewriteReport) -> Iterable[str]:
    yield "<h2>Channels</h2>"
    yield '<p class="key">' + _key("before", "before") + _key("wider", "wider") + _key("narrower", "narrower")
    yield _key("same", "unchanged") + "</p>"
    rows = [(named(group, 1), group.before, group.after, group.pinned is not None) for group in report.groups]
    yield f'<div class="wide">{width_bars(rows)}</div>'


def _sensitivity(report: RewriteReport) -> Iterable[str]:
    yield f"<h2>Sensitivity to {report.bits} bits</h2>"
    yield '<p class="key">' + _key("weights", "weights") + _key("activations", "activations") + "</p>"
    layers = sorted(report.layers, key=lambda layer: (-(layer.weight + layer.activation), layer.name))
    rows = [(layer.name, layer.weight, layer.activation) for layer in layers]
    yield f'<div class="wide">{stacked_bars(rows)}</div>'


def _key(kind: str, text: str) -> str:
    return f'<span style="background: var(--{kind})"></span>{text}'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
