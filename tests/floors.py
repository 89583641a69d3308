"""Which file of the package imports which, and on which floor each stands: imports go down, or stay on their floor."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import networkx as nx

import nce_fx

ROOT = Path(nce_fx.__file__).parent


def files() -> dict[str, Path]:
    """Return every module of the package by its dotted name; ``nce_fx`` itself shows names, and stands on no floor."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("nce_fx", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> nx.DiGraph:
    """Return an edge for each import from file to file: inside functions and under TYPE_CHECKING as well."""
    known = files()
    graph = nx.DiGraph()
    graph.add_nodes_from(known)
    for name, path in known.items():
        for target in _imported(ast.parse(path.read_text()), known):
            if target != name:
                graph.add_edge(name, target)
    return graph


def _imported(source: ast.Module, known: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "nce_fx":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module


_ANALYSIS, _TRANSFORM = "passes.analysis", "passes.transform"
_CHANNELS = f"{_ANALYSIS}.channels"

_BOXES: tuple[dict[str, tuple[str, ...]], ...] = (
    {
        "foundations": (
            "arguments",
            "batches",
            "by_mode",
            "callables",
            "copying",
            "devices",
            "errors",
            "plain_table",
            "up_to_date",
            "plain_text",
            "executor",
            "files",
            "frozen",
            "line_chart",
            "nearest",
            "paths",
            "pickling",
            "plan",
            "launcher",
            "processes",
            "progress",
            "random_state",
            "registry",
            "signature",
            "tensor_file",
            "traced",
            "validated",
            "version",
        )
    },
    {
        "data": ("data",),
        "tasks": ("tasks",),
        "models": ("models",),
        "quantizers": ("quantizers",),
        "ids": ("ids",),
    },
    {"operations": ("custom", "ops")},
    {"tracing": ("tracing",), "pipeline": ("pipeline",)},
    {"channels": (_CHANNELS,)},
    {"transform": (_TRANSFORM,)},
    {
        "cost": (
            "quantities",
            *(f"{_ANALYSIS}.{x}" for x in ("cost", "cost_model", "cost_terms", "hardware", "polynomial")),
        )
    },
    {"sensitivity": (f"{_ANALYSIS}.sensitivity",)},
    {"planning": ("passes.planning", "passes.by_name")},
    {"training": ("training",), "records": ("report.records",)},
    {
        "rewrite": ("analyses", "candidates", "comparison", "end_bits", "rewrite", "sweep", "trial"),
        "search": ("search",),
    },
    {"report": ("report",)},
    {"artifacts": ("artifacts",), "export": ("export",)},
    {"command line": ("cli", "__main__")},
)
"""The floors from the ground up, and the boxes on each with the files and folders that are in them."""

PLACES = {
    f"nce_fx.{name}": (floor, box)
    for floor, boxes in enumerate(_BOXES)
    for box, names in boxes.items()
    for name in names
}
"""The floor and the box of a file or folder; what is in a folder stands with it, unless it has a place of its own."""

ON_NO_FLOOR = {"nce_fx", "nce_fx.passes", "nce_fx.passes.analysis"}
"""They hold names or nothing, and are imported by nobody inside."""


def place_of(name: str) -> tuple[int, str]:
    """Return the floor and the box of a module; -1 where it has none."""
    owners = [prefix for prefix in PLACES if name == prefix or name.startswith(f"{prefix}.")]
    return PLACES[max(owners, key=len)] if owners else (-1, "")


def floor_of(name: str) -> int:
    """Return the floor that a module stands on; -1 for none."""
    return place_of(name)[0]


PAGE = ROOT.parent / "docs" / "architecture.md"
_BEGIN, _END = "<!-- floors -->\n", "<!-- /floors -->"


def picture() -> str:
    """Return the boxes of the floors and what imports what, as a diagram in Mermaid."""
    needs = nx.DiGraph()
    needs.add_edges_from((place_of(a), place_of(b)) for a, b in imports().edges if floor_of(a) > floor_of(b) >= 0)
    lines = ["```mermaid", "flowchart TD"]
    for floor, boxes in reversed(list(enumerate(_BOXES))):
        lines.append(f'  subgraph floor{floor}["floor {floor}"]')
        lines += [f'    {_id(box)}["{box}"]' for box in boxes]
        lines.append("  end")
    least = sorted(nx.transitive_reduction(needs).edges)
    lines += [f"  {_id(a)} --> {_id(b)}" for (_, a), (_, b) in least]
    return "\n".join([*lines, "```"]) + "\n"


def _id(box: str) -> str:
    return box.replace(" ", "_")


def page(picture: str) -> str:
    """Return the page on the architecture with this picture in it."""
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    return before + _BEGIN + picture + _END + rest.partition(_END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(picture()))
