"""The page of a result: everything in it as text, nothing in it but text, and alive in a real browser."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from torch import nn
from typer.testing import CliRunner

import nce_fx
from nce_fx import artifacts
from nce_fx.cli import app
from nce_fx.models import MODELS
from nce_fx.plan import WidthPlan
from nce_fx.report.page import page
from nce_fx.report.records import ModelReference, RewriteReport, TrialRecord, TrialRow
from nce_fx.report.view import view_of
from tests.browser import Opened, chromium, needs_browser

HOSTILE = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "{{7*7}}&amp;")
WEB = Path(nce_fx.__file__).parent / "report" / "web"


def vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    net: nn.Module = VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=10
    )
    return net


def hostile() -> nn.Module:
    layers = [(name, nn.Conv2d(4, 4, 3, padding=1)) for name in HOSTILE]
    return nn.Sequential(OrderedDict([("first", nn.Conv2d(3, 4, 3)), *layers]))


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet50": (lambda: MODELS["resnet50"](), 64),
    "mobilenet_v2": (lambda: MODELS["mobilenet_v2"](), 64),
    "vit": (vision_transformer, 32),
    HOSTILE[0]: (hostile, 16),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Result folders by the name of the network, each made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = path = tmp_path_factory.mktemp("page") / "result"
            if name == "resnet8":
                options = ["--data", "digits", "--retrain", "2", "--out", str(path)]
                sweep = CliRunner().invoke(
                    app, ["rewrite", name, *options[:2], "--sweep", "0.8x..1.2x", "--out", str(path)]
                )
                assert sweep.exit_code == 0, sweep.output
                done = CliRunner().invoke(app, ["rewrite", name, *options])
                assert done.exit_code == 0, done.output
            else:
                torch.manual_seed(0)
                build, side = NETS[name]
                result = nce_fx.rewrite(build().eval(), (torch.randn(1, 3, side, side),))
                model = ModelReference(reference=name, args={})
                artifacts.save(
                    result.graph_module, path, report=result.report, model=model, float_model=result.original
                )
        return made[name]

    return folder


def report_of(folder: Path) -> RewriteReport:
    report = artifacts.read_manifest(folder).rewrite
    assert report is not None
    return report


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@needs_browser
@pytest.mark.parametrize("name", ["resnet8", *NETS])
@pytest.mark.long
def test_the_page_says_what_the_report_says(browser, folders, name):
    folder = folders(name)
    opened = Opened(browser, folder / artifacts.PAGE)
    report = report_of(folder)
    assert opened.texts("h1") == [name]
    counted = {quantity: after for quantity, after in report.rewritten if after is not None}
    assert opened.page.locator("#quantities tbody tr").count() == len(counted) >= 4
    for quantity, after in counted.items():
        cells = opened.rows(f"#quantities:has(tr[data-quantity={quantity}])")
        before = getattr(report.original, quantity)
        row = next(row for row in cells if row[1:3] == [f"{before:,}", f"{after:,}"])
        assert row[3] == f"{after / before:.4f}x"
    groups = {row[0]: row for row in opened.rows("#groups")}
    assert list(groups) == [group.id for group in report.groups]
    for group in report.groups:
        row = groups[group.id]
        assert row[3] == str(group.before)
        assert row[4].split()[-1] == str(group.after)
        assert row[7] == (group.pinned or "")
        assert all(producer in row[1] for producer in group.producers)
    names = opened.texts("#names .name")
    assert {layer.name for layer in report.layers} <= set(names)
    assert opened.wrong == []


@needs_browser
@pytest.mark.parametrize("name", ["resnet8", *NETS])
def test_search_and_click(browser, folders, name):
    opened = Opened(browser, folders(name) / artifacts.PAGE)
    report = report_of(folders(name))
    group = next(group for group in report.groups if group.after != group.before or name == HOSTILE[0])
    layer = group.producers[0].removesuffix(".weight")
    opened.page.fill("#search", layer)
    shown = opened.texts("#names li:not([hidden]) .name")
    assert layer in shown
    assert len(shown) < len(opened.texts("#names li"))
    opened.page.press("#search", "Enter")
    assert opened.texts("#details h3") == [shown[0]]

    opened.page.fill("#search", "")
    opened.page.locator("#names button", has=opened.page.get_by_text(layer, exact=True)).first.click()
    assert opened.texts("#details h3") == [layer]
    said = " ".join(opened.texts("#details .verdict"))
    assert str(group.after) in said
    lit = opened.graph("cy.nodes('.lit').map(node => node.id())")
    assert lit
    assert opened.texts("#details figure svg") != []

    # The same by a click on the canvas: another node that is in view.
    opened.page.click("#expand")
    other = opened.graph("cy.nodes('.layer').filter(node => !node.hasClass('picked'))[0].id()")
    opened.act(f"cy.center(cy.getElementById({other!r}))")
    opened.click_node(other)
    assert opened.texts("#details h3") not in ([], [layer])
    assert opened.graph("cy.nodes('.picked').map(node => node.id())") == [other]
    opened.page.press("#canvas", "Escape")
    assert opened.graph("cy.nodes('.lit').length") == 0
    assert opened.wrong == []


@needs_browser
@pytest.mark.long
def test_modules_open_and_close(browser, folders):
    opened = Opened(browser, folders("resnet50") / artifacts.PAGE)
    opened.page.click("#collapse")
    few = opened.graph("cy.nodes().length")
    assert opened.graph("cy.getElementById('module:layer1').nonempty()")
    opened.act("cy.getElementById('module:layer1').emit('dbltap')")
    assert opened.graph("cy.getElementById('module:layer1').hasClass('open')")
    opened.page.click("#expand")
    operations = len(opened.texts("#names li"))
    assert few < operations <= opened.graph("cy.nodes().length")
    assert opened.graph("cy.nodes('.layer, .other').length") == operations
    overlap = opened.graph(
        "cy.nodes('.layer, .other').filter(a => cy.nodes('.layer, .other').some(b => a.id() < b.id() &&"
        " Math.abs(a.position('x') - b.position('x')) < (a.width() + b.width()) / 2 - 1 &&"
        " Math.abs(a.position('y') - b.position('y')) < (a.height() + b.height()) / 2 - 1)).map(a => a.id())"
    )
    assert overlap == []
    assert opened.wrong == []


@needs_browser
def test_modules_open_and_close_without_a_mouse(browser, folders):
    opened = Opened(browser, folders("resnet8") / artifacts.PAGE)
    opened.page.locator("#names button", has=opened.page.get_by_text("layer2.0.conv1", exact=True)).first.press("Enter")
    around = opened.texts("#details .around button")
    assert around
    assert "layer2.0.conv1".startswith(f"{around[0]}.")
    opened.page.locator("#details .around button").first.press("Enter")
    assert opened.texts("#details h3") == around[:1]
    opened.page.get_by_role("button", name="Close this module").press("Enter")
    assert opened.graph(f"cy.getElementById('module:{around[0]}').hasClass('closed')")
    opened.page.get_by_role("button", name="Open this module").press("Enter")
    assert opened.graph(f"cy.getElementById('module:{around[0]}').hasClass('open')")
    assert opened.wrong == []


@needs_browser
def test_the_plan_sorts_and_filters(browser, folders):
    opened = Opened(browser, folders("mobilenet_v2") / artifacts.PAGE)
    report = report_of(folders("mobilenet_v2"))
    opened.page.click("#groups thead th:nth-child(5) button")
    after = [int(row[4].split()[-1]) for row in opened.rows("#groups")]
    assert after == sorted(group.after for group in report.groups)
    assert opened.page.get_attribute("#groups thead th:nth-child(5)", "aria-sort") == "ascending"
    opened.page.click("#groups thead th:nth-child(5) button")
    assert [int(row[4].split()[-1]) for row in opened.rows("#groups")] == after[::-1]
    for kind in ("narrower", "same", "pinned"):
        opened.page.uncheck(f"#kinds input[value={kind}]")
    assert len(opened.texts("#groups tbody tr:not([hidden])")) == report.widened
    opened.page.fill("#filter", "no such layer")
    assert opened.texts("#groups tbody tr:not([hidden])") == []
    assert opened.wrong == []


@needs_browser
def test_colours_by_every_quantity(browser, folders):
    opened = Opened(browser, folders("resnet8") / artifacts.PAGE)
    choices = opened.page.eval_on_selector_all("#colour option", "all => all.map(each => each.value)")
    assert {"sensitivity", "macs", "params", "bit_ops", "channels", "weight_bits"} <= set(choices)
    seen = set()
    for choice in choices:
        opened.page.select_option("#colour", choice)
        seen.add(str(opened.graph("cy.nodes('.layer').map(node => node.style('background-color'))")))
    assert len(seen) > 5
    assert opened.wrong == []


@needs_browser
def test_training_and_budgets_are_drawn(browser, folders):
    opened = Opened(browser, folders("resnet8") / artifacts.PAGE)
    table = artifacts.read_manifest(folders("resnet8")).comparison
    assert table is not None
    rows = opened.rows("#results")
    assert [row[0] for row in rows] == [row.network for row in table.rows]
    assert rows[-1][1] == f"{100 * (table.rows[-1].accuracy or 0):.2f} %"
    captions = " ".join(opened.texts("#curves figcaption"))
    for row in table.rows:
        assert f"{row.network} ends at {100 * (row.accuracy or 0):.2f} %" in captions
    assert len(opened.texts("#curves svg")) >= 3
    ticks = opened.texts("[aria-label='y-axis tick label'] text, [aria-label='x-axis tick label'] text")
    assert ticks
    assert max(map(len, ticks)) <= 46  # A layer's name; a number is shorter.
    assert all(len(tick) <= 7 for tick in ticks if tick.replace(".", "").isdigit())
    assert len(opened.texts("#front svg")) >= 2
    assert opened.wrong == []


@needs_browser
def test_what_was_tried_is_said_and_every_network_has_a_line_of_its_own(browser, folders, tmp_path):
    report = report_of(folders("resnet8"))
    assert report.trial is None
    assert f"not tried beside its own widths: {report.untried}" in (folders("resnet8") / "report.html").read_text()
    rows = (
        TrialRow(candidate="all narrowed by one factor", loss=0.5, float_epochs=1, retrain_float_epochs=7),
        TrialRow(candidate="0.25x to 2x", loss=0.25, float_epochs=0, retrain_float_epochs=0),
    )
    tried = TrialRecord(rows=rows, chosen="0.25x to 2x", float_epochs=0, epochs=4, share=0.25, held_out=240)
    names = ("float", "uniform", "uniform, all at 2 bits", "evenly narrowed", "evenly narrowed, all at 2 bits", "NCE")
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.csv").write_text(f"epoch,loss,moved\n1,{number + 1},0.5\n2,{number},0.25\n")
    gm = nce_fx.trace(MODELS["resnet8"]().eval(), (torch.randn(1, 3, 16, 16),))
    report = report.model_copy(update={"trial": tried, "untried": ""})
    (tmp_path / "page.html").write_text(page(view_of("net", WidthPlan({}, {}, ""), gm, report=report, logs=tmp_path)))
    opened = Opened(browser, tmp_path / "page.html")
    assert opened.rows("#trial") == [
        ["all narrowed by one factor", "1", "0.5000", ""],
        ["0.25x to 2x", "0", "0.2500", "chosen"],
    ]
    assert "4 epochs each" in opened.page.locator(".card", has=opened.page.locator("#trial")).inner_text()
    assert len([title for title in opened.texts("#curves h3") if "oscillation" in title]) == 1
    lines = opened.page.eval_on_selector_all(
        "#curves figure:first-child g[aria-label=line] path",
        "all => all.map(each => each.getAttribute('stroke') ?? each.parentElement.getAttribute('stroke'))",
    )
    assert len(set(lines)) == len(lines) == len(names)
    assert opened.wrong == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault_of_accessibility(browser, folders, scheme):
    opened = Opened(browser, folders("resnet8") / artifacts.PAGE, color_scheme=scheme)
    opened.page.locator("#names button").nth(1).click()
    found = Axe().run(opened.page).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in serious] == []


@needs_browser
def test_light_and_dark_can_be_chosen(browser, folders):
    opened = Opened(browser, folders("resnet8") / artifacts.PAGE, color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = opened.page.evaluate(paper)
    opened.page.click("#theme")
    opened.page.click("#theme")
    assert opened.page.evaluate(paper) != light
    assert opened.page.get_attribute("#theme", "aria-label") == "Colours: dark"
    assert opened.wrong == []


@needs_browser
def test_a_network_without_a_plan_has_a_page(browser, tmp_path):
    gm = nce_fx.trace(MODELS["resnet8"]().eval(), (torch.randn(1, 3, 16, 16),))
    nce_fx.save(nce_fx.quantize(gm), tmp_path / "result")
    opened = Opened(browser, tmp_path / "result" / artifacts.PAGE)
    assert "layer1.0.conv1" in opened.texts("#names .name")
    opened.page.locator("#names button", has_text="layer1.0.conv1").click()
    assert "2 bit" in " ".join(opened.texts("#details dd"))
    assert opened.wrong == []


@needs_browser
@pytest.mark.long
def test_two_thousand_operations(browser, tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return x + self.second(self.first(x).relu())

    gm = nce_fx.trace(nn.Sequential(*(Block() for _ in range(500))).eval(), (torch.randn(1, 4),))
    view = view_of("deep", WidthPlan({}, {}, ""), gm)
    (tmp_path / "page.html").write_text(page(view))
    opened = Opened(browser, tmp_path / "page.html")
    assert len(opened.texts("#names li")) == 2002
    opened.page.click("#expand")
    assert opened.graph("cy.nodes('.layer, .other').length") == 2002
    assert opened.wrong == []


def test_the_page_is_small(folders):
    assert (folders("resnet50") / artifacts.PAGE).stat().st_size < 5_000_000


def test_the_page_is_one_file_without_the_browser_too(folders):
    """What a user names is text: as markup it stands nowhere, also not inside the data."""
    text = (folders(HOSTILE[0]) / artifacts.PAGE).read_text()
    assert text.startswith("<!doctype html>")
    assert "<img" not in text.replace("<img/", "")
    assert text.count("</script>") == 2
    assert "{{7*7}}&amp;amp;" in text
    data = text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert set(HOSTILE) <= {node["name"] for node in json.loads(data)["nodes"]}


def test_the_script_is_built_from_its_sources():
    names = ["package-lock.json", "build.mjs", *(f"src/{path.name}" for path in (WEB / "src").iterdir())]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode() + b"\0" + (WEB / name).read_bytes())
    built = (WEB.parent / "assets" / "page.js").read_text().splitlines()[0]
    assert built == f"/* built from {digest.hexdigest()} */", "run npm ci && npm run build in nce_fx/report/web"
    assert (WEB.parent / "assets" / "page.css").read_text() == (WEB / "src" / "page.css").read_text()
