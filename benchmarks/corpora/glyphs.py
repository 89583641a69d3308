"""Letters in the wild: 12 classes of rendered 32x32 colour images, 20,000 to train on and 4,000 to test.

A letter is a few strokes. It is turned, sheared, stretched, scaled and moved; drawn in a colour over a background of
two blended colours and strokes that belong to no letter; covered in part by broad strokes; lit from one side; and taken
with a noisy camera. Everything follows from the seed of the split: the same images in every process and on every
machine with the same release of torch. Nothing is downloaded; about ten seconds on one core.

    nce-fx rewrite resnet20 --data benchmarks.glyphs:glyphs --retrain 10 --out result
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Generator, Tensor

from nce_fx.data import Data
from nce_fx.data.images import Images, ShiftedImages

SIDE = 32
TRAIN_IMAGES, TEST_IMAGES = 20_000, 4_000
TRAIN_SEED, TEST_SEED = 1, 2
CHUNK = 500
"""Images drawn at once: what fits the cache, and part of the definition, for each chunk has its own seed."""

Between = Callable[..., Tensor]
"""(low, high, *shape) -> numbers drawn evenly, (N, *shape)."""

STROKES = {
    "A": ((-0.8, 1, 0, -1), (0, -1, 0.8, 1), (-0.5, 0.3, 0.5, 0.3)),
    "E": ((-0.7, -1, -0.7, 1), (-0.7, -1, 0.7, -1), (-0.7, 0, 0.5, 0), (-0.7, 1, 0.7, 1)),
    "F": ((-0.7, -1, -0.7, 1), (-0.7, -1, 0.7, -1), (-0.7, 0, 0.5, 0)),
    "H": ((-0.7, -1, -0.7, 1), (0.7, -1, 0.7, 1), (-0.7, 0, 0.7, 0)),
    "K": ((-0.7, -1, -0.7, 1), (0.7, -1, -0.7, 0.1), (-0.2, -0.3, 0.7, 1)),
    "M": ((-0.8, 1, -0.8, -1), (-0.8, -1, 0, 0.3), (0, 0.3, 0.8, -1), (0.8, -1, 0.8, 1)),
    "N": ((-0.7, 1, -0.7, -1), (-0.7, -1, 0.7, 1), (0.7, 1, 0.7, -1)),
    "P": ((-0.7, 1, -0.7, -1), (-0.7, -1, 0.6, -0.9), (0.6, -0.9, 0.6, 0), (0.6, 0, -0.7, 0.1)),
    "R": ((-0.7, 1, -0.7, -1), (-0.7, -1, 0.6, -0.9), (0.6, -0.9, 0.6, 0), (0.6, 0, -0.7, 0.1), (0, 0.1, 0.7, 1)),
    "T": ((-0.8, -1, 0.8, -1), (0, -1, 0, 1)),
    "X": ((-0.7, -1, 0.7, 1), (0.7, -1, -0.7, 1)),
    "Y": ((-0.8, -1, 0, 0), (0.8, -1, 0, 0), (0, 0, 0, 1)),
}  # fmt: skip
"""Letter -> strokes (x0, y0, x1, y1) in a square from -1 to 1, y downwards."""


@dataclass(frozen=True)
class Difficulty:
    """How hard the images are; lengths in pixels, angles in radians."""

    turn: float = 0.35
    shear: float = 0.2
    smallest: float = 8.0
    largest: float = 12.0
    """Half the height of a letter."""
    stretch: float = 0.25
    clutter: int = 3
    """Strokes behind the letter."""
    covers: int = 0
    """Broad strokes over the letter."""
    contrast: float = 0.5
    """The least distance of the letter's colour from the background's, in RGB from 0 to 1."""
    noise: float = 0.05


@cache
def glyphs() -> Data:
    """Return the data; training moves images by up to two pixels."""
    train_pixels, train_labels = render(TRAIN_IMAGES, TRAIN_SEED)
    test_pixels, test_labels = render(TEST_IMAGES, TEST_SEED)
    deviation, mean = torch.std_mean(train_pixels.float(), dim=(0, 2, 3))
    train = Images(train_pixels, train_labels, mean.tolist(), deviation.tolist())
    return Data(
        name="glyphs",
        train=train,
        test=Images(test_pixels, test_labels, mean.tolist(), deviation.tolist()),
        input_shape=(3, SIDE, SIDE),
        classes=len(STROKES),
        augmented=partial(ShiftedImages, train, 2, False),
    )


def render(count: int, seed: int, difficulty: Difficulty | None = None) -> tuple[Tensor, Tensor]:
    """Return uint8 pixels (count, 3, 32, 32) and labels (count,), each class as often as any other."""
    asked = difficulty or Difficulty()
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(count) % len(STROKES))[torch.randperm(count, generator=generator)]
    pixels = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    for start in range(0, count, CHUNK):
        drawn = _draw(labels[start : start + CHUNK], asked, generator)
        pixels[start : start + CHUNK] = (drawn * 255).round().to(torch.uint8)
    return pixels, labels


def _draw(labels: Tensor, asked: Difficulty, generator: Generator) -> Tensor:
    """Return images (N, 3, 32, 32) from 0 to 1."""
    n = len(labels)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    colours = between(0, 1, 2, 3)
    ramp = _ramp(between(0, 2 * math.pi))
    image = colours[:, 0, :, None] + (colours[:, 1] - colours[:, 0])[:, :, None] * ramp[:, None]
    for _ in range(asked.clutter):
        where, reach = between(0, SIDE, 1, 2), between(-9, 9, 1, 2)
        image = _paint(image, torch.cat([where - reach, where + reach], 2), between(0.5, 1.6), between(0, 1, 3))
    image = _paint(image, _posed(labels, asked, between), between(0.9, 1.7), _apart(colours, asked.contrast, between))
    for _ in range(asked.covers):
        where, reach = between(6, SIDE - 6, 1, 2), between(-6, 6, 1, 2)
        image = _paint(image, torch.cat([where - reach, where + reach], 2), between(1.5, 3.0), between(0, 1, 3))
    light = 1 + between(0, 0.6, 1, 1) * (_ramp(between(0, 2 * math.pi))[:, None] - 0.5)
    image = image * light * between(0.6, 1.1, 1, 1)
    image = image + asked.noise * torch.randn(image.shape, generator=generator)
    return image.clamp(0, 1).view(n, 3, SIDE, SIDE)


def _posed(labels: Tensor, asked: Difficulty, between: Between) -> Tensor:
    """Return the strokes of letters in pixels, (N, S, 4): a letter with fewer strokes repeats its last one."""
    most = max(map(len, STROKES.values()))
    table = torch.tensor([[*strokes, *[strokes[-1]] * (most - len(strokes))] for strokes in STROKES.values()])
    points = table[labels].view(len(labels), most * 2, 2)
    turn, shear = between(-asked.turn, asked.turn), between(-asked.shear, asked.shear)
    size = between(asked.smallest, asked.largest)
    wide, high = size * between(1 - asked.stretch, 1), size * between(1 - asked.stretch, 1)
    cos, sin = turn.cos(), turn.sin()
    # Rotation after shear after stretch.
    matrix = torch.stack([cos * wide, (cos * shear - sin) * high, sin * wide, (sin * shear + cos) * high], 1)
    room = (SIDE / 2 - size)[:, None, None]
    centre = SIDE / 2 + room * between(-1, 1, 1, 2)
    return (points @ matrix.view(-1, 2, 2).transpose(1, 2) + centre).view(len(labels), most, 4)


def _apart(colours: Tensor, contrast: float, between: Between) -> Tensor:
    """Return one colour (N, 3) for each image: of three drawn, the first that is far from both of the background's."""
    drawn = between(0, 1, 3, 3)
    distance = torch.cdist(drawn, colours).amin(2)
    chosen = torch.where((distance >= contrast).any(1), (distance >= contrast).int().argmax(1), distance.argmax(1))
    return drawn[torch.arange(len(drawn)), chosen]


