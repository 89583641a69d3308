"""Detection: one object an image, found by a grid of cells; the model returns its losses itself, in a dict.

python examples/tasks/detection.py
nce-fx rewrite examples/tasks/detection.py:Detector --data examples/tasks/detection.py:data \
    --loss own --metric examples/tasks/detection.py:Found --retrain 2
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import nce_fx
from nce_fx.data import load_data
from nce_fx.training import Recipe, train

SIDE, GRID = 32, 4


class Detector(nn.Module):
    """Gives each of 4x4 cells a score and a box; in training also its losses, as torchvision's detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(32, 5, 3, padding=1)

    def forward(self, image: Tensor, box: Tensor) -> dict[str, Tensor]:
        """Return scores (batch, cells) and boxes (batch, 4, cells): middle, height and width, in cells."""
        maps = self.head(self.body(image)).flatten(2)
        scores, boxes = maps[:, 0], maps[:, 1:]
        found = {"scores": scores, "boxes": boxes}
        if not self.training:
            return found
        cell = (box[:, 0].floor() * GRID + box[:, 1].floor()).long()
        there = F.one_hot(cell, GRID * GRID).to(scores.dtype)
        at = (boxes * there[:, None]).sum(2)
        return {
            "loss_score": F.cross_entropy(scores, cell),
            "loss_box": F.smooth_l1_loss(at, box),
            **found,
        }


class Found:
    """The share of objects whose best box overlaps them by a half: counted as torchmetrics' metrics are."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was seen."""
        self.right = self.seen = 0

    def update(self, output: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        """Look at a batch; the target is what the model was given, by name."""
        best = output["scores"].argmax(1)
        boxes = output["boxes"].gather(2, best[:, None, None].expand(-1, 4, 1)).squeeze(2)
        self.right += int((_overlap(boxes, target["box"]) > 0.5).sum())
        self.seen += len(boxes)

    def compute(self) -> float:
        """Return the share."""
        return self.right / self.seen


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    low = torch.maximum(a[:, :2] - a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = torch.minimum(a[:, :2] + a[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    both = (high - low).clamp(min=0).prod(1)
    return both / (a[:, 2:].clamp(min=0).prod(1) + b[:, 2:].prod(1) - both)


class _Named(Dataset[dict[str, Tensor]]):
    def __init__(self, images: Tensor, boxes: Tensor) -> None:
        self.images, self.boxes = images, boxes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "box": self.boxes[index]}


def data() -> tuple[_Named, _Named]:
    """Return images of a bright rectangle each, with its box, as dicts by the names of the model's inputs."""
    generator = torch.Generator().manual_seed(0)
    images = 0.1 * torch.randn(640, 1, SIDE, SIDE, generator=generator)
    sides = torch.randint(8, 17, (640, 2), generator=generator)
    corners = (torch.rand(640, 2, generator=generator) * (SIDE - sides)).floor().long()
    for image, (y, x), (h, w) in zip(images, corners.tolist(), sides.tolist(), strict=True):
        image[:, y : y + h, x : x + w] += 1
    boxes = torch.cat([corners + sides / 2, sides], 1) * GRID / SIDE
    return _Named(images[:512], boxes[:512]), _Named(images[512:], boxes[512:])


def main(epochs: int = 5) -> None:
    """Train in float, rewrite at 4 bits, train again, and print how many objects are found."""
    torch.manual_seed(0)
    boxes, recipe = load_data(f"{__file__}:data"), Recipe(epochs=epochs, batch_size=32, learning_rate=0.05)
    trained = train(Detector(), boxes, recipe, loss="own", metric=Found())
    batches = boxes.batches(4, 32)
    result = nce_fx.rewrite(
        trained.model.eval(),
        batches[0],
        batches=batches,
        loss="own",
        spec=nce_fx.QuantSpec(weight_bits=4, activation_bits=4),
    )
    again = train(result.graph_module, boxes, recipe, loss="own", metric=Found(), teacher=result.original)
    print(f"objects found: float {trained.score:.2%}, 4 bits {again.score:.2%}")


if __name__ == "__main__":
    main()
