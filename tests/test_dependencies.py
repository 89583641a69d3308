"""What the package imports is what pyproject.toml says it needs, and the other way round."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import nce_fx

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def one_name(requirement: str) -> str:
    """``torch`` of ``torch>=2.13``."""
    return re.split(r"[<>=~!\[; ]", requirement)[0]


def names_of(requirements: list[str]) -> set[str]:
    return {one_name(text).lower().replace("_", "-") for text in requirements}


NEEDED = names_of(PROJECT["dependencies"])
# Extras that a user installs; `test` is for those who change the package.
EXTRA = {
    name for extra, texts in PROJECT["optional-dependencies"].items() if extra != "test" for name in names_of(texts)
}


def imported() -> dict[str, set[str]]:
    """Distribution -> the files that import it; inside functions and under TYPE_CHECKING, too."""
    found: dict[str, set[str]] = {}
    known = packages_distributions()
    for file in Path(nce_fx.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [str(node.module)]
            for module in modules:
                top = module.partition(".")[0]
                if top == "nce_fx" or top in sys.stdlib_module_names:
                    continue
                for name in known.get(top, [top]):
                    found.setdefault(name.lower().replace("_", "-"), set()).add(file.name)
    return found


def test_what_is_imported_is_declared():
    missing = {name: sorted(files) for name, files in imported().items() if name not in NEEDED | EXTRA}
    assert not missing


def test_what_is_declared_is_imported():
    # Not imported by these names: torchvision's parts, and onnxscript, which torch.onnx needs.
    by_name = {"torchvision", "pillow", "onnxscript"}
    assert not (NEEDED | EXTRA) - set(imported()) - by_name


def test_constraints_name_a_version_of_each():
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert pinned >= NEEDED | EXTRA


def test_the_table_in_the_docs_is_of_these():
    text = (ROOT / "docs" / "dependencies.md").read_text()
    always, extra, work = (
        [row[1:].split("|") for row in part.splitlines() if row.startswith("| ") and not row.startswith("| package")]
        for part in text.split("\n## ")[1:]
    )
    assert [row[0].strip() for row in always] == [one_name(text) for text in PROJECT["dependencies"]]
    extras = {(one_name(text), name) for name, texts in EXTRAS.items() if name != "test" for text in texts}
    assert {(row[0].strip(), row[1].strip(" `")) for row in extra} == extras
    assert {name for row in work for name in row[0].strip().split(", ")} == {one_name(text) for text in EXTRAS["test"]}
