"""Images a second that training is given from a folder of JPEGs, beside torchvision's own loader.

    python -m benchmarks.images [--images 512] [--workers 2]      prints a table and writes images.json

A folder is made of JPEGs of 500x375 smooth noise, which have the size of ImageNet's files, and removed again. Both
loaders decode, crop 8 % to 100 % of the area to 224x224, mirror and normalise, in batches of 64 shuffled images, with
as many worker processes. They take turns; a figure is the median over the rounds. Images a second of the clock depend
on what else runs; those of a second of the processors, workers included, hardly do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import tests.torchvision_operators  # noqa: F401
from benchmarks import pages
from nce_fx.data import load_data
from nce_fx.data.image_folder import DEVIATION, MEAN

RESULTS = pages.RESULTS / "images.json"
SIZE, BATCH = 224, 64


def make(folder: Path, count: int) -> None:
    """Write so many JPEGs of two classes; an eighth of them to test on."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for number in range(count + count // 8):
        coarse = torch.rand(1, 3, 24, 32, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (375, 500), mode="bicubic").clamp(0, 1)
        grain = 0.08 * torch.randn(1, 3, 375, 500, generator=generator)
        pixels = (smooth + grain).clamp(0, 1).mul(255).byte()[0].permute(1, 2, 0).numpy()
        place = folder / ("train" if number < count else "val") / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.jpg", quality=90)


def ours(folder: Path, workers: int) -> Callable[[], Iterable[Any]]:
    """Return what training loads from."""
    data = replace(load_data(f"imagefolder:{folder}"), workers=workers)
    return lambda: data.loader("train", batch_size=BATCH)


def torchvisions(folder: Path, workers: int) -> Callable[[], Iterable[Any]]:
    """Return the loader of torchvision's training reference."""
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    steps = [
        T.RandomResizedCrop(SIZE, antialias=True),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize(MEAN, DEVIATION),
    ]
    data = ImageFolder(str(folder / "train"), T.Compose(steps))
    return lambda: DataLoader(data, BATCH, shuffle=True, num_workers=workers)


def processors() -> float:
    """Seconds of this process and of those that it waited for."""
    taken = os.times()
    return taken.user + taken.system + taken.children_user + taken.children_system


def measure(count: int, workers: int, rounds: int) -> dict[str, dict[str, float]]:
    """Read the folder in turns."""
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), count)
        loaders = {"nce-fx": ours(Path(name), workers), "torchvision": torchvisions(Path(name), workers)}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
        for turn in range(rounds + 1):
            for who, loader in loaders.items():
                begin = time.perf_counter(), processors()
                read = sum(len(target) for _, target in loader())
                assert read == count
                if turn:
                    found[who].append((count / (time.perf_counter() - begin[0]), count / (processors() - begin[1])))
    kinds = ("a second", "a processor's second")
    return {
        who: {kind: round(statistics.median(row[at] for row in rows), 1) for at, kind in enumerate(kinds)}
        for who, rows in found.items()
    }


def main() -> None:
    """Measure, print, and write the JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=512)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    torch.set_num_threads(1)
    results = pages.load(RESULTS)
    results[f"{given.workers} workers"] = measure(given.images, given.workers, given.rounds)
    pages.save(RESULTS, results)
    for who, row in results[f"{given.workers} workers"].items():
        print(who, row)


if __name__ == "__main__":
    main()
