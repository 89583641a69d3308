"""Mutants are faults, each alone, in the place that they name; benchmarks.mutants runs the tests on them."""

from benchmarks.mutations import functions_that_differ, mutants_of, tree_of

SOURCE = '''
"""A module."""
from typing import TYPE_CHECKING
LIMIT: int | None = 3

def outer(x: int | float = 2) -> int:
    """Do it."""
    if x < LIMIT and not x:
        raise ValueError(f"{x - 1} is too small")
    return [(lambda y: y + 1)(k) for k in range(4)]

class Box:
    size = True
    def grow(self):
        self.size -= 7
'''


def code_of(tree):
    return compile(tree, "m.py", "exec", dont_inherit=True)


def test_each_mutant_is_one_fault_in_the_function_that_it_names(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(SOURCE)
    found = {}
    for mutant in mutants_of(path):
        differ = functions_that_differ(code_of(SOURCE), code_of(tree_of(mutant)))
        names = None if differ is None else [was.co_qualname for was, _ in differ]
        found[mutant.operator, mutant.was, mutant.became] = mutant.line, mutant.statement, names
    raised = "raise ValueError(f'{x - 1} is too small')"
    listed = "[(lambda y: y + 1)(k) for k in range(4)]"
    inner = ["outer", "outer.<locals>.<listcomp>", "outer.<locals>.<listcomp>.<lambda>"]
    assert found == {
        ("number", "3", "4"): (4, 4, None),
        ("number", "2", "3"): (6, 6, None),
        ("and, or", "x < LIMIT and (not x)", "x < LIMIT or not x"): (8, 8, ["outer"]),
        ("comparison", "x < LIMIT", "x <= LIMIT"): (8, 8, ["outer"]),
        ("not, minus", "not x", "x"): (8, 8, ["outer"]),
        ("left out", raised, "pass"): (9, 9, ["outer"]),
        ("returned", f"return {listed}", "return None"): (10, 10, ["outer"]),
        ("arithmetic", "y + 1", "y - 1"): (10, 10, inner),
        ("number", "1", "2"): (10, 10, inner),
        ("number", "4", "5"): (10, 10, ["outer"]),
        ("truth", "True", "False"): (13, 13, None),
        ("arithmetic", "self.size -= 7", "self.size += 7"): (15, 15, ["Box.grow"]),
        ("number", "7", "8"): (15, 15, ["Box.grow"]),
    }
