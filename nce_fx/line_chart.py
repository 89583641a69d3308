"""Lines over a common axis as an SVG picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 620, 320, 60, 40, 240, 56
_ROW = 15
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1d2430}.soft{fill:#667085}.name{font-size:11px}.axis{stroke:#98a2b3}"
    ".grid{stroke:#e3e7ee}polyline{fill:none;stroke-width:1.6}.paper{fill:#fff}"
)


@dataclass(frozen=True)
class Line:
    """A named line, and marks with a text each."""

    name: str
    points: tuple[tuple[float, float], ...]
    marks: tuple[tuple[float, float, str], ...] = ()


def lines_svg(lines: Sequence[Line], title: str, axis: str) -> str:
    """Return the picture; names stand at the right, each in its line's colour."""
    every = [point for line in lines for point in (*line.points, *((x, y) for x, y, _ in line.marks))]
    low, high = min((x for x, _ in every), default=0.0), max((x for x, _ in every), default=1.0)
    top = max((y for _, y in every), default=1.0) * 1.05 or 1.0
    height = max(_TOP + _HEIGHT + _BOTTOM, _TOP + _ROW * (len(lines) + 1))
    width = _LEFT + _WIDTH + _RIGHT

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (x - low) / ((high - low) or 1.0) * _WIDTH, _TOP + (1 - y / top) * _HEIGHT

    body = grid(_LEFT, _LEFT + _WIDTH, _TOP, _HEIGHT, top)
    bottom = _TOP + _HEIGHT + 20
    body.append(f'<text class="soft" x="{_LEFT}" y="{bottom}">{low:g}</text>')
    body.append(f'<text class="soft" x="{_LEFT + _WIDTH}" y="{bottom}" text-anchor="end">{high:g}</text>')
    body.append(f'<text x="{_LEFT + _WIDTH / 2}" y="{bottom}" text-anchor="middle">{escape(axis)}</text>')
    order = sorted(range(len(lines)), key=lambda k: -lines[k].points[-1][1] if lines[k].points else 0.0)
    for row, k in enumerate(order):
        line = lines[k]
        colour = f"hsl({round(360 * k / len(lines))},60%,42%)"
        points = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in line.points)
        body.append(f'<polyline stroke="{colour}" points="{points}"><title>{escape(line.name)}</title></polyline>')
        for x, y, text in line.marks:
            across, down = at(x, y)
            hint = f"<title>{escape(text)}</title>"
            body.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3.5" fill="{colour}">{hint}</circle>')
        last = f"{line.points[-1][1]:.2f}" if line.points else ""
        body.append(
            f'<text class="name" x="{_LEFT + _WIDTH + 12}" y="{_TOP + _ROW * (row + 1)}" style="fill:{colour}">'
            f"{last} {escape(line.name[-32:])}</text>"
        )
    return picture(width, height, title, _STYLE, body)


def grid(left: float, right: float, top: float, height: float, most: float) -> list[str]:
    """Return five lines across a picture with what they stand for at the left, 0 at the bottom and ``most`` on top."""
    body = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + height * (1 - share)
        body.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text class="soft" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{share * most:.2f}</text>')
    return body


def picture(width: float, height: float, title: str, style: str, body: Sequence[str]) -> str:
    """Return an SVG picture on white paper with its title above."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<title>{escape(title)}</title><style>{style}</style>"
        f'<rect class="paper" width="{width}" height="{height}"/>'
        f'<text x="{_LEFT}" y="22">{escape(title)}</text>{"".join(body)}</svg>\n'
    )
