"""The package stands on straight floors: no import runs upward, and no files import each other in a circle."""

import doctest

import networkx as nx
import pytest

from tests.floors import ON_NO_FLOOR, PAGE, PLACES, files, floor_of, imports, page, picture


def test_every_file_stands_on_a_floor():
    assert {name for name in files() if floor_of(name) < 0} == ON_NO_FLOOR & files().keys()


def test_every_floor_is_of_files_that_are_there():
    assert not PLACES.keys() - files().keys()


def test_no_import_runs_upward():
    """One inside a function, or for types alone, is one as well."""
    upward = {(a, b) for a, b in imports().edges if -1 < floor_of(a) < floor_of(b)}
    assert not upward


def test_nobody_imports_what_stands_on_no_floor():
    """But for the version, and the command line, which shows the package as people see it."""
    inside = [(a, b) for a, b in imports().edges if floor_of(b) < 0 and floor_of(a) >= 0]
    assert not inside


@pytest.mark.long
def test_no_files_import_each_other_in_a_circle():
    circles = [sorted(circle) for circle in nx.strongly_connected_components(imports()) if len(circle) > 1]
    assert not circles


def test_the_picture_is_of_the_code():
    """To make it anew: ``python -m tests.floors``."""
    assert PAGE.read_text() == page(picture())


def test_what_the_page_shows_is_what_happens():
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert tried > 10
    assert not failed
