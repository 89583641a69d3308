"""Progress: what long steps say of themselves, and how a terminal shows it."""

import io
import re

import pytest
import torch
from torch import nn

import nce_fx
from nce_fx.cli.console import PlainConsole
from nce_fx.cli.terminal import Terminal
from nce_fx.progress import advance, begin, counted, watched


class Watcher:
    """Everything that was said, step by step."""

    def __init__(self) -> None:
        self.steps: dict[str, list[tuple[int, int]]] = {}

    def begin(self, name: str) -> None:
        self.steps.setdefault(name, [])

    def advance(self, done: int, total: int) -> None:
        list(self.steps.values())[-1].append((done, total))

    def watching(self):
        return watched(self.begin, self.advance)


def test_inside_a_loop_that_is_counted_nothing_is_told():
    seen = Watcher()
    with seen.watching():
        begin("outside")
        for _ in counted("ab"):
            begin("inside")
            advance(1, 7)
            assert list(counted("xyz")) == ["x", "y", "z"]
        advance(3, 7)
    assert seen.steps == {"outside": [(1, 2), (2, 2), (3, 7)]}


def test_a_loop_that_is_left_early_is_over():
    seen = Watcher()
    with seen.watching():
        begin("first")
        for _ in counted("abc"):
            break
        begin("second")
        with pytest.raises(ZeroDivisionError):
            [1 / at for at in counted([1, 0])]
        begin("third")
    assert list(seen.steps) == ["first", "second", "third"]


def test_nobody_watches():
    begin("a step")
    advance(1, 2)
    assert list(counted("abc")) == ["a", "b", "c"]
    seen = Watcher()
    with seen.watching(), watched(None, None):
        begin("a step")
    assert list(seen.steps) == ["a step"]


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    return net, (torch.randn(2, 3, 8, 8),), [(torch.randn(4, 3, 8, 8), torch.randint(0, 2, (4, 2, 2)))] * 3


def test_the_steps_of_a_rewrite_count_what_they_go_through(small):
    net, example, batches = small
    seen = Watcher()
    nce_fx.rewrite(
        net, example, batches=batches, end_bits="plan", observe=seen.begin, progress=seen.advance, metric="fisher"
    )
    assert seen.steps["analyze sensitivity"][-1] == (3, 3)
    assert seen.steps["plan the bits of the ends"] == [(done, 10) for done in range(1, 11)]


def test_an_export_counts_its_comparisons(small, tmp_path):
    net, example, batches = small
    gm = nce_fx.quantize(nce_fx.trace(net, example), batches=batches)
    seen = Watcher()
    with seen.watching():
        nce_fx.export_onnx(gm, tmp_path / "net.onnx", format="integer")
    assert list(seen.steps) == ["write the graph as ONNX", "compare with PyTorch"]
    assert seen.steps["compare with PyTorch"][-1][0] == seen.steps["compare with PyTorch"][-1][1]


@pytest.mark.parametrize("width", [40, 100])
def test_a_terminal_shows_how_much_time_is_left_where_that_is_known(width):
    now, shown = [0.0], io.StringIO()
    notes = PlainConsole(file=shown, width=width, force_terminal=True, no_color=True, get_time=lambda: now[0])
    with Terminal(False, notes, notes).steps() as steps:
        begin("analyze sensitivity")
        steps.bars.refresh()
        assert "left" not in shown.getvalue()
        for done in counted(range(8)):
            now[0] += 10
            if done == 4:
                steps.bars.refresh()
        begin("plan")
        now[0] += 3
    text = shown.getvalue()
    assert "0:00:40 left" in text
    last = text.rpartition("analyze")[2]
    assert "left" not in last
    assert "0:01:20" in last
    assert "1/1" not in last
    assert max(len(line) for line in re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "\n", text).splitlines()) <= width


def test_what_nobody_can_foretell_shows_its_name_and_how_long_it_has_taken():
    now, shown = [0.0], io.StringIO()
    notes = PlainConsole(file=shown, width=40, force_terminal=True, no_color=True, get_time=lambda: now[0])
    with Terminal(False, notes, notes).busy("write result"):
        now[0] += 70
    assert re.search(r"write result +0:01:10", shown.getvalue())
    piped = PlainConsole(file=(nothing := io.StringIO()), force_terminal=False)
    with Terminal(False, piped, piped).busy("write result"):
        pass
    assert nothing.getvalue() == ""


@pytest.mark.parametrize("how", [{"force_terminal": False}, {"force_terminal": True, "quiet": True}])
def test_nothing_moves_where_nobody_looks(how):
    shown = io.StringIO()
    notes = PlainConsole(file=shown, width=80, no_color=True, **how)
    with Terminal(False, notes, notes).steps():
        begin("trace")
        list(counted(range(8)))
        assert shown.getvalue() == ""
    assert "\x1b" not in shown.getvalue()
    assert shown.getvalue().count("\n") == ("quiet" not in how)