def _paint(image: Tensor, strokes: Tensor, width: Tensor, colour: Tensor) -> Tensor:
    """Return images (N, 3, P) with strokes (N, S, 4) over them, of half ``width`` (N,) and ``colour`` (N, 3)."""
    start, along = strokes[:, :, None, :2], strokes[:, :, None, 2:] - strokes[:, :, None, :2]
    place = _grid() - start
    share = ((place * along).sum(3) / along.square().sum(3).clamp_min(1e-6)).clamp(0, 1)
    distance = (place - share[..., None] * along).square().sum(3).amin(1).sqrt()
    covered = (width[:, None] - distance + 0.5).clamp(0, 1)[:, None]
    return image + covered * (colour[:, :, None] - image)


def _ramp(angle: Tensor) -> Tensor:
    """Return ramps (N, P) from about 0 to about 1 across the image in the directions ``angle`` (N,)."""
    centred = _grid() / SIDE - 0.5
    return 0.5 + (centred[:, 0] * angle.cos()[:, None] + centred[:, 1] * angle.sin()[:, None]) / math.sqrt(2)


@cache
def _grid() -> Tensor:
    """Return the (x, y) of every pixel's centre, (P, 2)."""
    line = torch.arange(SIDE) + 0.5
    return torch.cartesian_prod(line, line).flip(1)
