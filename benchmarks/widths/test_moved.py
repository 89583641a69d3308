"""The data set of networks of moved widths: what is trained, and what is made of it."""

import json
import math

import numpy as np
import pytest
from benchmarks.moved_page import Networks, ceiling, climbed, left_out_of_surface, objectives, text, told

from benchmarks import moved


@pytest.mark.long
def test_networks_of_every_kind_are_trained_and_a_run_that_stopped_goes_on(tmp_path, monkeypatch, capsys):
    for name, value in {"DRAWS": 2, "CAPACITIES": (0.0,), "REGIONS": ((0.5, 1.5),), "RATIOS": (0.5,)}.items():
        monkeypatch.setattr(moved, name, value)
    monkeypatch.setattr(moved, "HELD_OUT", 100)
    monkeypatch.setattr(moved, "UNIFORM_SEEDS", 2)
    monkeypatch.setattr(moved, "WORK", tmp_path / "work")
    monkeypatch.setattr(moved, "singles", lambda bench: list(singles(bench))[:1])
    out = tmp_path / "networks.csv"
    command = ["--study", "digits-resnet8", "--images", "64", "--float-epochs", "0", "--epochs", "0", "--out", str(out)]
    moved.main(command)
    rows = list(moved.read(out).values())
    assert {row["kind"] for row in rows[2:]} == {"random", "plan", "one"}
    assert [(row["kind"], row["seed"]) for row in rows[:2]] == [("uniform", "0"), ("uniform", "1")]
    own = rows[0]
    for row in rows:
        if row["kind"] != "one":
            assert all(int(row[name]) <= int(own[name]) for name in ("macs", "params", "bit_ops", "weight_bytes"))
        assert 0 <= float(row["held_out_accuracy"]) <= 1
        assert float(row["test_loss"]) > 0
    assert len({row["widths"] for row in rows}) == len(rows) - 1
    known = json.loads(out.with_suffix(".json").read_text())[own["network"]]
    assert {group: known[group]["width"] for group in known}.items() <= json.loads(own["widths"]).items()
    # What is missing is trained again, to the same numbers.
    whole = out.read_text().splitlines(keepends=True)
    out.write_text("".join(whole[:-1]))
    moved.main(command)
    again = out.read_text().splitlines(keepends=True)
    assert again[:-1] == whole[:-1]
    timed = moved.COLUMNS.index("seconds") - len(moved.COLUMNS)
    first, second = (lines[-1].strip().split(",") for lines in (whole, again))
    assert first[:timed] == second[:timed]


singles = moved.singles


def pretended(count: int) -> Networks:
    """Networks of three groups, whose losses are the planner's noise and a seed's."""
    generator, rows = np.random.default_rng(0), []
    known = {
        group: {"width": 16, "noise": noise, "macs": 1.0, "params": 1.0}
        for group, noise in (("a", 4.0), ("b", 1.0), ("c", 1.0))
    }
    for k in range(count):
        widths = {group: 16 if k < 4 else int(generator.integers(8, 32)) for group in known}
        noise = sum(known[group]["noise"] * 16 / widths[group] for group in known) / 6
        loss = 0.5 + 0.1 * noise + generator.normal(0, 0.005)
        row = {"kind": "random" if k > 3 else "uniform", "widths": json.dumps(widths), "seed": str(k)}
        row |= {"held_out_loss": str(loss), "test_loss": str(loss), "images": "9", "data": "d", "epochs": "1"}
        rows.append(row | {"held_out_accuracy": "0.5", "test_accuracy": "0.5", "float_epochs": "1"})
    return Networks(rows, known)


def test_what_explains_the_losses_is_told_from_what_does_not():
    networks = pretended(40)
    assert len(networks.rows) == 37
    assert math.sqrt(networks.noise) == pytest.approx(0.005, rel=0.7)
    explained, ranked = told(networks.objective(0.0), networks.losses)
    assert explained > 0.9
    assert ranked > 0.9
    assert told(networks.objective(1.0), networks.losses)[0] < explained
    assert told(np.random.default_rng(0).normal(size=37), networks.losses)[0] < 0.1
    assert 0.9 < ceiling(networks) < 1
    left = left_out_of_surface(networks.points, networks.losses)
    assert np.corrcoef(left, networks.losses)[0, 1] > 0.9
    assert "| capacity alone |" in "\n".join(objectives(networks))
    assert "40 trained networks of 37 widths" in "\n".join(text("net", networks))


def test_the_best_of_a_surface_is_held_against_uniform_seed_by_seed():
    def row(kind: str, seed: int, accuracy: float, epochs: int = 1) -> dict[str, str]:
        told = {"kind": kind, "seed": str(seed), "test_accuracy": str(accuracy), "images": "9", "float_epochs": "1"}
        return told | {"epochs": str(epochs)}

    rows = [row("uniform", 0, 0.1), row("uniform", 1, 0.5), row("uniform", 2, 0.6), row("random", 1, 0.9)]
    assert climbed(rows) == []
    rows += [row("surface", 1, 0.52), row("surface", 2, 0.64), row("surface", 3, 0.1), row("surface", 1, 0, 2)]
    assert climbed(rows)[2:] == ["| 9, 1 in float and 1 at 2 bits | 55.00 % | 58.00 % | +3.00 | 0.205 | 2 |"]
