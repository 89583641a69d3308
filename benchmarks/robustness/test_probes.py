"""Probes say which lines of a function ran and change nothing that it does; mutants are tried with tests by them."""

import pytest
from benchmarks.probes import NAME, Covering, with_probes

SOURCE = '''
LIMIT = 3

def outer(x):
    """Do it."""
    if x < LIMIT:
        return -1
    for y in (
        x,
        x + 1,
    ):
        LIMITS.append(y)
    return ROW(y)

ROW, LIMITS = (
    lambda y:
        y + 1
), []
'''


@pytest.fixture
def module(tmp_path):
    """The module as it runs with its probes, and what each test ran by them."""
    path = tmp_path / "m.py"
    path.write_text(SOURCE)
    covering = Covering.of([path], tmp_path / "map.jsonl")
    covering.hits = bytearray(len(covering.spans))
    names = {NAME: covering.hits}
    exec(with_probes(path, 0)[0], names)
    return path, names, covering


def test_probes_say_which_test_ran_a_line(module):
    path, names, covering = module
    assert names["outer"].__doc__ == "Do it."
    for test, x, seconds, returned in (("a", 2, 2.0, -1), ("b", 5, 1.0, 7), ("b[1]", 4, 0.5, 6)):
        covering.forget()
        assert names["outer"](x) == returned
        covering.keep(test, seconds)
    read = Covering.of([path], covering.log)
    ran = {line: read.tests(path, (line,), 9, set()) for line in range(1, 19)}
    both, low, high = ["b[1]", "a", "b"], ["a"], ["b[1]", "b"]
    assert ran[2] == ran[5] == ran[15] == []
    assert (ran[6], ran[7]) == (both, low)
    assert all(ran[line] == high for line in (8, 9, 10, 12, 13, 17))
    assert read.tests(path, (), 9, set()) == both
    assert read.tests(path, (6,), 1, set()) == ["b[1]"]
    assert read.tests(path, (6,), 9, set(), without=["b[1]"]) == ["b", "a"]
    for _ in range(9):
        read.learn(path, ["b[1]", "a", "b"], "a")
    assert read.tests(path, (6,), 9, set()) == ["a", "b[1]", "b"]


def test_what_a_test_noticed_in_a_file_counts_more_there_and_so_does_a_name_of_the_line(tmp_path):
    covering = Covering(tmp_path / "map.jsonl")
    here, there = tmp_path / "here.py", tmp_path / "there.py"
    covering.spans = [(here, 1, 1), (there, 1, 1)]
    for test in ("test_a.py::relu", "test_b.py::tanh", *(f"test_c.py::other[{number}]" for number in range(60))):
        covering.ran[test], covering.seconds[test] = 0b11, 1.0
    first = {word: covering.tests(here, (1,), 1, {word})[0] for word in ("relu", "tanh")}
    assert first == {"relu": "test_a.py::relu", "tanh": "test_b.py::tanh"}
    for path, order in (
        (here, ["test_a.py::relu", "test_b.py::tanh"]),
        (there, ["test_b.py::tanh", "test_a.py::relu"]),
    ):
        for _ in range(9):
            covering.learn(path, order, order[-1])
    assert covering.tests(here, (1,), 1, set()) == ["test_b.py::tanh"]
    assert covering.tests(there, (1,), 1, set()) == ["test_a.py::relu"]


def test_the_map_of_other_text_is_begun_anew(module):
    path, _, covering = module
    covering.keep("a", 1.0)
    assert Covering.of([path], covering.log).seconds == {"a": 1.0}
    path.write_text(SOURCE + "MORE = 1\n")
    assert Covering.of([path], covering.log).seconds == {}
