"""The study of training: its rows, and that a run goes on where another one stopped."""

import csv

import benchmarks.training as training
import pytest


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_a_study_writes_a_row_a_method_and_goes_on_where_it_stopped(tmp_path, capsys):
    out = tmp_path / "training.csv"
    options = ["--data", "digits", "--networks", "resnet20", "--seeds", "1", "--images", "64", "--float-epochs", "1"]
    options += ["--epochs", "1", "--out", str(out), "--methods"]
    training.main([*options, "pact + sawb", "seq"])
    assert [(row["method"], row["data"]) for row in rows(out)] == [
        ("float", "digits, 1 + 1 epochs"), ("pact + sawb", "digits, 1 + 1 epochs"), ("seq", "digits, 1 + 1 epochs"),
    ]  # fmt: skip
    before = out.read_text()
    training.main([*options, "pact + sawb", "seq"])
    assert out.read_text() == before
    training.main([*options, "ewgs", "best", "straight-through, shortcuts of 8 bits, rate 0.05"])
    found = rows(out)
    assert [row["method"] for row in found[3:]] == ["ewgs", "best", "straight-through, shortcuts of 8 bits, rate 0.05"]
    assert all(0 <= float(row["accuracy"]) <= 1 for row in found)
    assert all(0 <= float(row["moved"]) <= 1 for row in found[1:5])
    assert "| resnet20, digits, 1 + 1 epochs | seq |" in capsys.readouterr().out


@pytest.mark.parametrize("name", training.NETWORKS)
def test_every_network_of_the_study_is_built_for_grey_images(name):
    import torch

    if name == "vit":
        pytest.importorskip("torchvision")
    model = training.NETWORKS[name](10, 1).eval()
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_every_method_is_a_quantization_and_a_recipe():
    import nce_fx
    from nce_fx.training import Recipe

    for method in training.METHODS.values():
        nce_fx.QuantSpec(**method.spec)
        Recipe.from_dict(method.recipe)
