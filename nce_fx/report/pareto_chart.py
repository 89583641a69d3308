"""The Pareto front of a sweep as an SVG picture: predicted noise against MACs and against parameters."""

from collections.abc import Sequence
from html import escape

from nce_fx.line_chart import grid, picture
from nce_fx.report.tables import thousands
from nce_fx.sweep import SweepPoint

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP, _BOTTOM = 380, 280, 60, 40, 90, 60
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1d2430}.soft{fill:#667085}.axis{stroke:#98a2b3}"
    ".grid{stroke:#e3e7ee}.front{fill:none;stroke:#2f8f5b;stroke-width:2}.point{fill:#2f8f5b}"
    ".bound{fill:none;stroke:#98a2b3;stroke-dasharray:4 4}.paper{fill:#fff}"
)


def front_svg(points: Sequence[SweepPoint], title: str) -> str:
    """Return two panels side by side; the line is the plans, the dashes what no plan can go below."""
    macs, params = ([float(point.cost[name]) for point in points] for name in ("macs", "params"))
    width = 2 * (_LEFT + _WIDTH) + _GAP
    height = _TOP + _HEIGHT + _BOTTOM
    right = 2 * _LEFT + _WIDTH + 30
    body = (_panel(points, macs, "MACs", _LEFT), _panel(points, params, "parameters", right))
    return picture(width, height, title, _STYLE, body)


def _panel(points: Sequence[SweepPoint], costs: Sequence[float], name: str, left: int) -> str:
    most_noise = max(max(point.noise for point in points), 1.0) * 1.05
    low, high = min(costs), max(costs)
    span = (high - low) or 1.0

    def at(cost: float, noise: float) -> str:
        x = left + (cost - low) / span * _WIDTH
        return f"{x:.1f},{_TOP + _HEIGHT - noise / most_noise * _HEIGHT:.1f}"

    parts = grid(left, left + _WIDTH, _TOP, _HEIGHT, most_noise)
    bottom = _TOP + _HEIGHT
    parts.append(f'<line class="axis" x1="{left}" x2="{left + _WIDTH}" y1="{bottom}" y2="{bottom}"/>')
    for cost, anchor, x in ((low, "start", left), (high, "end", left + _WIDTH)):
        parts.append(f'<text class="soft" x="{x}" y="{bottom + 20}" text-anchor="{anchor}">{thousands(cost)}</text>')
    parts.append(f'<text x="{left + _WIDTH / 2}" y="{bottom + 42}" text-anchor="middle">{name}</text>')
    ordered = sorted(zip(costs, points, strict=True), key=lambda pair: pair[0])
    bound = " ".join(at(cost, point.bound) for cost, point in ordered)
    front = " ".join(at(cost, point.noise) for cost, point in ordered)
    parts.append(f'<polyline class="bound" points="{bound}"/><polyline class="front" points="{front}"/>')
    for cost, point in ordered:
        across, down = at(cost, point.noise).split(",")
        hint = f"{point.budget:g}x: noise {point.noise:.3f}, {thousands(cost)} {name}"
        parts.append(f'<circle class="point" cx="{across}" cy="{down}" r="3.5"><title>{escape(hint)}</title></circle>')
    return "".join(parts)
