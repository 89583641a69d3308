"""The one door: python -m benchmarks list | run NAME [OPTIONS] | pages

`list` names every measurement with its first line, `run` runs one, `pages` writes each page and table of docs/ anew
from the committed results, measuring nothing.
"""

from __future__ import annotations

import ast
import importlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import SUBJECTS

HERE = Path(__file__).parent


def main(arguments: list[str]) -> None:
    """Do what the first argument says."""
    found = dict(commands())
    match arguments:
        case ["list"]:
            for name, path in found.items():
                print(f"{path.parent.name + '/' + name:32s} {first_line(path)}")
        case ["run", name, *options] if name in found:
            sys.argv = [f"benchmarks {name}", *options]
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        case ["run", name, *_]:
            raise SystemExit(f"no benchmark is called {name!r}: python -m benchmarks list names them")
        case ["pages"]:
            for name, path in found.items():
                if "def write_page(" in path.read_text():
                    print(name, file=sys.stderr)
                    package = ".__main__" if path.name == "__main__.py" else ""
                    importlib.import_module(f"benchmarks.{name}{package}").write_page()
        case _:
            raise SystemExit(f"usage: {(__doc__ or '').splitlines()[0].partition(': ')[2]}")


def commands() -> Iterator[tuple[str, Path]]:
    """Yield the name and the file of each measurement: what can be run."""
    for folder in SUBJECTS:
        for path in sorted((HERE / folder).glob("*.py")):
            if '__name__ == "__main__"' in path.read_text():
                yield path.stem, path
    yield "evidence", HERE / "evidence" / "__main__.py"


def first_line(path: Path) -> str:
    """Return what the module says of itself first."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


if __name__ == "__main__":
    main(sys.argv[1:])
