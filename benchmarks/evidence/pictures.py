"""Pictures of the evidence as SVG text: accuracy against cost, and the widths found, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.evidence.statistics import Summary
from nce_fx.report.tables import thousands

_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1d2430}.soft{fill:#667085}.grid{stroke:#e3e7ee}.axis{stroke:#98a2b3}"
    ".paper{fill:#fff}.bar{stroke-width:1.5}"
)
_COLOURS = ("#667085", "#1d2430", "#2f8f5b", "#b54708", "#98a2b3", "#1570ef", "#7a5af8", "#dd2590", "#0e9384")
_WIDE, _HIGH, _LEFT, _TOP, _GAP = 340, 260, 60, 40, 80


def accuracy_picture(title: str, rows: Sequence[Summary]) -> str:
    """Return accuracy (mean, and one standard deviation up and down) against MACs and against parameters."""
    legend = "".join(
        f'<circle cx="{_LEFT + 6}" cy="{_TOP + _HIGH + 62 + 18 * index}" r="4" fill="{_colour(index)}"/>'
        f'<text x="{_LEFT + 18}" y="{_TOP + _HIGH + 66 + 18 * index}">{escape(row.row)}</text>'
        for index, row in enumerate(rows)
    )
    panels = _panel(rows, [row.macs for row in rows], "MACs", _LEFT) + _panel(
        rows, [row.params for row in rows], "parameters", _LEFT + _WIDE + _GAP
    )
    return _svg(title, 2 * _WIDE + _GAP + _LEFT + 30, _TOP + _HIGH + 70 + 18 * len(rows), panels + legend)


def widths_picture(title: str, rows: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Return the ratio of each group's width to its original: rows of {group: the ratios of every seed}.

    A panel a row, a column a group in the order of the network; a dot a seed, a bar their mean.
    """
    groups = list(next(iter(rows.values()))) if rows else []
    step, high = 46, 110
    body = []
    for index, (row, ratios) in enumerate(rows.items()):
        top = _TOP + index * (high + 26)
        most = max(2.0, *(max(values) for values in ratios.values()))
        body.append(f'<text x="{_LEFT}" y="{top - 4}">{escape(row)}</text>')
        for level in (0.0, 0.5, 1.0, 1.5, 2.0):
            y = top + high * (1 - level / most)
            kind = "axis" if level == 1.0 else "grid"
            body.append(
                f'<line class="{kind}" x1="{_LEFT}" x2="{_LEFT + step * len(groups)}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="soft" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{level:g}x</text>'
            )
        for column, group in enumerate(groups):
            x, values = _LEFT + step * (column + 0.5), ratios[group]
            middle = sum(values) / len(values)
            y = top + high * (1 - middle / most)
            body.append(
                f'<rect x="{x - 12:.1f}" y="{y:.1f}" width="24" height="{top + high - y:.1f}" fill="{_colour(2)}"'
                f' opacity="0.35"><title>{escape(group)}: {middle:.2f}x</title></rect>'
            )
            body += [
                f'<circle cx="{x + 5 * math.sin(seed):.1f}" cy="{top + high * (1 - value / most):.1f}" r="2"'
                f' fill="{_colour(2)}"/>'
                for seed, value in enumerate(values)
            ]
    bottom = _TOP + len(rows) * (high + 26)
    body += [
        f'<text class="soft" transform="translate({_LEFT + step * (column + 0.6):.1f} {bottom - 6}) rotate(40)">'
        f"{escape(group)}</text>"
        for column, group in enumerate(groups)
    ]
    return _svg(title, _LEFT + step * len(groups) + 100, bottom + 110, "".join(body))


def _panel(rows: Sequence[Summary], costs: Sequence[float], name: str, left: int) -> str:
    spread = [0.0 if math.isnan(row.deviation) else row.deviation for row in rows]
    low = min(row.mean - d for row, d in zip(rows, spread, strict=True)) - 0.5
    high = max(row.mean + d for row, d in zip(rows, spread, strict=True)) + 0.5
    least, most = 0.95 * min(costs), 1.05 * max(costs)
    parts = []

    def down(value: float) -> float:
        return _TOP + _HIGH * (high - value) / (high - low)

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + share * (high - low)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{left + _WIDE}" y1="{down(value):.1f}" y2="{down(value):.1f}"/>'
            f'<text class="soft" x="{left - 6}" y="{down(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>'
        )
    for index, (row, cost, d) in enumerate(zip(rows, costs, spread, strict=True)):
        x = left + _WIDE * (cost - least) / ((most - least) or 1.0)
        hint = f"{row.row}: {row.mean:.2f} %, {thousands(cost)} {name}"
        parts.append(
            f'<line class="bar" stroke="{_colour(index)}" x1="{x:.1f}" x2="{x:.1f}" y1="{down(row.mean - d):.1f}"'
            f' y2="{down(row.mean + d):.1f}"/>'
            f'<circle cx="{x:.1f}" cy="{down(row.mean):.1f}" r="4" fill="{_colour(index)}">'
            f"<title>{escape(hint)}</title></circle>"
        )
    bottom = _TOP + _HIGH
    for cost, x, anchor in ((least, left, "start"), (most, left + _WIDE, "end")):
        parts.append(f'<text class="soft" x="{x}" y="{bottom + 18}" text-anchor="{anchor}">{thousands(cost)}</text>')
    parts.append(f'<text x="{left + _WIDE / 2}" y="{bottom + 36}" text-anchor="middle">{name}</text>')
    return "".join(parts)


def _svg(title: str, width: float, height: float, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f'<rect class="paper" width="{width:.0f}" height="{height:.0f}"/>'
        f'<text x="{_LEFT}" y="18">{escape(title)}</text>{body}</svg>\n'
    )


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]
