"""A study: one network on one data set, and how everything in it is trained. A study is a JSON file in recipes/."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

import nce_fx
from benchmarks.evidence.records import OWN_WIDTHS
from nce_fx.errors import InputError
from nce_fx.passes.transform.quantize import PUBLISHED
from nce_fx.search import SearchRecipe
from nce_fx.training import Recipe
from nce_fx.training.recipe import PUBLISHED_TRAINING

RECIPES = Path(__file__).parent.parent / "recipes"
DEFAULT = (
    "fashion-resnet18-default",
    "fashion-resnet18",
    "fashion-resnet18-long",
    "fashion-mobilenet-default",
    "fashion-resnet20-default",
    "fashion-vit-default",
    "fashion-mobilenet",
    "fashion-resnet20",
    "fashion-efficientnet",
    "fashion-vit",
    "digits-resnet18",
    "digits-mobilenet-imagenet",
    "digits-resnet20",
    "digits-mobilenet",
    "digits-resnet8",
    "glyphs-resnet20",
    "glyphs-mobilenet",
)
"""What `python -m benchmarks.evidence` runs when no study is named."""


class Study(BaseModel):
    """Everything that the rows of one network and data set share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    about: str
    """Where the settings come from, for people."""
    network: str
    """How tables name the network."""
    model: str
    """A built-in name or ``module:callable``; it takes ``num_classes`` and ``in_channels`` from the data."""
    model_args: dict[str, Any] = {}
    data: str
    """As for ``--data``; ``cifar10`` and ``imagefolder`` need a folder, which the command line gives."""
    size: int = 224
    """Height and width of the images of an image folder."""
    seeds: int
    float_recipe: dict[str, Any]
    """Of the float network at its own widths, each row's first stage: fields of ``nce_fx.training.Recipe``."""
    retrain: dict[str, Any]
    """Of every 2-bit network, each row's second stage, likewise."""
    images: int | None = None
    """Of the training split, the first so many; all by default."""
    search: dict[str, Any] = {}
    """Fields of ``nce_fx.search.SearchRecipe``."""
    spec: dict[str, Any] = {}
    """Fields of ``nce_fx.QuantSpec``; the published quantizers, 2 bits, first and last layer at 8, by default."""
    start: Literal["float", "scratch"] = "float"
    """What every 2-bit network starts from: the float network trained at its own widths, or its untrained weights."""
    distill: bool = True
    """Whether every 2-bit network is distilled from the float network that it was."""
    budget: float = 1.0
    """What a row may cost of each of ``limits``, as a ratio of the uniform network's."""
    limits: tuple[str, ...] = ("macs", "params", "bit_ops", "weight_bytes")
    """The quantities that no row may cost more of than uniform."""
    metric: str | None = None
    """Of nce-plan's sensitivity; the compiler's default where none is named."""
    capacity: float = 0.0
    """Of nce-plan, see `nce_fx.passes.planning.importance`."""
    streams: float = 1.0
    """Of nce-plan, see `nce_fx.passes.planning.even`."""
    region: tuple[float, float] | None = None
    """How far nce-plan moves widths, as ratios of the factor that all would be narrowed by; as far as the compiler does
    by default."""
    calibration: tuple[int, int] = (8, 64)
    """Batches, and images in each, that sensitivities and the quantizers' first ranges come from."""

    def float_training(self, seed: int, times: int = 1) -> Recipe:
        """Return how a float network is trained, for so many times the epochs."""
        recipe = Recipe.from_dict({**self.float_recipe, "seed": seed})
        return replace(recipe, epochs=times * recipe.epochs)

    def retraining(self, seed: int) -> Recipe:
        """Return how each 2-bit network is trained."""
        return Recipe.from_dict({**PUBLISHED_TRAINING, **self.retrain, "seed": seed})

    def searching(self, seed: int, **changes: Any) -> SearchRecipe:
        """Return how widths are searched."""
        return SearchRecipe.from_dict({**self.search, "seed": seed, **changes})

    def quantizing(self) -> nce_fx.QuantSpec:
        """Return how networks are quantized."""
        return nce_fx.QuantSpec(**{**PUBLISHED, **self.spec})

    def digest(self) -> str:
        """Return eight digits that change when anything that decides a result changes."""
        usual = {"region": None, "streams": 1.0}
        left_out = {"about", "seeds", "name"} | {name for name, value in usual.items() if getattr(self, name) == value}
        return _digest(self.model_dump(mode="json", exclude=left_out) | {"trained": OWN_WIDTHS})

    def float_digest(self) -> str:
        """Return eight digits that change when anything that decides the float network changes."""
        return _digest(
            self.model_dump(mode="json", include={"model", "model_args", "data", "size", "images", "float_recipe"})
        )

    def with_changes(self, changes: Mapping[str, Any]) -> Study:
        """Return the study with fields replaced; a mapping is merged into the mapping that is there.

        Raises:
            InputError: no such field, or a value it cannot have.
        """
        fields = self.model_dump()
        for name, value in changes.items():
            fields[name] = {**fields[name], **value} if isinstance(value, Mapping) else value
        return _checked(fields, self.name)


def load_study(name: str) -> Study:
    """Return the study of a recipe file, by its name in recipes/ or by its path.

    Raises:
        InputError: no such file, or it does not hold a study.
    """
    path = Path(name) if name.endswith(".json") else RECIPES / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in RECIPES.glob("*.json")))
        raise InputError(f"no study {name!r}: there are {known}, and paths to JSON files")
    return _checked({"name": path.stem, **json.loads(path.read_text())}, name)


def _digest(fields: Mapping[str, Any]) -> str:
    kind = fields["data"].partition(":")[0]
    # Where a user keeps a data set decides nothing.
    fields = {**fields, "data": kind} if kind in ("cifar10", "imagefolder") else fields
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def _checked(fields: dict[str, Any], name: str) -> Study:
    try:
        study = Study.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"study {name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    # What can be wrong is found before anything is trained.
    study.float_training(0), study.retraining(0), study.searching(0), study.quantizing()
    return study
