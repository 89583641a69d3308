"""Bar charts as SVG text: no script, no outside file, colours from the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_LABEL, _CHART, _VALUE, _ROW = 260, 460, 150, 26


def width_bars(rows: Sequence[tuple[str, int, int, bool]]) -> str:
    """Return bars of widths before and after: rows of (label, before, after, pinned)."""
    most = max((max(before, after) for _, before, after, _ in rows), default=1) or 1
    body = []
    for index, (label, before, after, pinned) in enumerate(rows):
        top = index * _ROW
        kind = "pinned" if pinned else "wider" if after > before else "narrower" if after < before else "same"
        note = f"{before}, pinned" if pinned else f"{before} → {after}"
        body.append(_label(label, top))
        body.append(_rect("before", top + 4, before / most, 8))
        body.append(_rect(kind, top + 13, after / most, 8))
        body.append(_note(note, top, max(before, after) / most))
    return _svg(body, len(rows), "Channels of each group before and after")


def stacked_bars(rows: Sequence[tuple[str, float, float]]) -> str:
    """Return stacked bars of two shares: rows of (label, first, second)."""
    most = max((abs(first) + abs(second) for _, first, second in rows), default=0.0) or 1.0
    body = []
    for index, (label, first, second) in enumerate(rows):
        top = index * _ROW
        body.append(_label(label, top))
        body.append(_rect("weights", top + 6, abs(first) / most, 14))
        body.append(_rect("activations", top + 6, abs(second) / most, 14, start=abs(first) / most))
        body.append(_note(f"{first + second:.3g}", top, (abs(first) + abs(second)) / most))
    return _svg(body, len(rows), "Sensitivity of each layer")


def _svg(body: Sequence[str], rows: int, title: str) -> str:
    width, height = _LABEL + _CHART + _VALUE, max(rows, 1) * _ROW
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )


def _label(text: str, top: int) -> str:
    shown = text if len(text) <= 36 else "…" + text[-35:]
    return (
        f'<text class="label" x="{_LABEL - 10}" y="{top + 17}" text-anchor="end">{escape(shown)}'
        f"<title>{escape(text)}</title></text>"
    )


def _rect(kind: str, top: int, share: float, height: int, start: float = 0.0) -> str:
    x, width = _LABEL + start * _CHART, max(share * _CHART, 1.0)
    return f'<rect class="{kind}" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{height}" rx="1.5"/>'


def _note(text: str, top: int, share: float) -> str:
    return f'<text class="note" x="{_LABEL + share * _CHART + 8:.1f}" y="{top + 17}">{escape(text)}</text>'
