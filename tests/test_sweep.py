"""Plans along a range of budgets: more budget never promises less, points keep theirs, files say the same."""

import csv
import json
import xml.etree.ElementTree as ET

import pytest
import torch
from typer.testing import CliRunner

from nce_fx.cli import app
from nce_fx.errors import BudgetError, InputError
from nce_fx.models import MODELS
from nce_fx.rewrite import analyze
from nce_fx.sweep import POINTS, ratios_of, sweep


@pytest.fixture(scope="module")
def analyses():
    torch.manual_seed(0)
    return analyze(MODELS["resnet8"]().eval(), (torch.randn(1, 3, 16, 16),))


def test_every_point_is_within_its_budget_and_above_its_bound(analyses):
    found = sweep(analyses, (0.6, 1.0, 1.4))
    assert [point.budget for point in found.points] == [0.6, 1.0, 1.4]
    for point in found.points:
        assert point.cost["macs"] <= point.budget * analyses.cost.total.macs
        assert point.cost["params"] <= point.budget * analyses.cost.total.params
        assert point.bound <= point.noise
    noises = [point.noise for point in found.points]
    assert noises == sorted(noises, reverse=True)
    assert found.points[1].noise <= 1.0


def test_budgets_without_a_plan_are_reported(analyses):
    found = sweep(analyses, (0.001, 1.0))
    assert [ratio for ratio, _ in found.refused] == [0.001]
    with pytest.raises(BudgetError, match="least"):
        sweep(analyses, (0.001,))


def test_ranges():
    ratios = ratios_of("0.6x..2.0x")
    assert len(ratios) == POINTS
    assert (ratios[0], ratios[-1]) == (0.6, 2.0)
    for wrong in ("2.0x", "2x..1x", "a..b", "0..1", "1x..20x"):
        with pytest.raises(InputError, match=r"0\.6x\.\.2\.0x"):
            ratios_of(wrong)


def test_the_command_writes_a_table_and_a_picture(tmp_path):
    result = CliRunner().invoke(app, ["rewrite", "resnet8", "--sweep", "0.8x..1.2x", "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    points = json.loads(result.stdout)["sweep"]
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["noise"]) for row in rows] == [point["noise"] for point in points]
    circles = ET.parse(tmp_path / "sweep.svg").getroot().findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 2 * len(points)
    assert (
        CliRunner().invoke(app, ["rewrite", "resnet8", "--sweep", "0.8x..1.2x", "--out", str(tmp_path)]).exit_code == 1
    )
