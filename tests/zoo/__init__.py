"""One tiny model for every pattern that the channel analysis must know: what it must find free, what it must pin."""

from __future__ import annotations

from tests.zoo import (
    arithmetic,
    attention,
    concat,
    convolutions,
    gates,
    interfaces,
    modes,
    normalization,
    places,
    recurrent,
    residual,
    sharing,
    splitting,
    text,
    transformers,
    traps,
)
from tests.zoo.model import ZooModel, randomize

_THEMES = (
    residual,
    concat,
    splitting,
    convolutions,
    gates,
    normalization,
    places,
    sharing,
    interfaces,
    modes,
    attention,
    transformers,
    text,
    recurrent,
    arithmetic,
    traps,
)

ZOO: dict[str, ZooModel] = {name: model for theme in _THEMES for name, model in theme.MODELS.items()}
"""Name of the pattern -> model."""

__all__ = ["ZOO", "ZooModel", "randomize"]
